"""DCMTK's dcmqrscp: an archive that stores, finds, and refuses what is not in its table of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peer import Peer, program


class Dcmqrscp(Peer):
    """An empty archive."""

    title = "DCMQRSCP"

    def __init__(self, *flags: str) -> None:
        super().__init__()
        self.flags = flags
        self.store = self.folder / "store"

    def command(self) -> Sequence[str]:
        self.store.mkdir(exist_ok=True)
        path = self.folder / "dcmqrscp.cfg"
        path.write_text(
            f"NetworkTCPPort = {self.port}\nMaxPDUSize = 16384\nMaxAssociations = 16\nHostTable BEGIN\nHostTable END\n"
            "VendorTable BEGIN\nVendorTable END\nAETable BEGIN\n"
            f"{self.title} {self.store} RW (200, 1024mb) ANY\nAETable END\n"
        )
        return [program("dcmqrscp"), *self.flags, "-c", str(path)]

    def files(self) -> list[Path]:
        """Every file that it stored, the oldest first."""
        return sorted((path for path in self.store.glob("*") if path.name != "index.dat"), key=_written)


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns
