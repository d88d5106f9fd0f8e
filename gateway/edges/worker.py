"""Worker processes: where hostile content is opened, with its own memory and its own time.

A message may be made to grow or to stall whoever reads it. So reading is done by a process that may use only so much
memory, is ended when it overruns its time, and is replaced when it dies; the gateway itself goes on. The worker
writes into files it is told and answers with values; its answer is unpickled with our own types and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import os
import pickle
import resource
import signal
import struct
import sys
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from gateway.errors import GatewayError, WorkerError

P = ParamSpec("P")
T = TypeVar("T")

_LENGTH: Final = struct.Struct(">Q")
LONGEST_ANSWER: Final = 64 << 20
"""Bytes of one answer: some kilobytes for each of thousands of instances."""

_PR_SET_PDEATHSIG: Final = 1
_PLAIN: Final = frozenset(
    {
        *(("pathlib", name) for name in ("PosixPath", "Path")),
        *(("datetime", name) for name in ("datetime", "timezone", "timedelta")),
    }
)
"""Types of the standard library that are values and nothing else."""


class Workers:
    """A fixed number of worker processes, each doing one piece of work at a time.

    Args:
        count: How many.
        memory: Bytes of address space that each may use beyond what it needs to run.
        seconds: How long one piece of work may take.
    """

    def __init__(self, count: int, *, memory: int, seconds: float) -> None:
        self._count = count
        self._memory = memory
        self._seconds = seconds
        self._idle: asyncio.Queue[_Worker | None] = asyncio.Queue()  # None: a place whose worker is gone
        self._all: set[_Worker] = set()

    async def open(self, *, at_once: bool = True) -> None:
        """Start them, so that the first message does not wait for an interpreter; or each when it is needed."""
        for _ in range(self._count):
            self._idle.put_nowait(await self._start() if at_once else None)

    async def close(self) -> None:
        """End them, busy or not."""
        for worker in list(self._all):
            await self._end(worker)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a module's function in a worker. Arguments and result are pickled.

        Raises:
            WorkerError: It died, or needed more memory or time than it may have.
            OSError: The function could not read or write its files.
            GatewayError: The function said so.
        """
        worker = await self._idle.get()
        try:
            if worker is not None and not worker.alive:
                await self._end(worker)
                worker = None
            worker = worker or await self._start()
            async with asyncio.timeout(self._seconds):
                answer = await worker.call((function.__module__, function.__qualname__, args, kwargs))
        except BaseException as error:
            # The place is free again before anything else can go wrong: without it nobody would ever read (R17).
            self._idle.put_nowait(None)
            if worker is not None:
                await self._end(worker)
            if isinstance(error, TimeoutError):
                raise WorkerError(
                    f"reading took longer than {self._seconds:.0f} s", hint="limits.worker_time"
                ) from None
            if isinstance(error, (EOFError, ConnectionError)):
                raise WorkerError("the worker process died", hint="limits.worker_memory") from None
            raise
        self._idle.put_nowait(worker)
        result: T = _open_answer(answer)
        return result

    async def _start(self) -> _Worker:
        worker = await _Worker.start(self._memory)
        self._all.add(worker)
        return worker

    async def _end(self, worker: _Worker) -> None:
        self._all.discard(worker)
        await worker.end()


class _Worker:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, memory: int) -> _Worker:
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                __spec__.name,
                str(memory),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C at a terminal ends the gateway, and the gateway ends its workers
                limit=1 << 20,
            )
        )

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def call(self, request: tuple[Any, ...]) -> bytes:
        source, sink = self._process.stdout, self._process.stdin
        assert source is not None
        assert sink is not None
        body = pickle.dumps(request)
        sink.write(_LENGTH.pack(len(body)) + body)
        await sink.drain()
        (length,) = _LENGTH.unpack(await source.readexactly(_LENGTH.size))
        if length > LONGEST_ANSWER:
            raise EOFError
        return await source.readexactly(length)

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


class _OwnTypes(pickle.Unpickler):
    """Whatever happened in the worker, it cannot make the gateway call anything but its own types."""

    def find_class(self, module: str, name: str) -> Any:
        """Allow the gateway's own classes, paths, times, and the members of an enumeration."""
        if (module, name) == ("builtins", "getattr"):
            return _member  # how Python 3.11 writes a member of an enumeration
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        # A name with dots, or one that a module has only imported, would lead to everything there is.
        if module.split(".", 1)[0] == "gateway" and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"{module}.{name}")


def _member(kind: Any, name: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind[name]
    raise pickle.UnpicklingError(name)


def _open_answer(answer: bytes) -> Any:
    try:
        kind, value = _OwnTypes(io.BytesIO(answer)).load()
    except Exception as error:  # noqa: BLE001  a damaged answer can raise anything
        raise WorkerError(f"the worker gave no valid answer: {type(error).__name__}") from None
    match kind:
        case "done":
            return value
        case "os-error":
            raise OSError(value, os.strerror(value))
        case "refused":
            raise GatewayError(value)
        case _:
            raise WorkerError(
                f"the worker failed: {value}", hint="limits.worker_memory" if value == "MemoryError" else ""
            )


def _attempt(request: bytes) -> tuple[str, Any]:
    try:
        module, name, args, kwargs = pickle.loads(request)  # noqa: S301  from our own parent, by a private pipe
        return "done", getattr(import_module(module), name)(*args, **kwargs)
    except GatewayError as error:
        return "refused", error.text
    except OSError as error:
        return "os-error", error.errno or 0
    except Exception as error:  # noqa: BLE001  whatever hostile content brings about, the parent decides
        return "failed", type(error).__name__


def _restrict(memory: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a gateway that dies takes its workers along
    used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would be a copy of patient data
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")


def main(memory: int) -> None:
    """Serve requests from standard input until it ends."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a stray print must not look like an answer
    source = sys.stdin.buffer
    import_module("gateway.core.unsealing")
    _restrict(memory)
    while head := source.read(_LENGTH.size):
        (length,) = _LENGTH.unpack(head)
        answer = pickle.dumps(_attempt(source.read(length)))
        sink.write(_LENGTH.pack(len(answer)) + answer)
        sink.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
