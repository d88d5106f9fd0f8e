"""A mail relay that follows a script: what it answers to each command, as data."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.core.data import MailData

GOOD: Mapping[str, str] = {
    "greeting": "220 relay.test ESMTP",
    "EHLO": "250-relay.test\r\n250-SIZE 1000000\r\n250-DSN\r\n250-AUTH PLAIN LOGIN\r\n250 ENHANCEDSTATUSCODES",
    "STARTTLS": "220 2.0.0 go ahead",
    "AUTH": "235 2.7.0 welcome",
    "MAIL": "250 2.1.0 ok",
    "RCPT": "250 2.1.5 ok",
    "DATA": "354 go on",
    "dot": "250 2.0.0 queued",
    "QUIT": "221 2.0.0 bye",
}
"""What it answers when the script has nothing else. ``DROP`` closes the connection, ``MUTE`` says nothing more."""


@dataclass
class ScriptedRelay:
    """One relay.

    Attributes:
        script: Answers by command; a list is used up answer by answer, its last one stays.
        tls: Its certificate, for STARTTLS or, when ``implicit``, from the first byte.
        early: An answer given after so many bytes of content: (bytes, answer).
        commands: What it was told, in order; content excepted.
        mails: The contents it took whole, transparency undone.
        taken: Set when it took the first.
    """

    script: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    implicit: bool = False
    early: tuple[int, str] | None = None
    commands: list[str] = field(default_factory=list)
    mails: list[bytes] = field(default_factory=list)
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    _used: dict[str, int] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[ScriptedRelay]:
        """Listen as long as the block runs."""
        sessions: set[asyncio.Task[None]] = set()

        async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            sessions.add(task)
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                await self._serve(reader, writer)
            writer.close()

        context = self.tls if self.implicit else None
        server = await asyncio.start_server(session, "127.0.0.1", 0, ssl=context, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in sessions:
                task.cancel()
            await asyncio.gather(*sessions, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._say(writer, "greeting")
        while True:
            line = (await reader.readuntil(b"\r\n")).decode("ascii").rstrip()
            self.commands.append(line)
            verb = line.split(" ")[0].split(":")[0].upper()
            answer = await self._say(writer, verb if verb in GOOD else "AUTH")
            if verb == "STARTTLS" and answer.startswith("220"):
                assert self.tls is not None
                await writer.start_tls(self.tls)
            elif verb == "DATA" and answer.startswith("354"):
                await self._take(reader, writer)
            elif verb == "QUIT":
                return

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data, content, rest = MailData(), bytearray(), None
        while rest is None:
            block = await reader.read(65536)
            if not block:
                raise EOFError
            piece, rest = data.feed(block)
            content += piece
            if self.early is not None and len(content) >= self.early[0]:
                writer.write(self.early[1].encode() + b"\r\n")
                await writer.drain()
                raise EOFError
        self.mails.append(bytes(content))
        self.taken.set()
        await self._say(writer, "dot")

    async def _say(self, writer: asyncio.StreamWriter, step: str) -> str:
        answers = self.script.get(step, GOOD[step])
        if not isinstance(answers, str):
            number = self._used[step] = self._used.get(step, -1) + 1
            answers = answers[min(number, len(answers) - 1)]
        if answers == "DROP":
            raise EOFError
        if answers == "MUTE":
            await asyncio.sleep(3600)
        writer.write(answers.encode() + b"\r\n")
        await writer.drain()
        return answers
