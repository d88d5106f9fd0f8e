"""DCMTK's storescp: a Storage SCP that keeps the bytes it is sent, and misbehaves on demand."""

from __future__ import annotations

from collections.abc import Sequence

from peer import Peer, program
from samples import data_set, sop_instance


class Storescp(Peer):
    """A storescp that writes what it receives, bit for bit.

    Args:
        flags: More of its options, as ``--refuse``, ``--abort-after``, ``--sleep-after 2``.
    """

    title = "STORESCP"

    def __init__(self, *flags: str) -> None:
        super().__init__()
        self.flags = flags
        (self.folder / "received").mkdir()

    def command(self) -> Sequence[str]:
        # +xa: every transfer syntax it knows; without --fork one association is served at a time.
        options = ["-aet", self.title, "+B", "+xa", "+uf", "-od", str(self.folder / "received"), "--fork", *self.flags]
        return [program("storescp"), *options, str(self.port)]

    def files(self) -> list[bytes]:
        """Every file it wrote so far."""
        return [path.read_bytes() for path in sorted((self.folder / "received").iterdir())]

    def instances(self) -> dict[str, bytes]:
        """The data set of every instance it has, by SOP Instance UID; a repeated one counts once."""
        return {sop_instance(file): data_set(file) for file in self.files()}
