"""Delivery status notifications (RFC 3464): read when one comes back for a mail of ours, written for a partner's.

What is read may come from anybody: only the first megabyte is looked at, and nothing raises. What is written names no
patient: counts, a code, and the Message-ID of the mail it is about (DSN-4).
"""

from __future__ import annotations

import email.utils
import os
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.core import header
from gateway.core.mime import Part, Walk
from gateway.model import Outcome, Span

LOOKED_AT: Final = 1 << 20
"""Bytes of a report that are read: what was returned with it may be big, and stands behind."""

STATUS_LIMIT: Final = 64 << 10
"""Bytes of the delivery-status part that are read: some hundred recipients."""

MOST_PARTS: Final = 20
DEPTH: Final = 4

_GROUPS: Final = re.compile(rb"\r?\n[ \t]*\r?\n")
_MESSAGE_ID: Final = re.compile(rb"^Message-ID[ \t]*:\s*(<[!-;=?-~]{1,990}>)", re.MULTILINE | re.IGNORECASE)
_ACTIONS: Final = ("failed", "delayed", "expanded", "relayed", "delivered")
"""RFC 3464 §2.3.3, what matters most first."""
_STATUS: Final = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")


@dataclass(frozen=True, slots=True)
class Told:
    """What a report says about one mail.

    Attributes:
        envelope_id: Original-Envelope-Id; None when it has none.
        message_id: Of the mail that came back with it; None when it does not say.
        action: ``failed``, ``delayed``, ``delivered``, ``relayed`` or ``expanded`` (RFC 3464 §2.3.3).
        status: The enhanced status code, as ``5.1.1``; empty when it has none.
    """

    envelope_id: str | None
    message_id: str | None
    action: str
    status: str


def read(message: Span) -> Told | None:
    """Read what a multipart/report says; None when it is no delivery status notification (DSN-2).

    Raises:
        OSError: The file cannot be read.
    """
    end = min(message.end, message.start + LOOKED_AT)
    with message.path.open("rb", buffering=0) as file:
        walk = Walk(file.fileno(), message.start, end, parts=MOST_PARTS, depth=DEPTH, header_limit=STATUS_LIMIT)
        part = next((one for one in walk if _is_status(one)), None)
        if part is None:
            return None
        block = os.pread(file.fileno(), min(part.end - part.start, STATUS_LIMIT), part.start)
        returned = os.pread(file.fileno(), end - part.end, part.end)
    groups = [dict(header.fields(group + b"\n")) for group in _GROUPS.split(block.strip())]
    found = [(_ACTIONS.index(action), group) for group in groups[1:] if (action := _action(group)) in _ACTIONS]
    if not found:
        return None
    rank, worst = min(found, key=lambda one: one[0])
    status = _STATUS.search(worst.get("status", ""))
    about = _MESSAGE_ID.search(returned)
    envelope_id = header.printable(groups[0].get("original-envelope-id", "")) or None
    return Told(envelope_id, about[1].decode("ascii") if about else None, _ACTIONS[rank], status[0] if status else "")


def _is_status(part: Part) -> bool:
    return part.type in {"message/delivery-status", "message/global-delivery-status"}


def _action(group: dict[str, str]) -> str:
    return group.get("action", "").partition("(")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Notification:
    """What a partner is told about a mail of its own that was not forwarded.

    Attributes:
        sender: From, an addr-spec of ours.
        recipient: Where its mail came from.
        original_recipient: The address that it was sent to.
        message_id: Ours, with angle brackets.
        about: The Message-ID of its mail; None when it has none.
        date: With its time zone.
        gateway: Our name.
        outcome: ``held`` or ``failed``.
        code: Why, a code of ours.
        instances: How many there are in it.
        delivered: How many of them were delivered all the same.
        id: Under which it is known here.
    """

    sender: str
    recipient: str
    original_recipient: str
    message_id: str
    about: str | None
    date: datetime
    gateway: str
    outcome: Outcome
    code: str
    instances: int
    delivered: int
    id: str


_TEXT: Final = """\
Your mail with medical images was received by {gateway}, but not all of it could
be forwarded yet.

{what}
Code: {code}. Images: {instances}, forwarded: {delivered}.
It is known here as {id}.
"""

_WHAT: Final = {
    Outcome.HELD: "A person there has to look at it. You need not send it again unless asked to.",
    Outcome.FAILED: "It was given up. Please ask the recipient before you send it again.",
}


def write(one: Notification) -> bytes:
    """Write a notification as a whole message (RFC 3464, DSN-4, DSN-5). It returns nothing of the original."""
    boundary = f"=_{one.message_id.strip('<>').partition('@')[0]}"
    action, status = ("delayed", "4.0.0") if one.outcome is Outcome.HELD else ("failed", "5.0.0")
    values = {"gateway": one.gateway, "code": one.code, "instances": one.instances, "delivered": one.delivered}
    text = _TEXT.format(what=_WHAT[one.outcome], id=one.id, **values)
    lines = [
        *_head(one.sender, one.recipient, one.message_id, one.date, one.gateway, "auto-replied"),
        "Subject: About your mail",
        f'Content-Type: multipart/report; report-type=delivery-status;\n boundary="{boundary}"',
        f"\n--{boundary}",
        f"Content-Type: text/plain; charset=us-ascii\n\n{text}",
        f"--{boundary}",
        f"Content-Type: message/delivery-status\n\nReporting-MTA: dns; {one.gateway}\n",
        f"Final-Recipient: rfc822; {one.original_recipient}",
        f"Action: {action}\nStatus: {status}\n",
        f"--{boundary}",
        f"Content-Type: text/rfc822-headers\n\nMessage-ID: {one.about}\n" if one.about else "",
        f"--{boundary}--\n",
    ]
    if not one.about:
        del lines[-3:-1]
    return "\n".join(lines).replace("\n", "\r\n").encode("ascii", "replace")


def write_notice(
    sender: str, recipient: str, message_id: str, date: datetime, gateway: str, subject: str, text: str
) -> bytes:
    """Write a mail of ours to a person of ours: plain text, marked as what a machine wrote (RFC 3834)."""
    lines = [
        *_head(sender, recipient, message_id, date, gateway, "auto-generated"),
        f"Subject: {header.printable(subject)}",
        "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n",
        text,
    ]
    return "\n".join(lines).replace("\n", "\r\n").encode("utf-8", "replace")


def _head(sender: str, recipient: str, message_id: str, date: datetime, gateway: str, how: str) -> list[str]:
    return [
        f"Date: {email.utils.format_datetime(date)}",
        f"From: {sender}",
        f"To: {recipient}",
        f"Message-ID: {message_id}",
        f"Auto-Submitted: {how}",
        f"{header.LOOP_FIELD}: {gateway}",
        "MIME-Version: 1.0",
    ]
