"""An IMAP server with moods: one folder of mails in memory, and a list of what goes wrong, as data."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass
class Mood:
    """What is different from a good server.

    Attributes:
        cut_after: For each connection in turn, the octets of a mail after which it is cut; None: not.
        cut_at: The command at which each connection is cut before its answer, once each.
        mute: A command that is never answered.
        noise: Untagged lines before every answer.
        size_lie: Added to every RFC822.SIZE.
        uid_lie: Added to the UID of a mail that is sent.
        late_uid: The UID comes behind the literal.
        bye: Say BYE after so many commands.
        capability: What it says it can.
        whole: A part of a mail that is asked for comes as the whole.
        refuse: What is answered, by the beginnings of commands, in place of doing them.
        refuse_bearer: Tokens that are not this one are refused with a challenge.
    """

    cut_after: list[int | None] = field(default_factory=list)
    cut_at: list[str] = field(default_factory=list)
    mute: str = ""
    noise: int = 0
    size_lie: int = 0
    uid_lie: int = 0
    late_uid: bool = False
    bye: int = 0
    capability: str = "IMAP4rev1 UIDPLUS MOVE IDLE SASL-IR AUTH=PLAIN"
    whole: bool = False
    refuse: dict[str, str] = field(default_factory=dict)
    refuse_bearer: str = ""


class ScriptedImap:
    """Serves until the end of its ``async with``."""

    def __init__(self, mails: dict[int, bytes], mood: Mood | None = None) -> None:
        self.mails = dict(mails)
        self.moved: dict[int, str] = {}
        self.mood = mood or Mood()
        self.validity = 7
        self.commands: list[str] = []
        self.connections = 0
        self.sent = 0
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
        self.connections += 1
        self._writers.add(writer)
        try:
            writer.write(b"* OK ready\r\n")
            count = 0
            while line := (await reader.readline()).decode("utf-8").rstrip("\r\n"):
                tag, _, rest = line.partition(" ")
                self.commands.append(rest)
                count += 1
                if self.mood.bye and count > self.mood.bye:
                    self.mood.bye = 0
                    writer.write(b"* BYE tired\r\n")
                    break
                if await self._answer(tag, rest, reader, writer):
                    break
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(  # noqa: C901  one case for each command
        self, tag: str, rest: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        mood = self.mood
        name = " ".join(rest.split()[: 2 if rest.startswith("UID") else 1])
        if name in mood.cut_at:
            mood.cut_at.remove(name)
            writer.transport.abort()
            return True
        if name == mood.mute:
            await reader.read()
            return True
        for beginning, answer in mood.refuse.items():
            if rest.startswith(beginning):
                writer.write(f"{tag} {answer}\r\n".encode())
                return False
        writer.write(b"* 1 FETCH (FLAGS (:-( \\Seen))\r\n* 9 EXPUNGE\r\n" * mood.noise)
        match name:
            case "CAPABILITY":
                writer.write(f"* CAPABILITY {mood.capability}\r\n".encode())
            case "LIST":
                word = rest.rsplit(maxsplit=1)[-1]
                writer.write(f'* LIST (\\Noselect) "/" {word}\r\n'.encode() if word == '""' else b"")
                writer.write(f'* LIST () "/" {word}\r\n'.encode() if word != '""' else b"")
            case "SELECT":
                writer.write(b"* OK [PERMANENTFLAGS ()] x\r\n" + f"* OK [UIDVALIDITY {self.validity}] x\r\n".encode())
            case "UID SEARCH":
                writer.write(f"* SEARCH {' '.join(map(str, self.mails))}\r\n".encode())
            case "UID FETCH":
                if self._fetch(rest, writer):
                    return True
            case "UID MOVE":
                for uid in _uids(rest.split()[2]) & self.mails.keys():
                    del self.mails[uid]
                    self.moved[uid] = rest.split()[3].strip('"')
            case "IDLE":
                writer.write(b"+ idling\r\n")
                await reader.readline()
            case "AUTHENTICATE" if mood.refuse_bearer and mood.refuse_bearer not in rest:
                writer.write(b"+ eyJzdGF0dXMiOiI0MDEifQ==\r\n")
                await reader.readline()
                writer.write(f"{tag} NO refused\r\n".encode())
                return False
        writer.write(f"{tag} OK done\r\n".encode())
        return name == "LOGOUT"

    def _fetch(self, rest: str, writer: asyncio.StreamWriter) -> bool:
        mood = self.mood
        for uid in sorted(_uids(rest.split()[2]) & self.mails.keys()):
            mail = self.mails[uid]
            if "BODY.PEEK[]" not in rest:
                size = max(1, len(mail) + mood.size_lie)
                line = f'* 1 FETCH (UID {uid} RFC822.SIZE {size} INTERNALDATE "1" FLAGS ())\r\n'
                writer.write(line.encode())
                continue
            part = None if mood.whole else re.search(r"<(\d+)\.(\d+)>", rest)
            start = int(part.group(1)) if part else 0
            mail = mail[start : start + int(part.group(2))] if part else mail
            label = f"BODY[]<{start}>" if part else "BODY[]"
            told = uid + mood.uid_lie
            head = f"* 1 FETCH ({'' if mood.late_uid else f'UID {told} '}{label} {{{len(mail)}}}\r\n".encode()
            cut = mood.cut_after.pop(0) if mood.cut_after else None
            self.sent += len(mail[:cut])
            writer.write(head + mail[:cut])
            if cut is not None:
                writer.close()
                return True
            writer.write(f" UID {told})\r\n".encode() if mood.late_uid else b")\r\n")
        return False


def _uids(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition(":")
        found.update(range(int(first), int(last or first) + 1))
    return found
