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
from gateway.ledger.drafts import Draft, Segment, punch, unlink

SYNCERS: Final = 4
"""Syncs of one batch that wait for the disk at the same time: together they share a commit of the journal."""

MOST_FILES: Final = 64
"""Files of one batch."""

SEGMENT_SUFFIX: Final = ".seg"
"""Ends the key of a segment."""


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
                unlink(path)
                raise
        except OSError:
            self._open.discard(key)
            raise
        return Segment(key, path, file, lambda segment: self._open.discard(segment.key))

    async def commit(self, draft: Draft, suffix: str) -> str:
        """Make a draft durable and return its key. After an error the draft is gone and nothing was kept.

        From then on it cannot be discarded: a row may speak of it also when its writer gave up waiting for the row, or
        was told that there is none. Bytes without a row are swept; a row without bytes is a mail that is lost.

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
        key = await done
        draft.keep()
        return key

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
        wipe(self.root, Scrap(key))

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

    def keys(self, older_than: float) -> Iterator[tuple[str, int]]:
        """For a sweep: keys whose file was last changed before a moment (seconds since the epoch), and their bytes."""
        for folder in self.root.iterdir():
            if folder == self.drafts or not folder.is_dir():
                continue
            for entry in os.scandir(folder):
                key = f"{folder.name}/{entry.name}"
                if key not in self._open and entry.is_file() and (found := entry.stat()).st_mtime < older_than:
                    yield key, found.st_size
            if folder.stat().st_mtime < older_than:
                with contextlib.suppress(OSError):  # not empty, mostly; a commit never goes to an hour that is past
                    folder.rmdir()

    def cut(self, key: str, end: int) -> None:
        """Forget what lies behind an offset of a file that nothing is appended to; behind 0 all of it.

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
                        unlink(self.path(commit.key))
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
        punch(file, scrap.start, scrap.size)
    finally:
        os.close(file)


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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
