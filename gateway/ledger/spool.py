"""The spool: where bytes lie, by key, and the order of writes that makes custody true (R1).

A new file is written under a temporary name, synced, renamed, and its folder synced; only then does the caller write
the row that speaks of it, and only after that commit does anybody say yes. A crash can leave bytes without a row
(never acknowledged, swept by the janitor) but never a row without bytes.

Files that are ready at the same moment share the sync of their folder: one thread does the syncs, and what arrives
while it works forms its next batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gateway.errors import LowDiskError

WRITEBACK_EVERY: Final = 8 << 20
"""Bytes after which the kernel is asked to start writing, so that the sync at the end is short."""


class Draft:
    """A file on its way into the spool: written by one owner, invisible until it is committed.

    Not for several threads at once. Whoever makes a draft commits or discards it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.began = time.monotonic()
        self._unsynced = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Append a block. Raises OSError when the disk refuses it."""
        view = memoryview(block)
        while view:
            written = os.write(self._file, view)
            self.size += written
            self._unsynced += written
            view = view[written:]
        if self._unsynced >= WRITEBACK_EVERY:
            self._unsynced = 0
            # Advice only: it starts writeback without waiting, so that fsync finds little left to do.
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Put the bytes on disk and close the file; close may fail on network disks, and then they are not ours."""
        try:
            os.fsync(self._file)
        finally:
            self._close()

    def discard(self) -> None:
        """Forget the file. Safe to call at any time, also twice."""
        with contextlib.suppress(OSError):
            self._close()
        _unlink(self.path)

    def _close(self) -> None:
        descriptor, self._file = self._file, -1
        if descriptor >= 0:
            os.close(descriptor)


@dataclass(slots=True)
class _Commit:
    draft: Draft
    key: str
    done: asyncio.Future[str]
    loop: asyncio.AbstractEventLoop


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
        self._commits: queue.SimpleQueue[_Commit | None] = queue.SimpleQueue()
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
        hour = datetime.now(UTC).strftime("%Y%m%d%H")
        key = f"{hour}/{draft.path.name}{suffix}"
        self._commits.put(_Commit(draft, key, done, loop))
        return await asyncio.shield(done)

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

    @property
    def capacity(self) -> int:
        """Bytes of the whole disk."""
        return shutil.disk_usage(self.root).total

    def demand(self, floor: int) -> None:
        """Raise LowDiskError when less than ``floor`` bytes are free (R5)."""
        if self.free() < floor:
            raise LowDiskError("the disk under the data folder is nearly full")

    def close(self) -> None:
        """Finish what was handed in and stop."""
        self._commits.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._commits.get()) is not None:
            batch = [first]
            stop = False
            while not self._commits.empty():
                follower = self._commits.get()
                if follower is None:
                    stop = True
                    break
                batch.append(follower)
            self._settle(batch)
            if stop:
                return

    def _settle(self, batch: list[_Commit]) -> None:
        renamed: dict[Path, list[_Commit]] = {}
        for commit in batch:
            try:
                commit.draft.sync()
                target = self.path(commit.key)
                self._demand_folder(target.parent)
                commit.draft.path.rename(target)
            except OSError as error:
                commit.draft.discard()
                _answer(commit, error)
            else:
                renamed.setdefault(target.parent, []).append(commit)
        for folder, commits in renamed.items():
            try:
                _sync_folder(folder)
            except OSError as error:
                for commit in commits:
                    _unlink(self.path(commit.key))
                    _answer(commit, error)
            else:
                for commit in commits:
                    _answer(commit, None)

    def _demand_folder(self, folder: Path) -> None:
        # A folder that is there is not yet one that survives a power cut: its sync may have failed.
        if folder != self._hour or not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(self.root)
            self._hour = folder


def held_bytes(root: Path, key: str) -> bool:
    """Tell whether the spool under a folder holds a key, without owning it."""
    return (root / key).is_file()


def wipe(root: Path, key: str) -> None:
    """Delete the bytes of a key in the spool under a folder."""
    (root / key).unlink(missing_ok=True)


def _answer(commit: _Commit, error: OSError | None) -> None:
    def settle() -> None:
        if commit.done.cancelled():
            return
        if error is None:
            commit.done.set_result(commit.key)
        else:
            commit.done.set_exception(error)

    with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits, and others still do
        commit.loop.call_soon_threadsafe(settle)


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
