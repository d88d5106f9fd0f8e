"""What we tell systemd: that we serve, that we reload, that we stop, and that we are alive (sd_notify(3)).

Each message is one datagram to the socket named by ``$NOTIFY_SOCKET``. Without that variable nobody asked, and nothing
is sent. A message that cannot be sent is dropped: the service is more than its notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable


def ready(status: str = "") -> None:
    """Every door is open, or open again after a reload."""
    notify("READY=1", _status(status))


def reloading() -> None:
    """The configuration is being read again; ``ready`` follows."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """No new work is taken in."""
    notify("STOPPING=1")


def status(text: str) -> None:
    """Say in one line how things are, for ``systemctl status``. No patient data: the journal keeps it."""
    notify(_status(text))


async def beat(alive: Callable[[], bool]) -> None:
    """Tell the watchdog that we live, twice in each of its intervals, for as long as we do.

    It runs on the event loop on purpose: a loop that is stuck sends nothing, and systemd starts us anew.

    Args:
        alive: Asked before each message; while it says no, none is sent.
    """
    interval = _watchdog_seconds()
    while interval is not None:
        if alive():
            notify("WATCHDOG=1")
        await asyncio.sleep(interval / 2)


def notify(*assignments: str) -> bool:
    """Send assignments in one datagram; tell whether somebody was there to take it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    lines = "\n".join(filter(None, assignments))
    if not address or not lines:
        return False
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
    ):
        channel.setblocking(False)
        channel.sendto(lines.encode(), address)
        return True
    return False


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}" if text else ""


def _watchdog_seconds() -> float | None:
    """The interval in which systemd expects a sign of life from this process; None when it expects none."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None
