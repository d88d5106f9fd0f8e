"""The message header: fields, parameters and addresses, read from bytes that anybody may have written.

Nothing here raises on any input, and everything takes linear time. The stdlib is used only to decode the values of
RFC 2231 and RFC 2047, behind limits.
"""

from __future__ import annotations

import email.errors
import email.header
import email.utils
import re
from collections.abc import Iterator
from typing import Final

from gateway.model import Header

LOOP_FIELD: Final = "X-DICOM-Mail-Loop"
"""Our own trace field: a message that bears our token has been here before."""

ADDRESS_LIMIT: Final = 100
"""Addresses in From fields that are looked at. A proper message has one."""

VALUE_LIMIT: Final = 16 << 10
"""Characters of one field value that are looked at; more is no field of a mail."""

LINE_LIMIT: Final = 998
"""Characters of a line (RFC 5322 §2.1.1): a longer value is nothing that was meant to be read."""

# A field name is printable ASCII without colon (RFC 5322 §2.2).
# QUIRK: blanks before the colon (RFC 5322 §4.5.8, obsolete) and mbox's "From " line are taken as part of the header.
BLOCK: Final = re.compile(rb"(?:(?:[!-9;-~]++[ \t]*+:|[ \t]|From )[^\n]*+\n)*+")
"""Matches the header lines at a place, without the empty line behind them."""

FIELD: Final = re.compile(rb"^([!-9;-~]++)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)", re.MULTILINE)
"""Matches one field with its folded lines, without the line end behind it; groups are name and value."""

_STRANGE: Final = "\N{REPLACEMENT CHARACTER}"
_FOLD: Final = re.compile(r"[\r\n]+")
_PARAMETER: Final = re.compile(r';\s*+([^\s=;"]++)\s*+=\s*+("(?:[^"\\]|\\.)*+"?+|[^;]*+)', re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_CONTINUED: Final = re.compile(r"\*(?:\d+\*?)?$")
_QUOTED: Final = r'"(?:[^"\\]|\\.)*+"'
_MAILBOX: Final = re.compile(rf'(?:{_QUOTED}|<[^<>]*+>|[^,;"<>])*+', re.DOTALL)
_GROUP: Final = re.compile(r'^[^"@<:]*+:')
_ANGLED: Final = re.compile(rf"{_QUOTED}|(<[^<>]*+>)", re.DOTALL)
_COMMENTED: Final = re.compile(rf'{_QUOTED}|\\.|[()"\\]|[^()"\\]++', re.DOTALL)
_ADDR_SPEC: Final = re.compile(rf'(?:{_QUOTED}|[^\s"@<>:]++)@[^\s"@<>:]++\Z', re.DOTALL)


def fields(block: bytes) -> Iterator[tuple[str, str]]:
    """Yield name in lower case and unfolded value of each field, in order."""
    for match in FIELD.finditer(block):
        value = match[2][:VALUE_LIMIT].decode("utf-8", "surrogateescape")
        yield match[1].decode("ascii").lower(), _FOLD.sub("", value).strip()


def printable(text: str) -> str:
    """Replace what a database or a terminal must not be given: control characters, and bytes that are no text.

    What is longer than a line of a mail is cut.
    """
    text = text[:LINE_LIMIT]
    if text.isascii() and text.isprintable():
        return text
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(character if character.isprintable() else _STRANGE for character in text)


def parse(block: bytes) -> Header:
    """Read what the gateway acts on from a header block. Takes any bytes (SMTP-17)."""
    senders: list[str] = []
    loop_tokens: list[str] = []
    from_fields = received = 0
    message_id = None
    for name, value in fields(BLOCK.match(block)[0]):  # type: ignore[index]  # it matches the empty string at least
        if name == "from":
            from_fields += 1
            senders += addresses(value)
        elif name == "received":
            received += 1
        elif name == "message-id":
            message_id = message_id or printable(value) or None
        elif name == LOOP_FIELD.lower():
            loop_tokens.append(printable(value))
    return Header(tuple(senders[:ADDRESS_LIMIT]), from_fields, message_id, received, tuple(loop_tokens))


def addresses(value: str) -> list[str]:
    """Return the addr-spec of every mailbox in a list (RFC 5322 §3.4), without display names and comments.

    A mailbox that has none, or could be read in two ways, gives an empty string: it must be counted, since two readers
    might disagree about whom it names. A quoted local part keeps its quotes.
    """
    text = _without_comments(value)
    if text is None:
        return [""]
    found: list[str] = []
    at = 0
    while at < len(text) and len(found) < ADDRESS_LIMIT:
        mailbox = _MAILBOX.match(text, at)[0]  # type: ignore[index]  # it matches the empty string at least
        at += len(mailbox)
        if at < len(text) and text[at] not in ",;":
            return [*found, ""]  # a quote or bracket without its partner
        at += 1
        mailbox = _GROUP.sub("", mailbox).strip()
        if mailbox:
            found.append(_address(mailbox))
    return found


def _without_comments(value: str) -> str | None:
    """Take comments out (RFC 5322 §3.2.2); None when one does not end."""
    if "(" not in value:
        return value
    depth = 0
    kept: list[str] = []
    for word in _COMMENTED.findall(value):
        if word == "(":
            depth += 1
        elif word == ")" and depth:
            depth -= 1
        elif not depth:
            kept.append(word)
    return None if depth else "".join(kept)


def _address(mailbox: str) -> str:
    angled = [inner for inner in _ANGLED.findall(mailbox) if inner]
    if len(angled) > 1:
        return ""
    text = angled[0][1:-1].strip() if angled else mailbox
    return text if _ADDR_SPEC.match(text) and text == printable(text) else ""


def parameters(value: str) -> tuple[str, dict[str, str]]:
    """Split a field like Content-Type into its value in lower case and its parameters (RFC 2045 §5.1, RFC 2231).

    Names are in lower case, the first of two equal names holds. Encoded words in a value are decoded though
    RFC 2047 §5 forbids them there, since real programs write them.
    """
    head, _, _ = value.partition(";")
    found: dict[str, str] = {}
    pairs = [(name, _unquote(text)) for name, text in _PARAMETER.findall(value[len(head) :])]
    if any("*" in name for name, _ in pairs):
        pairs = _continued(pairs)
    for name, text in pairs:
        found.setdefault(name.lower(), words(text))
    return head.strip().lower(), found


def _unquote(text: str) -> str:
    text = text.strip()
    if text.startswith('"'):
        return _ESCAPE.sub(r"\1", text[1:].removesuffix('"'))
    return text


def _continued(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Put pieces like ``name*0*=`` together. What stdlib cannot decode stays as it is written."""
    plain = [(name, text) for name, text in pairs if not _CONTINUED.search(name)]
    names = {name for name, _ in plain}
    try:
        # The first pair is skipped by the function: it stands for the media type.
        decoded = email.utils.decode_params([("", ""), *pairs])[1:]
        return plain + [
            (name, email.utils.collapse_rfc2231_value(text).strip('"'))
            for name, text in decoded
            if isinstance(text, tuple) or name not in names
        ]
    except (ValueError, LookupError, TypeError, AttributeError):
        return plain


def words(text: str) -> str:
    """Decode encoded words (RFC 2047); text that only looks like them stays as it is."""
    # stdlib looks for the end of each word anew, which takes long in a long text.
    if "=?" not in text or len(text) > LINE_LIMIT:
        return text
    try:
        return "".join(
            chunk if isinstance(chunk, str) else chunk.decode(charset or "latin-1", "replace")
            for chunk, charset in email.header.decode_header(text)
        )
    except (ValueError, LookupError, email.errors.HeaderParseError):
        return text
