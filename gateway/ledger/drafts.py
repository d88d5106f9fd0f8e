"""What is written into the spool: a file of its own, or an instance behind others in a segment.

A draft becomes durable by the steps of the spool, which knows its key. Until then it can be discarded at any moment,
and nothing of it is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

WRITEBACK_EVERY: Final = 8 << 20
"""Bytes after which the kernel is asked to start writing, so that the sync at the end is short."""

SMALL: Final = 64 << 10
"""Bytes that a draft keeps in memory: most mails never cost their writer a system call."""

SEGMENT: Final = 64 << 20
"""Bytes of a segment behind which no further instance begins."""


class Draft:
    """A file on its way into the spool: written by one owner, invisible until it is committed.

    Not for several threads at once. Whoever makes a draft commits or discards it. The file appears when the draft
    outgrows ``SMALL``, or is synced; until then another process may write it in our place, by its path.
    """

    start = 0
    """Where in the file it begins."""

    key = ""
    """By which it is reached when it lies under its final name already, in a folder that is synced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.began = time.monotonic()
        self._small = bytearray()
        self._begun = 0
        self._file = -1
        self._discarded = False
        self._kept = False

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Append a block. Raises OSError when the disk refuses it."""
        self.size += len(block)
        if self._file < 0 and self.size <= SMALL:
            self._small += block
            return
        self._flush()
        self._append(block)
        if self.size - self._begun >= WRITEBACK_EVERY:
            self._begin_writeback()

    @property
    def is_large(self) -> bool:
        """Its sync may take long. Of a file that another process wrote nobody knows."""
        return self.size > WRITEBACK_EVERY or not self.size

    def sync_ahead(self) -> None:
        """Put on disk what is there, so that the sync itself is short: others wait for that one."""
        self._flush()
        os.fsync(self._file)

    def begin_sync(self) -> None:
        """Start putting the bytes on disk, without waiting."""
        self._flush()
        if self._begun < self.size:
            self._begin_writeback()

    def sync(self) -> None:
        """Put the bytes on disk and close the file; close may fail on network disks, and then they are not ours."""
        self._flush()
        try:
            os.fsync(self._file)
        finally:
            self._close()

    def read(self, offset: int, size: int) -> bytes:
        """Read back what was written."""
        self._flush()
        return os.pread(self._descriptor, size, self.start + offset)

    def keep(self) -> None:
        """It is durable under its key, and the spool's: whoever wrote it cannot discard it any more."""
        self._kept = True

    def discard(self) -> None:
        """Forget the file. Safe to call at any time, also twice."""
        if self._kept:
            return
        self._discarded = True
        self._small = bytearray()  # not cleared: a write that failed may still hold a view of it
        with contextlib.suppress(OSError):
            self._close()
        unlink(self.path)

    def _flush(self) -> None:
        if self._discarded:
            raise FileNotFoundError(errno.ENOENT, "the draft was discarded")
        self._open()
        if self._small:
            self._append(self._small)
            self._small = bytearray()

    @property
    def _descriptor(self) -> int:
        return self._file

    def _open(self) -> None:
        if self._file < 0:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def _append(self, block: bytes | bytearray | memoryview) -> None:
        _write_all(self._file, block)

    def _begin_writeback(self) -> None:
        # Not posix_fadvise: it would also drop the pages, and the message is read right after it was accepted.
        # Only advice: when it fails, the sync does all the work.
        begun = _Offset(self.start + self._begun)
        _libc.sync_file_range(self._descriptor, begun, _Offset(0), _SYNC_FILE_RANGE_WRITE)
        self._begun = self.size

    def _close(self) -> None:
        descriptor, self._file = self._file, -1
        if descriptor >= 0:
            os.close(descriptor)


class Segment:
    """A file to which one sender's instances are appended, one after another. For one thread, which closes it.

    What is discarded is cut off again: the next instance begins where it began. After a disk has refused a sync nobody
    knows what the file holds from there on, so no further instance begins in it. The last instance may be synced or
    discarded by another thread, that commits for many, after its own thread gave up waiting and closed the file.

    Args:
        key: By which it is reached.
        path: Of the file, which is open and empty.
        file: Its descriptor, owned from here on.
        close: Called once when nothing is appended any more.
    """

    def __init__(self, key: str, path: Path, file: int, close: Callable[[Segment], None]) -> None:
        self.key = key
        self.path = path
        self.file = file
        self.broken = False
        self._on_close = close
        self._lock = threading.Lock()
        self._last: Slice | None = None

    @property
    def end(self) -> int:
        """Where the next instance begins."""
        return 0 if self._last is None else self._last.end

    @property
    def is_full(self) -> bool:
        """No further instance begins here."""
        return self.broken or self.end >= SEGMENT

    def draft(self) -> Slice:
        """Begin an instance behind the last one, which is whole or discarded."""
        self._last = Slice(self, self.end)
        return self._last

    def close(self) -> None:
        """Append nothing any more. A segment that holds nothing is deleted."""
        with self._lock:
            with contextlib.suppress(OSError):  # each instance was synced by itself
                os.close(self.file)
            self.file = -1
            if not self.end:
                unlink(self.path)
        self._on_close(self)

    def sync(self) -> None:
        """Put the bytes on disk, and where they end."""
        with self._lock:
            try:
                if self.file >= 0:
                    os.fdatasync(self.file)
                else:
                    _sync_path(self.path)
            except OSError:
                self.broken = True  # the kernel has dropped what it could not write, and says so only once
                raise

    def cut(self, end: int) -> None:
        """Forget what lies behind an offset."""
        with self._lock, contextlib.suppress(OSError):  # what cannot be cut off is written over
            os.truncate(self.file if self.file >= 0 else self.path, end)


class Slice(Draft):
    """An instance on its way into a segment. It counts as there unless it is discarded."""

    def __init__(self, segment: Segment, start: int) -> None:
        super().__init__(segment.path)
        self.start = start
        self.key = segment.key
        self._segment = segment
        self._written = 0

    @property
    def end(self) -> int:
        """Offset behind its last byte."""
        return self.start + (0 if self._discarded else self.size)

    def sync(self) -> None:
        """Put the bytes on disk, and where they end."""
        self._flush()
        self._segment.sync()

    sync_ahead = sync

    def discard(self) -> None:
        """Cut it off again. Safe to call at any time, also twice."""
        if not self._discarded:
            self._discarded = True
            self._small = bytearray()
            self._segment.cut(self.start)

    @property
    def _descriptor(self) -> int:
        return self._segment.file

    def _open(self) -> None:
        """Nothing: the segment is open."""

    def _append(self, block: bytes | bytearray | memoryview) -> None:
        _write_all_at(self._descriptor, block, self.start + self._written)
        self._written += len(block)


_libc = ctypes.CDLL(None, use_errno=True)
_Offset = ctypes.c_int64
_SYNC_FILE_RANGE_WRITE: Final = 2
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2


def _write_all(descriptor: int, block: bytes | bytearray | memoryview) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]


def _write_all_at(descriptor: int, block: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(block)
    while view:
        size = os.pwrite(descriptor, view, offset)
        offset += size
        view = view[size:]


def punch(file: int, start: int, size: int) -> None:
    """Delete a range of a file, which stays as long as it is.

    Raises:
        OSError: The disk did not let go of it.
    """
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _libc.fallocate(file, mode, _Offset(start), _Offset(size)) == 0:
        return
    zeros = bytes(min(size, 1 << 20))  # a file system that cannot make holes still forgets what was there
    for at in range(start, start + size, len(zeros)):
        _write_all_at(file, zeros[: start + size - at], at)


def unlink(path: Path) -> None:
    """Delete a file, if the disk lets us."""
    # On a disk that has failed, this fails too: then the sweep takes it, and the thread that serves all others lives.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
