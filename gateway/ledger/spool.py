"""The spool: where bytes lie, by key, and the order of writes that makes custody true (R1).

A new file is written under a temporary name, renamed when it is whole, synced, and its folder synced; only then is the
row committed that speaks of it, and only after that commit does anybody say yes. A crash can leave bytes without a row
(never acknowledged, swept by the janitor) but never a row without bytes. The new name comes before the sync of the
file, so that one commit of the file system's journal holds both.

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


class Draft:
    """A file on its way into the spool: written by one owner, invisible until it is committed.

    Not for several threads at once. Whoever makes a draft commits or discards it. The file appears when the draft
    outgrows ``SMALL``, or is synced; until then another process may write it in our place, by its path.
    """

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
        # Not posix_fadvise: it would also drop the pages, and the message is read right after it was accepted.
        # Only advice: when it fails, the sync does all the work.
        _libc.sync_file_range(self._file, _Offset(self._begun), _Offset(0), _SYNC_FILE_RANGE_WRITE)
        self._begun = self.size

    def _close(self) -> None:
        descriptor, self._file = self._file, -1
        if descriptor >= 0:
            os.close(descriptor)


_libc = ctypes.CDLL(None)
_Offset = ctypes.c_int64
_SYNC_FILE_RANGE_WRITE: Final = 2


def _write_all(descriptor: int, block: bytes | bytearray | memoryview) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]


class Commit:
    """A draft that shall become durable, and who waits for it.

    Attributes:
        draft: What was written.
        key: By this its bytes are reached when they are durable.
        error: Why they are not; then they are gone.
        done: For one who waits on a loop.
    """

    def __init__(self, draft: Draft, key: str, done: asyncio.Future[str] | None = None) -> None:
        self.draft = draft
        self.key = key
        self.error: Exception | None = None
        self.done = done
        self._claim = threading.Lock()
        self._settled = threading.Event()

    def claim(self) -> bool:
        """Tell whether the caller is the first who wants to settle it; all others wait."""
        return self._claim.acquire(blocking=False)

    def wait(self) -> None:
        """Wait in a thread until the bytes are durable.

        Raises:
            OSError: The disk did not take them.
        """
        self._settled.wait()
        if self.error is not None:
            raise self.error

    def settle(self) -> None:
        """Let those go on who wait in a thread."""
        self._settled.set()

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
        hour = time.strftime("%Y%m%d%H", time.gmtime())
        return Commit(draft, f"{hour}/{draft.path.name}{suffix}", done)

    def settle(self, commit: Commit) -> None:
        """Make one draft durable, by the first thread that asks; the others wait for it.

        Raises:
            OSError: The disk did not take it; it is gone.
        """
        if commit.claim():
            self._settle([commit])
        commit.wait()

    def path(self, key: str) -> Path:
        """Where the bytes of a key lie. Bytes are reached only this way."""
        return self.root / key

    def has(self, key: str) -> bool:
        """Tell whether the bytes of a key are there."""
        return held_bytes(self.root, key)

    def remove(self, key: str) -> None:
        """Delete the bytes of a key; nothing happens when they are gone already."""
        wipe(self.root, key)

    def remove_all(self, keys: Iterable[str]) -> None:
        """Delete the bytes of several keys."""
        for key in keys:
            self.remove(key)

    def keys(self, older_than: float) -> Iterator[str]:
        """Every key whose file was last changed before a moment (seconds since the epoch): what a sweep looks at."""
        for folder in self.root.iterdir():
            if folder == self.drafts or not folder.is_dir():
                continue
            for entry in os.scandir(folder):
                if entry.is_file() and entry.stat().st_mtime < older_than:
                    yield f"{folder.name}/{entry.name}"
            if folder.stat().st_mtime < older_than:
                with contextlib.suppress(OSError):  # not empty, mostly; a commit never goes to an hour that is past
                    folder.rmdir()

    def free(self) -> int:
        """Bytes that may still be written."""
        return shutil.disk_usage(self.root).free

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
            commit.attempt(self._rename)
        if len(batch) == 1:
            batch[0].attempt(_sync)
        else:
            list(self._syncers.map(lambda commit: commit.attempt(_sync), batch))
        renamed = [commit for commit in batch if commit.error is None]
        for folder in {self.path(commit.key).parent for commit in renamed}:
            try:
                _sync_folder(folder)
            except Exception as error:  # noqa: BLE001  whatever it is, nobody may wait for ever
                for commit in renamed:
                    if self.path(commit.key).parent == folder:
                        _unlink(self.path(commit.key))
                        commit.error = error
        for commit in batch:
            commit.settle()
        waiting = [(commit, commit.done, commit.done.get_loop()) for commit in batch if commit.done is not None]
        for loop in {loop for _, _, loop in waiting}:
            with contextlib.suppress(RuntimeError):  # it is closed: nobody waits, and others still do
                loop.call_soon_threadsafe(_answer, [(commit, done) for commit, done, its in waiting if its is loop])

    def _rename(self, commit: Commit) -> None:
        target = self.path(commit.key)
        # A folder that is there is not yet one that survives a power cut: its sync may have failed.
        if target.parent != self._hour:
            self._make(target.parent)
        try:
            commit.draft.path.rename(target)
        except FileNotFoundError:  # the folder was empty, and the sweep took it
            self._make(target.parent)
            commit.draft.path.rename(target)
        commit.draft.path = target

    def _make(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(self.root)
        self._hour = folder


def held_bytes(root: Path, key: str) -> bool:
    """Tell whether the spool under a folder holds a key, without owning it."""
    return (root / key).is_file()


def wipe(root: Path, key: str) -> None:
    """Delete the bytes of a key in the spool under a folder."""
    (root / key).unlink(missing_ok=True)


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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
