"""Mailboxes: whose mail is ours, what is fetched, where it is filed, and how patient we are. No I/O.

The permanent name of a mail is (server, account, folder, UIDVALIDITY, UID); with POP3 the UIDL stands for the last two
(IMAP-1, IMAP-13). A server that re-uses a UID betrays itself by another size or date: then it is another mail.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from gateway.core import retry
from gateway.model import Outcome, Stage

MOST_AT_ONCE: Final = 300
"""Mails asked about in one command: more untagged answers at once are too much for some clients and servers."""

LONGEST_SET: Final = 4000
"""Characters of one message set: a command line has no promised length, and 8 KiB is the least that servers take."""

FIRST_WAIT: Final = timedelta(seconds=5)
LONGEST_WAIT: Final = timedelta(minutes=5)
"""Between two attempts to reach a mailbox that is in trouble."""

PATIENCE: Final = timedelta(minutes=10)
"""How long a trouble that may pass by itself lasts before a person is told (R3)."""

CLAIM: Final = "DicomMail-"
"""Begins the keyword by which a gateway marks the mail it takes; then since when it does so, and its own name."""

AWAY: Final = timedelta(days=1)
"""Whoever has not looked for so long, and comes back, is the second one where another gateway is by now."""


class State(StrEnum):
    """How a mailbox is. Only ``ok`` may ever be taken for "no mail" (R3)."""

    OK = "ok"
    UNREACHABLE = "unreachable"
    SILENT = "silent"
    CERTIFICATE = "certificate"
    LOGIN_REFUSED = "login-refused"
    TOKEN_EXPIRED = "token-expired"  # noqa: S105 — no password, the name of a state
    FOLDER_MISSING = "folder-missing"
    SHARED = "shared"
    NO_ROOM = "no-room"
    CONFUSED = "confused"


LASTING: Final = frozenset(
    {State.CERTIFICATE, State.LOGIN_REFUSED, State.TOKEN_EXPIRED, State.FOLDER_MISSING, State.SHARED}
)
"""They do not pass by themselves: a person is told at once."""

REMEDY: Final[Mapping[State, str]] = {
    State.UNREACHABLE: "is it up, are host and port right, is a firewall between?",
    State.SILENT: "it takes connections and does not answer: ask whoever runs the mail server",
    State.CERTIFICATE: "have the mail server show a certificate that this machine trusts and that bears its host name",
    State.LOGIN_REFUSED: "are user and password right, and may this account use IMAP or POP3?",
    State.TOKEN_EXPIRED: "look at [imap.NAME.oauth]: a secret has run out or a consent was withdrawn",
    State.FOLDER_MISSING: "make the folder, or name another one: dicom-mail check",
    State.SHARED: "another gateway takes mail from this mailbox: stop one, then restart this one",
    State.NO_ROOM: "make room on the disk under the data folder; polling resumes by itself",
    State.CONFUSED: "its answers make no sense: ask whoever runs the mail server",
}
"""What a person can do."""


def is_alarming(state: State, lasts: timedelta) -> bool:
    """Whether a person is told of a state that has lasted so long. A full disk has its own notice."""
    if state in {State.OK, State.NO_ROOM}:
        return False
    return state in LASTING or lasts >= PATIENCE


def back_off(failures: int, dice: float) -> timedelta:
    """How long a mailbox is left alone after so many failures in a row."""
    return retry.spread(retry.grow(FIRST_WAIT, LONGEST_WAIT, failures), dice)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A mail that lies in the folder.

    Attributes:
        uid: Its UID, or its UIDL.
        size: As the server says; some servers are off by a few bytes.
        stamp: Its INTERNALDATE as given; empty by POP3.
        keywords: Its flags.
    """

    uid: str
    size: int
    stamp: str = ""
    keywords: frozenset[str] = frozenset()


class Filing(StrEnum):
    """What became of a mail in its mailbox."""

    TAKEN = "taken"  # ours; still to be filed
    FILED = "filed"  # moved to done, or deleted by POP3
    LEFT = "left"  # not ours, and left where it is
    FAILED = "failed"  # cannot be taken; moved to failed


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger knows of a mail that was looked at before."""

    size: int
    stamp: str
    filing: Filing


@dataclass(frozen=True, slots=True)
class Plan:
    """What a look at a folder leads to.

    Attributes:
        fetch: To be taken, the oldest first.
        too_big: Over the limit: moved to failed without being fetched.
        again: Known and still there: a filing that was cut off is done again.
        foreign: The keyword of another gateway that has taken mail here for longer; None without.
    """

    fetch: tuple[Waiting, ...] = ()
    too_big: tuple[Waiting, ...] = ()
    again: tuple[str, ...] = ()
    foreign: str | None = None


def plan(found: Iterable[Waiting], known: Mapping[str, Known], limit: int, claim: str) -> Plan:
    """Decide what is done with what lies in a folder (R2). The flag Seen decides nothing (IMAP-3).

    Args:
        found: What lies there.
        known: What was seen there before, by UID.
        limit: Bytes of the largest message that is taken.
        claim: Our own keyword.
    """
    fetch: list[Waiting] = []
    too_big: list[Waiting] = []
    again: list[str] = []
    foreign = None
    for one in found:
        foreign = foreign or elder_claim(one.keywords, claim)
        before = known.get(one.uid)
        if before is None or (before.size, before.stamp) != (one.size, one.stamp):
            (too_big if one.size > limit else fetch).append(one)
        elif before.filing is Filing.FILED and not one.stamp:
            # A UIDL says less than UID and date do: before a mail is deleted its content must be known (R2).
            fetch.append(one)
        elif before.filing in {Filing.FILED, Filing.FAILED} and "\\Deleted" not in one.keywords:
            again.append(one.uid)
    return Plan(tuple(fetch), tuple(too_big), tuple(again), foreign)


def new_claim(since: datetime, name: str) -> str:
    """Write the keyword of a gateway that has taken mail since a moment. Keywords sort by age."""
    return f"{CLAIM}{int(since.timestamp() * 1000):011x}-{name}"


def name_in(claim: str) -> str:
    """The gateway's own name in its keyword. Servers may change the case of keywords."""
    return claim.casefold().rpartition("-")[2]


def elder_claim(keywords: Iterable[str], claim: str) -> str | None:
    """Find the mark of another gateway that was here before us; a younger one finds ours, and stops."""
    for one in sorted(keywords):
        if one.casefold().startswith(CLAIM.casefold()) and name_in(one) != name_in(claim):
            return one if one.casefold() < claim.casefold() else None
    return None


NOT_DICOM: Final = frozenset(
    {(Outcome.REFUSED, "not-dicom"), (Outcome.DELIVERED, "report"), (Outcome.HELD, "no-dicom")}
)
"""Outcome and code of items in which there is nothing for a PACS."""


def filing(stage: Stage, outcome: Outcome | None, code: str | None, *, fragment: bool, other: str) -> Filing | None:
    """Decide where a mail goes that is ours by now; None: not known yet.

    Args:
        stage: Where its item is.
        outcome: Of its item; None: it was purged, and nobody knows any more what it was.
        code: Of its item.
        fragment: It waits for the rest of its set: it is DICOM mail, as far as anybody can tell.
        other: ``leave`` or ``move`` for mail that is not for us.
    """
    if other == "move" or fragment:
        return Filing.FILED
    if outcome is None or (outcome, code) in NOT_DICOM:
        return Filing.LEFT
    if outcome is Outcome.WAITING and stage is Stage.RECEIVE:
        return None
    return Filing.FILED


# ---------------------------------------------------------------------------------------------------------------
# What IMAP servers write


def sets(uids: Iterable[int]) -> Iterator[str]:
    """Write UIDs as message sets of at most ``MOST_AT_ONCE`` mails (RFC 9051 §9)."""
    parts: list[str] = []
    count = length = 0
    for first, last in _runs(sorted(set(uids))):
        text = str(first) if first == last else f"{first}:{last}"
        size = last - first + 1
        if parts and (count + size > MOST_AT_ONCE or length + len(text) > LONGEST_SET):
            yield ",".join(parts)
            parts, count, length = [], 0, 0
        parts.append(text)
        count += size
        length += len(text) + 1
    if parts:
        yield ",".join(parts)


def _runs(uids: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for at in range(1, len(uids) + 1):
        if at == len(uids) or uids[at] != uids[at - 1] + 1 or at - start >= MOST_AT_ONCE:
            yield uids[start], uids[at - 1]
            start = at


_UID: Final = re.compile(rb"[( ]UID (\d{1,10})(?=[ )])", re.IGNORECASE)
_SIZE: Final = re.compile(rb"[( ]RFC822\.SIZE (\d{1,19})(?=[ )])", re.IGNORECASE)
_DATE: Final = re.compile(rb'[( ]INTERNALDATE "([^"\r\n]{0,40})"', re.IGNORECASE)
_FLAGS: Final = re.compile(rb"[( ]FLAGS \(([^()]*)\)", re.IGNORECASE)


def uid_of(line: bytes) -> int | None:
    """The UID in a FETCH response; None without one: somebody else's flags changed."""
    found = _UID.search(line)
    return int(found.group(1)) if found else None


def flags_of(line: bytes) -> frozenset[str]:
    """The flags in a FETCH response."""
    found = _FLAGS.search(line)
    return frozenset(found.group(1).decode("ascii", "replace").split()) if found else frozenset()


def waiting(line: bytes) -> Waiting | None:
    """Read one FETCH response to (UID RFC822.SIZE INTERNALDATE FLAGS); None when it is none of ours."""
    uid, size, date = uid_of(line), _SIZE.search(line), _DATE.search(line)
    if uid is None or size is None:
        return None
    stamp = date.group(1).decode("ascii", "replace").strip() if date else ""
    return Waiting(str(uid), int(size.group(1)), stamp, flags_of(line))


def found_uids(line: bytes) -> list[int]:
    """The numbers in a SEARCH response."""
    return [int(word) for word in line.split()[1:] if word.isdigit() and len(word) <= 10]


_LIST: Final = re.compile(rb'LIST \(([^)]*)\) (?:"\\?([^"\r\n])"|NIL) (.*)$', re.IGNORECASE)


def listed(line: bytes) -> tuple[str, str] | None:
    """Read a LIST response: the separator (empty: none) and the name as written, without quotes; None: no folder."""
    found = _LIST.match(line)
    if found is None or b"\\nonexistent" in found.group(1).lower() or b"\\noselect" in found.group(1).lower():
        return None
    name = found.group(3).decode("utf-8", "replace")
    if name.startswith('"') and name.endswith('"') and len(name) > 1:
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    return (found.group(2) or b"").decode("ascii", "replace"), name


_MARKER: Final = re.compile(rb"DicomMail-[0-9A-Za-z-]+")


def marker_in(line: bytes) -> str | None:
    """The keyword in the subject of a marker message, from a FETCH response; None: it is another mail."""
    found = _MARKER.search(line)
    return found.group(0).decode("ascii") if found else None


def write_marker(claim: str, address: str) -> str:
    """Write the message that tells another gateway, and people, who takes mail from this mailbox."""
    return (
        f"From: DICOM mail gateway <{address}>\r\n"
        f"Subject: {claim} takes mail from this mailbox\r\n"
        "MIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=us-ascii\r\n"
        "Auto-Submitted: auto-generated\r\n"
        "\r\n"
        "A DICOM mail gateway takes mail from this mailbox. Another one that finds this message\r\n"
        "stops, so that no mail is taken twice. Delete it when that gateway is gone for good."
    )


_PERSONAL: Final = re.compile(rb'NAMESPACE \(\("((?:[^"\\]|\\.)*)"', re.IGNORECASE)


def personal_prefix(line: bytes) -> str:
    """What the names of one's own folders begin with, as ``INBOX.`` on Courier and Cyrus (RFC 2342)."""
    found = _PERSONAL.match(line)
    return found.group(1).decode("ascii", "replace") if found else ""


def candidates(name: str, separator: str, prefix: str) -> tuple[str, ...]:
    """The names under which a configured folder may lie: as it is, and below the personal prefix. Encoded."""
    if name.upper() == "INBOX":
        return ("INBOX",)
    plain = name.replace("/", separator) if separator else name
    inside = plain if plain.startswith(prefix) else prefix + plain
    return tuple(dict.fromkeys(map(modified_utf7, (plain, inside))))


def modified_utf7(name: str) -> str:
    """Encode a folder name (RFC 3501 §5.1.3)."""
    out: list[str] = []
    for plain, other in re.findall(r"([\x20-\x7e]+)|([^\x20-\x7e]+)", name):
        if plain:
            out.append(plain.replace("&", "&-"))
        else:
            code = b64encode(other.encode("utf-16-be")).decode("ascii").rstrip("=").replace("/", ",")
            out.append(f"&{code}-")
    return "".join(out)


def quoted(text: str) -> str:
    """Write a quoted string (RFC 9051 §4.3)."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
