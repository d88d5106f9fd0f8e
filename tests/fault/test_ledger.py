"""One process owns a data folder, however the one before it ended (R30)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import FolderInUseError, GatewayError
from gateway.ledger.ledger import Lock

HOLD = """
import sys, time
from pathlib import Path
from gateway.ledger.ledger import Lock
lock = Lock(Path(sys.argv[1]))
print("mine", flush=True)
time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout is not None
    assert process.stdout.readline() == b"mine\n"
    process.stdout.close()
    return process


def test_a_second_process_is_refused_with_the_number_of_the_first(tmp_path: Path) -> None:
    """Frozen or not, the first keeps its folder; the kernel gives it back after kill -9 (R30)."""
    folder = tmp_path / "data"
    first = hold(folder)
    try:
        for sign in (signal.SIGSTOP, signal.SIGCONT):
            first.send_signal(sign)
            with pytest.raises(FolderInUseError, match=rf"in use by process {first.pid} ") as caught:
                Lock(folder)
            assert caught.value.exit_code == 1
    finally:
        first.kill()
        first.wait()
    lock = Lock(folder)
    assert (folder / "lock").read_text("ascii") == str(os.getpid())
    with pytest.raises(FolderInUseError, match=rf"process {os.getpid()} "):
        Lock(folder)
    lock.release()
    Lock(folder).release()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    """A file in the way, or nothing that may be written: what it is and what to do (R32)."""
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(GatewayError, match=r"cannot be used: (Not a directory|File exists)") as caught:
        Lock(tmp_path / "data")
    assert "gateway.data" in caught.value.hint


def test_a_full_disk_keeps_nobody_from_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue must drain on a full disk: the number in the lock is for people only (R5)."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    lock = Lock(tmp_path)
    with pytest.raises(FolderInUseError, match="process unknown"):
        Lock(tmp_path)
    lock.release()
