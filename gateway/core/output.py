"""Where decoded files go: appended to one output file and hashed on the way.

Hashing leaves the interpreter free, so big blocks are hashed on a second thread while the next ones are decoded.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final

THREAD_PAYS: Final = 128 << 10
"""Bytes from which on handing a block to the hashing thread costs less than hashing it here."""

IN_FLIGHT: Final = 4
"""Blocks that may wait for it."""


class Digests:
    """The sha256 of a file, and of its data set: what "the same instance" means.

    Args:
        data_set: Offset of the data set in the file.
    """

    def __init__(self, data_set: int) -> None:
        self._file = hashlib.sha256()
        self._data = hashlib.sha256()
        self._skip = data_set
        self.threaded = False

    def update(self, block: bytes) -> None:
        """Hash the next block. The first one reaches to the data set at least."""
        self._file.update(block)
        self._data.update(memoryview(block)[self._skip :])
        self._skip = 0

    def result(self) -> tuple[str, str]:
        """Return both in hexadecimal."""
        return self._file.hexdigest(), self._data.hexdigest()


class Output:
    """The file that instances are appended to, written and read by offset.

    Attributes:
        path: Of the file.
        folder: Where it lies, with room for what is unpacked on the way.
        at: Offset behind what was written.

    Args:
        out: A file opened ``w+b``.
        thread: One thread for hashing.
    """

    def __init__(self, out: BinaryIO, thread: ThreadPoolExecutor) -> None:
        self.path = Path(out.name)
        # A file without a name is opened by what /proc calls it, and its folder is not there.
        self.folder = Path(os.path.realpath(out.name)).parent
        self.at = out.seek(0, os.SEEK_END)
        self._out = out
        self._file = out.fileno()
        self._thread = thread
        self._pending: deque[Future[None]] = deque()

    def write(self, block: bytes, digests: Digests) -> None:
        """Append a block and let it be hashed, in the order of the calls."""
        self._hash(block, digests)
        self.put(self.at, (block,))

    def _hash(self, block: bytes, digests: Digests) -> None:
        if len(block) < THREAD_PAYS and not digests.threaded:
            digests.update(block)
            return
        # What follows a block on the thread must follow it there.
        digests.threaded = True
        while len(self._pending) >= IN_FLIGHT:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(digests.update, block))

    def reader(self, start: int) -> Callable[[int, int], bytes]:
        """Return what reads bytes, counted from a place."""
        return lambda offset, size: os.pread(self._file, size, start + offset)

    def reserve(self, size: int) -> None:
        """Leave room before what is written next."""
        self.at += size

    def put(self, at: int, blocks: Iterable[bytes]) -> int:
        """Write over what is there, from a place on, and return where that ends. Nothing of it is hashed."""
        for block in blocks:
            view = memoryview(block)
            while view:
                written = os.pwrite(self._file, view, at)
                at += written
                view = view[written:]
        self.at = max(self.at, at)
        return at

    def drop(self, start: int) -> None:
        """Take back what was written from a place on."""
        os.ftruncate(self._file, start)
        self.at = start

    def finish(self) -> None:
        """Wait until everything is hashed, and leave the file as if it had been written through its own methods."""
        while self._pending:
            self._pending.popleft().result()
        self._out.seek(self.at)
