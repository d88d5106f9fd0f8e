"""The SMTP door: takes mail from the network into the spool, and says yes only when custody is taken (R1, SMTP-1).

aiosmtpd carries the connection, the session and STARTTLS; the words and the limits are ours. Its command loop is
replaced because it ends a command at a bare LF, answers internal trouble with 500 and the text of the exception, and
has one timer for everything; its DATA because it holds a whole message in memory, line by line.

Mail data goes around the stream reader: a block from the socket is freed of its transparency, gathered, and handed to
a thread that writes and hashes it. Reading pauses while that thread is behind, so memory is bounded whatever the size.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import errno
import ipaddress
import logging
import re
import socket
import ssl
from base64 import b64decode
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import structlog
from aiosmtpd.smtp import SMTP, Envelope

from gateway import model
from gateway.core.commands import parse_parameters, parse_path
from gateway.core.data import Digester, MailData
from gateway.errors import GatewayError, LowDiskError, RefusedError
from gateway.ledger.drafts import Draft

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Authenticate: TypeAlias = Callable[[str, str], Awaitable[bool]]

_log = structlog.get_logger(__name__)

# aiosmtpd writes every command and every line of data to this logger: patient data that nobody may ever read (R35).
_mail_log = logging.getLogger("mail.log")
_mail_log.addHandler(logging.NullHandler())
_mail_log.propagate = False
_mail_log.setLevel(logging.CRITICAL + 1)


GATHER: Final = 512 << 10
"""Bytes that are gathered before a thread is bothered with writing and hashing them."""

BEHIND: Final = 1 << 20
"""Bytes that may wait for the thread before reading pauses. The network is read in blocks of at most 256 KiB, so a step
of the loop stays far below 1 ms."""

ROOM_EVERY: Final = 64 << 20
"""Bytes of a message after which the free space is looked at again: its size may never have been declared."""

ALONE: Final = 16 << 10
"""A block of this size is kept as it came; smaller ones are put together, so that a dribble costs no more memory than
its bytes."""

INLINE: Final = 64 << 10
"""A message up to this size is hashed without a thread: the hop would cost more than the work."""

NO_ROOM: Final = "452 4.3.1 not enough room, try again later"
TROUBLE: Final = "451 4.3.0 internal trouble, try again later"
STOPPING: Final = "421 4.3.2 the gateway is stopping, try again later"

FULL_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

COMMAND_LINE: Final = 512
"""Octets of a command line with its end (RFC 5321 §4.5.3.1.4)."""

MAIL_LINE: Final = COMMAND_LINE + 26 + 17 + 10 + 500
"""With what SIZE, BODY, SMTPUTF8 and AUTH add to it (RFC 1870 §3, 6152 §2, 6531 §3.4, 4954 §5)."""

AUTH_LINE: Final = 12288
"""RFC 4954 §4."""

BEFORE_TLS: Final = frozenset({"EHLO", "HELO", "NOOP", "RSET", "STARTTLS", "QUIT", "HELP"})
"""What a session may do before TLS when it must have TLS (RFC 3207 §4)."""

NOT_HERE: Final = frozenset({"BDAT", "TURN", "ETRN", "ATRN", "SEND", "SOML", "SAML", "VERB", "XCLIENT"})
"""Commands that exist, but not here."""

NOT_MAIL: Final = frozenset({"CONNECT", "GET", "POST"})
"""What a browser says that was sent here; its next lines are the words of somebody else."""

_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")


class Incoming(Protocol):
    """What the door needs of the gateway behind it."""

    def admits(self, recipient: str) -> bool:
        """Whether mail for this address is taken (SMTP-10)."""

    def demand_room(self, size: int) -> None:
        """Raise LowDiskError when a message of this size (0: unknown) has no room (R5, SMTP-2)."""

    def draft(self) -> Draft:
        """Begin the file that a message is written to."""

    async def accept(self, envelope: model.Envelope, draft: Draft, digest: model.Digest) -> str:
        """Take custody: bytes synced, row committed. Owns the draft from here on, unless it raises.

        Returns:
            The queue id.

        Raises:
            RefusedError: The message is not wanted; its reply goes to the peer.
            LowDiskError: There is no room now.
        """


class Settings(Protocol):
    """The section [smtp], as far as the door reads it."""

    @property
    def listen(self) -> tuple[str, int]:
        """Where to listen for plain connections, with STARTTLS when there is a certificate."""

    @property
    def implicit_tls_listen(self) -> tuple[str, int] | None:
        """Where to listen for TLS connections."""

    @property
    def require_tls(self) -> bool:
        """Whether mail is taken under TLS only."""

    @property
    def allow(self) -> Sequence[Network] | None:
        """Peers that may connect; None for all."""

    @property
    def connections(self) -> int:
        """How many may be open at once."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long the door waits for its peer, in seconds (R4).

    Attributes:
        handshake: For a TLS handshake.
        command: For the next command (SMTP-11).
        block: For the next bytes of the data.
        reply: Until the peer has taken our reply.
        transaction: For the whole data of one message.
        farewell: From our closing to the peer's; then the connection is cut.
        password: Every wrong password is answered this late.
    """

    handshake: float = 60.0
    command: float = 300.0
    block: float = 300.0
    reply: float = 60.0
    transaction: float = 4 * 3600.0
    farewell: float = 5.0
    password: float = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may do (RFC 5321 §4.5.3.1).

    Attributes:
        message: Bytes of a message.
        header: Bytes of its header.
        recipients: Of one message.
        errors: 4yz and 5yz replies since the last accepted message.
        commands: Commands since the last accepted message, recipients not counted.
        passwords: Wrong passwords.
    """

    message: int
    header: int
    recipients: int = 1000
    errors: int = 20
    commands: int = 100
    passwords: int = 3


@dataclass(slots=True)
class Counters:
    """What happened at the door since it was made, for the metrics.

    Attributes:
        sessions: Connections that were let in.
        turned_away: Connections that were not.
        accepted: Messages that were answered with 250.
        bytes: Of the accepted messages.
        temporary: Replies 4yz.
        permanent: Replies 5yz.
    """

    sessions: int = 0
    turned_away: int = 0
    accepted: int = 0
    bytes: int = 0
    temporary: int = 0
    permanent: int = 0


class SmtpDoor:
    """Listens, and holds the sessions.

    Args:
        settings: The section [smtp].
        hostname: Our name in the greeting.
        limits: What one session may do.
        incoming: The gateway behind the door.
        tls: For STARTTLS and implicit TLS; None when there is no certificate. May be replaced while running: the next
            handshake uses the new one.
        authenticate: Says whether a name and a password belong together; None when there are no users.
        deadlines: How long peers are waited for.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        hostname: str,
        limits: Limits,
        incoming: Incoming,
        tls: ssl.SSLContext | None = None,
        authenticate: Authenticate | None = None,
        deadlines: Deadlines = Deadlines(),
    ) -> None:
        self.settings = settings
        self.hostname = hostname
        self.limits = limits
        self.incoming = incoming
        self.tls = tls
        self.authenticate = authenticate
        self.deadlines = deadlines
        self.counters = Counters()
        # Each password costs memory on purpose; many at once would cost all of it.
        self.password_slots = asyncio.Semaphore(2)
        self.writers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="smtp-data")
        self._servers: list[asyncio.Server] = []
        self._sessions: set[_Session] = set()

    async def open(self) -> None:
        """Begin to listen.

        Raises:
            GatewayError: An address cannot be used; nothing is open then.
        """
        doors = [(self.settings.listen, False)]
        if self.settings.implicit_tls_listen is not None:
            doors.append((self.settings.implicit_tls_listen, True))
        for (host, port), implicit_tls in doors:
            try:
                self._servers.append(await self._listen(host, port, implicit_tls=implicit_tls))
            except OSError as error:
                await self.close(0)
                raise GatewayError(f"SMTP cannot listen on {host}:{port}: {_why(error)}") from error

    async def close(self, grace: float) -> None:
        """Stop listening, send everybody home, and let running acceptances finish.

        Args:
            grace: Seconds they may take.
        """
        for server in self._servers:
            server.close()
        for session in list(self._sessions):
            session.leave()
        tasks = [session.task for session in self._sessions if session.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for session in list(self._sessions):
            session.cut()
        self.writers.shutdown(wait=False)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the door listens, the plain listener first."""
        return [listener.getsockname()[:2] for server in self._servers for listener in server.sockets]

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._sessions)

    def admit(self, session: _Session, peer: str) -> str | None:
        """Let a connection in, or say the reply it is turned away with."""
        allowed = self.settings.allow
        if allowed is not None and not _within(peer, allowed):
            self.counters.turned_away += 1
            return "554 5.7.1 you may not connect"
        if len(self._sessions) >= self.settings.connections:
            self.counters.turned_away += 1
            return "421 4.7.0 too many connections, try again later"
        self.counters.sessions += 1
        self._sessions.add(session)
        return None

    def forget(self, session: _Session) -> None:
        """A connection is gone."""
        self._sessions.discard(session)

    async def _listen(self, host: str, port: int, *, implicit_tls: bool) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: _Session(self, implicit_tls=implicit_tls), host, port, backlog=256)


class _Gone(Exception):  # noqa: N818 — not an error: a peer may leave at any time
    """The peer is gone, or has been told to go."""


class _Transaction(Envelope):
    """What aiosmtpd keeps between MAIL and DATA, and the declared size."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0


class _NoHooks:
    """aiosmtpd searches its handler for hooks, and itself for commands, once for every connection. It finds nothing.

    The search was a quarter of the time that a small message takes. Commands are found by their name when they come.
    """

    def __dir__(self) -> list[str]:
        return []


class _Session(_NoHooks, SMTP):
    """One connection."""

    envelope: _Transaction
    transport: asyncio.WriteTransport | None

    line_length_limit = AUTH_LINE

    def __init__(self, door: SmtpDoor, *, implicit_tls: bool) -> None:
        super().__init__(
            _NoHooks(), hostname=door.hostname, ident="ESMTP", enable_SMTPUTF8=True, loop=asyncio.get_running_loop()
        )
        self.task: asyncio.Task[None] | None = None
        self._door = door
        self._implicit_tls = implicit_tls
        self._secured = False
        self._shaking_hands = False
        self._peer = ""
        self._intake: _Intake | None = None
        self._accepting = False
        self._leaving = False
        self._lost = False
        self._until = 0.0
        self._errors = self._commands = self._passwords = 0

    # --- the connection ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let the peer in, or turn it away before it costs anything."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._peer = _address(transport.get_extra_info("peername"))
        refusal = self._door.admit(self, self._peer)
        if refusal is not None:
            self.transport = transport
            # To a peer that speaks TLS a reply in clear would only be noise.
            self._hang_up("" if self._implicit_tls else refusal)
            return
        super().connection_made(transport)
        self.task = self._handler_coroutine
        assert self.task is not None
        self.task.add_done_callback(self._ended)

    def data_received(self, data: bytes) -> None:
        """Hand mail data to the intake, and commands to the reader."""
        if self._intake is None:
            super().data_received(data)
            return
        self._allow(min(self._door.deadlines.block, self._intake.until - self.loop.time()))
        rest = self._intake.feed(data)
        if rest is not None:
            self._intake = None
            if rest:
                super().data_received(rest)

    def eof_received(self) -> bool | None:
        """The peer says no more, but may still listen: what it said before is answered."""
        if self._intake is not None:
            self._intake.lose()
            self._intake = None
        asyncio.StreamReaderProtocol.eof_received(self)
        return not self._secured  # TLS has no half-closed connections

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the connection. A running acceptance goes on: the ledger has it, or will (R1)."""
        if self._lost:
            return
        self._lost = True
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        if self._intake is not None:
            self._intake.lose()
            self._intake = None
        if self.task is not None:
            asyncio.StreamReaderProtocol.connection_lost(self, error)
            self._ended(self.task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._lost and task.done():
            self._door.forget(self)

    def leave(self) -> None:
        """Go, because the gateway stops: at once, but a running acceptance is finished and answered."""
        self._leaving = True
        if not self._accepting:
            self._hang_up(STOPPING)

    def cut(self) -> None:
        """Break the connection."""
        if self.transport is not None:
            self.transport.abort()

    # --- time ---

    def _allow(self, seconds: float) -> None:
        """Give the peer this long from now. A timer that is due earlier looks at the clock again by itself."""
        self._until = self.loop.time() + seconds
        if self._lost:
            return
        if self._timeout_handle is not None and self._timeout_handle.when() > self._until:
            self._timeout_handle.cancel()
            self._timeout_handle = None
        if self._timeout_handle is None:
            self._timeout_handle = self.loop.call_at(self._until, self._timeout_cb)

    def _reset_timeout(self, duration: float | None = None) -> None:
        self._allow(duration or self._door.deadlines.command)

    def _timeout_cb(self) -> None:
        self._timeout_handle = None
        if self._accepting:
            return
        if self.loop.time() < self._until:
            self._timeout_handle = self.loop.call_at(self._until, self._timeout_cb)
        elif self.transport is None or self.transport.is_closing():
            self.cut()
        else:
            self._hang_up("421 4.4.2 you took too long")

    # --- the dialog ---

    async def _handle_client(self) -> None:
        try:
            if self._implicit_tls:
                await self._secure()
            await self.push(f"220 {self.hostname} ESMTP")
            while not self._leaving:
                await self._obey(await self._line())
            self._hang_up(STOPPING)
        except _Gone:
            self._hang_up()
        except Exception as error:  # noqa: BLE001 — whatever it is, only this session ends, and its text stays here
            _log.error("smtp-session-failed", error=type(error).__name__)
            self._hang_up("421 4.3.0 internal trouble, try again later")

    async def push(self, status: str | bytes) -> None:
        """Send a reply. Raises _Gone when nobody is there to take it."""
        reply = status if isinstance(status, bytes) else status.encode()
        self._count(reply)
        assert self.transport is not None
        if self.transport.is_closing():
            raise _Gone
        self._allow(self._door.deadlines.reply)
        self.transport.write(reply + b"\r\n")
        try:
            await self._writer.drain()
        except OSError:
            raise _Gone from None

    def _count(self, reply: bytes) -> None:
        if reply[:1] not in {b"4", b"5"}:
            return
        self._errors += 1
        if reply[:1] == b"4":
            self._door.counters.temporary += 1
        else:
            self._door.counters.permanent += 1
        # The code is ours; the text is not told, because the gateway behind the door may have put a word of it.
        _log.info("smtp-refused", peer=self._peer, status=reply[:3].decode())

    def _hang_up(self, reply: str = "") -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self._shaking_hands:
            transport.abort()
            return
        if reply:
            self._count(reply.encode())
            transport.write(reply.encode() + b"\r\n")
        transport.close()
        self._allow(self._door.deadlines.farewell)

    async def _line(self) -> bytes:
        """Wait for the next line. One that is too long for any command comes cut, but still too long."""
        self._allow(self._door.deadlines.command)
        line = b""
        while not line.endswith(b"\n"):
            try:
                line += await self._reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as overrun:
                line += await self._reader.readexactly(max(1, overrun.consumed))
                line = line[:AUTH_LINE] + line[-1:]
            except (asyncio.IncompleteReadError, OSError):
                raise _Gone from None
        if not line.endswith(b"\r\n"):
            # A bare LF is no line end (RFC 5321 §2.3.8), and whoever sends one may be smuggling.
            await self.push("500 5.5.2 lines end with CR LF")
            raise _Gone
        return line

    async def _obey(self, line: bytes) -> None:
        self._commands += 1
        try:
            await self._dispatch(line)
        except _Gone:
            raise
        except LowDiskError:
            await self.push(NO_ROOM)
        except Exception as error:  # noqa: BLE001 — unknown is temporary (R6), and its text stays here
            _log.error("smtp-command-failed", error=type(error).__name__)
            await self.push(TROUBLE)
        if self._errors >= self._door.limits.errors or self._commands >= self._door.limits.commands:
            await self.push("421 4.7.0 too many errors or idle commands")
            raise _Gone

    async def _dispatch(self, line: bytes) -> None:
        head, _, tail = line[:-2].partition(b" ")
        verb = head.decode("ascii", "replace").upper()
        limit = {"MAIL": MAIL_LINE, "AUTH": AUTH_LINE}.get(verb, COMMAND_LINE)
        if len(line) > limit:
            await self.push("500 5.5.2 line too long")
        elif _CONTROL.search(line[:-2]):
            await self.push("500 5.5.2 control characters are not allowed")
        elif verb in NOT_MAIL:
            await self.push("421 4.7.0 this is a mail server")
            raise _Gone
        elif verb in NOT_HERE:
            await self.push("502 5.5.1 command not implemented")
        elif not verb.isascii() or not verb.isalpha() or not hasattr(self, f"smtp_{verb}"):
            await self.push("500 5.5.1 command not recognized")
        elif self._door.settings.require_tls and not self._secured and verb not in BEFORE_TLS:
            await self.push("530 5.7.0 issue STARTTLS first")
        else:
            try:
                argument = tail.strip().decode()
            except UnicodeDecodeError:
                await self.push("501 5.5.2 arguments are ASCII or UTF-8")
                return
            await getattr(self, f"smtp_{verb}")(argument)

    # --- commands ---

    async def smtp_HELO(self, hostname: str) -> None:
        """Greet a peer without extensions."""
        if not hostname:
            await self.push("501 5.5.4 HELO needs a name")
            return
        self._greet(hostname)
        await self.push(f"250 {self.hostname}")

    async def smtp_EHLO(self, hostname: str) -> None:
        """Greet, and say what we can do."""
        if not hostname:
            await self.push("501 5.5.4 EHLO needs a name")
            return
        self._greet(hostname)
        words = [
            self.hostname,
            f"SIZE {self._door.limits.message}",
            "8BITMIME",
            "SMTPUTF8",
            "PIPELINING",
            "ENHANCEDSTATUSCODES",
        ]
        if self._door.tls is not None and not self._secured:
            words.append("STARTTLS")
        if self._door.authenticate is not None and self._secured:
            words.append("AUTH PLAIN LOGIN")
        lines = [f"250-{word}" for word in words[:-1]] + [f"250 {words[-1]}"]
        await self.push("\r\n".join(lines))

    def _greet(self, hostname: str) -> None:
        assert self.session is not None
        self.session.host_name = hostname
        self._set_rset_state()

    def _set_rset_state(self) -> None:
        self.envelope = _Transaction()

    async def smtp_NOOP(self, _: str) -> None:
        """Nothing."""
        await self.push("250 2.0.0 OK")

    async def smtp_RSET(self, argument: str) -> None:
        """Forget the transaction."""
        if argument:
            await self.push("501 5.5.4 RSET has no argument")
            return
        self._set_rset_state()
        await self.push("250 2.0.0 OK")

    async def smtp_QUIT(self, argument: str) -> None:
        """Say goodbye."""
        if argument:
            await self.push("501 5.5.4 QUIT has no argument")
            return
        await self.push("221 2.0.0 goodbye")
        raise _Gone

    async def smtp_VRFY(self, argument: str) -> None:
        """Tell nobody who is here (RFC 5321 §7.3)."""
        await self.push("252 2.5.0 send it, and see" if argument else "501 5.5.4 VRFY needs an address")

    async def smtp_HELP(self, _: str) -> None:
        """Name the commands."""
        await self.push("214 2.0.0 EHLO HELO MAIL RCPT DATA RSET NOOP QUIT VRFY STARTTLS AUTH")

    async def smtp_EXPN(self, _: str) -> None:
        """There are no lists."""
        await self.push("502 5.5.1 command not implemented")

    async def smtp_STARTTLS(self, argument: str) -> None:
        """Turn to TLS (RFC 3207)."""
        if argument:
            await self.push("501 5.5.4 STARTTLS has no argument")
        elif self._secured:
            await self.push("503 5.5.1 already under TLS")
        elif self._door.tls is None:
            await self.push("502 5.5.1 command not implemented")
        elif self._ahead():
            # Somebody on the way may have put it there; nothing of it may count under TLS (RFC 3207 §6).
            await self.push("503 5.5.1 nothing may follow STARTTLS")
            raise _Gone
        else:
            await self.push("220 2.0.0 ready to start TLS")
            await self._secure()

    def _ahead(self) -> bytes:
        """What the peer sent ahead of our reply. The reader has no public word for it."""
        return bytes(self._reader._buffer)  # type: ignore[attr-defined] # noqa: SLF001 — as aiosmtpd does

    async def _secure(self) -> None:
        assert self._door.tls is not None
        assert self.transport is not None
        self._allow(self._door.deadlines.handshake)
        self._shaking_hands = True
        lost: OSError | None = None
        try:
            # Not by the stream writer: it breaks when the peer leaves in the handshake.
            secured = await self.loop.start_tls(
                self.transport,
                self,
                self._door.tls,
                server_side=True,
                ssl_handshake_timeout=self._door.deadlines.handshake,
            )
        except OSError as error:  # ssl.SSLError is one
            secured, lost = None, error
        self._shaking_hands = False
        if secured is None:
            # asyncio tells nobody that a connection was lost before its handshake was done.
            self.cut()
            self.connection_lost(lost)
            raise _Gone
        self.transport = secured
        self._secured = True
        # Whatever was said in clear is forgotten (RFC 3207 §4.2).
        self.session = self._create_session()
        self._set_rset_state()

    async def smtp_AUTH(self, argument: str) -> None:
        """Prove who speaks, under TLS only (RFC 4954, SMTP-9)."""
        mechanism, _, initial = argument.partition(" ")
        if self._door.authenticate is None:
            await self.push("502 5.5.1 command not implemented")
        elif not self._secured:
            await self.push("538 5.7.11 encryption required")
        elif await self.check_helo_needed():
            pass
        elif self._user() is not None or self.envelope.mail_from is not None:
            await self.push("503 5.5.1 not now")
        elif mechanism.upper() not in {"PLAIN", "LOGIN"}:
            await self.push("504 5.5.4 use PLAIN or LOGIN")
        else:
            credentials = await (self._plain(initial) if mechanism.upper() == "PLAIN" else self._login(initial))
            if credentials is None:
                await self.push("501 5.5.2 that cannot be read")
            else:
                await self._prove(*credentials)

    async def _plain(self, initial: str) -> tuple[str, str] | None:
        """RFC 4616: an identity to act as, which must be empty or the same; a name; a password."""
        answer = _decoded(initial) if initial else await self._ask(b"")
        fields = answer.split("\0") if answer is not None else []
        if len(fields) != 3 or fields[0] not in {"", fields[1]}:
            return None
        return fields[1], fields[2]

    async def _login(self, initial: str) -> tuple[str, str] | None:
        name = _decoded(initial) if initial else await self._ask(b"VXNlcm5hbWU6")
        if name is None:
            return None
        password = await self._ask(b"UGFzc3dvcmQ6")
        return None if password is None else (name, password)

    async def _ask(self, challenge: bytes) -> str | None:
        await self.push(b"334 " + challenge)
        line = await self._line()
        return _decoded(line.strip().decode("ascii", "replace")) if len(line) <= AUTH_LINE else None

    def _user(self) -> str | None:
        assert self.session is not None
        user: str | None = self.session.auth_data
        return user

    async def _prove(self, name: str, password: str) -> None:
        assert self._door.authenticate is not None
        async with self._door.password_slots:
            right = await self._door.authenticate(name, password)
        if right:
            assert self.session is not None
            self.session.authenticated = True
            self.session.auth_data = name  # type: ignore[assignment] # aiosmtpd leaves its type to us
            await self.push("235 2.7.0 authenticated")
            return
        self._passwords += 1
        await asyncio.sleep(self._door.deadlines.password)
        await self.push("535 5.7.8 wrong name or password")
        if self._passwords >= self._door.limits.passwords:
            await self.push("421 4.7.0 too many wrong passwords")
            raise _Gone

    async def check_helo_needed(self, helo: str = "EHLO") -> bool:
        """Refuse a transaction without a greeting."""
        assert self.session is not None
        if self.session.host_name:
            return False
        await self.push(f"503 5.5.1 send {helo} first")
        return True

    async def smtp_MAIL(self, argument: str) -> None:
        """Begin a transaction (RFC 5321 §4.1.1.2)."""
        if await self.check_helo_needed():
            return
        if self.envelope.mail_from is not None:
            await self.push("503 5.5.1 a transaction is open")
            return
        path = parse_path("FROM", argument)
        parameters = None if path is None else parse_parameters(path[1])
        if path is None:
            await self.push("501 5.1.7 MAIL FROM:<address>")
        elif parameters is None:
            await self.push("501 5.5.4 parameters have the form KEYWORD=value")
        else:
            await self._begin(path[0], parameters)

    async def _begin(self, sender: str, parameters: dict[str, str]) -> None:
        unknown = parameters.keys() - {"SIZE", "BODY", "SMTPUTF8", "AUTH"}
        size = parameters.get("SIZE", "0")
        limit = self._door.limits.message
        if unknown:
            await self.push("555 5.5.4 parameter not recognized")
        elif not re.fullmatch("[0-9]{1,20}", size):
            await self.push("501 5.5.4 SIZE is a number")
        elif int(size) > limit:
            await self.push(f"552 5.3.4 at most {limit} bytes")
        elif parameters.get("BODY", "7BIT").upper() not in {"7BIT", "8BITMIME"}:
            await self.push("501 5.5.4 BODY is 7BIT or 8BITMIME")
        elif parameters.get("SMTPUTF8"):
            await self.push("501 5.5.4 SMTPUTF8 has no value")
        elif not sender.isascii() and "SMTPUTF8" not in parameters:
            await self.push("553 5.6.7 this address needs SMTPUTF8")
        else:
            self._door.incoming.demand_room(int(size))
            self.envelope.mail_from = sender
            self.envelope.smtp_utf8 = "SMTPUTF8" in parameters
            self.envelope.size = int(size)
            await self.push("250 2.1.0 OK")

    async def smtp_RCPT(self, argument: str) -> None:
        """Add a recipient (RFC 5321 §4.1.1.3)."""
        if self.envelope.mail_from is None:
            await self.push("503 5.5.1 MAIL first")
            return
        path = parse_path("TO", argument)
        if path is None or not path[0]:
            await self.push("501 5.1.3 RCPT TO:<address>")
        elif path[1]:
            await self.push("555 5.5.4 parameter not recognized")
        elif not path[0].isascii() and not self.envelope.smtp_utf8:
            await self.push("553 5.6.7 this address needs SMTPUTF8")
        elif len(self.envelope.rcpt_tos) >= self._door.limits.recipients:
            await self.push("452 4.5.3 too many recipients")
        elif not self._door.incoming.admits(path[0]):
            await self.push("550 5.1.1 no such address here")
        else:
            self.envelope.rcpt_tos.append(path[0])
            self._commands -= 1
            await self.push("250 2.1.5 OK")

    async def smtp_DATA(self, argument: str) -> None:
        """Take a message (RFC 5321 §4.1.1.4). Whatever comes of it, the transaction is over then."""
        if argument:
            await self.push("501 5.5.4 DATA has no argument")
        elif not self.envelope.rcpt_tos:
            await self.push("503 5.5.1 RCPT first")
        else:
            try:
                self._door.incoming.demand_room(self.envelope.size)
                await self._take_message()
            finally:
                self._set_rset_state()

    async def _take_message(self) -> None:
        sender, recipients = self.envelope.mail_from or "", tuple(self.envelope.rcpt_tos)
        envelope = model.Envelope("smtp", sender, recipients, self._peer, self._user())
        draft = self._door.incoming.draft()
        taken = False
        try:
            digest = await self._receive(draft)
            reply = digest if isinstance(digest, str) else await self._accept(envelope, draft, digest)
            taken = reply.startswith("250")
        finally:
            if not taken:
                draft.discard()
        await self.push(reply)

    async def _receive(self, draft: Draft) -> model.Digest | str:
        assert isinstance(self.transport, asyncio.Transport)
        early = self._ahead()
        if early:
            await self._reader.readexactly(len(early))
        intake = self._intake = _Intake(draft, self._door, self.transport)
        await self.push("354 end data with <CR><LF>.<CR><LF>")
        self._allow(self._door.deadlines.block)
        if early:
            self.data_received(early)
        return await intake.result

    async def _accept(self, envelope: model.Envelope, draft: Draft, digest: model.Digest) -> str:
        self._accepting = True
        try:
            queue_id = await self._door.incoming.accept(envelope, draft, digest)
        except RefusedError as refused:
            return refused.reply
        except LowDiskError:
            return NO_ROOM
        except Exception as error:  # noqa: BLE001 — unknown is temporary (R6), and its text stays here
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                return NO_ROOM
            _log.error("smtp-accept-failed", error=type(error).__name__)
            return TROUBLE
        finally:
            self._accepting = False
        self._door.counters.accepted += 1
        self._door.counters.bytes += digest.size
        self._errors = self._commands = 0
        return f"250 2.0.0 queued as {queue_id}"


class _Intake:
    """Takes the data of one message from the wire into its draft."""

    def __init__(self, draft: Draft, door: SmtpDoor, transport: asyncio.Transport) -> None:
        self._loop = asyncio.get_running_loop()
        self.result: asyncio.Future[model.Digest | str] = self._loop.create_future()
        self.until = self._loop.time() + door.deadlines.transaction
        self._draft = draft
        self._door = door
        self._transport = transport
        self._data = MailData()
        self._digester = Digester(door.limits.header)
        self._size = 0
        self._blocks: list[bytes | bytearray | memoryview] = []
        self._waiting = 0
        self._jobs = 0
        self._unchecked = 0
        self._refusal: str | None = None
        self._dropped = False
        self._paused = False
        self._over = False

    def feed(self, block: bytes) -> bytes | None:
        """Take a block from the wire; returns what followed the end of the data, when it came."""
        content, rest = self._data.feed(block)
        self._size += len(content)
        if self._size > self._door.limits.message:
            self._refuse(f"552 5.3.4 at most {self._door.limits.message} bytes")
        if self._refusal is None:
            self._keep(content)
        if rest is not None:
            self._end()
        self._advance()
        return rest

    def lose(self) -> None:
        """The rest will not come."""
        self._refuse("451 4.4.2 the data broke off")
        self._end()
        self._advance()

    def _keep(self, content: bytes | memoryview) -> None:
        self._waiting += len(content)
        if len(content) >= ALONE:
            self._blocks.append(content)
        elif self._blocks and isinstance(self._blocks[-1], bytearray):
            self._blocks[-1] += content
        else:
            self._blocks.append(bytearray(content))

    def _refuse(self, reply: str) -> None:
        if self._refusal is None:
            self._refusal = reply
            self._blocks = []
            self._waiting = 0

    def _end(self) -> None:
        # From here on the reader of commands alone says when reading pauses.
        self._pause(False)
        self._over = True

    def _pause(self, pause: bool) -> None:
        if pause == self._paused or self._over or self._transport.is_closing():
            return
        self._paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _advance(self) -> None:
        """Do what can be done next. Called whenever a block came or a thread has finished."""
        if not self._jobs and (self._waiting >= GATHER or (self._over and self._waiting > INLINE)):
            self._hand_over()
        if self._refusal is not None and not self._jobs and not self._dropped:
            # A message that is not taken gives its room back before its last byte has come.
            self._dropped = True
            self._run(self._draft.discard)
        self._pause(self._waiting >= BEHIND)
        if self._over and not self._jobs and not self.result.done():
            self._finish()

    def _hand_over(self) -> None:
        blocks, self._blocks = self._blocks, []
        self._unchecked += self._waiting
        self._waiting = 0
        if self._unchecked >= ROOM_EVERY:
            self._unchecked = 0
            self._look_for_room()
        self._run(self._write, blocks)

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        self._jobs += 1
        try:
            job = self._loop.run_in_executor(self._door.writers, work, *arguments)
        except RuntimeError:  # the door is shut, and the next start wipes the drafts
            self._jobs -= 1
        else:
            job.add_done_callback(self._ran)

    def _ran(self, job: asyncio.Future[None]) -> None:
        self._jobs -= 1
        self._judge(None if job.cancelled() else job.exception())
        self._advance()

    def _write(self, blocks: list[bytes | bytearray | memoryview]) -> None:
        for block in blocks:
            self._draft.write(block)
            self._digester.update(block)

    def _look_for_room(self) -> None:
        try:
            self._door.incoming.demand_room(0)
        except LowDiskError:
            self._refuse(NO_ROOM)
        except Exception as error:  # noqa: BLE001 — unknown is temporary (R6), and its text stays here
            self._judge(error)

    def _judge(self, error: BaseException | None) -> None:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            self._refuse(NO_ROOM)
        elif error is not None:
            _log.error("smtp-write-failed", error=type(error).__name__)
            self._refuse(TROUBLE)
        elif self._digester.header_too_long:
            self._refuse(f"552 5.3.4 the header may have {self._door.limits.header} bytes")

    def _finish(self) -> None:
        try:
            self._write(self._blocks)
            self._judge(None)
        except Exception as error:  # noqa: BLE001 — unknown is temporary (R6), and its text stays here
            self._judge(error)
        self.result.set_result(self._refusal if self._refusal is not None else self._digester.digest())


def _address(peername: tuple[str, int] | tuple[str, int, int, int] | None) -> str:
    """The address of a peer; IPv4 as such, also when it came in through an IPv6 socket."""
    if not peername:
        return ""
    address = ipaddress.ip_address(peername[0].partition("%")[0])
    return str(getattr(address, "ipv4_mapped", None) or address)


def _within(peer: str, networks: Sequence[Network]) -> bool:
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(peer)
        return any(address in network for network in networks)
    return False


def _decoded(text: str) -> str | None:
    try:
        return b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program uses this port"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return "not permitted"
    if isinstance(error, socket.gaierror):
        return "there is no such address"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have this address"
    return type(error).__name__
