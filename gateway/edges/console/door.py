"""The listener: an HTTP server on our own event loop, that takes no signals and opens no files.

It lets nobody stay: a connection has a deadline as a whole, so that a peer that drips its bytes holds its place for a
moment only. What a page follows live it follows by connections that end in time and are made anew.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from gateway.edges.console.app import application
from gateway.edges.console.pages import Pages
from gateway.errors import GatewayError

CONNECTIONS: Final = 64
"""Connections that are served at the same time; more get 503."""

LONGEST_HEAD: Final = 16 << 10
"""Bytes that a request line and its header may have."""

LIFETIME: Final = 30.0
"""Seconds until a connection is asked to end after its current answer."""

GRACE: Final = 5.0
"""Seconds after that until it is cut."""


class HttpDoor:
    """Serves health and metrics on one address, and the console where it has pages.

    Args:
        section: The section of the configuration it belongs to, for messages.
        listen: Host and port; port 0 lets the system choose.
        registry: What /metrics shows.
        ready: Asked by /health/ready: the listening doors that are shut and should not be. It must not block.
        tls: Our certificate; None serves without TLS. May be replaced while running: the next connection gets it.
        pages: The web console; None for health and metrics only.
    """

    def __init__(
        self,
        section: str,
        listen: tuple[str, int],
        *,
        registry: CollectorRegistry,
        ready: Callable[[], Sequence[str]],
        tls: ssl.SSLContext | None = None,
        pages: Pages | None = None,
    ) -> None:
        self.section = section
        self.listen = listen
        self.tls = tls
        self.lifetime = LIFETIME
        self.grace = GRACE
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._pages = pages
        self._config = Config(
            application(registry, ready, pages),
            interface="asgi3",
            http=H11Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=5,
            h11_max_incomplete_event_size=LONGEST_HEAD,
        )
        self._config.load()
        self._state.default_headers = self._config.encoded_headers

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it really listens on. Only while it is open."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def open(self) -> None:
        """Begin to listen.

        Raises:
            GatewayError: The address cannot be used.
        """
        host, port = self.listen
        loop = asyncio.get_running_loop()
        if self.tls is not None:
            self.tls.sni_callback = self._use_newest
        try:
            self._server = await loop.create_server(
                lambda: _Connection(self, self._config, self._state), host, port, ssl=self.tls, backlog=CONNECTIONS
            )
        except OSError as error:
            raise GatewayError(
                f"[{self.section}] cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}",
                hint=f"end what listens there, or change {self.section}.listen",
            ) from error

    def _use_newest(self, wire: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # The listener keeps the context it began with; OpenSSL asks here at each handshake, with a name or without.
        if self.tls is not None:
            wire.context = self.tls

    async def close(self) -> None:
        """Stop listening and end every connection; what is being answered gets GRACE seconds. Safe to call twice."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        if self._pages is not None:
            self._pages.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=self.grace)
        for connection in list(self._state.connections):
            connection.transport.abort()
        await server.wait_closed()


class _Connection(H11Protocol):
    """One connection, with a deadline as a whole: uvicorn waits for a request without one."""

    def __init__(self, door: HttpDoor, config: Config, state: ServerState) -> None:
        super().__init__(config, state, {})
        self._door = door
        self._timers: list[asyncio.TimerHandle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        door = self._door
        self._timers = [
            self.loop.call_later(door.lifetime, self.shutdown),
            self.loop.call_later(door.lifetime + door.grace, transport.abort),
        ]

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers:
            timer.cancel()
        super().connection_lost(exc)
