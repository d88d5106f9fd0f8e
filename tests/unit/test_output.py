"""Where decoded files go."""

from __future__ import annotations

import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.core.output import IN_FLIGHT, THREAD_PAYS, Digests, Output


@pytest.mark.parametrize("size", [1, THREAD_PAYS])
def test_blocks_are_written_and_hashed_in_order(tmp_path: Path, size: int) -> None:
    """Small and big ones, and small ones behind a big one."""
    blocks = [bytes([n]) * (size if n < IN_FLIGHT * 3 else 1) for n in range(IN_FLIGHT * 3 + 5)]
    with (tmp_path / "out").open("w+b") as out, ThreadPoolExecutor(1) as thread:
        output = Output(out, thread)
        digests = Digests(1)
        for block in blocks:
            output.write(block, digests)
        assert output.reader(len(blocks[0]))(0, 1) == b"\1"
        output.finish()
    whole = b"".join(blocks)
    assert (tmp_path / "out").read_bytes() == whole
    assert digests.result() == (hashlib.sha256(whole).hexdigest(), hashlib.sha256(whole[1:]).hexdigest())


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may take less than it is given."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, bytes(data[:7]), at))
    with (tmp_path / "out").open("w+b") as out, ThreadPoolExecutor(1) as thread:
        output = Output(out, thread)
        output.write(b"twenty bytes of text", Digests(0))
        output.finish()
    assert (tmp_path / "out").read_bytes() == b"twenty bytes of text"


@pytest.mark.parametrize("size", [1, THREAD_PAYS])
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Small block or big."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with (tmp_path / "out").open("w+b") as out, ThreadPoolExecutor(1) as thread:
        output = Output(out, thread)
        with pytest.raises(OSError, match="full"):
            output.write(bytes(size), Digests(0))


def test_what_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    """Not even what the thread still has to write."""
    with (tmp_path / "out").open("w+b") as out, ThreadPoolExecutor(1) as thread:
        output = Output(out, thread)
        output.write(b"kept", Digests(0))
        output.write(bytes(THREAD_PAYS), Digests(0))
        output.drop(4)
        output.finish()
    assert (tmp_path / "out").read_bytes() == b"kept"
