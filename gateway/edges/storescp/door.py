"""Listens for senders, and holds their associations."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import structlog

from gateway.config import StorageSCP
from gateway.core import commitment
from gateway.edges.storescp.association import Association
from gateway.errors import GatewayError
from gateway.ledger.custody import Caller, Received
from gateway.ledger.drafts import Segment

_log = structlog.get_logger(__name__)

T = TypeVar("T")

STRANGERS: Final = 32
"""Connections beside the associations that may wait for their request to be read. The oldest makes way."""

BREATH: Final = 0.5
"""Seconds without accepting after the system had no descriptor or thread for us."""


class Incoming(Protocol):
    """What the door needs of the gateway behind it. The threads of associations call it."""

    def titles(self) -> Collection[str]:
        """AE titles that images may be sent to, beside the door's own."""

    def welcomes(self, caller: Caller) -> bool:
        """Whether images of this caller have somewhere to go."""

    def demand_room(self, size: int) -> None:
        """Raise LowDiskError when an instance of this size (0: unknown) has no room (R5)."""

    def segment(self) -> Segment:
        """Begin a file that the instances of an association are appended to; whoever begins it closes it.

        Raises:
            OSError: The disk did not take it.
        """

    def accept(self, received: Received, patience: float) -> int:
        """Take custody: bytes synced, row committed. Owns the draft from here on, whatever comes of it.

        Returns:
            The DIMSE status of the answer; 0 only when custody is taken.

        Raises:
            TimeoutError: It took longer than that many seconds; custody may be taken yet, or not.
            LowDiskError: There is no room now.
            OSError: The disk did not take it.
            LedgerError: The ledger did not take it.
        """


OnReport = Callable[[commitment.Report], Awaitable[bool]]
"""Takes note of a storage commitment report; tells whether its transaction is one of ours."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long the door waits for its peer, in seconds (R4).

    Attributes:
        handshake: For a TLS handshake.
        request: For the association request (ARTIM, PS3.8 §9.1.5).
        idle: For the next message of an open association.
        silence: For the next bytes of a message that has begun.
        reply: Until the peer has taken our answer.
        custody: For the disk and the ledger; then the association is aborted, and the sender does not know.
        farewell: For the peer to close what is over.
    """

    handshake: float = 30.0
    request: float = 30.0
    idle: float = 600.0
    silence: float = 60.0
    reply: float = 60.0
    custody: float = 120.0
    farewell: float = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one instance may be.

    Attributes:
        instance: Bytes of its file.
        unpacked: Bytes that a deflated data set may inflate to.
    """

    instance: int = 2 << 30
    unpacked: int = 8 << 30


@dataclass(slots=True)
class Counters:
    """What happened at the door since it was made, for the metrics.

    Attributes:
        associations: Associations that were accepted.
        rejected: Associations that were not.
        turned_away: Connections that were closed before a word was said.
        aborted: Associations that did not end with a release.
        stored: Instances that were answered with success.
        bytes: Of those instances' files.
        failures: Instances that were answered with a failure.
        reports: Storage commitment reports that were taken note of.
    """

    associations: int = 0
    rejected: int = 0
    turned_away: int = 0
    aborted: int = 0
    stored: int = 0
    bytes: int = 0
    failures: int = 0
    reports: int = 0


class StorageScpDoor:
    """Listens, and holds the associations.

    Args:
        settings: The section [storescp].
        incoming: The gateway behind the door; None: images are refused, echo and commitment reports are served.
        on_report: Takes note of storage commitment reports; None: their contexts are refused.
        archives: AE titles of our own destinations: they may bring reports, whatever ``callers`` says.
        tls: For every connection; None for plain ones.
        limits: What one instance may be.
        deadlines: How long peers are waited for.
    """

    def __init__(
        self,
        settings: StorageSCP,
        incoming: Incoming | None,
        on_report: OnReport | None = None,
        *,
        archives: Collection[str] = (),
        tls: ssl.SSLContext | None = None,
        limits: Limits = Limits(),
        deadlines: Deadlines = Deadlines(),
    ) -> None:
        self.incoming = incoming
        self.on_report = on_report
        self.deadlines = deadlines
        self.counters = Counters()
        self.reload(settings, archives=archives, tls=tls, limits=limits)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[socket.socket] = []
        self.counting = threading.Lock()
        self._lock = threading.Lock()
        self._connections: dict[Association, bool] = {}  # whether it is an association yet, the oldest first
        self._closing = False
        self._empty = asyncio.Event()

    def reload(
        self,
        settings: StorageSCP,
        *,
        archives: Collection[str] = (),
        tls: ssl.SSLContext | None = None,
        limits: Limits = Limits(),
    ) -> None:
        """Use other settings for associations that begin from now on. Where it listens does not change."""
        self.settings = settings
        self.archives = frozenset(archives)
        self.tls = tls
        self.limits = limits

    async def open(self) -> None:
        """Begin to listen.

        Raises:
            GatewayError: The address cannot be used; nothing is open then.
        """
        self._loop = asyncio.get_running_loop()
        host, port = self.settings.listen
        try:
            for family, _, _, _, address in await self._loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                self._listen(family, address)
        except OSError as error:
            await self.close(0)
            raise GatewayError(f"DICOM cannot listen on {self.settings.listen}: {_why(error)}") from error

    async def close(self, patience: float) -> None:
        """Stop listening, let every association finish the instance it is receiving, and abort it then.

        Args:
            patience: Seconds they may take; what is not finished then is cut off.
        """
        self._closing = True
        self._tell_empty()
        for listener in self._listeners:
            assert self._loop is not None
            if listener.fileno() >= 0:
                self._loop.remove_reader(listener)
                listener.close()
        for each in list(self._connections):
            each.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._empty.wait()
        for each in list(self._connections):
            each.interrupt()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the door listens."""
        return [listener.getsockname()[:2] for listener in self._listeners if listener.fileno() >= 0]

    @property
    def associations(self) -> int:
        """How many are open now."""
        return sum(list(self._connections.values()))

    # What associations ask, each from its thread

    def admit(self, association: Association) -> bool:
        """Count a connection as an association, unless there are too many."""
        with self._lock:
            if sum(self._connections.values()) >= self.settings.associations or self._closing:
                return False
            self._connections[association] = True
            self.counters.associations += 1
            return True

    def forget(self, association: Association) -> None:
        """A connection is gone."""
        with self._lock:
            self._connections.pop(association, None)
        if self._closing and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits
                self._loop.call_soon_threadsafe(self._tell_empty)

    def wait_for(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """Let the loop do something, and wait for it. It is not cancelled when it takes too long.

        Raises:
            TimeoutError: It took too long.
        """
        assert self._loop is not None
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(seconds)

    # Connections

    def _tell_empty(self) -> None:
        if not self._connections:
            self._empty.set()

    def _listen(self, family: int, address: Any) -> None:
        listener = socket.socket(family, socket.SOCK_STREAM)
        self._listeners.append(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(128)
        listener.setblocking(False)
        self._resume(listener)

    def _resume(self, listener: socket.socket) -> None:
        if not self._closing:
            assert self._loop is not None
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, address = listener.accept()
            self._begin(connection, _plain(address[0]))
        except (BlockingIOError, ConnectionError):
            pass  # it went away again
        except (OSError, RuntimeError) as error:
            assert self._loop is not None
            _log.error("storescp-accept-failed", error=type(error).__name__)
            self._loop.remove_reader(listener)
            self._loop.call_later(BREATH, self._resume, listener)

    def _begin(self, connection: socket.socket, peer: str) -> None:
        allowed = self.settings.addresses
        if allowed is not None and not any(ipaddress.ip_address(peer) in network for network in allowed):
            self.counters.turned_away += 1
            connection.close()
            return
        association = Association(self, connection, peer)
        with self._lock:
            strangers = [each for each, accepted in self._connections.items() if not accepted]
            self._connections[association] = False
        if len(strangers) >= STRANGERS:
            self.counters.turned_away += 1
            strangers[0].interrupt()
        try:
            association.start()
        except RuntimeError:
            self.forget(association)
            connection.close()
            raise


def _plain(address: str) -> str:
    """The address of a peer; IPv4 as such, also when it came in through an IPv6 socket."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program uses this port"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return "not permitted"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have this address"
    return type(error).__name__
