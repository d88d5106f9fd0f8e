"""What every real peer of the tests needs: its program, a free port, a folder, a start that is seen, and an end."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self, TypeVar

import pytest

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""Where programs are looked for: some of them are not on the path of an ordinary user."""


def absent(reason: str) -> None:
    """Skip the test and say why; on the machine that decides (CI=true) a missing peer is a failure instead."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def program(name: str) -> str:
    """The path of a program, or the end of the test that needs it."""
    found = shutil.which(name, path=PATH)
    if found is None:
        absent(f"{name} is not installed: tests/peers/install")
    assert found is not None
    return found


def need_root(why: str) -> None:
    """End a test that only root can run."""
    if os.geteuid() != 0:
        absent(f"only root can {why}")


def _ports() -> Iterator[int]:
    """Go round the ports below those the kernel gives away (32768 up), each test worker in a part of its own.

    A port of the kernel's may be somebody's outgoing connection, or another test's, before the peer it was meant for
    listens, and again while that peer is away.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    begin, size = 12_000 + worker * 2_500, 2_500
    # Another run on this machine, at the same time, most likely begins elsewhere.
    for number in itertools.count(os.getpid()):
        yield begin + number % size


_PORTS = _ports()


def free_port() -> int:
    """A port nobody listens on now; no other test is told it, and no connection takes it by chance."""
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def wait_until(
    condition: Callable[[], object], what: str, seconds: float = 30, *, instead: Callable[[], object] = str
) -> None:
    """Look again and again until something is so; fail the test when it does not come, and say what is ``instead``."""
    deadline = time.monotonic() + seconds
    pause = 0.02
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}\n{instead()}", pytrace=False)
        time.sleep(pause)
        # To look at a gateway costs it and us: what takes long is looked at less often.
        pause = min(pause * 1.3, 0.25)


def answers(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Peer:
    """A program in a folder of its own, on ports of its own, ended by its process id and no other way.

    A context manager. ``stop`` and ``start`` may be called in between: the ports stay the same, so that an outage can
    be played.
    """

    farewell = signal.SIGTERM
    """The signal that ends it in good order."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__.lower()}-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def command(self) -> Sequence[str]:
        """What is started; subclasses say."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What it wants in its environment."""
        return {}

    def ready(self) -> bool:
        """Whether it serves now."""
        return answers(self.port)

    def start(self) -> None:
        """Start it and wait until it serves."""
        assert self.process is None
        command = self.command()
        self._log = (self.folder / "log").open("ab")
        # QUIRK: neither DCMTK nor Orthanc sets TCP_NODELAY unless told: each C-STORE would stall some 40 ms.
        environment = {**os.environ, "PATH": PATH, "TCP_NODELAY": "1"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**environment, **self.environment()},
            cwd=self.folder,
        )
        try:
            wait_until(lambda: self.ended() or self.ready(), f"{type(self).__name__} serves")
            if self.ended():
                pytest.fail(f"{type(self).__name__} ended at once:\n{self.log()[-2000:]}", pytrace=False)
        except BaseException:
            self.stop()
            raise

    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process is None or self.process.poll() is not None

    def stop(self) -> None:
        """End it; nothing happens when it is not running."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(self.farewell)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def log(self) -> str:
        """What it printed so far."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """End it for good, its folder included."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


P = TypeVar("P", bound=Peer)


class Start(Protocol):
    """The fixture ``start``: starts a peer, gives it back, ends it with the test."""

    def __call__(self, peer: P, /) -> P: ...
