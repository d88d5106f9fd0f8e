"""The order of writes that makes custody true (R1): a fault at each step, and the kernel's view."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from peer import absent

from gateway.ledger import drafts
from gateway.ledger import spool as spools
from gateway.ledger.drafts import Draft
from gateway.ledger.spool import Spool

ROOT = Path(__file__).parents[2]


class Disk:
    """Stands in front of the calls that make a file durable: writes them down, and fails where it is told.

    Steps are ``write``, ``fsync file``, ``mkdir``, ``fsync root``, ``rename``, ``fsync folder``.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self.broken: set[str] = set()
        self.unlink_fails = False
        self._patch(monkeypatch)

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name in self.broken:
            raise OSError(5, "Input/output error")

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real_write, real_sync, real_folder = os.write, Draft.sync, spools._sync_folder
        real_rename, real_mkdir, real_unlink = os.rename, Path.mkdir, Path.unlink

        def write(file: int, data: bytes) -> int:
            self._step("write")
            return real_write(file, data)

        def sync(draft: Draft) -> None:
            try:
                self._step("fsync file")
            except OSError:
                draft._close()
                raise
            real_sync(draft)

        def folder(path: Path | str) -> None:
            self._step("fsync folder" if re.fullmatch(r"\d{10}", Path(path).name) else "fsync root")
            real_folder(path)

        def rename(path: Path, target: str) -> None:
            self._step("rename")
            real_rename(path, target)

        def mkdir(path: Path, *args: int, **kwargs: bool) -> None:
            self._step("mkdir")
            real_mkdir(path, *args, **kwargs)

        def unlink(path: Path, *, missing_ok: bool = False) -> None:
            if self.unlink_fails:
                raise OSError(30, "Read-only file system")
            real_unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(spools.os, "write", write)
        monkeypatch.setattr(Draft, "sync", sync)
        monkeypatch.setattr(spools, "_sync_folder", folder)
        monkeypatch.setattr(spools.os, "rename", rename)
        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "unlink", unlink)


def draft(spool: Spool, content: bytes = b"bytes") -> Draft:
    made = spool.draft()
    made.write(content)
    return made


def left(spool: Spool) -> list[Path]:
    return [path for path in spool.root.rglob("*") if path.is_file()]


STEPS = ["mkdir", "fsync root", "rename", "fsync file", "fsync folder"]


async def test_a_file_is_durable_before_its_caller_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, the name, their sync, the sync of the folder, in this order and none left out (R1)."""
    spool = Spool(tmp_path / "spool")
    disk = Disk(monkeypatch)
    await spool.commit(draft(spool), ".eml")
    assert disk.steps == ["write", *STEPS]
    disk.steps.clear()
    await spool.commit(draft(spool), ".eml")
    assert disk.steps == ["write", "rename", "fsync file", "fsync folder"]
    spool.close()


@pytest.mark.parametrize("unlink_fails", [False, True], ids=["", "and-unlink"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_disk_that_fails_at_a_step_acknowledges_nothing_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, unlink_fails: bool
) -> None:
    """The caller gets the error, and the next one is served as soon as the disk is well (R1, R5).

    Not even a file that cannot be deleted again ends the thread that serves all others.
    """
    spool = Spool(tmp_path / "spool")
    disk = Disk(monkeypatch)
    disk.broken, disk.unlink_fails = {step}, unlink_fails
    with pytest.raises(OSError, match="Input/output error"):
        await asyncio.wait_for(spool.commit(draft(spool), ".eml"), 10)
    assert bool(left(spool)) == unlink_fails
    disk.broken, disk.unlink_fails = set(), False
    disk.steps.clear()
    key = await asyncio.wait_for(spool.commit(draft(spool), ".eml"), 10)
    assert spool.path(key).read_bytes() == b"bytes"
    # A folder whose own entry was never synced is not taken for durable because it is there.
    assert ("fsync root" in disk.steps) == (step not in {"rename", "fsync file", "fsync folder"})
    spool.close()


async def test_a_write_that_fails_reaches_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk while the message comes in is an error there, or at the commit; nothing is left (R5)."""
    spool = Spool(tmp_path / "spool")
    disk = Disk(monkeypatch)
    disk.broken = {"write"}
    big = spool.draft()
    with pytest.raises(OSError, match="Input/output error"):
        big.write(b"x" * (drafts.SMALL + 1))
    big.discard()
    with pytest.raises(OSError, match="Input/output error"):
        await spool.commit(draft(spool), ".eml")
    assert left(spool) == []
    spool.close()


async def test_one_bad_file_in_a_burst_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that share the sync of their folder do not share their fate before it (R1)."""
    spool = Spool(tmp_path / "spool")
    real: Callable[[Draft], None] = Draft.sync
    bad = draft(spool)

    def sync(one: Draft) -> None:
        real(one)
        if one is bad:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(Draft, "sync", sync)
    good = [draft(spool) for _ in range(3)]
    commits = [spool.commit(one, ".eml") for one in (good[0], bad, good[1], good[2])]
    results = await asyncio.gather(*commits, return_exceptions=True)
    assert [isinstance(one, OSError) for one in results] == [False, True, False, False]
    assert sum(path.is_file() for path in spool.root.rglob("*")) == 3
    spool.close()


ACCEPT = """
import asyncio, sys
from pathlib import Path
from rows import configuration, ENVELOPE
from gateway.ledger.ledger import Ledger, connect
from gateway.ledger.spool import Spool
from gateway.model import Digest
from gateway.stages.receive import Receive

async def main():
    folder = Path(sys.argv[1])
    ledger = Ledger(connect(f"sqlite:///{folder / 'ledger.sqlite'}"))
    spool = Spool(folder / "spool")
    receive = Receive(configuration(folder), ledger, spool, None)
    for number in range(2):
        draft = receive.draft()
        head = b"From: dicom@clinic-a.example\\r\\nMessage-ID: <%d@x>\\r\\n" % number
        draft.write(head + b"\\r\\nbody\\r\\n")
        print("BEGIN", file=sys.stderr, flush=True)
        await receive.accept(ENVELOPE, draft, Digest(draft.size, "0" * 64, str(number) * 64, head))
        print("ACCEPTED", file=sys.stderr, flush=True)
    ledger.close()
    spool.close()

asyncio.run(main())
"""


@pytest.mark.peer
def test_the_kernel_sees_the_syncs_in_the_order_that_custody_needs(tmp_path: Path) -> None:
    """Traced: rename before fsync(file) before fsync(folder) before fdatasync(wal) before anybody says yes (R1)."""
    strace = shutil.which("strace")
    if strace is None:
        absent("strace is not installed")
        return
    trace = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2,write"
    command = [
        strace,
        "-f",
        "-y",
        "-qq",
        "-s",
        "16",
        "-e",
        calls,
        "-o",
        str(trace),
        sys.executable,
        "-c",
        ACCEPT,
        str(tmp_path),
    ]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "peers")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr or "Operation not permitted" in done.stderr:
        absent("strace may not trace here")
    assert done.returncode == 0, done.stderr
    accepted = [part.partition("ACCEPTED")[0] for part in trace.read_text("utf-8", "replace").split("BEGIN")[1:]]
    assert len(accepted) == 2
    for part in accepted:
        steps = [
            name
            for line in part.splitlines()
            for name, pattern in {
                "rename": r"rename\w*\([^)]*/drafts/",
                "fsync file": r"fsync\(\d+<[^>]*/spool/\d{10}/\w+\.eml>",
                "fsync folder": r"fsync\(\d+<[^>]*/spool/\d{10}>",
                "fdatasync wal": r"fdatasync\(\d+<[^>]*/ledger\.sqlite-wal>",
            }.items()
            if re.search(pattern, line) and "resumed" not in line
        ]
        assert steps == ["rename", "fsync file", "fsync folder", "fdatasync wal"], part


async def test_a_large_file_makes_nobody_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are put on disk ahead, beside the batches that small ones share."""
    spool = Spool(tmp_path / "spool")
    begun, go = threading.Event(), threading.Event()
    ahead = Draft.sync_ahead

    def slow(one: Draft) -> None:
        begun.set()
        assert go.wait(10)
        ahead(one)

    monkeypatch.setattr(Draft, "sync_ahead", slow)
    large = draft(spool, b"x" * (2 * drafts.WRITEBACK_EVERY + 1))
    task = asyncio.create_task(spool.commit(large, ".eml"))
    await asyncio.to_thread(begun.wait, 10)
    for _ in range(3):
        assert spool.has(await spool.commit(draft(spool), ".eml"))
    go.set()
    assert spool.path(await task).stat().st_size == 2 * drafts.WRITEBACK_EVERY + 1
    spool.close()


async def test_a_large_file_that_cannot_be_synced_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is kept, and its caller is told (R1)."""
    spool = Spool(tmp_path / "spool")

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    large = draft(spool, b"x" * (drafts.WRITEBACK_EVERY + 1))
    with monkeypatch.context() as patch:
        patch.setattr(spools.os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            await spool.commit(large, ".eml")
    assert left(spool) == []
    spool.close()


async def test_a_draft_that_was_discarded_is_not_committed(tmp_path: Path) -> None:
    """It does not come back as an empty file."""
    spool = Spool(tmp_path / "spool")
    made = draft(spool)
    made.discard()
    with pytest.raises(FileNotFoundError):
        await spool.commit(made, ".eml")
    assert left(spool) == []
    spool.close()


async def test_a_file_that_another_process_wrote_is_committed(tmp_path: Path) -> None:
    """A worker writes by the path of the draft, which nobody wrote here."""
    spool = Spool(tmp_path / "spool")
    made = spool.draft()
    made.path.write_bytes(b"theirs")
    key = await spool.commit(made, ".dcm")
    assert spool.path(key).read_bytes() == b"theirs"
    spool.close()
