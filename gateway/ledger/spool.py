"""The spool: where bytes lie, by key, and the order of writes that makes custody true (R1).

A new file is written under a temporary name, renamed when it is whole, synced, and its folder synced; only then is the
row committed that speaks of it, and only after that commit does anybody say yes. A crash can leave bytes without a row
(never acknowledged, swept by the janitor) but never a row without bytes. The new name comes before the sync of the
file, so that one commit of the file system's journal holds both.

What one sender sends instance by instance is appended to a *segment*: a file that has its final name, in a synced
folder, before the first byte comes. So an instance costs one sync, no new file, no rename and no sync of a folder. Its
row says where in the segment it lies. Of a segment nothing is deleted but by punching a hole, and the file goes when no
row speaks of it.

Files that are ready at the same moment share their syncs: one thread does them, and what arrives while it works forms
its next batch. In a batch writeback is begun for all files before the first is waited for, so that one commit of the
file system's journal serves all of them, and then their folder is synced once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.errors import LowDiskError
from gateway.ledger.batches import Batches

WRITEBACK_EVERY: Final = 8 << 20
"""Bytes after which the kernel is asked to start writing, so that the sync at the end is short."""

SYNCERS: Final = 4
"""Syncs of one batch that wait for the disk at the same time: together they share a commit of the journal."""

MOST_FILES: Final = 64
"""Files of one batch."""

SMALL: Final = 64 << 10
"""Bytes that a draft keeps in memory: most mails never cost their writer a system call."""

SEGMENT: Final = 64 << 20
"""Bytes of a segment behind which no further instance begins."""

SEGMENT_SUFFIX: Final = ".seg"
"""Ends the key of a segment."""


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

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Append a block. Raises OSError when the disk refuses it."""
        self.size += len(block)
        if self._file < 0 and self.size <= SMALL:
            self._small += block
            return
        self._flush()
        _write_all(self._file, block)
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
        return os.pread(self._file, size, offset)

    @property
    def is_discarded(self) -> bool:
        """It is gone."""
        return self._discarded

    def discard(self) -> None:
        """Forget the file. Safe to call at any time, also twice."""
        self._discarded = True
        self._small = bytearray()  # not cleared: a write that failed may still hold a view of it
        with contextlib.suppress(OSError):
            self._close()
        _unlink(self.path)

    def _flush(self) -> None:
        if self._discarded:
            raise FileNotFoundError(errno.ENOENT, "the draft was discarded")
        if self._file < 0:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if self._small:
            _write_all(self._file, self._small)
            self._small = bytearray()

    def _begin_writeback(self) -> None:
        _begin_writeback(self._file, self._begun)
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
                _unlink(self.path)
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

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Append a block. Raises OSError when the disk refuses it."""
        self.size += len(block)
        if self.size <= SMALL:
            self._small += block
            return
        self._flush(block)
        if self.size - self._begun >= WRITEBACK_EVERY:
            self._begin_writeback()

    def sync(self) -> None:
        """Put the bytes on disk, and where they end."""
        self._flush()
        self._segment.sync()

    sync_ahead = sync

    def read(self, offset: int, size: int) -> bytes:
        """Read back what was written."""
        self._flush()
        return os.pread(self._segment.file, size, self.start + offset)

    def discard(self) -> None:
        """Cut it off again. Safe to call at any time, also twice."""
        if not self._discarded:
            self._discarded = True
            self._small = bytearray()
            self._segment.cut(self.start)

    def _begin_writeback(self) -> None:
        _begin_writeback(self._segment.file, self.start + self._begun)
        self._begun = self.size

    def _flush(self, block: bytes | bytearray | memoryview = b"") -> None:
        if self._discarded:
            raise FileNotFoundError(errno.ENOENT, "the draft was discarded")
        for part in (self._small, block):
            if part:
                _write_all_at(self._segment.file, part, self.start + self._written)
                self._written += len(part)
        if self._small:
            self._small = bytearray()


_libc = ctypes.CDLL(None, use_errno=True)
_Offset = ctypes.c_int64
_SYNC_FILE_RANGE_WRITE: Final = 2
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2


def _begin_writeback(descriptor: int, offset: int) -> None:
    # Not posix_fadvise: it would also drop the pages, and the message is read right after it was accepted.
    # Only advice: when it fails, the sync does all the work.
    _libc.sync_file_range(descriptor, _Offset(offset), _Offset(0), _SYNC_FILE_RANGE_WRITE)


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


@dataclass(frozen=True, slots=True)
class Scrap:
    """Bytes that nobody needs any more.

    Attributes:
        key: Of the file.
        start: Where they begin.
        size: How many they are; None: all of the file.
    """

    key: str
    start: int = 0
    size: int | None = None


class Commit:
    """A draft that shall become durable, and who waits for it.

    Attributes:
        draft: What was written.
        key: By this its bytes are reached when they are durable.
        error: Why they are not; then they are gone.
        done: For one who waits on a loop.
        lock: Held by the thread that settles it for those who wait in threads.
        settled: It is durable, or gone.
    """

    def __init__(self, draft: Draft, key: str, done: asyncio.Future[str] | None = None) -> None:
        self.draft = draft
        self.key = key
        self.error: Exception | None = None
        self.done = done
        self.lock = threading.Lock()
        self.settled = False

    def attempt(self, step: Callable[[Commit], None]) -> None:
        """Take a step, unless one has failed; then the draft is gone."""
        if self.error is None:
            try:
                step(self)
            except Exception as error:  # noqa: BLE001  whatever it is, the thread that serves all others must live
                self.error = error
                self.draft.discard()


def _begin(commit: Commit) -> None:
    commit.draft.begin_sync()


def _sync(commit: Commit) -> None:
    commit.draft.sync()


class Spool:
    """Bytes by key, in local files under one folder.

    A key is ``<hour>/<name>``: the folder of the hour keeps directories small, and lets a burst share one sync.
    Segments that are open are in nobody's way: a sweep does not see them.
    Names are random and say nothing of their content (PRV-1).

    Raises:
        OSError: The folder cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.drafts = root / "drafts"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self.drafts, ignore_errors=True)  # of a former life: never acknowledged
        self.drafts.mkdir(mode=0o700)
        _sync_folder(root.parent)
        _sync_folder(root)
        self._open: set[str] = set()  # keys of segments that may still grow
        self._hour: Path | None = None  # the last folder whose own entry is known to be on disk
        self.capacity = shutil.disk_usage(root).total
        """Bytes of the whole disk, as it was at the start."""
        self._syncers = ThreadPoolExecutor(SYNCERS, thread_name_prefix="spool-sync")
        self._large = ThreadPoolExecutor(SYNCERS, thread_name_prefix="spool-large")
        self._commits: Batches[Commit] = Batches(MOST_FILES)
        self._thread = threading.Thread(target=self._work, name="spool", daemon=True)
        self._thread.start()

    def draft(self) -> Draft:
        """Begin a new file."""
        return Draft(self.drafts / secrets.token_hex(12))

    def segment(self) -> Segment:
        """Begin a segment. Blocks for a sync of its folder.

        Raises:
            OSError: The disk did not take it.
        """
        name = secrets.token_hex(12) + SEGMENT_SUFFIX
        key = f"{_hour()}/{name}"
        path = self.path(key)
        self._see_to(path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._open.add(key)
        try:
            try:
                file = os.open(path, flags, 0o600)
            except FileNotFoundError:  # the folder was empty, and the sweep took it
                self._make(path.parent)
                file = os.open(path, flags, 0o600)
            try:
                _sync_folder(path.parent)
            except OSError:
                os.close(file)
                _unlink(path)
                raise
        except OSError:
            self._open.discard(key)
            raise
        return Segment(key, path, file, lambda segment: self._open.discard(segment.key))

    async def commit(self, draft: Draft, suffix: str) -> str:
        """Make a draft durable and return its key. After an error the draft is gone and nothing was kept.

        Raises:
            OSError: The disk did not take it.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str] = loop.create_future()
        if draft.is_large:
            try:
                await loop.run_in_executor(self._large, draft.sync_ahead)
            except OSError:
                draft.discard()
                raise
        self._commits.put(self.prepare(draft, suffix, done))
        return await done

    def prepare(self, draft: Draft, suffix: str, done: asyncio.Future[str] | None = None) -> Commit:
        """Give a draft its key. Nothing is durable before it is settled."""
        return Commit(draft, draft.key or f"{_hour()}/{draft.path.name}{suffix}", done)

    def settle(self, commit: Commit) -> None:
        """Make one draft durable, by the first thread that asks; the others wait for it.

        Raises:
            OSError: The disk did not take it; it is gone.
        """
        with commit.lock:
            if not commit.settled:
                self._settle([commit])
        if commit.error is not None:
            raise commit.error

    def path(self, key: str) -> Path:
        """Where the bytes of a key lie. Bytes are reached only this way."""
        return self.root / key

    def has(self, key: str) -> bool:
        """Tell whether the bytes of a key are there."""
        return held_bytes(self.root, key)

    def remove(self, key: str) -> None:
        """Delete the bytes of a key; nothing happens when they are gone already."""
        self.path(key).unlink(missing_ok=True)

    def remove_all(self, keys: Iterable[str]) -> None:
        """Delete the bytes of several keys."""
        for key in keys:
            self.remove(key)

    def erase(self, scraps: Iterable[Scrap]) -> None:
        """Delete bytes that nobody needs any more; nothing happens to those that are gone already.

        Raises:
            OSError: The disk did not let go of them.
        """
        for scrap in scraps:
            wipe(self.root, scrap)

    def keys(self, older_than: float) -> Iterator[str]:
        """Every key whose file was last changed before a moment (seconds since the epoch): what a sweep looks at."""
        for folder in self.root.iterdir():
            if folder == self.drafts or not folder.is_dir():
                continue
            for entry in os.scandir(folder):
                key = f"{folder.name}/{entry.name}"
                if key not in self._open and entry.is_file() and entry.stat().st_mtime < older_than:
                    yield key
            if folder.stat().st_mtime < older_than:
                with contextlib.suppress(OSError):  # not empty, mostly; a commit never goes to an hour that is past
                    folder.rmdir()

    def segments(self) -> Iterator[tuple[str, int]]:
        """The key of every segment, and its bytes."""
        for path in self.root.glob(f"*/*{SEGMENT_SUFFIX}"):
            yield f"{path.parent.name}/{path.name}", path.stat().st_size

    def cut(self, key: str, end: int) -> None:
        """Forget what lies behind an offset of a segment that nothing is appended to; a segment of nothing goes.

        Raises:
            OSError: The disk did not let go of it.
        """
        if end:
            os.truncate(self.path(key), end)
        else:
            self.remove(key)

    def free(self) -> int:
        """Bytes that may still be written."""
        disk = os.statvfs(self.root)
        return disk.f_bavail * disk.f_frsize

    def demand(self, floor: int) -> None:
        """Raise LowDiskError when less than ``floor`` bytes are free (R5)."""
        if self.free() < floor:
            raise LowDiskError("the disk under the data folder is nearly full")

    def close(self) -> None:
        """Finish what was handed in and stop."""
        self._commits.close()
        self._thread.join()
        self._syncers.shutdown()
        self._large.shutdown()

    def _work(self) -> None:
        for batch in self._commits:
            self._settle(batch)

    def _settle(self, batch: list[Commit]) -> None:
        for commit in batch:
            commit.attempt(_begin)
        for commit in batch:
            if not commit.draft.key:
                commit.attempt(self._rename)
        if len(batch) == 1:
            batch[0].attempt(_sync)
        else:
            list(self._syncers.map(lambda commit: commit.attempt(_sync), batch))
        renamed = [commit for commit in batch if commit.error is None and not commit.draft.key]
        for folder in {self.path(commit.key).parent for commit in renamed}:
            try:
                _sync_folder(folder)
            except Exception as error:  # noqa: BLE001  whatever it is, nobody may wait for ever
                for commit in renamed:
                    if self.path(commit.key).parent == folder:
                        _unlink(self.path(commit.key))
                        commit.error = error
        for commit in batch:
            commit.settled = True
        waiting = [(commit, commit.done, commit.done.get_loop()) for commit in batch if commit.done is not None]
        for loop in {loop for _, _, loop in waiting}:
            with contextlib.suppress(RuntimeError):  # it is closed: nobody waits, and others still do
                loop.call_soon_threadsafe(_answer, [(commit, done) for commit, done, its in waiting if its is loop])

    def _rename(self, commit: Commit) -> None:
        target = self.path(commit.key)
        self._see_to(target.parent)
        try:
            commit.draft.path.rename(target)
        except FileNotFoundError:  # the folder was empty, and the sweep took it
            self._make(target.parent)
            commit.draft.path.rename(target)
        commit.draft.path = target

    def _see_to(self, folder: Path) -> None:
        # A folder that is there is not yet one that survives a power cut: its sync may have failed.
        if folder != self._hour:
            self._make(folder)

    def _make(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(self.root)
        self._hour = folder


def held_bytes(root: Path, key: str) -> bool:
    """Tell whether the spool under a folder holds a key, without owning it."""
    return (root / key).is_file()


def wipe(root: Path, scrap: Scrap) -> None:
    """Delete bytes that nobody needs from the spool under a folder.

    Of a segment the bytes alone: other rows may speak of the file, and more may be appended to it.

    Raises:
        OSError: The disk did not let go of them.
    """
    path = root / scrap.key
    if scrap.size is None:
        path.unlink(missing_ok=True)
        return
    try:
        file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _punch(file, scrap.start, scrap.size)
    finally:
        os.close(file)


def _punch(file: int, start: int, size: int) -> None:
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _libc.fallocate(file, mode, _Offset(start), _Offset(size)) == 0:
        return
    zeros = bytes(min(size, 1 << 20))  # a file system that cannot make holes still forgets what was there
    for at in range(start, start + size, len(zeros)):
        _write_all_at(file, zeros[: start + size - at], at)


def _hour() -> str:
    return time.strftime("%Y%m%d%H", time.gmtime())


def _answer(commits: list[tuple[Commit, asyncio.Future[str]]]) -> None:
    for commit, done in commits:
        if done.cancelled():
            continue
        if commit.error is None:
            done.set_result(commit.key)
        else:
            done.set_exception(commit.error)


def _unlink(path: Path) -> None:
    # On a disk that has failed, this fails too: then the sweep takes it, and the thread that serves all others lives.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
