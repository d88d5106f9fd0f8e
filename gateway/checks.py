"""Live tests behind ``dicom-mail check`` and ``dicom-mail echo``: is everything there that the gateway needs.

Every test is one line that a person can act on. Nothing is changed: no schema migrated, no image sent, and folders of
a mailbox are made only when somebody asks for it. What the configuration alone tells comes first; then the machine and
the peers are asked.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import pwd
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydicom.uid import UID
from pynetdicom.sop_class import _STORAGE_CLASSES
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from gateway import control, keys, service
from gateway.config import ApplicationEntity, Configuration, Listen, advice
from gateway.config.values import is_there
from gateway.core import contexts, mailbox
from gateway.edges import storescu
from gateway.edges.imap import ImapMailbox
from gateway.edges.pop3 import PopMailbox
from gateway.edges.submission import Relay
from gateway.errors import ConfigurationError, GatewayError, MailboxError, PeerUnreachableError, RelayError
from gateway.ledger import ledger
from gateway.model import Outcome
from gateway.users import Users

ECHO_PATIENCE: Final = 15.0
"""Seconds for each step of a C-ECHO at most, whatever the destination's own time-out: a person is waiting."""

MAILBOX_PATIENCE: Final = 45.0
"""Seconds for a login and a look at the folders."""

RELAY_PATIENCE: Final = 45.0
"""Seconds for a session with the relay."""

NAMED_REFUSALS: Final = 5
"""Storage classes that are named when a destination refuses them; more are counted."""

COMMON_CLASSES: Final = (
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.6.1",  # Ultrasound
    "1.2.840.10008.5.1.4.1.1.3.1",  # Ultrasound multi-frame
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
    "1.2.840.10008.5.1.4.1.1.12.1",  # X-Ray Angiography
)
"""Classes that are proposed in compressed syntaxes, too."""

_UNREACHABLE: Final = "is it up, are host and port right, is a firewall between?"

COMPRESSED: Final[Mapping[str, str]] = {
    "1.2.840.10008.1.2.4.50": "JPEG Baseline",
    "1.2.840.10008.1.2.4.51": "JPEG Extended",
    "1.2.840.10008.1.2.4.57": "JPEG Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless SV1",
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS Near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K Lossless",
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.1.99": "Deflate",
    "1.2.840.10008.1.2.4.102": "MPEG-4 video",
}
"""Syntaxes that real senders use, by the names people use."""

FORGETFUL: Final = frozenset({"tmpfs", "ramfs", "overlay"})
"""File systems whose content goes with the power or the container."""

EXPIRY: Final = (
    (timedelta(days=14), "renew it now"),
    (timedelta(days=30), "renew it this month"),
    (timedelta(days=60), "have it renewed"),
)
"""How long before its end a certificate is spoken of, and how urgently."""


class Mark(StrEnum):
    """What a test found."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    NO_ANSWER = "no answer"


class Check(NamedTuple):
    """One test and what it found.

    Attributes:
        mark: The result.
        subject: What was tested, as the configuration names it.
        text: What was found, without a full stop.
        do: What a person can do about it; empty when nothing has to be done.
    """

    mark: Mark
    subject: str
    text: str
    do: str = ""


def exit_code(marks: Iterable[Mark]) -> int:
    """Exit code of the outer contract: 1 for a problem, else 3 when somebody gave no answer, else 0."""
    found = set(marks)
    if Mark.PROBLEM in found:
        return GatewayError.exit_code
    return PeerUnreachableError.exit_code if Mark.NO_ANSWER in found else 0


def document(found: Iterable[Check]) -> dict[str, Any]:
    """The tests as a JSON document."""
    return {"checks": [one._asdict() for one in found]}


def review(configuration: Configuration) -> Iterator[Check]:
    """Say what the configuration alone tells."""
    yield Check(Mark.OK, "configuration", f"{configuration.source} is valid")
    for one in (*advice(configuration), *keys.review(configuration, datetime.now(UTC))):
        yield Check(Mark(one.level), one.key, one.what, one.do)


def check(configuration: Configuration, *, make_folders: bool = False) -> Iterator[Check]:
    """Say what the configuration tells, then test everything live; yield what is found as it is found."""
    yield from review(configuration)
    yield from live(configuration, make_folders=make_folders)


def live(configuration: Configuration, *, make_folders: bool = False) -> Iterator[Check]:
    """Test what the gateway needs: its folder, ledger, doors, certificates, users, destinations and queue."""
    owner = _owner(configuration.gateway.data)
    yield _running(configuration.gateway.data, owner)
    yield from _folder(configuration)
    yield from _ledger(configuration)
    for key, listen in _doors(configuration):
        yield _door(key, listen, owner)
    yield from _certificates(configuration)
    yield from _users(configuration)
    yield from echo(configuration, make_folders=make_folders)
    yield from accepted(configuration)
    yield from _queue(configuration)


# ---------------------------------------------------------------------------------------------------------------
# The data folder


def _owner(folder: Path) -> int | None:
    """The process that holds the lock of a data folder."""
    try:
        file = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared, and for a moment: two that ask do not hinder each other.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(file, 32, 0) or b"0")
    else:
        return None
    finally:
        os.close(file)


def _running(folder: Path, owner: int | None) -> Check:
    if owner is None and _is_closed(folder):
        text = f"this user cannot tell whether it runs: {folder} is closed to it"
        return Check(Mark.WARNING, "gateway", text, "run this as the gateway's user")
    return Check(Mark.OK, "gateway", f"runs as process {owner}" if owner else "does not run now")


def _is_closed(folder: Path) -> bool:
    """Whether this user may not look into a folder."""
    try:
        (folder / "lock").stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _folder(configuration: Configuration) -> Iterator[Check]:
    data = configuration.gateway.data
    subject = "gateway.data"
    place = next(path for path in (data, *data.parents) if is_there(path))
    if trouble := _unwritable(place):
        yield Check(Mark.PROBLEM, subject, f"{place} cannot be written: {trouble}", "run this as the gateway's user")
        return
    if place == data and (stranger := data.stat().st_uid) != os.geteuid():
        user = _user(stranger)
        yield Check(Mark.WARNING, subject, f"{data} belongs to {user}, who can do less or more", f"check as {user}")
    kind = ledger.file_system(place)
    if kind in ledger.NETWORK_FILE_SYSTEMS:
        text = f"{place} is on a network file system ({kind}), where SQLite cannot keep its promises"
        yield Check(Mark.PROBLEM, subject, text, "put it on a local disk")
    elif kind in FORGETFUL:
        yield Check(Mark.WARNING, subject, f"{place} is on {kind}, which forgets", "put it on a disk or a volume")
    yield _room(configuration, place, kind)


def _unwritable(folder: Path) -> str:
    """Why nothing can be written into a folder; empty when it can."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check-") as file:
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _room(configuration: Configuration, place: Path, kind: str) -> Check:
    disk = shutil.disk_usage(place)
    floor = configuration.limits.free_space_floor(disk.total)
    text = f"{place} on {kind}: {_size(disk.free)} free, {_size(floor)} wanted"
    if disk.free < floor:
        return Check(Mark.PROBLEM, "limits.free_space", f"{text}, so mail is answered with 452", "make room")
    return Check(Mark.OK, "gateway.data", text)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _ledger(configuration: Configuration) -> Iterator[Check]:
    path = configuration.gateway.data / "ledger.sqlite"
    if _is_closed(path.parent):
        return  # said of the folder
    if not path.exists():
        yield Check(Mark.OK, "ledger", "is made at the first start")
        return
    engine = create_engine(f"sqlite:///{path}", hide_parameters=True)
    try:
        with engine.connect() as connection:
            current, newest = ledger.schema(connection)
    except SQLAlchemyError as error:
        yield Check(Mark.PROBLEM, "ledger", f"{path} cannot be read: {type(error).__name__}", "restore a backup")
    except GatewayError as error:
        yield Check(Mark.PROBLEM, "ledger", error.text, error.hint)
    else:
        later = "" if current == newest else f", brought to {newest} at the next start"
        yield Check(Mark.OK, "ledger", f"schema {current or 'none'}{later}")
    finally:
        engine.dispose()


# ---------------------------------------------------------------------------------------------------------------
# Doors


def _doors(configuration: Configuration) -> Iterator[tuple[str, Listen]]:
    if (smtp := configuration.smtp) is not None:
        yield "smtp.listen", smtp.listen
        if smtp.implicit_tls_listen is not None:
            yield "smtp.implicit_tls_listen", smtp.implicit_tls_listen
    if configuration.storescp is not None:
        yield "storescp.listen", configuration.storescp.listen
    if configuration.console is not None:
        yield "console.listen", configuration.console.listen
    if configuration.metrics is not None:
        yield "metrics.listen", configuration.metrics.listen


def _door(key: str, listen: Listen, owner: int | None) -> Check:
    try:
        _bind(listen)
    except OSError as error:
        return _shut(key, listen, owner, error)
    return Check(Mark.OK, key, f"{listen} is free")


def _bind(listen: Listen) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(
        listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)


def _shut(key: str, listen: Listen, owner: int | None, error: OSError) -> Check:
    if error.errno == errno.EADDRINUSE and owner and _listens(owner, listen.port):
        return Check(Mark.OK, key, f"{listen} is open: the gateway listens there")
    text = f"{listen} cannot be used: {error.strerror or type(error).__name__}"
    match error.errno:
        case errno.EADDRINUSE:
            do = f"see who has it: ss -ltnp sport = :{listen.port}"
        case errno.EACCES:
            do = "ports below 1024 need CAP_NET_BIND_SERVICE, which the systemd unit gives"
        case _:
            do = "name an address of this machine"
    return Check(Mark.PROBLEM, key, text, do)


def _listens(pid: int, port: int) -> bool:
    """Whether a process listens on a port; yes when that cannot be seen, since it is another user's."""
    doors = set()
    try:
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text("ascii").splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                    doors.add(f"socket:[{rest[5]}]")
        return any(str(link.readlink()) in doors for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return True


# ---------------------------------------------------------------------------------------------------------------
# Certificates and users


def _certificates(configuration: Configuration) -> Iterator[Check]:
    now = datetime.now(UTC)
    for key, path, key_file in keys.named(configuration, ""):
        try:
            if key_file is not None:
                service.server_tls(path, key_file)
            ends = min(expiry(der) for der in _pem(path))
        except GatewayError as error:
            yield Check(Mark.PROBLEM, key, error.text, "is it PEM, and is the key its own?")
        except (OSError, ValueError, IndexError) as error:
            yield Check(Mark.PROBLEM, key, f"{path} cannot be read: {type(error).__name__}", "is it PEM?")
        else:
            yield _lasting(key, path, ends, now)


def _lasting(key: str, path: Path | str, ends: datetime, now: datetime) -> Check:
    text = f"{path} is valid until {ends:%Y-%m-%d}"
    if ends <= now:
        return Check(Mark.PROBLEM, key, f"{path} expired on {ends:%Y-%m-%d}", "renew it now")
    for bound, do in EXPIRY:
        if ends - now <= bound:
            days = (ends - now).days
            return Check(Mark.WARNING, key, f"{text}, {days} day{'' if days == 1 else 's'} more", do)
    return Check(Mark.OK, key, text)


def _pem(path: Path) -> list[bytes]:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    pieces = path.read_text("ascii", "replace").split(begin)[1:]
    return [ssl.PEM_cert_to_DER_cert(f"{begin}{piece.partition(end)[0]}{end}") for piece in pieces]


def expiry(certificate: bytes) -> datetime:
    """Read notAfter from a certificate in DER (RFC 5280 §4.1.2.5).

    Raises:
        ValueError: It is no certificate.
        IndexError: It is cut off.
    """
    ((_, whole),) = _elements(certificate)
    (_, signed), *_ = _elements(whole)
    fields = _elements(signed)
    # version [0], which only the oldest certificates lack; serialNumber, signature, issuer, validity
    validity = fields[4 if fields[0][0] == 0xA0 else 3][1]
    kind, text = _elements(validity)[1]
    form = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}.get(kind, "")
    return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC)


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """Split DER into tags and contents (X.690 §8.1), one level deep."""
    found = []
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[at : at + size])
            at += size
        found.append((tag, der[at : at + length]))
        at += length
    return found


def _users(configuration: Configuration) -> Iterator[Check]:
    for name, section in (("smtp", configuration.smtp), ("console", configuration.console)):
        if section is None or section.users_file is None:
            continue
        users = Users(section.users_file)
        try:
            users.load()
        except GatewayError as error:
            yield Check(Mark.PROBLEM, f"{name}.users_file", error.text, error.hint or "dicom-mail user add NAME")
        else:
            count = len(users.list())
            mark = Mark.OK if count else Mark.WARNING
            yield Check(mark, f"{name}.users_file", f"{count} may log in", "" if count else "dicom-mail user add NAME")


# ---------------------------------------------------------------------------------------------------------------
# Peers


def echo(configuration: Configuration, name: str | None = None, *, make_folders: bool = False) -> Iterator[Check]:
    """Ask destinations whether they are there by C-ECHO (NET-20), all at once, and log in to mailboxes.

    Args:
        configuration: Names them.
        name: One of them; None for all, and for what else is configured to be called.
        make_folders: Make the folders that a mailbox lacks.
    """
    names = list(configuration.ae) if name is None else [name]
    for found in _each(_ask, configuration, names):
        yield from found
    if name is None:
        yield from _mailboxes(configuration, make_folders=make_folders)
        yield from _relay(configuration)


def _each(
    question: Callable[[str, ApplicationEntity], list[Check]], configuration: Configuration, names: Sequence[str]
) -> Iterator[list[Check]]:
    """Ask destinations at once, so that a silent one holds up nobody; yield what was found in their order."""
    with ThreadPoolExecutor(max(1, min(len(names), 16)), "ask") as threads:
        yield from threads.map(lambda name: question(f"ae.{name}", configuration.ae[name]), names)


def _peer(entity: ApplicationEntity) -> storescu.Peer:
    peer = service.peer(entity)
    return replace(peer, timeout=min(peer.timeout, ECHO_PATIENCE))


def _ask(subject: str, entity: ApplicationEntity) -> list[Check]:
    try:
        result = storescu.echo(_peer(entity))
    except ConfigurationError as error:
        return [Check(Mark.PROBLEM, f"{subject}.tls", error.text, "are they PEM, and is the key its own and open?")]
    found = [_answer(subject, entity, result)]
    if result.certificate_ends is not None:
        lasting = _lasting(
            f"{subject}.tls", f"the certificate of {entity.host}", result.certificate_ends, datetime.now(UTC)
        )
        found.append(lasting._replace(do=lasting.do and f"{lasting.do}: tell the PACS team"))
    return found


def _answer(subject: str, entity: ApplicationEntity, result: storescu.EchoResult) -> Check:
    if result.ok:
        where = f"{entity.title} at {entity.host}:{entity.port}"
        secured = ", by TLS" if entity.tls is not None else ""
        return Check(Mark.OK, subject, f"{where} answered C-ECHO in {result.seconds * 1000:.0f} ms{secured}")
    if not result.reachable:
        do = _UNREACHABLE
        if "TLS" in result.reason or "certificate" in result.reason:
            do = "see [ae.NAME.tls]: both sides need TLS, and certificates that the other one trusts"
        return Check(Mark.NO_ANSWER, subject, result.reason, do)
    if "called AE title" in result.reason:
        return Check(Mark.PROBLEM, subject, result.reason, f"its title is not {entity.title}: ask the PACS team")
    if "calling AE title" in result.reason:
        return Check(Mark.PROBLEM, subject, result.reason, f"have the PACS team admit {entity.calling}")
    return Check(Mark.PROBLEM, subject, result.reason, "ask the PACS team")


def accepted(configuration: Configuration) -> Iterator[Check]:
    """Say what each destination takes, by associations that propose every storage class and send nothing (NET-20)."""
    for found in _each(_probe, configuration, list(configuration.ae)):
        yield from found


def _probe(subject: str, entity: ApplicationEntity) -> list[Check]:
    classes = dict(sorted((uid, UID(uid).name) for uid in _STORAGE_CLASSES.values()))
    native = [(uid, syntax) for uid in classes for syntax in contexts.FALL_BACKS]
    packed = [(uid, syntax) for uid in COMMON_CLASSES for syntax in COMPRESSED]
    try:
        refused = storescu.refusals(_peer(entity), native + packed)
    except GatewayError:
        return []  # the C-ECHO has said so
    missing = [name for uid, name in classes.items() if all((uid, each) in refused for each in contexts.FALL_BACKS)]
    taken = [name for syntax, name in COMPRESSED.items() if any((uid, syntax) not in refused for uid in COMMON_CLASSES)]
    return [_acceptance(f"{subject} storage", len(classes), missing, taken)]


def _acceptance(subject: str, count: int, missing: Sequence[str], taken: Sequence[str]) -> Check:
    text = f"accepts {count - len(missing)} of {count} storage classes"
    if missing:
        others = len(missing) - NAMED_REFUSALS
        named = ", ".join(missing[:NAMED_REFUSALS])
        text += f"; refuses: {named}" + (f" and {others} more" if others > 0 else "")
    text += f"; takes compressed: {', '.join(taken) if taken else 'nothing'}"
    if len(missing) == count:
        return Check(Mark.PROBLEM, subject, text, "have the PACS team allow storage to this title, and from ours")
    return Check(Mark.OK, subject, text)


def _mailboxes(configuration: Configuration, *, make_folders: bool) -> Iterator[Check]:
    """Log in to the mailboxes, all at once, and look for their folders (IMAP-6, R3)."""

    async def ask() -> list[list[Check]]:
        boxes = service.mailboxes_of(configuration)
        return await asyncio.gather(*(_log_in(door, box, make_folders) for door, box in boxes.items()))

    if configuration.imap or configuration.pop3:
        troubles = {one.subject: one for one in _known_troubles(configuration)}
        for found in asyncio.run(ask()):
            yield from found
            if (known := troubles.get(found[0].subject)) is not None:
                yield known


def _known_troubles(configuration: Configuration) -> Iterator[Check]:
    """What the gateway itself has to say of its mailboxes: a login alone does not show a second gateway (R3)."""
    if not is_there(configuration.gateway.data / "ledger.sqlite"):
        return
    try:
        state = control.call(configuration, "list", most=1)
    except GatewayError:
        return  # said where the ledger is tested
    for one in state["mailboxes"]:
        if one["state"] != mailbox.State.OK:
            text = f"the gateway found it {one['state']}, since {one['since']}: {one['text']}"
            yield Check(Mark.WARNING, one["name"], text, one["do"])


async def _log_in(door: str, box: ImapMailbox | PopMailbox, make_folders: bool) -> list[Check]:
    began = time.monotonic()
    try:
        async with asyncio.timeout(MAILBOX_PATIENCE):
            if isinstance(box, PopMailbox):
                session = await box.open()
                await session.close()
                return [Check(Mark.OK, door, _logged_in(box.settings.host, began))]
            return await _folders(door, box, began, make_folders)
    except TimeoutError:
        return [Check(Mark.NO_ANSWER, door, "does not answer", mailbox.REMEDY[mailbox.State.SILENT])]
    except MailboxError as error:
        state = mailbox.State(error.state)
        mark = Mark.NO_ANSWER if state in _NO_ANSWER else Mark.PROBLEM
        return [Check(mark, door, error.text, mailbox.REMEDY[state])]


_NO_ANSWER: Final = frozenset({mailbox.State.UNREACHABLE, mailbox.State.SILENT})


async def _folders(door: str, box: ImapMailbox, began: float, make_folders: bool) -> list[Check]:
    session = await box.log_in()
    found = [Check(Mark.OK, door, _logged_in(box.settings.host, began))]
    try:
        await session.find_folders()
        for key in ("folder", "done", "failed"):
            subject, name = f"{door}.{key}", getattr(box.settings, key)
            if session.folders[key] is not None:
                found.append(Check(Mark.OK, subject, f"{session.folders[key]} is there"))
            elif make_folders and key != "folder":
                await session.create(key)
                found.append(Check(Mark.OK, subject, f"{session.folders[key]} was made"))
            else:
                do = "name another one" if key == "folder" else "dicom-mail check --make-folders"
                found.append(Check(Mark.PROBLEM, subject, f"there is no folder {name}", do))
    except MailboxError as error:
        found.append(Check(Mark.PROBLEM, door, error.text, mailbox.REMEDY[mailbox.State(error.state)]))
    finally:
        await session.close()
    return found


def _logged_in(host: str, began: float) -> str:
    return f"logged in at {host} in {(time.monotonic() - began) * 1000:.0f} ms"


def _relay(configuration: Configuration) -> Iterator[Check]:
    """Open a session with the relay as far as mail could begin: EHLO, STARTTLS, AUTH and SIZE (SMTP-9, SMTP-14)."""
    settings, relay = configuration.relay, service.relay_of(configuration)
    if settings is None or relay is None:
        return
    began = time.monotonic()
    try:
        asyncio.run(_greeted(relay))
    except TimeoutError:
        yield Check(Mark.NO_ANSWER, "relay", "does not answer", _RELAY_AWAY)
    except RelayError as error:
        mark = Mark.PROBLEM if error.lasting else Mark.NO_ANSWER
        yield Check(mark, "relay", error.text, error.hint or _RELAY_AWAY)
    else:
        how = "" if settings.tls == "none" else ", by TLS"
        who = f", logged in as {settings.user}" if settings.user else ""
        milliseconds = (time.monotonic() - began) * 1000
        where = f"{settings.host}:{settings.port}"
        yield Check(Mark.OK, "relay", f"{where} would take mail, in {milliseconds:.0f} ms{how}{who}")
        yield from _capacity(settings.max_message, relay.announced)


async def _greeted(relay: Relay) -> None:
    async with asyncio.timeout(RELAY_PATIENCE):
        await relay.greet()


def _capacity(configured: int, announced: int | None) -> Iterator[Check]:
    """Compare what one mail may have here with what the relay says."""
    subject = "relay.max_message"
    if announced is None:
        yield Check(Mark.OK, subject, f"{_size(configured)}; the relay announces no limit")
    elif announced < configured:
        text = f"{_size(configured)}, and the relay takes {_size(announced)}: mails are made to fit that"
        yield Check(Mark.WARNING, subject, text, "set it to that, or have the relay's limit raised")
    else:
        yield Check(Mark.OK, subject, f"{_size(configured)}; the relay takes {_size(announced)}")


_RELAY_AWAY: Final = "is it up, are relay.host and relay.port right, is a firewall between?"


# ---------------------------------------------------------------------------------------------------------------
# The queue


def _queue(configuration: Configuration) -> Iterator[Check]:
    if not is_there(configuration.gateway.data / "ledger.sqlite"):
        return
    try:
        proof = control.call(configuration, "reconcile")
        state = control.call(configuration, "list", most=1)
    except GatewayError:
        return  # said already, of the ledger
    for one in state["notices"]:
        yield Check(Mark.WARNING, "notice", one["text"], one["do"])
    for one in state["destinations"]:
        if one["paused"]:
            yield Check(
                Mark.WARNING, f"ae.{one['name']}", "is paused by a person", f"dicom-mail queue resume {one['name']}"
            )
    counts = ", ".join(f"{proof[outcome]} {outcome}" for outcome in _OPEN)
    if proof["unaccounted"]:
        text = f"{counts}; {proof['unaccounted']} unaccounted for"
        yield Check(Mark.PROBLEM, "queue", text, "dicom-mail reconcile")
    elif proof[Outcome.HELD] or proof[Outcome.FAILED]:
        yield Check(Mark.WARNING, "queue", counts, "a person decides: dicom-mail queue list")
    else:
        yield Check(Mark.OK, "queue", counts)


_OPEN: Final[Sequence[Outcome]] = (Outcome.WAITING, Outcome.HELD, Outcome.FAILED)
