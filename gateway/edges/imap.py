"""The IMAP door: a mailbox as the gateway reads it (RFC 9051, RFC 3501), on aioimaplib.

The library writes commands, tags and arguments, and keeps the state of the protocol. What comes from the server is
taken apart here: the library holds a literal in memory several times, formats every block for a log that nobody reads,
recurses once for each line, counts parentheses in other people's subjects, and lets a command wait for ever when the
connection is gone. A large literal goes from the socket to a thread that writes and hashes it; reading pauses while
that thread is behind, so memory is bounded whatever the size.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aioimaplib.aioimaplib import Command, IMAP4ClientProtocol

from gateway.core import mailbox, sasl
from gateway.core.mailbox import Filing, State, Waiting
from gateway.errors import MailboxError, RefusedError
from gateway.ledger.mailboxes import Folder

GATHER: Final = 512 << 10
"""Bytes that are gathered before a thread is bothered with writing and hashing them."""

BEHIND: Final = 2 << 20
"""Bytes that may wait for the thread before reading pauses."""

LONGEST_LINE: Final = 8 << 20
"""Octets of one line: a SEARCH response names every mail of a folder in one."""

MOST_LINES: Final = 20_000
"""Responses to one command that are kept."""

SMALL: Final = 64 << 10
"""Octets of a literal that is no mail."""

LONGEST_IDLE: Final = 28 * 60.0
"""Seconds: servers may drop who has been silent for half an hour (IMAP-8)."""

SLOWEST: Final = 16 << 10
"""Bytes a second: a download that is slower begins again where it was, so that nothing hangs for ever (R4)."""

MORE: Final = 64 << 10
"""Bytes asked for beyond what the server says is left of a mail: some are wrong about the size."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds (R4).

    Attributes:
        connect: Until TCP, TLS and the greeting are there.
        command: Until a command is answered.
        block: Until the next bytes of a mail come.
        leave: For LOGOUT, which nothing hangs on.
    """

    connect: float = 30.0
    command: float = 60.0
    block: float = 60.0
    leave: float = 2.0


class Settings(Protocol):
    """The section [imap.NAME]."""

    @property
    def host(self) -> str:
        """Where it is; the name its certificate must have."""

    @property
    def port(self) -> int:
        """Its port."""

    @property
    def tls(self) -> str:
        """``implicit``, ``starttls`` or ``none``."""

    @property
    def user(self) -> str:
        """Who logs in."""

    @property
    def folder(self) -> str:
        """Where new mail lies."""

    @property
    def done(self) -> str:
        """Where it is moved once it is ours."""

    @property
    def failed(self) -> str:
        """Where it is moved when it cannot be taken."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a user proves to be himself with.

    Attributes:
        text: The password or the token.
        bearer: It is a token.
        forget: Tells whoever gave it that it was refused: the next one will be a new one.
    """

    text: str
    bearer: bool = False
    forget: Callable[[], None] = lambda: None


class Sink(Protocol):
    """Where a mail's bytes go, in a thread."""

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Take the next block."""


class NoError(Exception):
    """The server said NO or BAD to a command. Its text may quote anything: never logged."""

    def __init__(self, result: str, text: str) -> None:
        super().__init__(result)
        self.result = result
        self.text = text


class ImapMailbox:
    """A mailbox that can be logged in to.

    Args:
        settings: The section [imap.NAME].
        proof: Gives the password or a token that is valid now.
        deadlines: Replaced in tests.
        context: What certificates are checked with; None: the system's.
    """

    def __init__(
        self,
        settings: Settings,
        proof: Callable[[], Awaitable[Proof]],
        deadlines: Deadlines | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.settings = settings
        self.deadlines = deadlines or Deadlines()
        self._proof = proof
        self._context = context

    async def open(self) -> ImapSession:
        """Log in, find the folders, select the one of new mail.

        Raises:
            MailboxError: With the state that the mailbox is in.
        """
        session = await self.log_in()
        try:
            await session.find_folders()
            await session.select()
        except BaseException:
            session.cut()
            raise
        return session

    async def log_in(self) -> ImapSession:
        """Log in, and no more. A token that is refused is got anew, once. Raises MailboxError."""
        proof = await self._proof()
        try:
            return await self._log_in(proof)
        except MailboxError as error:
            if not (proof.bearer and error.state == State.TOKEN_EXPIRED):
                raise
        proof.forget()
        return await self._log_in(await self._proof())

    async def _log_in(self, proof: Proof) -> ImapSession:
        session = ImapSession(self.settings, self.deadlines)
        try:
            await session.connect(self._tls())
            await session.log_in(proof)
        except BaseException:
            session.cut()
            raise
        return session

    def _tls(self) -> ssl.SSLContext | None:
        if self.settings.tls == "none":
            return None
        context = self._context or ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # BCP 195
        return context


class _Literal:
    """A mail on its way from the socket to its sink.

    Args:
        size: Octets that the server announced.
        protocol: Whose reading pauses while the thread is behind.
        sink: Where they go.
    """

    def __init__(self, size: int, protocol: _Protocol, sink: Sink) -> None:
        self.left = size
        self._protocol = protocol
        self._sink = sink
        self._gathered: list[bytes | memoryview] = []
        self._size = 0
        self._writing: asyncio.Future[None] | None = None
        self.error: BaseException | None = None

    def feed(self, data: memoryview) -> None:
        self.left -= len(data)
        self._gathered.append(data)
        self._size += len(data)
        if self._size >= GATHER or not self.left:
            self._start()
        if self._size >= BEHIND:
            self._protocol.pause()

    def _start(self) -> None:
        if self._writing is not None or not self._gathered or self.error is not None:
            return
        blocks, self._gathered, self._size = self._gathered, [], 0
        self._writing = asyncio.get_running_loop().run_in_executor(None, self._write, blocks)
        self._writing.add_done_callback(self._written)

    def _write(self, blocks: Sequence[bytes | memoryview]) -> None:
        for block in blocks:
            self._sink.write(block)

    def _written(self, done: asyncio.Future[None]) -> None:
        self._writing = None
        if done.cancelled() or done.exception() is not None:
            self.error = done.exception() if not done.cancelled() else asyncio.CancelledError()
            # Nobody takes the rest: a reading that is paused would wait for hours for what is never written.
            self._protocol.hang_up()
            return
        self._protocol.resume()
        if self._size >= GATHER or not self.left or self._protocol.gone:
            self._start()

    async def settle(self) -> None:
        """Wait until everything that came is written, also of a download that was cut. Raises what the sink raised."""
        while self.error is None and (self._writing is not None or self._gathered):
            self._start()
            if self._writing is not None:
                await asyncio.wait([self._writing])
                await asyncio.sleep(0)
        if self.error is not None:
            raise self.error


_ANNOUNCED: Final = re.compile(rb"~?\{(\d{1,19})\+?\}$")
_BODY: Final = re.compile(rb" FETCH \(.*BODY\[\](?:<(\d+)>)? (?:~?\{\d+\+?\}$|\"|NIL)", re.IGNORECASE)
_BODY_QUOTED: Final = re.compile(rb'BODY\[\](?:<(\d+)>)? "((?:[^"\\]|\\.)*)"', re.IGNORECASE)


class _Protocol(IMAP4ClientProtocol):  # type: ignore[misc]
    """The connection: what the server says, line by line, and its literals."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.greeting: asyncio.Future[bytes] = self.loop.create_future()
        self.gone = False
        self.command: Command | None = None
        self.moved = asyncio.Event()
        """Set by every byte that comes: whoever waits for bytes looks at it."""
        self.news = asyncio.Event()
        """Set when the folder has changed."""
        self.continued: asyncio.Future[bytes] | None = None
        self.lines: list[bytes] = []
        self.wanted: re.Pattern[bytes] | None = None
        self.sink: Sink | None = None
        self.limit = 0
        self.offset = 0
        self.literal: _Literal | None = None
        self.bodies = 0
        self.body_line = b""
        self.refused = False
        self.bye = False
        self._buffer = bytearray()
        self._head = b""
        self._skip = 0
        self._tail = False
        self.paused = False

    # What comes

    def data_received(self, data: bytes) -> None:
        """Take a block from the socket. What makes no sense ends the connection; it is never guessed at."""
        self.moved.set()
        view = memoryview(data)
        at = 0
        while at < len(data) and not self.gone:
            if self.literal is not None and self.literal.left:
                piece = view[at : at + self.literal.left]
                self.literal.feed(piece)
                at += len(piece)
            elif self._skip:
                piece = view[at : at + self._skip]
                self._head += piece
                self._skip -= len(piece)
                at += len(piece)
            else:
                at = self._read_line(data, at)

    def _read_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at) + 1
        self._buffer += data[at : end or len(data)]
        if len(self._buffer) > LONGEST_LINE:
            self.hang_up()
        if not end:
            return len(data)
        line = self._head + bytes(self._buffer).rstrip(b"\r\n")
        self._buffer.clear()
        self._head = b""
        self._take_line(line)
        return end

    def _take_line(self, line: bytes) -> None:
        announced = _ANNOUNCED.search(line)
        if announced is not None:
            size = int(announced.group(1))
            if self.sink is not None and (body := _BODY.search(line)):
                self._begin_body(size, line, int(body.group(1) or 0))
            elif size + len(line) > SMALL:
                self.hang_up()
            elif size:
                self._skip = size
                self._head = line + b" "
            else:
                self._head = line + b" "
            return
        if self._tail:
            # What follows the literal in its own response; the UID may stand there.
            self._tail = False
            self.body_line += b" " + line
            return
        self._respond(line)

    def _begin_body(self, size: int, line: bytes, offset: int) -> None:
        self.bodies += 1
        if size > self.limit:
            self.refused = True
            self.hang_up()
        elif self.bodies > 1 or offset != self.offset:
            self.hang_up()  # nobody asked for two, or for what would be put in a wrong place
        else:
            assert self.sink is not None
            self.literal = _Literal(size, self, self.sink)
            self.body_line = line
            self._tail = True

    def _respond(self, line: bytes) -> None:
        if not self.greeting.done():
            self.greeting.set_result(line)
        elif line.startswith(b"* "):
            self._untagged(line[2:])
        elif line.startswith(b"+"):
            if self.continued is not None and not self.continued.done():
                self.continued.set_result(line[1:].strip())
        else:
            self._tagged(line)

    def _untagged(self, line: bytes) -> None:
        word = line[:60].upper()
        if word.startswith(b"BYE"):
            self.bye = True
        if b" EXISTS" in word or b" RECENT" in word:
            self.news.set()
        if self.wanted is not None and self.wanted.search(line) and len(self.lines) < MOST_LINES:
            self.lines.append(line)

    def _tagged(self, line: bytes) -> None:
        command = self.command
        tag, _, rest = line.partition(b" ")
        if command is None or tag != command.tag.encode():
            self.hang_up()
            return
        self.command = None
        result, _, text = rest.partition(b" ")
        command.close(text, result=result.decode("ascii", "replace").upper())

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell whoever waits: the library would let them wait for ever."""
        self.gone = True
        self.moved.set()
        self.news.set()
        futures = [self.greeting] if self.continued is None else [self.greeting, self.continued]
        for future in futures:
            if not future.done():
                future.set_exception(ConnectionResetError())
                future.exception()  # seen, also when nobody waits
        command, self.command = self.command, None
        if command is not None:
            command._exception = ConnectionResetError()  # noqa: SLF001  there is no other way to wake its waiter
            command._event.set()  # noqa: SLF001

    # What goes

    def begin(self, command: Command, wanted: re.Pattern[bytes] | None) -> None:
        """Send a command; its responses that match are kept."""
        if self.gone or self.transport is None:
            raise ConnectionResetError
        self.lines, self.wanted = [], wanted
        self.command = command
        # Not by the library's ``send``: it formats every line for its log, passwords included.
        self.transport.write(f"{command}\r\n".encode())

    def expect_body(self, sink: Sink, offset: int, limit: int) -> None:
        """The next literal of a mail goes to a sink, if it begins at an offset and is within a limit."""
        self.sink, self.offset, self.limit, self.bodies = sink, offset, limit, 0
        self.literal, self.body_line, self.refused = None, b"", False

    def end_body(self) -> _Literal | None:
        """No literal is a mail's any more; give back the one that came."""
        literal, self.literal, self.sink = self.literal, None, None
        return literal

    def hang_up(self) -> None:
        """Cut the connection."""
        self.gone = True
        if self.transport is not None:
            self.transport.abort()

    def pause(self) -> None:
        """Read no more for now."""
        if not self.paused and self.transport is not None and not self.gone:
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.paused and self.transport is not None and not self.gone:
            self.paused = False
            self.transport.resume_reading()


_CAPABILITY: Final = re.compile(rb"^CAPABILITY ", re.IGNORECASE)
_SEARCH: Final = re.compile(rb"^SEARCH\b", re.IGNORECASE)
_FETCH: Final = re.compile(rb"^\d+ FETCH ", re.IGNORECASE)
_LIST: Final = re.compile(rb"^LIST ", re.IGNORECASE)
_NAMESPACE: Final = re.compile(rb"^NAMESPACE ", re.IGNORECASE)
_SELECTED: Final = re.compile(rb"^OK \[|^\d+ EXISTS|^FLAGS ", re.IGNORECASE)
_VALIDITY: Final = re.compile(rb"\[UIDVALIDITY (\d{1,10})\]", re.IGNORECASE)
_CODE: Final = re.compile(r"\[([A-Z]+)[^\]]*\]", re.IGNORECASE)

_LOGIN_PASSES: Final = frozenset({"UNAVAILABLE", "INUSE", "SERVERBUG", "LIMIT"})
"""Response codes of a login that fails for no fault of ours (RFC 5530)."""


class ImapSession:
    """One connection, one command at a time."""

    def __init__(self, settings: Settings, deadlines: Deadlines) -> None:
        self.peer = ""
        self.capabilities: frozenset[str] = frozenset()
        self.separator = ""
        self.folders: dict[str, str | None] = {}
        """The configured folders by their key, as the server writes them; None: missing."""
        self.keywords = False
        """Whether marks of our own can be set on mails."""
        self.folder = Folder(f"{settings.host}:{settings.port}", settings.user, "", 0)
        self._settings = settings
        self._deadlines = deadlines
        self._protocol = _Protocol()
        self._prefix = ""

    # The session

    async def connect(self, tls: ssl.SSLContext | None) -> None:
        """Connect, and have TLS before anything is said. Raises MailboxError."""
        settings = self._settings
        where = f"{settings.host}:{settings.port}"
        implicit = tls if settings.tls == "implicit" else None
        try:
            async with asyncio.timeout(self._deadlines.connect):
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: self._protocol, settings.host, settings.port, ssl=implicit)
                # The greeting of a server that wants TLS and gets none never comes.
                greeting = await self._protocol.greeting
        except ssl.SSLCertVerificationError as error:
            raise MailboxError(
                f"the certificate of {where} is not good: {error.verify_message}", State.CERTIFICATE
            ) from None
        except ssl.SSLError as error:
            raise MailboxError(f"no TLS with {where}: {error.reason or 'failed'}", State.CERTIFICATE) from None
        except TimeoutError:
            raise MailboxError(f"{where} does not answer", State.SILENT) from None
        except (OSError, socket.gaierror) as error:
            raise MailboxError(f"{where} cannot be reached: {type(error).__name__}", State.UNREACHABLE) from None
        if not greeting.upper().startswith(b"* OK"):
            raise MailboxError(f"{where} takes nobody now", State.UNREACHABLE)
        self.peer = str(self._protocol.transport.get_extra_info("peername")[0])
        if tls is not None and settings.tls == "starttls":
            await self._start_tls(tls, where)

    async def _start_tls(self, tls: ssl.SSLContext, where: str) -> None:
        protocol = self._protocol
        try:
            await self._call("STARTTLS")
        except NoError:
            # Never downgraded by itself: somebody on the way may have taken the offer out.
            raise MailboxError(f"{where} offers no STARTTLS", State.CERTIFICATE) from None
        if protocol._buffer:  # noqa: SLF001  ours
            raise MailboxError(f"{where} spoke before TLS began", State.CERTIFICATE)
        try:
            async with asyncio.timeout(self._deadlines.connect):
                transport = await asyncio.get_running_loop().start_tls(
                    protocol.transport, protocol, tls, server_hostname=self._settings.host
                )
        except ssl.SSLCertVerificationError as error:
            raise MailboxError(
                f"the certificate of {where} is not good: {error.verify_message}", State.CERTIFICATE
            ) from None
        except TimeoutError:
            raise MailboxError(f"{where} does not finish STARTTLS", State.SILENT) from None
        except OSError as error:
            raise MailboxError(f"no TLS with {where}: {type(error).__name__}", State.CERTIFICATE) from None
        if transport is None:
            raise MailboxError(f"{where} is gone", State.UNREACHABLE)
        protocol.transport = transport

    async def log_in(self, proof: Proof) -> None:
        """Log in by the best mechanism there is. Raises MailboxError."""
        await self._ask_capabilities()
        try:
            if proof.bearer:
                await self._log_in_by_token(proof.text)
            else:
                await self._log_in_by_password(proof.text)
        except NoError as error:
            code = _CODE.search(error.text)
            if code and code.group(1).upper() in _LOGIN_PASSES:
                raise MailboxError("the server takes no login now", State.UNREACHABLE) from None
            state = State.TOKEN_EXPIRED if proof.bearer else State.LOGIN_REFUSED
            raise MailboxError("the server refuses the login", state) from None
        await self._ask_capabilities()

    async def _log_in_by_password(self, password: str) -> None:
        user = self._settings.user
        if "AUTH=PLAIN" in self.capabilities:
            await self._authenticate("PLAIN", sasl.plain(user, password), "*")
            return
        if "LOGINDISABLED" in self.capabilities:
            raise MailboxError("the server takes no password here", State.LOGIN_REFUSED)
        await self._call("LOGIN", mailbox.quoted(user), mailbox.quoted(password))

    async def _log_in_by_token(self, token: str) -> None:
        settings = self._settings
        if "AUTH=OAUTHBEARER" in self.capabilities:
            first = sasl.oauthbearer(settings.user, token, settings.host, settings.port)
            await self._authenticate("OAUTHBEARER", first, sasl.DUMMY)
        elif "AUTH=XOAUTH2" in self.capabilities:
            await self._authenticate("XOAUTH2", sasl.xoauth2(settings.user, token), "")
        else:
            raise MailboxError("the server takes no token", State.LOGIN_REFUSED)

    async def _authenticate(self, mechanism: str, first: str, last: str) -> None:
        """Say who we are; ``last`` answers whatever else the server asks, so that it comes to an end."""
        if "SASL-IR" in self.capabilities:
            await self._call("AUTHENTICATE", mechanism, first, answers=[last])
        else:
            await self._call("AUTHENTICATE", mechanism, answers=[first, last])

    async def _ask_capabilities(self) -> None:
        lines = await self._call("CAPABILITY", wanted=_CAPABILITY)
        self.capabilities = frozenset(b" ".join(lines).decode("ascii", "replace").upper().split())

    async def find_folders(self) -> None:
        """Find the configured folders, whatever the server's separator and prefix."""
        if "NAMESPACE" in self.capabilities:
            for line in await self._call("NAMESPACE", wanted=_NAMESPACE):
                self._prefix = mailbox.personal_prefix(line)
        for line in await self._call("LIST", '""', '""', wanted=_LIST):
            # The root is no folder, but it tells the separator.
            found = re.search(rb'\) "\\?(.)"', line)
            self.separator = found.group(1).decode("ascii", "replace") if found else ""
        for key in ("folder", "done", "failed"):
            self.folders[key] = await self._find(getattr(self._settings, key))

    async def _find(self, name: str) -> str | None:
        for candidate in mailbox.candidates(name, self.separator, self._prefix):
            if candidate == "INBOX":
                return candidate
            for line in await self._call("LIST", '""', mailbox.quoted(candidate), wanted=_LIST):
                if (found := mailbox.listed(line)) is not None:
                    return found[1]
        return None

    async def create(self, key: str) -> None:
        """Make a configured folder that is missing. Raises MailboxError when the server refuses."""
        name = mailbox.candidates(getattr(self._settings, key), self.separator, self._prefix)[-1]
        try:
            await self._call("CREATE", mailbox.quoted(name))
        except NoError:
            raise MailboxError(f"the server makes no folder {name}", State.FOLDER_MISSING) from None
        self.folders[key] = name

    async def select(self) -> None:
        """Select the folder of new mail. Raises MailboxError when one of the folders is missing."""
        missing = [getattr(self._settings, key) for key, name in self.folders.items() if name is None]
        if missing:
            raise MailboxError(f"there is no folder {', '.join(missing)}", State.FOLDER_MISSING)
        name = self.folders["folder"]
        assert name is not None
        try:
            lines = await self._call("SELECT", mailbox.quoted(name), wanted=_SELECTED)
        except NoError:
            raise MailboxError(f"the folder {name} cannot be selected", State.FOLDER_MISSING) from None
        text = b"\n".join(lines)
        found = _VALIDITY.search(text)
        if found is None:
            raise MailboxError("the server names no UIDVALIDITY", State.CONFUSED)
        self.keywords = re.search(rb"PERMANENTFLAGS \([^)]*\\\*", text, re.IGNORECASE) is not None
        server = f"{self._settings.host}:{self._settings.port}"
        self.folder = Folder(server, self._settings.user, name, int(found.group(1)))

    async def close(self) -> None:
        """Leave; nothing hangs on the farewell."""
        try:
            if not self._protocol.gone:
                async with asyncio.timeout(self._deadlines.leave):
                    await self._call("LOGOUT")
        except (MailboxError, NoError, TimeoutError):
            pass
        finally:
            self.cut()

    def cut(self) -> None:
        """Cut the connection."""
        self._protocol.hang_up()

    # What lies there

    async def look(self) -> list[Waiting]:
        """List the mails of the folder with size, date and flags."""
        self._protocol.news.clear()
        uids: set[int] = set()
        for line in await self._command("UID SEARCH", "ALL", wanted=_SEARCH):
            uids.update(mailbox.found_uids(line))
        found: dict[str, Waiting] = {}
        for each in mailbox.sets(uids):
            query = "(UID RFC822.SIZE INTERNALDATE FLAGS)"
            for line in await self._command("UID FETCH", each, query, wanted=_FETCH):
                one = mailbox.waiting(line)
                # A server may tell of others' mails too, and of "n:*" it makes at least one (IMAP-2).
                if one is not None and int(one.uid) in uids:
                    found[one.uid] = one
        return sorted(found.values(), key=lambda one: int(one.uid))

    async def guard(self, keyword: str) -> str | None:
        """Where mails cannot be marked, have a marker message in ``failed``; return that of who was first, if not we.

        It lies there and not where mail comes: a folder that is small, and that people look into.
        """
        if self.keywords:
            return None
        name = self.folders["failed"]
        assert name is not None
        found = await self._markers(name)
        if not found:
            text = mailbox.write_marker(keyword, self._settings.user)
            await self._command("APPEND", mailbox.quoted(name), "(\\Seen)", f"{{{len(text)}}}", answers=[text])
            # Of two at once, both see who was first.
            found = await self._markers(name)
        await self.select()
        first = found[0] if found else keyword
        return None if mailbox.name_in(first) == mailbox.name_in(keyword) else first

    async def _markers(self, folder: str) -> list[str]:
        """The keywords in marker messages, the eldest first."""
        await self._command("SELECT", mailbox.quoted(folder))
        uids: list[int] = []
        for line in await self._command("UID SEARCH", "SUBJECT", mailbox.quoted(mailbox.CLAIM), wanted=_SEARCH):
            uids += mailbox.found_uids(line)
        found: dict[int, str] = {}
        for each in mailbox.sets(uids):
            query = "(UID BODY.PEEK[HEADER.FIELDS (SUBJECT)])"
            for line in await self._command("UID FETCH", each, query, wanted=_FETCH):
                uid, marker = mailbox.uid_of(line), mailbox.marker_in(line)
                if uid is not None and marker is not None:
                    found[uid] = marker
        return [found[uid] for uid in sorted(found)]

    async def claim(self, uids: Sequence[str], keyword: str) -> str | None:
        """Mark mails as being taken by us; return an elder gateway's mark that is on one of them."""
        if not self.keywords:
            return None
        flags: set[str] = set()
        for each in mailbox.sets(map(int, uids)):
            await self._command("UID STORE", each, f"+FLAGS ({keyword})", wanted=_FETCH)
            # Asked after ours is set: of two gateways at once, at least the later one sees both.
            for line in await self._command("UID FETCH", each, "(UID FLAGS)", wanted=_FETCH):
                flags |= mailbox.flags_of(line)
        return mailbox.elder_claim(flags, keyword)

    async def release(self, uids: Sequence[str], keyword: str) -> None:
        """Take our mark away."""
        if self.keywords:
            for each in mailbox.sets(map(int, uids)):
                await self._command("UID STORE", each, f"-FLAGS.SILENT ({keyword})")

    async def fetch(self, uid: str, offset: int, sink: Sink, limit: int) -> bool:
        """Write a mail's bytes from an offset on; False when the mail is gone (IMAP-4).

        Raises:
            MailboxError: It broke; what was written is good. Or it lies there, and the server does not give it out.
            RefusedError: It is larger than the limit.
            OSError: The disk did not take it.
        """
        section = "BODY.PEEK[]" if not offset else f"BODY.PEEK[]<{offset}.{min(limit - offset + MORE, 2**32 - 1)}>"
        protocol = self._protocol
        protocol.expect_body(sink, offset, limit - offset)
        try:
            lines = await self._download(uid, section)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):  # it must not take the place of our own end
                await self._settle()
            raise
        except BaseException:
            await self._settle()
            raise
        literal = await self._settle()
        if literal is not None:
            if literal.left:
                raise MailboxError("the mail was cut", State.UNREACHABLE)
            if mailbox.uid_of(protocol.body_line) not in {None, int(uid)}:
                raise MailboxError("the server sent another mail than was asked for", State.CONFUSED)
            return True
        for line in lines:
            if mailbox.uid_of(line) == int(uid) and (text := _BODY_QUOTED.search(line)):
                if int(text.group(1) or 0) != offset:
                    raise MailboxError("the server sent another part than was asked for", State.CONFUSED)
                content = re.sub(rb"\\(.)", rb"\1", text.group(2))
                await asyncio.to_thread(sink.write, content)
                return True
        # Exchange answers NO for a mail that it cannot convert: it lies there, and must not be passed over in silence.
        if any(
            mailbox.uid_of(line) == int(uid) for line in await self._command("UID FETCH", uid, "(UID)", wanted=_FETCH)
        ):
            raise MailboxError(f"the server does not give out the mail with UID {uid}", State.CONFUSED)
        return False

    async def _settle(self) -> _Literal | None:
        """Wait until what came of a mail is written, and give it back. Raises what the sink raised."""
        literal = self._protocol.end_body()
        if literal is not None:
            await asyncio.shield(literal.settle())
        return literal

    async def _download(self, uid: str, section: str) -> list[bytes]:
        protocol = self._protocol
        command = Command("FETCH", protocol.new_tag(), uid, f"(UID {section})", prefix="UID")
        try:
            protocol.begin(command, _FETCH)
            waiting = asyncio.ensure_future(command.wait())
            try:
                await self._watch(waiting)
                await waiting
            finally:
                waiting.cancel()
        except (ConnectionError, TimeoutError) as error:
            protocol.hang_up()
            if protocol.refused:
                raise RefusedError(552, "5.3.4", "the mail is larger than is taken") from None
            state = State.SILENT if isinstance(error, TimeoutError) else State.UNREACHABLE
            raise MailboxError("the connection broke during a download", state) from None
        if command.response.result != "OK":
            return []
        return protocol.lines

    async def _watch(self, waiting: asyncio.Future[None]) -> None:
        """Wait for a download as long as bytes keep coming, at a rate that ends some day."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not waiting.done():
            self._protocol.moved.clear()
            moved: asyncio.Future[Any] = asyncio.ensure_future(self._protocol.moved.wait())
            either: list[asyncio.Future[Any]] = [waiting, moved]
            await asyncio.wait(either, timeout=self._deadlines.block, return_when=asyncio.FIRST_COMPLETED)
            still = not moved.done() and not waiting.done()
            moved.cancel()
            literal = self._protocol.literal
            if still and not (literal is not None and self._protocol.paused):
                raise TimeoutError
            if loop.time() - began > self._deadlines.block + self._protocol.limit / SLOWEST:
                raise TimeoutError
            # Not for every block: the loop of the socket is quicker than this one.
            await asyncio.wait([waiting], timeout=0.2)

    # What is done with it

    async def file(self, uids: Sequence[str], filing: Filing) -> None:
        """Move mails, of exactly these UIDs. Without MOVE: copy, then delete only ours (IMAP-6)."""
        if not uids:
            return
        name = self.folders["failed" if filing is Filing.FAILED else "done"]
        assert name is not None
        target = mailbox.quoted(name)
        for each in mailbox.sets(map(int, uids)):
            if "MOVE" in self.capabilities:
                await self._command("UID MOVE", each, target)
                continue
            await self._command("UID COPY", each, target)
            await self._command("UID STORE", each, "+FLAGS.SILENT (\\Deleted)")
            if "UIDPLUS" in self.capabilities:
                await self._command("UID EXPUNGE", each)
            # Without UIDPLUS a mail stays marked as deleted: EXPUNGE would remove other people's mail with it.

    async def wait(self, seconds: float) -> None:
        """Return when the folder has changed, or after some time. A server that went mute is noticed (IMAP-8)."""
        protocol = self._protocol
        if "IDLE" not in self.capabilities:
            await self._pause(seconds)
            return
        protocol.continued = asyncio.get_running_loop().create_future()
        command = Command("IDLE", protocol.new_tag())
        try:
            protocol.begin(command, None)
            waiting = asyncio.ensure_future(command.wait())
            try:
                async with asyncio.timeout(self._deadlines.command):
                    await asyncio.wait([protocol.continued, waiting], return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    await self._pause(min(seconds, LONGEST_IDLE))
                    if not protocol.gone:
                        protocol.transport.write(b"DONE\r\n")
                async with asyncio.timeout(self._deadlines.command):
                    await waiting
            finally:
                waiting.cancel()
        except TimeoutError:
            protocol.hang_up()
            raise MailboxError("the server went silent", State.SILENT) from None
        except ConnectionError:
            raise MailboxError("the server closed the connection", State.UNREACHABLE) from None
        finally:
            protocol.continued = None
        if command.response.result != "OK":
            await self._pause(seconds)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._protocol.news.wait()
        except TimeoutError:
            pass

    # Commands

    async def _command(
        self, name: str, *args: str, wanted: re.Pattern[bytes] | None = None, answers: Sequence[str] = ()
    ) -> list[bytes]:
        """A command on the folder that must succeed."""
        prefix, _, word = name.rpartition(" ")
        try:
            return await self._call(word, *args, prefix=prefix, wanted=wanted, answers=answers)
        except NoError as error:
            raise MailboxError(f"the server says {error.result} to {name}", State.CONFUSED) from None

    async def _call(
        self,
        name: str,
        *args: str,
        prefix: str = "",
        wanted: re.Pattern[bytes] | None = None,
        answers: Sequence[str] = (),
    ) -> list[bytes]:
        """Send one command and wait for its end.

        Raises:
            NoError: The server refuses it.
            MailboxError: It does not answer, or is gone.
        """
        protocol = self._protocol
        command = Command(name, protocol.new_tag(), *args, prefix=prefix or None)
        try:
            async with asyncio.timeout(self._deadlines.command):
                await self._converse(command, wanted, list(answers))
        except TimeoutError:
            protocol.hang_up()
            raise MailboxError(f"no answer to {name}", State.SILENT) from None
        except ConnectionError:
            raise MailboxError("the server closed the connection", State.UNREACHABLE) from None
        except asyncio.CancelledError:
            protocol.hang_up()  # half a conversation is none
            raise
        response: Any = command.response
        if response.result != "OK":
            text = response.lines[-1].decode("utf-8", "replace") if response.lines else ""
            raise NoError(response.result, text)
        return protocol.lines

    async def _converse(self, command: Command, wanted: re.Pattern[bytes] | None, answers: list[str]) -> None:
        protocol = self._protocol
        protocol.continued = asyncio.get_running_loop().create_future()
        protocol.begin(command, wanted)
        waiting = asyncio.ensure_future(command.wait())
        try:
            while answers:
                await asyncio.wait([protocol.continued, waiting], return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    break
                protocol.continued.result()
                protocol.continued = asyncio.get_running_loop().create_future()
                protocol.transport.write(f"{answers.pop(0)}\r\n".encode())
            await waiting
        finally:
            waiting.cancel()
            protocol.continued = None
