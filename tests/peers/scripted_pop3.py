"""A POP3 server with moods: mails by UIDL in memory, and a list of what goes wrong, as data."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass
class Mood:
    """What is different from a good server.

    Attributes:
        says: Given in place of an answer, by command; ``DROP`` closes the connection, ``MUTE`` says nothing more.
        greeting: Its first line, or one of those words.
        cut_after: For each RETR in turn, the octets after which the connection is cut; None: not.
        words: Octets behind the end of a mail.
        forget: DELE is answered and not done at QUIT, so often.
    """

    says: Mapping[str, str] = field(default_factory=dict)
    greeting: str = "+OK ready"
    cut_after: list[int | None] = field(default_factory=list)
    words: bytes = b""
    forget: int = 0


class ScriptedPop3:
    """Serves until the end of its ``async with``."""

    def __init__(self, mails: dict[str, bytes], mood: Mood | None = None) -> None:
        self.mails = dict(mails)
        self.mood = mood or Mood()
        self.commands: list[str] = []
        self.sessions = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions += 1
        self._writers.add(writer)
        uids, gone = list(self.mails), set[str]()
        try:
            if not await self._say(self.mood.greeting, reader, writer):
                return
            while line := (await reader.readline()).decode("utf-8").rstrip("\r\n"):
                self.commands.append(line)
                word, _, rest = line.partition(" ")
                said = self.mood.says.get(word)
                if said is not None:
                    if not await self._say(said, reader, writer):
                        return
                    continue
                if not self._answer(word, rest, (uids, gone), writer):
                    return
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _answer(self, word: str, rest: str, seen: tuple[list[str], set[str]], writer: asyncio.StreamWriter) -> bool:
        """Answer as a server should; tell whether the conversation goes on."""
        uids, gone = seen
        match word:
            case "CAPA":
                writer.write(_lines(["STLS", "UIDL"]))
            case "LIST":
                writer.write(_lines([f"{number} {len(self.mails[uid])}" for number, uid in enumerate(uids, 1)]))
            case "UIDL":
                writer.write(_lines([f"{number} {uid}" for number, uid in enumerate(uids, 1)]))
            case "RETR":
                return not self._retrieve(self.mails[uids[int(rest) - 1]], writer)
            case "DELE":
                gone.add(uids[int(rest) - 1])
                writer.write(b"+OK\r\n")
            case "QUIT":
                self._end(gone)
                writer.write(b"+OK\r\n")
                return False
            case _:
                writer.write(b"+OK\r\n")
        return True

    def _end(self, gone: set[str]) -> None:
        if gone and self.mood.forget:
            self.mood.forget -= 1
            return
        for uid in gone:
            self.mails.pop(uid, None)

    def _retrieve(self, mail: bytes, writer: asyncio.StreamWriter) -> bool:
        stuffed = mail.replace(b"\r\n.", b"\r\n..")
        cut = self.mood.cut_after.pop(0) if self.mood.cut_after else None
        writer.write(b"+OK\r\n" + stuffed[:cut])
        if cut is not None:
            return True
        writer.write(b".\r\n" + self.mood.words)
        return False

    async def _say(self, said: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Say what the script has; tell whether the conversation goes on."""
        if said == "MUTE":
            await reader.read()
            return False
        if said == "DROP":
            return False
        writer.write(said.encode() + b"\r\n")
        await writer.drain()
        return True


def _lines(lines: list[str]) -> bytes:
    return "\r\n".join(["+OK", *lines, ".", ""]).encode()
