"""The POP3 door: a mailbox without folders, by the standard library's client in threads (RFC 1939, IMAP-13).

The UIDL names a mail. A mail is deleted once it is ours and its item shows that it was for us; the server does so at
QUIT, so a session is ended and opened again between two looks. What cannot be taken, or is not for us, stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import poplib
import re
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

from gateway.core.data import MailData
from gateway.core.mailbox import Filing, State, Waiting
from gateway.errors import MailboxError, RefusedError
from gateway.ledger.mailboxes import Folder

T = TypeVar("T")

BLOCK: Final = 256 << 10
"""Bytes that are read from the socket at once."""

SLOWEST: Final = 16 << 10
"""Bytes a second: a session that is slower is cut, so that nothing hangs for ever (R4)."""

LEAVE: Final = 2.0
"""Seconds for the QUIT of a session that is over: the gateway may be stopping (R31)."""

_PASSES: Final = re.compile(r"\[(IN-USE|LOGIN-DELAY|SYS/TEMP)\]", re.IGNORECASE)
"""Response codes of a login that fails for no fault of ours (RFC 2449, RFC 3206)."""


class Settings(Protocol):
    """The section [pop3.NAME]."""

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


class Sink(Protocol):
    """Where a mail's bytes go, in a thread."""

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Take the next block."""


class PopMailbox:
    """A mailbox that can be logged in to.

    Args:
        settings: The section [pop3.NAME].
        password: Gives the password.
        deadline: Seconds for one answer, or for the next bytes.
        context: What certificates are checked with; None: the system's.
    """

    def __init__(
        self,
        settings: Settings,
        password: Callable[[], Awaitable[str]],
        deadline: float = 60.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.settings = settings
        self.deadline = deadline
        self._password = password
        self._context = context

    async def open(self) -> PopSession:
        """Log in. Raises MailboxError."""
        session = PopSession(self)
        await session.log_in()
        return session

    async def connect(self) -> poplib.POP3:
        """Connect and log in. Raises MailboxError."""
        password = await self._password()
        made: list[poplib.POP3] = []
        abandoned = threading.Event()

        def begin() -> None:
            made.append(self._connect(password))
            if abandoned.is_set():
                _close(made[0])

        try:
            await _blocking(begin, self.deadline * 4)
        except BaseException:
            # The thread goes on: what it makes, or made a moment ago, nobody will use.
            abandoned.set()
            for client in made:
                _close(client)
            raise
        return made[0]

    def _connect(self, password: str) -> poplib.POP3:
        settings = self.settings
        where = f"{settings.host}:{settings.port}"
        context = self._context or ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # BCP 195
        try:
            client: poplib.POP3
            if settings.tls == "implicit":
                client = _TlsClient(settings.host, settings.port, timeout=self.deadline, context=context)
            else:
                client = _Client(settings.host, settings.port, timeout=self.deadline)
        except (OSError, poplib.error_proto, EOFError) as error:
            raise _trouble(where, error) from None
        try:
            if settings.tls == "starttls":
                try:
                    client.stls(context)
                except poplib.error_proto as error:
                    if _is_end(error):
                        raise
                    # Never downgraded by itself: somebody on the way may have taken the offer out.
                    raise MailboxError(f"{where} offers no STLS", State.CERTIFICATE) from None
            client.user(settings.user)
            client.pass_(password)
        except poplib.error_proto as error:
            _close(client)
            passes = _is_end(error) or _PASSES.search(str(error))
            state = State.UNREACHABLE if passes else State.LOGIN_REFUSED
            raise MailboxError("the server refuses the login", state) from None
        except (OSError, EOFError) as error:
            _close(client)
            raise _trouble(where, error) from None
        except MailboxError:
            _close(client)
            raise
        return client


class PopSession:
    """A mailbox between two QUITs."""

    def __init__(self, box: PopMailbox) -> None:
        settings = box.settings
        self.peer = ""
        self.folder = Folder(f"{settings.host}:{settings.port}", settings.user, "", 0)
        self._box = box
        self._client: poplib.POP3 | None = None
        self._numbers: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    async def log_in(self) -> None:
        """Begin a session."""
        client = await self._box.connect()
        self._client = client
        self.peer = str(client.sock.getpeername()[0])

    async def look(self) -> list[Waiting]:
        """List what lies there."""
        if self._client is None:
            await self.log_in()
        await self._do(self._list, 0)
        return [Waiting(uid, self._sizes[uid]) for uid in self._numbers]

    def _list(self, client: poplib.POP3) -> None:
        sizes = {int(number): int(size) for number, size, *_ in map(bytes.split, client.list()[1])}
        uids = [line.split() for line in client.uidl()[1]]
        self._numbers = {uid.decode("ascii", "replace")[:80]: int(number) for number, uid, *_ in uids}
        self._sizes = {uid: sizes.get(number, 0) for uid, number in self._numbers.items()}

    async def guard(self, _keyword: str) -> str | None:
        """Nothing: POP3 has no place for a marker."""
        return None

    async def claim(self, _uids: Sequence[str], _keyword: str) -> str | None:
        """Nothing: the server lets one session in at a time (RFC 1939 §4)."""
        return None

    async def release(self, _uids: Sequence[str], _keyword: str) -> None:
        """Nothing was marked."""

    async def fetch(self, uid: str, offset: int, sink: Sink, limit: int) -> bool:
        """Write a mail's bytes from an offset on; POP3 begins every time at the first byte."""
        number = self._numbers.get(uid)
        if number is None:
            return False
        await self._do(lambda client: _retrieve(client, number, offset, sink, limit), self._sizes.get(uid, 0))
        return True

    async def file(self, uids: Sequence[str], filing: Filing) -> None:
        """Delete mails that are ours. What cannot be taken stays: there is nowhere else."""
        numbers = [self._numbers[uid] for uid in uids if uid in self._numbers]
        if filing is Filing.FILED and numbers:
            await self._do(lambda client: _delete(client, numbers), len(numbers) * SLOWEST)

    async def wait(self, seconds: float) -> None:
        """End the session, so that what was deleted is so, and wait."""
        await self._quit()
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """End the session; nothing hangs on the farewell: what is not deleted by it is deleted another time."""
        try:
            async with asyncio.timeout(LEAVE):
                await self._quit()
        except (MailboxError, TimeoutError):
            self._cut()

    async def _quit(self) -> None:
        if self._client is not None:
            await self._do(lambda client: client.quit(), 0)
            self._cut()

    async def _do(self, step: Callable[[poplib.POP3], T], size: int) -> T:
        client = self._client
        if client is None:
            raise MailboxError("the session is over", State.UNREACHABLE)
        try:
            return await _blocking(lambda: step(client), self._box.deadline * 2 + size / SLOWEST)
        except (OSError, EOFError, TimeoutError) as error:
            self._cut()
            if isinstance(error, OSError) and not isinstance(error, TimeoutError | ConnectionError | ssl.SSLError):
                raise  # the disk under the spool
            raise _trouble(self.folder.server, error) from None
        except (poplib.error_proto, ValueError) as error:
            self._cut()
            if _is_end(error):
                raise MailboxError("the server closed the connection", State.UNREACHABLE) from None
            raise MailboxError("the server refuses what POP3 has", State.CONFUSED) from None
        except BaseException:
            self._cut()
            raise

    def _cut(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            # Whoever blocks in a thread is woken by it.
            with contextlib.suppress(OSError, AttributeError):  # the library has no socket after QUIT
                client.sock.shutdown(socket.SHUT_RDWR)
            _close(client)


class _Client(poplib.POP3):
    """The library leaves its socket open when the greeting is none."""

    def _getresp(self) -> bytes:
        try:
            return super()._getresp()  # type: ignore[misc,no-any-return]
        except BaseException:
            if not hasattr(self, "welcome"):
                _close(self)
            raise


class _TlsClient(_Client, poplib.POP3_SSL):
    """The same, by TLS from the first byte."""


def _is_end(error: Exception) -> bool:
    """Whether the library says that the connection was closed; what a server says comes in octets."""
    return error.args[:1] == ("-ERR EOF",)


def _close(client: poplib.POP3) -> None:
    # After a TLS handshake that failed the library's socket is closed already, and closing it raises.
    with contextlib.suppress(OSError, ValueError):
        client.close()


def _delete(client: poplib.POP3, numbers: Sequence[int]) -> None:
    for number in numbers:
        with contextlib.suppress(poplib.error_proto):  # deleted by us a moment ago
            client.dele(number)


def _retrieve(client: poplib.POP3, number: int, offset: int, sink: Sink, limit: int) -> None:
    # The client's own way keeps the mail as a list of lines, and takes none over 2048 octets.
    client._shortcmd(f"RETR {number}")  # type: ignore[attr-defined]  # noqa: SLF001
    data, rest, at = MailData(), None, 0
    while rest is None:
        block = client.file.read1(BLOCK)  # type: ignore[attr-defined]  # it is a BufferedReader
        if not block:
            raise ConnectionResetError
        content, rest = data.feed(block)
        if at + len(content) > limit:
            raise RefusedError(552, "5.3.4", "the mail is larger than is taken")
        if at + len(content) > offset:
            sink.write(memoryview(content)[max(0, offset - at) :])
        at += len(content)
    if rest:
        raise poplib.error_proto("words behind the end")


def _trouble(where: str, error: Exception) -> MailboxError:
    match error:
        case ssl.SSLCertVerificationError():
            return MailboxError(f"the certificate of {where} is not good: {error.verify_message}", State.CERTIFICATE)
        case TimeoutError():
            return MailboxError(f"{where} does not answer", State.SILENT)
        case ssl.SSLError():
            return MailboxError(f"no TLS with {where}: {error.reason or 'failed'}", State.CERTIFICATE)
        case _:
            return MailboxError(f"{where} cannot be reached: {type(error).__name__}", State.UNREACHABLE)


async def _blocking(step: Callable[[], T], seconds: float) -> T:
    """Run a blocking step in a daemon thread: a peer that hangs must not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # it is a T when there is no error

    def work() -> None:
        result, trouble = None, None
        try:
            result = step()
        except Exception as error:  # noqa: BLE001  it is the waiter's
            trouble = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, trouble)

    threading.Thread(target=work, name="pop3", daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            return await done
    except TimeoutError:
        raise MailboxError("the server does not answer in time", State.SILENT) from None
