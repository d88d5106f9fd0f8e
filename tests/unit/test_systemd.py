"""What systemd is told (sd_notify(3)), heard on a socket of the test."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import watchdog


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket on which systemd listens: in a folder, or in Linux's abstract namespace."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        name = f"{folder}/notify" if request.param == "path" else f"@gateway-test-{os.getpid()}"
        listener.bind(name.replace("@", "\0"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listener


def heard(listener: socket.socket) -> list[str]:
    """Every datagram that came so far."""
    found = []
    while True:
        try:
            found.append(listener.recv(4096).decode())
        except BlockingIOError:
            return found


def test_a_life_is_told(systemd: socket.socket) -> None:
    """Ready, a reload, a status line, the end."""
    watchdog.ready("serves SMTP\non two addresses")
    watchdog.status("idle")
    watchdog.status("")
    watchdog.reloading()
    watchdog.ready()
    watchdog.stopping()
    told = heard(systemd)
    reload, since = told.pop(2).split("\n")
    assert told == ["READY=1\nSTATUS=serves SMTP on two addresses", "STATUS=idle", "READY=1", "STOPPING=1"]
    assert reload == "RELOADING=1"
    assert int(since.removeprefix("MONOTONIC_USEC=")) > 0


async def test_the_beat_stops_while_we_are_not_alive(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign of life twice per interval, and none while the answer is no."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    answers = iter([True, False, True, False])
    ended = asyncio.Event()

    def alive() -> bool:
        try:
            return next(answers)
        except StopIteration:
            ended.set()
            return False

    beat = asyncio.create_task(watchdog.beat(alive))
    await asyncio.wait_for(ended.wait(), 30)
    beat.cancel()
    assert heard(systemd) == ["WATCHDOG=1", "WATCHDOG=1"]


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "2000", "WATCHDOG_PID": "1"}],
)
async def test_without_a_watchdog_there_is_no_beat(
    environment: dict[str, str], systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not asked for, not understood, or meant for another process."""
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    await watchdog.beat(lambda: True)
    assert heard(systemd) == []


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No socket named, or nobody behind it: no error either."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert watchdog.notify("READY=1") is False
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert watchdog.notify("READY=1") is False
