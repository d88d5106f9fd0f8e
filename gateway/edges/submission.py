"""Submission: our mail to the hospital's relay, on aiosmtplib.

aiosmtplib speaks the commands; the content goes from the file to the socket in blocks, because the library's own way
holds the message in memory several times. A mail is either answered, recipient by recipient, or it was certainly not
given, or it is in doubt: everything was sent and the reply to the final dot is lost (RFC 1047). Whoever calls knows
which of the three it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import structlog
from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPException,
    SMTPRecipientRefused,
    SMTPResponseException,
    SMTPSenderRefused,
)
from aiosmtplib.response import SMTPResponse

from gateway.config.values import is_loopback
from gateway.core import sasl
from gateway.core.data import Transparency
from gateway.errors import RelayError, TokenError
from gateway.model import Mail, Reply, Span, Submission

T = TypeVar("T")

log = structlog.get_logger(__name__)

BLOCK: Final = 256 << 10
"""Bytes read from the file and handed to the socket at once."""

TEXT: Final = 200
"""Characters of a reply that are kept."""

_ENHANCED: Final = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?: |$)")
_SPACE: Final = re.compile(r"[^\x21-\x7e]+")

_OUR_TROUBLE: Final = frozenset({421, 530, 534, 535, 538})
"""Replies that are about the session or about us and not about this mail (RFC 5321 §4.2.2, RFC 4954 §6)."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that each step may take: at least what RFC 5321 §4.5.3.2 asks (SMTP-12). There is no total.

    Attributes:
        connect: TCP, and TLS when it is implicit.
        greeting: The greeting.
        command: EHLO, STARTTLS, AUTH, MAIL, RCPT.
        data: The reply to DATA.
        block: One block of the content on its way.
        final: The reply to the final dot.
        leave: QUIT, which nothing hangs on.
    """

    connect: float = 60.0
    greeting: float = 300.0
    command: float = 300.0
    data: float = 120.0
    block: float = 180.0
    final: float = 600.0
    leave: float = 5.0


_OAUTH: Final = "look at [relay.oauth]: a secret has run out, a consent was withdrawn, or this user may not send"
"""What a person can do about tokens."""


class Settings(Protocol):
    """The section [relay]."""

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
    def ca(self) -> Path | None:
        """PEM anchors; None: the system's."""

    @property
    def user(self) -> str | None:
        """Who logs in; None: nobody."""

    @property
    def password_file(self) -> Path | None:
        """Holds the password."""


class Tokens(Protocol):
    """Where access tokens come from."""

    async def get(self) -> str:
        """Give a token that is valid now. Raises TokenError."""

    def forget(self) -> None:
        """The relay refused it: the next one is a new one."""


class Relay:
    """The relay that outbound mail is submitted to. One connection for each mail; any number at once.

    Args:
        settings: The section [relay].
        hostname: What we call ourselves in EHLO.
        deadlines: Replaced in tests.
        tokens: Of the user that logs in; None: it has a password.
    """

    def __init__(
        self, settings: Settings, hostname: str, deadlines: Deadlines | None = None, tokens: Tokens | None = None
    ) -> None:
        self.announced: int | None = None
        """Bytes of the longest mail it takes, as it last said; None while it did not say (RFC 1870, SMTP-14)."""
        self._begun: set[Mail] = set()
        self._settings = settings
        self._hostname = hostname
        self._deadlines = deadlines or Deadlines()
        self._tokens = tokens

    async def greet(self) -> None:
        """Open a session as far as mail could begin, and leave.

        Raises:
            RelayError: Mail cannot be submitted now.
        """
        async with self._session():
            pass

    async def submit(self, mail: Mail) -> Submission:
        """Submit one mail.

        Raises:
            RelayError: The relay cannot be used now; it was given nothing.
            OSError: The mail's file cannot be read; the relay was given nothing whole.
        """
        try:
            async with self._session() as (client, writer):
                return await self._submit(client, writer, mail)
        except RelayError as error:
            error.within = mail in self._begun and not error.lasting  # a login that is missing is not the mail's
            raise
        finally:
            # Behind the farewell: who is cut off there would otherwise take back what the relay has answered.
            self._begun.discard(mail)

    async def _submit(self, client: SMTP, writer: asyncio.StreamWriter, mail: Mail) -> Submission:
        size = mail.content.size
        if self.announced is not None and size > self.announced:
            text = f"{size} bytes are more than the {self.announced} that the relay takes"
            return _all(mail, Reply(552, "5.3.4", text))
        if (refused := await self._begin(client, mail)) is not None:
            return _all(mail, refused)
        replies = {one: await self._recipient(client, one, mail) for one in mail.recipients}
        if not any(reply.good for reply in replies.values()):
            return Submission(tuple(replies.items()))
        self._begun.add(mail)
        final = await self._content(client, writer, mail.content)
        if final is None:
            return Submission((), doubtful=True)
        return Submission(tuple((one, final if reply.good else reply) for one, reply in replies.items()))

    def has_begun(self, mail: Mail) -> bool:
        """Whether the relay may have something of a mail that is being submitted."""
        return mail in self._begun

    # The session

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[tuple[SMTP, asyncio.StreamWriter]]:
        client = SMTP(
            hostname=self._settings.host,
            port=self._settings.port,
            local_hostname=self._hostname,
            use_tls=self._settings.tls == "implicit",
            start_tls=False,  # done below, where its refusal has words
            tls_context=self._context() if self._settings.tls != "none" else None,
            timeout=None,  # every step has a deadline of its own
        )
        try:
            await self._open(client)
            assert client.protocol is not None
            assert isinstance(client.transport, asyncio.WriteTransport)
            # Only to wait until the transport takes more. It closes the transport when it is forgotten: keep it here.
            writer = asyncio.StreamWriter(client.transport, client.protocol, None, asyncio.get_running_loop())
            yield client, writer
            await self._leave(client)
        except (SMTPException, OSError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # our own file
            raise self._trouble(error) from None
        finally:
            client.close()

    async def _open(self, client: SMTP) -> None:
        await self._step(client.connect(), self._deadlines.connect + self._deadlines.greeting)
        await self._step(client.ehlo(), self._deadlines.command)
        if self._settings.tls == "starttls":
            if not client.supports_extension("starttls"):
                # Never downgraded by itself: somebody on the way may have taken the offer out.
                raise RelayError("the relay offers no STARTTLS", lasting=True, hint="look at relay.tls and relay.port")
            await self._step(client.starttls(), self._deadlines.command)
            await self._step(client.ehlo(), self._deadlines.command)
        size = client.esmtp_extensions.get("size", "").strip()
        self.announced = int(size) or None if size.isascii() and size.isdigit() and len(size) < 20 else None
        if self._settings.user is not None:
            await self._log_in(client, self._settings.user)

    async def _log_in(self, client: SMTP, user: str) -> None:
        if self._settings.tls == "none" and not is_loopback(self._settings.host):
            raise RelayError("no password is sent in the clear", lasting=True, hint="set relay.tls")  # SMTP-9
        if self._tokens is not None:
            await self._log_in_by_token(client, user, self._tokens)
            return
        assert self._settings.password_file is not None
        try:
            secret = await asyncio.to_thread(self._settings.password_file.read_text, "utf-8")
        except (OSError, UnicodeError) as error:
            name = type(error).__name__
            raise RelayError(f"relay.password_file cannot be read: {name}", lasting=True) from None
        password = secret.rstrip("\r\n")
        if "plain" in client.server_auth_methods:
            await self._step(client.auth_plain(user, password), self._deadlines.command)
        elif "login" in client.server_auth_methods:
            await self._step(client.auth_login(user, password), self._deadlines.command)
        else:
            raise RelayError("the relay offers neither AUTH PLAIN nor LOGIN", lasting=True)

    async def _log_in_by_token(self, client: SMTP, user: str, tokens: Tokens) -> None:
        """Log in by OAUTHBEARER or XOAUTH2. A token that is refused is got anew, once (RFC 7628)."""
        offered = client.server_auth_methods
        if not {"oauthbearer", "xoauth2"} & set(offered):
            raise RelayError("the relay offers neither AUTH OAUTHBEARER nor XOAUTH2", lasting=True)
        for last in (False, True):
            token = await self._token(tokens)
            if "oauthbearer" in offered:
                first = sasl.oauthbearer(user, token, self._settings.host, self._settings.port)
                answer = await self._bear(client, "OAUTHBEARER", first, sasl.DUMMY)
            else:
                answer = await self._bear(client, "XOAUTH2", sasl.xoauth2(user, token), "")
            if answer.code == 235:
                return
            refused = SMTPAuthenticationError(answer.code, answer.message)
            if answer.code < 500 or last:
                raise refused
            tokens.forget()

    async def _token(self, tokens: Tokens) -> str:
        try:
            return await tokens.get()
        except TokenError as error:
            raise RelayError(f"no token for the relay: {error.text}", lasting=error.lasting, hint=_OAUTH) from None

    async def _bear(self, client: SMTP, mechanism: str, first: str, last: str) -> SMTPResponse:
        command = (b"AUTH", mechanism.encode(), first.encode())
        answer = await self._step(client.execute_command(*command), self._deadlines.command)
        if answer.code == 334:
            # The challenge tells in JSON what is wrong; the refusal itself comes behind an answer to it.
            answer = await self._step(client.execute_command(last.encode()), self._deadlines.command)
        return answer

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._settings.ca)
        except (OSError, ssl.SSLError) as error:
            raise RelayError(f"relay.ca cannot be used: {type(error).__name__}", lasting=True) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # BCP 195
        return context

    async def _step(self, step: Awaitable[T], seconds: float) -> T:
        async with asyncio.timeout(seconds):
            return await step

    async def _leave(self, client: SMTP) -> None:
        # What was answered is answered: nothing hangs on the farewell.
        with contextlib.suppress(SMTPException, OSError):
            await self._step(client.quit(), self._deadlines.leave)

    def _trouble(self, error: SMTPException | OSError) -> RelayError:
        """Say why the relay cannot be used. Its host is in the configuration, so it may be named."""
        where = f"{self._settings.host}:{self._settings.port}"
        match error:
            case SMTPAuthenticationError():
                return RelayError(
                    f"the relay {where} refuses the login ({error.code})",
                    lasting=error.code >= 500,
                    hint=_OAUTH if self._tokens is not None else "look at relay.user and relay.password_file",
                )
            case SMTPResponseException():
                return RelayError(f"the relay {where} answers {error.code}", lasting=error.code in _OUR_TROUBLE - {421})
        if (lines := _causes(error)) and isinstance(lines[-1], ssl.SSLCertVerificationError):
            reason = lines[-1].verify_message
            return RelayError(
                f"the certificate of the relay {where} is not good: {reason}", lasting=True, hint="look at relay.ca"
            )
        if isinstance(error, TimeoutError):
            return RelayError(f"the relay {where} does not answer in time")
        return RelayError(f"the relay {where} cannot be reached: {type(lines[-1]).__name__}")

    # One mail

    async def _begin(self, client: SMTP, mail: Mail) -> Reply | None:
        options = []
        if client.supports_extension("size"):
            options.append(f"SIZE={mail.content.size}")
        if _wants_report(client, mail):
            options += ["RET=HDRS", f"ENVID={xtext(mail.envelope_id or '')}"]  # DSN-1: never RET=FULL
        try:
            await self._step(client.mail(mail.sender, options=options), self._deadlines.command)
        except SMTPSenderRefused as error:
            return _about_the_mail(error)
        except UnicodeEncodeError:
            return _NOT_ASCII
        return None

    async def _recipient(self, client: SMTP, recipient: str, mail: Mail) -> Reply:
        options = []
        if _wants_report(client, mail):
            options = ["NOTIFY=SUCCESS,FAILURE,DELAY", f"ORCPT=rfc822;{xtext(recipient)}"]
        try:
            response = await self._step(client.rcpt(recipient, options=options), self._deadlines.command)
        except SMTPRecipientRefused as error:
            return _about_the_mail(error)
        except UnicodeEncodeError:
            return _NOT_ASCII
        return reply(response.code, response.message)

    async def _content(self, client: SMTP, writer: asyncio.StreamWriter, content: Span) -> Reply | None:
        """Send the content; None when the reply to the final dot is lost."""
        response = await self._step(client.execute_command(b"DATA"), self._deadlines.data)
        if response.code != 354:
            return _about_the_mail(SMTPResponseException(response.code, response.message))
        assert client.protocol is not None
        # From here on a reply may come at any moment: one that comes early is a refusal.
        final = asyncio.ensure_future(client.protocol.read_response())
        try:
            try:
                whole = await self._stream(writer, content, final)
            except OSError:
                if not _answered(final):
                    raise  # cut before the end: the relay was given nothing whole
                whole = False
            if whole:
                return await self._final(final)
            response = await final
        finally:
            await _forget(final)
        if response.code < 400:
            raise SMTPException("the relay takes a mail before its end")
        return _about_the_mail(SMTPResponseException(response.code, response.message))

    async def _stream(self, writer: asyncio.StreamWriter, content: Span, final: asyncio.Future[SMTPResponse]) -> bool:
        """Write the content and its end; False when an answer came before the end was written."""
        transparency = Transparency()
        with await asyncio.to_thread(content.path.open, "rb", buffering=0) as file:
            position = content.start
            while position < content.end:
                size = min(BLOCK, content.end - position)
                block = await asyncio.to_thread(os.pread, file.fileno(), size, position)
                if not block:
                    raise OSError(None, "the mail is shorter than it was", str(content.path))
                position += len(block)
                if final.done():
                    return False
                writer.write(transparency.feed(block))
                await self._step(writer.drain(), self._deadlines.block)
        if final.done():
            return False
        writer.write(transparency.end())
        return True

    async def _final(self, final: asyncio.Future[SMTPResponse]) -> Reply | None:
        try:
            response = await self._step(final, self._deadlines.final)
        except (SMTPException, OSError) as error:  # also an answer that nobody can read
            log.warning("submission_in_doubt", exception=type(error).__name__)
            return None
        if not (200 <= response.code < 300 or 400 <= response.code < 600):
            return None
        return reply(response.code, response.message)


_NOT_ASCII: Final = Reply(553, "5.6.7", "an address beyond ASCII is not sent")


def reply(code: int, text: str) -> Reply:
    """Read a reply: its enhanced status code, and its words as one short line."""
    line = _SPACE.sub(" ", text).strip()
    found = _ENHANCED.match(line)
    return Reply(code, found[1] if found else "", line[:TEXT])


def xtext(text: str) -> str:
    """Write a value of a DSN parameter (RFC 3461 §4): what is not plain is ``+`` and two hexadecimal digits."""
    return "".join(
        chr(byte) if 0x21 <= byte <= 0x7E and byte not in b"+=" else f"+{byte:02X}" for byte in text.encode()
    )


def _about_the_mail(error: SMTPResponseException) -> Reply:
    """The refusal of a mail or a recipient; raises it again when it is about the session or about us."""
    if error.code in _OUR_TROUBLE or not 400 <= error.code < 600:
        raise SMTPResponseException(error.code, error.message)
    return reply(error.code, error.message)


def _answered(final: asyncio.Future[SMTPResponse]) -> bool:
    return final.done() and final.exception() is None


async def _forget(final: asyncio.Future[SMTPResponse]) -> None:
    final.cancel()
    with contextlib.suppress(asyncio.CancelledError, SMTPException, OSError):
        await final


def _wants_report(client: SMTP, mail: Mail) -> bool:
    return mail.envelope_id is not None and client.supports_extension("dsn")


def _all(mail: Mail, answer: Reply) -> Submission:
    return Submission(tuple((one, answer) for one in mail.recipients))


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__ or error
    return chain
