"""The dry run behind ``dicom-mail read``: what RECEIVE would make of a message, without a gateway.

It reads with the same File-set Reader, decides with the same functions as the stage, and writes the document of the
outer contract. Nothing is stored and nothing is sent: what is unpacked lies in files that have no name, which are
gone when the process ends, however it ends.

A file does not tell how it would come. So its recipients are those its header names, and its peer is taken to be one
that may speak for the sender.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final

from gateway import keys
from gateway.config import Configuration, Limits
from gateway.core import header, reader, routing, unsealing
from gateway.core.cms.failure import Failure
from gateway.core.cms.verdict import Verdict
from gateway.core.unsealing import Unsealed
from gateway.errors import GatewayError, RefusedError, UsageError
from gateway.ledger import fragments
from gateway.model import Envelope, Finding, Instance, Outcome, Reading, Span
from gateway.stages import receive

Document = dict[str, Any]

STANDARD_INPUT: Final = "-"

_MAILDIR: Final = frozenset({"cur", "new", "tmp"})

_DELIVERED_TO: Final = frozenset({"delivered-to", "x-original-to", "envelope-to"})
"""What mail servers write the real recipient into."""

_ADDRESSED_TO: Final = frozenset({"to", "cc", "bcc"})

_ANY_ROUTE: Final = routing.Route("", "*", None, None, (), urgent=False, late=timedelta())
_ANYBODY: Final = routing.Partner("", "*", accept="any")
"""Without a configuration a message is judged as if a partner's route took it."""


def read(source: str, configuration: Configuration | None) -> Document:
    """Say what would become of a message, or of every message in a folder.

    Args:
        source: A file; a folder, with all below it, of which a maildir counts only its messages; or ``-`` for
            standard input.
        configuration: Its limits, partners and routes; without one the default limits, and no route.

    Raises:
        UsageError: There is no such file.
        GatewayError: It cannot be read.
    """
    if source == STANDARD_INPUT:
        with _spooled(sys.stdin.buffer) as path:
            return _read(path, configuration)
    path = Path(source)
    if path.is_dir():
        messages = [{"file": str(file.relative_to(path)), **_read(file, configuration)} for file in _files(path)]
        return {"messages": messages}
    if not path.exists():
        raise UsageError(f"there is no file or folder {path}")
    if path.is_file():
        return _read(path, configuration)
    with path.open("rb") as pipe, _spooled(pipe) as copy:
        return _read(copy, configuration)


def needs_a_person(document: Document) -> bool:
    """Tell whether a mail of a document would be held."""
    return any(one["outcome"] == Outcome.HELD for one in document.get("messages", [document]))


def _files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    if (folder / "cur").is_dir():  # the mail server's own files lie beside the messages
        return [path for path in found if path.parent.name in _MAILDIR]
    return found


@contextmanager
def _spooled(stream: BinaryIO) -> Iterator[Path]:
    """Copy a stream to a nameless file and yield a path to it."""
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(stream, file, 1 << 20)
        file.flush()
        yield _path(file)


def _path(file: Any) -> Path:
    """A path to an open file that has no name: only this process has one, and it dies with it."""
    return Path(f"/proc/self/fd/{file.fileno()}")


def _read(path: Path, configuration: Configuration | None) -> Document:
    limits = configuration.limits if configuration else Limits()
    refused = None
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = header.BLOCK.match(file.read(limits.header))
        assert head is not None  # it matches the empty string at least
        try:
            decision = _decide(head[0], configuration) if configuration else None
        except RefusedError as error:
            decision, refused = None, _End(Outcome.REFUSED, reason=error.reply)
        found = _open(Span(path, 0, size), head[0], configuration, decision)
    except OSError as error:
        raise GatewayError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from None
    reading = receive.without_repetitions(found.reading)
    guard = _protection(head[0], found)
    if size > limits.message:
        end = _End(Outcome.REFUSED, reason=f"552 5.3.4 it is bigger than the limit of {limits.message} bytes")
        return _document(reading, guard, end)
    if refused is not None:
        return _document(reading, guard, refused)
    if decision is None:
        decision = _without_routes(reading, guard)
        held = found.held if decision.partner is not None else None
        return _document(reading, guard, _follow(reading, held, decision))
    return _document(reading, guard, _follow(reading, found.held, decision), decision)


def _open(
    message: Span, head: bytes, configuration: Configuration | None, decision: routing.Decision | None
) -> Unsealed:
    """Open, judge and read a message, with the keys of the configuration; what would be held is read as it is."""
    rules = _rules(configuration, decision)
    found = Unsealed(unsealing.UNREAD, Verdict())
    needed = unsealing.is_protected(head) or (decision is not None and receive.demanded(decision) != "any")
    with tempfile.TemporaryFile() as out:
        if needed:
            with tempfile.TemporaryDirectory(prefix="dicom-mail-") as folder:
                guard = _guard(configuration, decision, head, Path(folder))
                found = unsealing.read_protected(message, rules, guard, _path(out))
        if not needed or found.held is not None:
            found = replace(found, reading=reader.read_to(message, rules, _path(out)))
    return found


def _guard(
    configuration: Configuration | None, decision: routing.Decision | None, head: bytes, folder: Path
) -> unsealing.Guard:
    fields = header.parse(head)
    sender = fields.senders[0] if fields.from_fields == 1 and len(fields.senders) == 1 else ""
    now = datetime.now(UTC)
    if configuration is None:
        return unsealing.Guard(unsealing.Store(), "any", sender, (), None, now, Limits().message, folder)
    ring = keys.load(configuration).keyring
    decision = decision or routing.Decision(sender, None, ())
    return receive.guard(ring, configuration, decision, now, folder)


def _rules(configuration: Configuration | None, decision: routing.Decision | None) -> reader.Rules:
    if configuration is None:
        return receive.rules(Limits())
    name = configuration.gateway.name
    return receive.rules(configuration.limits, decision, system=name, moment=datetime.now(UTC))


# What would become of it


@dataclass(frozen=True, slots=True)
class _End:
    """The outcome of a message, its code, and one sentence about why where a code does not say it."""

    outcome: Outcome
    code: str | None = None
    reason: str | None = None


def _follow(reading: Reading, held: Failure | None, decision: routing.Decision) -> _End:
    """Draw the stage's conclusions, and fold what follows for the instances if every destination accepted."""
    if reading.partial is not None and (decision.routes or decision.partner is not None):
        return _End(Outcome.WAITING, fragments.WAITING)
    if held is not None and decision.routes:
        who = decision.partner
        text = f"{who.name} must protect its mail ({who.accept})" if who is not None and who.name else None
        return _End(Outcome.HELD, held, text)
    verdict = receive.judge(reading, decision)
    if verdict.held:
        return _End(Outcome.HELD, verdict.held)
    if verdict.refused:
        return _End(Outcome.REFUSED, verdict.refused)
    code = next((one.held for one in reading.instances if one.held), verdict.problem)
    return _End(Outcome.HELD, code) if code else _End(Outcome.DELIVERED)


def _without_routes(reading: Reading, guard: Mapping[str, Any]) -> routing.Decision:
    # Whoever sends DICOM, or what nobody may look into, means it for the PACS; other mail is nobody's.
    meant = reading.kind == "dicom" or guard["encrypted"]
    return routing.Decision(None, _ANYBODY if meant else None, (_ANY_ROUTE,))


def _decide(block: bytes, configuration: Configuration) -> routing.Decision:
    """Find partner and routes as the stage does, for the recipients that the door would take.

    Raises:
        RefusedError: It would be refused.
    """
    book = receive.book(configuration)
    book = replace(book, partners=tuple(replace(one, peers=None, user=None) for one in book.partners))
    named = _recipients(block)
    admitted = [one for one in named if routing.admits(book, one)]
    if named and not admitted:
        raise RefusedError(550, "5.1.1", "no route takes mail for an address its header names")
    # A header without recipients (a blind copy) leaves only routes to anybody.
    envelope = Envelope("smtp", "", tuple(admitted) or ("",), "")
    return routing.decide(book, envelope, header.parse(block), configuration.gateway.name)


def _recipients(block: bytes) -> Sequence[str]:
    delivered: list[str] = []
    addressed: list[str] = []
    for name, value in header.fields(block):
        if name in _DELIVERED_TO:
            delivered += header.addresses(value)
        elif name in _ADDRESSED_TO:
            addressed += header.addresses(value)
    return [one for one in dict.fromkeys(delivered or addressed) if one]


# The document


def _protection(block: bytes, found: Unsealed) -> Document:
    """Say what protection a message has: as it was judged, and what its outermost layer claims to be (RFC 8551)."""
    content = next((value for name, value in header.fields(block) if name == "content-type"), "")
    kind, parameters = header.parameters(content)
    smime = kind.replace("/x-", "/") == "application/pkcs7-mime"
    what = parameters.get("smime-type", "").lower()
    signed = kind == "multipart/signed" or (smime and what == "signed-data")
    encrypted = kind == "multipart/encrypted" or (smime and what not in {"signed-data", "certs-only"})
    verdict, code = found.verdict, found.verdict.code or found.held
    if code is None and (signed or encrypted) and not unsealing.is_protected(block):
        code = Failure.UNSUPPORTED_ALGORITHM  # OpenPGP (RFC 3156)
    return {
        "encrypted": verdict.encrypted or encrypted,
        "signed": verdict.signed or signed,
        "verified": verdict.verified,
        "signer": verdict.signer,
        "code": code,
    }


def _document(reading: Reading, guard: Document, end: _End, decision: routing.Decision | None = None) -> Document:
    directory, fragment = reading.dicomdir, reading.partial
    return {
        "kind": reading.kind,
        "instances": [_instance(one) for one in reading.instances],
        "dicomdir": directory and {"complete": directory.complete, "missing": list(directory.missing)},
        "partial": fragment and {"id": fragment.id, "number": fragment.number, "total": fragment.total},
        "protection": guard,
        "other_parts": [{"part": one.part, "type": one.type, "size": one.size} for one in reading.other_parts],
        "findings": [_finding(one) for one in reading.findings],
        "partner": decision.partner.name if decision and decision.partner else None,
        "route": decision.routes[0].name if decision and decision.routes else None,
        "destinations": list(decision.destinations) if decision else [],
        "outcome": end.outcome,
        "code": end.code,
        "reason": end.reason,
    }


def _instance(one: Instance) -> Document:
    return {
        "sop_class": one.sop_class,
        "sop_instance": one.sop_instance,
        "study": one.study,
        "series": one.series,
        "transfer_syntax": one.transfer_syntax,
        "sha256": one.sha256,
        "size": one.size,
        "file_id": one.file_id,
        "part": one.part,
    }


def _finding(one: Finding) -> Document:
    return {"code": one.code, "severity": one.severity, "where": one.where, "text": one.text}
