r"""Plays the dialogs of this folder against the door. Each is a text file that anyone can read, and add to.

A line is one step:

    # a remark; the first one says what the dialog shows
    door key=value ...   how the door is made; values are Python's or words. May stand once, in front
    behind key=value     how the gateway behind it answers: known=a@b,c@d  room=1000  error=OSError
                         refuse=550,5.7.1,text
    c: TEXT              the client sends a line
    c! TEXT              the client sends exactly this, with \r \n \t \0 \\ and \xHH; xN after it repeats it
    s: REGEX             the server answers one line that begins so
    s* CODE +WORD -WORD  the server answers with a whole reply of this code, with and without these words
    tls                  both turn to TLS
    half                 the client sends no more, but listens
    end                  the server closes the connection
    mail: TEXT           the gateway took a message with this content, escaped as above
    from: ADDRESS        that message's sender; ``to:`` its recipients, ``user:`` who sent it
    none                 the gateway took no other message
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from door import Behind, SmtpPeer, Taken, open_door, peer_of

from gateway.edges.smtp import SmtpDoor
from gateway.errors import RefusedError

DIALOGS = sorted(Path(__file__).parent.glob("*.txt"))


def unescape(text: str) -> bytes:
    """The bytes that a text with escapes stands for."""
    plain = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}

    def one(found: re.Match[bytes]) -> bytes:
        word = found[1].decode()
        return plain[word] if word in plain else bytes.fromhex(word[1:])

    return re.sub(rb"\\(r|n|t|0|\\|x[0-9a-fA-F]{2})", one, text.encode())


def value(text: str) -> Any:
    """A value as Python writes it, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def options(words: str) -> dict[str, Any]:
    """``key=value`` pairs."""
    return {key: value(text) for key, _, text in (word.partition("=") for word in words.split())}


class Dialog:
    """One dialog, being played."""

    def __init__(self, door: SmtpDoor, behind: Behind, peer: SmtpPeer) -> None:
        self.door = door
        self.behind = behind
        self.peer = peer
        self.seen = 0
        self.last: Taken | None = None

    async def step(self, line: str) -> None:
        """Play one line."""
        word, _, rest = line.partition(" ")
        steps = {
            "c:": self.client,
            "c!": self.client_exactly,
            "s:": self.server,
            "s*": self.server_wholly,
            "tls": self.tls,
            "half": self.half,
            "end": self.end,
            "behind": self.prepare,
            "mail:": self.mail,
            "from:": self.sender,
            "to:": self.recipients,
            "user:": self.user,
            "none": self.none,
        }
        await steps[word](rest)

    async def client(self, text: str) -> None:
        await self.peer.send(text.encode() + b"\r\n")

    async def client_exactly(self, text: str) -> None:
        repeated = re.fullmatch(r"(.*) x(\d+)", text)
        content = unescape(repeated[1]) * int(repeated[2]) if repeated else unescape(text)
        await self.peer.send(content)

    async def server(self, pattern: str) -> None:
        line = (await self.peer.line()).decode()
        assert re.match(pattern, line), f"expected {pattern!r}, got {line!r}"

    async def server_wholly(self, rest: str) -> None:
        code, *words = rest.split()
        reply = await self.peer.reply()
        assert all(line.startswith(code) for line in reply.split("\n")), reply
        have = {word for line in reply.split("\n") for word in line[4:].split()[:1]}
        for word in words:
            assert (word[1:] in have) == (word[0] == "+"), f"{word}: {reply!r}"

    async def tls(self, _: str) -> None:
        await self.peer.start_tls()

    async def half(self, _: str) -> None:
        self.peer.writer.write_eof()

    async def end(self, _: str) -> None:
        line = await self.peer.line()
        assert line == b"", f"expected the end, got {line!r}"

    async def prepare(self, rest: str) -> None:
        for key, given in options(rest).items():
            if key == "known":
                self.behind.known = set(given.split(","))
            elif key == "room":
                self.behind.room = given
            elif key == "refuse":
                code, status, text = given.split(",")
                self.behind.error = RefusedError(int(code), status, text.replace("_", " "))
            else:
                self.behind.error = {"OSError": OSError(5, "SECRET"), "ValueError": ValueError("SECRET")}[given]

    async def mail(self, text: str) -> None:
        assert len(self.behind.taken) > self.seen, "no message was taken"
        self.last = self.behind.taken[self.seen]
        self.seen += 1
        assert self.last.content == unescape(text)

    async def sender(self, text: str) -> None:
        assert self.last is not None
        assert self.last.envelope.sender == text

    async def recipients(self, text: str) -> None:
        assert self.last is not None
        assert self.last.envelope.recipients == tuple(text.split())

    async def user(self, text: str) -> None:
        assert self.last is not None
        assert self.last.envelope.user == text

    async def none(self, _: str) -> None:
        assert len(self.behind.taken) == self.seen, self.behind.taken[self.seen :]


@pytest.mark.parametrize("path", DIALOGS, ids=lambda path: path.stem)
async def test_the_door_speaks_as_written(path: Path, tmp_path: Path) -> None:
    """Every step of the dialog comes as the file has it, and no draft is left behind (SMTP-1 to SMTP-11)."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    made: dict[str, Any] = options(lines.pop(0).removeprefix("door")) if lines[0].startswith("door") else {}
    if "users" in made:
        made["users"] = dict(pair.split(":") for pair in str(made["users"]).split(","))
    if "allow" in made:
        made["allow"] = str(made["allow"]).split(",")
    async with open_door(tmp_path / "drafts", **made) as (door, behind):
        async with peer_of(door, implicit_tls=made.get("implicit_tls", False), greet=False) as peer:
            dialog = Dialog(door, behind, peer)
            for number, line in enumerate(lines, 1):
                try:
                    await dialog.step(line)
                except AssertionError as error:
                    pytest.fail(f"{path.name}: step {number}, {line!r}: {error}", pytrace=False)
        await door.close(1)
        assert behind.left() == []


def test_every_dialog_says_what_it_shows() -> None:
    """The first line is a remark: a reader shall not have to guess."""
    assert len(DIALOGS) >= 30
    for path in DIALOGS:
        assert path.read_text("utf-8").startswith("# "), path.name
