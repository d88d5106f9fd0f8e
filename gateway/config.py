"""The configuration: one TOML file as frozen values, read once and checked as a whole.

Every problem is named in one go, each on a line of its own: the file, the key, the value, what is expected instead
and the nearest known key. What is loaded is complete: paths are absolute, names in routes exist, files can be read.
A section that is absent is a door that is shut.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Le, MinLen
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    Strict,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from gateway.errors import ConfigurationError

DEFAULT_PATH: Final = Path("/etc/dicom-mail/gateway.toml")
"""Where the configuration lies when nobody says otherwise."""

MAX_FILE: Final = 1 << 20
"""Bytes that a configuration may have; more is no configuration."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# ---------------------------------------------------------------------------------------------------------------
# Values


@dataclass(frozen=True, slots=True)
class Listen:
    """Where a door listens.

    Attributes:
        host: An IP address or a host name, without brackets.
        port: 0 lets the system choose a free one.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        return is_loopback(self.host)


WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True, slots=True)
class Downtime:
    """A weekly time in which a destination is known to be away: no attempts, no notice.

    Attributes:
        days: Days on which it begins, Monday is 0.
        start: When it begins, in local time.
        end: When it ends, in local time; not after ``start`` means on the next day.
    """

    days: frozenset[int]
    start: time
    end: time

    def until(self, moment: datetime) -> datetime | None:
        """When the downtime that has begun at ``moment`` (in local time) ends; None outside of it."""
        for days_ago in (0, 1):
            day = moment.date() - timedelta(days=days_ago)
            begin = datetime.combine(day, self.start, moment.tzinfo)
            end = datetime.combine(day, self.end, moment.tzinfo)
            if end <= begin:
                end += timedelta(days=1)
            if day.weekday() in self.days and begin <= moment < end:
                return end
        return None


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host, or listened for on it, never leaves the machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)\s*(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)")
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_DOWNTIME = re.compile(
    r"(?:(?P<first>[A-Z][a-z]{2})(?:-(?P<last>[A-Z][a-z]{2}))? )?(?P<start>[\d:]{5})-(?P<end>[\d:]{5})"
)
_NAME = re.compile(r"\w[\w .-]{0,63}")
_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_ADDRESS = re.compile(r"[^\s@<>()\",;:\\]+@[^\s@<>()\",;\\]+")
_FIELD_NAME = re.compile(r"[!-9;-~]+")  # RFC 5322 §2.2


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('expected a duration as "90s", "5m" or "7d"')
    duration = timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
    if duration > timedelta(days=36525):
        raise ValueError("expected a duration of less than a century")
    return duration


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta():
        raise ValueError("expected a duration longer than nothing")
    return value


def _size(value: object, info: ValidationInfo) -> int:
    if isinstance(value, int) and info.context is None:  # in code, not in TOML: there a bare number hides its unit
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('expected a size as "35 MB" or "5 GiB"')
    size = int(float(match[1]) * _BYTES[match[2]])
    if size < 1:
        raise ValueError("expected a size of at least one byte")
    return size


def _listen(value: object) -> Listen:
    if isinstance(value, Listen):
        return value
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not (colon and port.isascii() and port.isdecimal() and int(port) <= 65535 and _is_host(host)):
        raise ValueError('expected an address and a port as "127.0.0.1:8080" or "[::1]:8080"')
    if ":" in host and not bracketed:
        raise ValueError('expected an IPv6 address in brackets, as "[::1]:8080"')
    return Listen(host, int(port))


def _is_host(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        # Four numbers that are no address are a typing error, not a name.
        return _HOST.fullmatch(value) is not None and not value.rpartition(".")[2].isdecimal()
    return True


def _host(value: str) -> str:
    if not _is_host(value):
        raise ValueError('expected a host name or an IP address, without port, as "pacs.hospital.example"')
    return value


def _network(value: object) -> Network:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    expected = 'expected a network or an address, as "10.0.0.0/8" or "127.0.0.1"'
    if not isinstance(value, str):
        raise ValueError(expected)  # noqa: TRY004 - pydantic collects ValueError only
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(expected) from None
    if network.network_address != ipaddress.ip_address(value.partition("/")[0]):
        raise ValueError(f'expected the first address of the network, as "{network}"')
    return network


def _ae_title(value: str) -> str:
    """NET-6: 1 to 16 characters of the default repertoire without backslash; outer spaces have no meaning."""
    title = value.strip(" ")
    if not 1 <= len(title) <= 16 or "\\" in title or not (title.isascii() and title.isprintable()):
        raise ValueError("expected an AE title: 1 to 16 ASCII characters, no backslash")
    return title


def _calling(value: str) -> str:
    try:
        return _ae_title(value)
    except ValueError:
        raise ValueError('expected a calling AE title or a pattern, as "CT1", "CT*" or "*"') from None


def _address(value: str) -> str:
    if "*" in value or not _ADDRESS.fullmatch(value):
        raise ValueError('expected one mail address, as "dicom@clinic.example"')
    return value


def _address_pattern(value: str) -> str:
    if not _ADDRESS.fullmatch(value):
        raise ValueError('expected a mail address or a pattern, as "dicom@clinic.example" or "*@clinic.example"')
    return value


def _recipient_pattern(value: str) -> str:
    return value if value == "*" else _address_pattern(value)


def _downtime(value: object) -> Downtime:
    if isinstance(value, Downtime):
        return value
    expected = 'expected a weekly time as "Sun 02:00-04:00", "Mon-Fri 22:00-05:00" or "02:00-02:30"'
    match = _DOWNTIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(expected)
    try:
        first = WEEKDAYS.index(match["first"] or "Mon")
        last = WEEKDAYS.index(match["last"] or match["first"] or "Sun")
        start, end = (time.fromisoformat(match[which].replace("24:00", "00:00")) for which in ("start", "end"))
    except ValueError:
        raise ValueError(expected) from None
    days = frozenset((first + step) % 7 for step in range((last - first) % 7 + 1))
    return Downtime(days, start, end)


def _url(*schemes: str) -> AfterValidator:
    def check(value: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            good = parts.scheme in schemes and bool(parts.netloc or parts.scheme == "file")
        except ValueError:
            good = False
        if not good:
            raise ValueError("expected a URL that begins with " + " or ".join(f"{scheme}://" for scheme in schemes))
        return value

    return AfterValidator(check)


def _patient_id_rule(value: str) -> str:
    prefix = value.removeprefix("prefix:")
    if value != "keep" and (prefix == value or not prefix or "\\" in prefix or len(prefix) > 32):
        raise ValueError('expected "keep" or a prefix of 1 to 32 characters, as "prefix:A-"')
    return value


def _issuer(value: str) -> str:
    if not 1 <= len(value) <= 64 or "\\" in value:  # LO, PS3.5 6.2
        raise ValueError("expected 1 to 64 characters without backslash")
    return value


_OWN_FIELDS: Final = frozenset(
    {"from", "sender", "reply-to", "to", "cc", "bcc", "date", "subject", "message-id", "in-reply-to", "references"}
    | {"mime-version", "received", "return-path", "auto-submitted", "disposition-notification-to"}
)


def _extra_headers(headers: dict[str, str]) -> dict[str, str]:
    for name in headers:
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"expected names of header fields (RFC 5322), not {_quote(name)}")
        if name.lower() in _OWN_FIELDS or name.lower().startswith("content-"):
            raise ValueError(f"expected further header fields; {name} is written by the gateway itself")
    return headers


# ---------------------------------------------------------------------------------------------------------------
# Files


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What validators need to know beside the value.

    Attributes:
        folder: Of the configuration file; relative paths begin here.
        credentials: What systemd hands over; looked at first for secrets.
        names: The names that each kind of section has.
    """

    folder: Path
    credentials: Path | None
    names: Mapping[str, frozenset[str]]


def _surroundings(info: ValidationInfo) -> _Surroundings | None:
    return info.context if isinstance(info.context, _Surroundings) else None


def _place(value: Path, info: ValidationInfo) -> Path:
    """Make a path absolute."""
    around = _surroundings(info)
    if str(value) == ".":
        raise ValueError("expected a path")
    return around.folder / value if around else value


def _place_secret(value: Path, info: ValidationInfo) -> Path:
    """Make the path of a secret absolute: $CREDENTIALS_DIRECTORY first, else beside the configuration."""
    around = _surroundings(info)
    if around and around.credentials and (around.credentials / value).exists():
        return around.credentials / value
    return _place(value, info)


def _demand_file(value: Path, info: ValidationInfo) -> Path:
    if _surroundings(info) is None:
        return value
    if not value.exists():
        raise ValueError(f"no file {value}")
    if value.is_dir():
        raise ValueError(f"expected a file; {value} is a folder")
    if not os.access(value, os.R_OK):
        raise ValueError(f"this user may not read {value}")
    return value


def _demand_command(value: Path, info: ValidationInfo) -> Path:
    _demand_file(value, info)
    if _surroundings(info) and not os.access(value, os.X_OK):
        raise ValueError(f"this user may not execute {value}")
    return value


def _known(kind: str, *sections: str) -> AfterValidator:
    """The value must be the name of a section of these kinds."""

    def check(value: str, info: ValidationInfo) -> str:
        around = _surroundings(info)
        names = sorted({name for section in sections for name in around.names[section]}) if around else [value]
        if value not in names:
            wanted = " or ".join(f"[{section}.{value}]" for section in sections)
            raise ValueError(f"expected {kind}; there is no {wanted}{_nearest(value, names)}")
        return value

    return AfterValidator(check)


def _from(value: str, info: ValidationInfo) -> str:
    around = _surroundings(info)
    if value == "*" or around is None or value in around.names["partner"]:
        return value
    if "@" in value:
        return _address_pattern(value)
    near = _nearest(value, sorted(around.names["partner"]))
    raise ValueError(f'expected a partner, an address pattern or "*"; there is no [partner.{value}]{near}')


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    for value, times in Counter(values).items():
        if times > 1:
            raise ValueError(f"expected each name once; {_quote(value)} stands there {times} times")
    return values


Duration = Annotated[timedelta, BeforeValidator(_duration), AfterValidator(_positive)]
DurationOrZero = Annotated[timedelta, BeforeValidator(_duration)]
Size = Annotated[int, BeforeValidator(_size)]
Count = Annotated[int, Strict(), Ge(1)]
Port = Annotated[int, Strict(), Ge(1), Le(65535)]
Switch = Annotated[bool, Strict()]
Text = Annotated[str, MinLen(1)]
Host = Annotated[str, AfterValidator(_host)]
Title = Annotated[str, AfterValidator(_ae_title)]
MailAddress = Annotated[str, AfterValidator(_address)]
Door = Annotated[Listen, BeforeValidator(_listen)]
Networks = Annotated[tuple[Annotated[Network, BeforeValidator(_network)], ...], MinLen(1)]
Folder = Annotated[Path, AfterValidator(_place)]
File = Annotated[Path, AfterValidator(_place), AfterValidator(_demand_file)]
Secret = Annotated[Path, AfterValidator(_place_secret), AfterValidator(_demand_file)]
UsersFile = Annotated[Path, AfterValidator(_place_secret)]  # `dicom-mail user add` makes it
PduSize = Annotated[int, Strict(), Ge(4096), Le(2**32 - 1)]


class Section(BaseModel):
    """A table of the TOML: frozen, and every key is known."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True)


# ---------------------------------------------------------------------------------------------------------------
# Sections


class Gateway(Section):
    """Who this gateway is and where it keeps what it has.

    Attributes:
        name: HELO name and right side of Message-IDs.
        postmaster: Where notices for IT go.
        data: Folder of the spool, the SQLite ledger, the control socket and scratch.
        database: URL of a PostgreSQL ledger that several nodes share. May hold a password: never shown.
        blobs: URL of the store in which several nodes share their bytes.
    """

    name: Host
    postmaster: MailAddress
    data: Folder = Path("/var/lib/dicom-mail")
    database: Annotated[SecretStr, _url("postgresql")] | None = None
    blobs: Annotated[SecretStr, _url("s3", "file")] | None = None

    @model_validator(mode="after")
    def _check(self) -> Gateway:
        if (self.database is None) != (self.blobs is None):
            raise ValueError("expected database and blobs together, or neither")
        if self.database is None and "data" not in self.model_fields_set:
            raise ValueError("data is missing; expected data, or database and blobs")
        return self


class Limits(Section):
    """What is too much, too old or too long.

    Attributes:
        message: Bytes of one mail.
        instance: Bytes of one instance.
        parts: MIME parts of one mail.
        depth: How deep parts may nest.
        header: Bytes of one header.
        unpacked: Bytes that all of one message may inflate to.
        ratio: How many times its size one compressed member may inflate to.
        free_space: Free bytes below which new work is refused; None stands for ``free_space_floor``'s default.
        fragment_age: After this an incomplete message/partial set is held, with a notice.
        remember: How long a mail or an instance is known again.
        give_up: How long delivery is tried.
        retention: How long originals of what was delivered are kept.
        stop: How long running sends may finish at SIGTERM.
        worker_memory: Bytes that one worker process may use.
        worker_time: How long a worker process may take for one piece of work.
    """

    message: Size = 2 << 30
    instance: Size = 2 << 30
    parts: Count = 5000
    depth: Count = 8
    header: Size = 1 << 20
    unpacked: Size = 8 << 30
    ratio: Count = 200
    free_space: Size | None = None
    fragment_age: Duration = timedelta(hours=72)
    remember: Duration = timedelta(days=30)
    give_up: Duration = timedelta(days=5)
    retention: DurationOrZero = timedelta(days=7)
    stop: DurationOrZero = timedelta(seconds=30)
    worker_memory: Size = 2 << 30
    worker_time: Duration = timedelta(minutes=5)

    def free_space_floor(self, disk_size: int) -> int:
        """Free bytes below which new work is refused (R5): as configured, else the smaller of 5 GiB and 10 %."""
        return self.free_space if self.free_space is not None else min(5 << 30, disk_size // 10)


class Smtp(Section):
    """The SMTP door.

    Attributes:
        listen: Where it listens.
        implicit_tls_listen: Where it listens with TLS from the first byte (RFC 8314); None: not opened.
        certificate: PEM chain for TLS, key in ``key_file``; None: no STARTTLS.
        key_file: PEM key.
        require_tls: No mail without TLS.
        users_file: Who may AUTH, over TLS only; None: no AUTH.
        allow: Peers that may connect; None: all.
        connections: How many at once.
    """

    listen: Door = Listen("0.0.0.0", 25)  # noqa: S104 - the contract's default; the section itself opens the door
    implicit_tls_listen: Door | None = None
    certificate: File | None = None
    key_file: Secret | None = None
    require_tls: Switch = False
    users_file: UsersFile | None = None
    allow: Networks | None = None
    connections: Count = 100

    @model_validator(mode="after")
    def _check(self) -> Smtp:
        _demand_pair(self.certificate, self.key_file)
        if self.certificate is None:
            for key in ("implicit_tls_listen", "require_tls", "users_file"):
                if getattr(self, key):
                    raise ValueError(f"{key} needs TLS; expected certificate and key_file too")
        return self


class OAuth(Section):
    """How a token is got in place of a password (RFC 6749).

    Attributes:
        token_url: The token endpoint.
        client_id: As the provider gave it.
        client_secret_file: Holds the client secret.
        scope: As the provider wants it.
        refresh_token_file: Holds a refresh token; None: client credentials grant.
    """

    token_url: Annotated[SecretStr, _url("https", "http")]
    client_id: Text
    client_secret_file: Secret
    scope: Text
    refresh_token_file: Secret | None = None


class PopMailbox(Section):
    """A mailbox that is polled by POP3.

    Attributes:
        host: The mail server.
        port: Its port; when absent 995, or 110 without implicit TLS.
        tls: ``implicit``, ``starttls`` or ``none``.
        user: Who logs in.
        password_file: Holds the password.
        address: What routes' ``to`` is matched with; the user when absent.
        other: Mail without DICOM: ``leave`` it, or ``move`` it as if it were done.
        poll: How often it is looked at.
    """

    host: Host
    tls: Literal["implicit", "starttls", "none"] = "implicit"
    port: Port = Field(default_factory=lambda values: 995 if values.get("tls") == "implicit" else 110)
    user: Text
    password_file: Secret
    address: MailAddress = Field(default_factory=lambda values: values.get("user", ""))
    other: Literal["leave", "move"] = "leave"
    poll: Duration = timedelta(seconds=60)


class Mailbox(Section):
    """A mailbox that is polled by IMAP.

    Attributes:
        host: The mail server.
        port: Its port; when absent 993, or 143 without implicit TLS.
        tls: ``implicit``, ``starttls`` or ``none``.
        user: Who logs in.
        password_file: Holds the password; this or ``oauth``.
        oauth: How a token is got; this or ``password_file``.
        address: What routes' ``to`` is matched with; the user when absent.
        folder: Where new mail lies.
        done: Where mail is moved once its bytes are ours.
        failed: Where mail is moved that cannot be taken.
        other: Mail without DICOM: ``leave`` it, or ``move`` it to ``done``.
        poll: How often it is looked at, beside IDLE.
    """

    host: Host
    tls: Literal["implicit", "starttls", "none"] = "implicit"
    port: Port = Field(default_factory=lambda values: 993 if values.get("tls") == "implicit" else 143)
    user: Text
    password_file: Secret | None = None
    oauth: OAuth | None = None
    address: MailAddress = Field(default_factory=lambda values: values.get("user", ""))
    folder: Text = "INBOX"
    done: Text = "Processed"
    failed: Text = "Failed"
    other: Literal["leave", "move"] = "leave"
    poll: Duration = timedelta(seconds=60)

    @model_validator(mode="after")
    def _check(self) -> Mailbox:
        if (self.password_file is None) == (self.oauth is None):
            raise ValueError("expected exactly one of password_file and oauth")
        return self


class ClientTls(Section):
    """TLS where we call.

    Attributes:
        ca: PEM anchors that the peer is checked with; None: the system's.
        certificate: What we show ourselves; None: nothing.
        key_file: Its key.
    """

    ca: File | None = None
    certificate: File | None = None
    key_file: Secret | None = None

    @model_validator(mode="after")
    def _check(self) -> ClientTls:
        _demand_pair(self.certificate, self.key_file)
        return self


class ServerTls(Section):
    """TLS where we are called.

    Attributes:
        certificate: PEM chain that we show.
        key_file: Its key.
        ca: PEM anchors that callers must have a certificate of; None: callers show none.
    """

    certificate: File
    key_file: Secret
    ca: File | None = None


class ApplicationEntity(Section):
    """A Storage SCP that we send to.

    Attributes:
        title: Its AE title.
        host: Where it is.
        port: Its port.
        calling: What we call ourselves.
        associations: How many in parallel.
        transcode: When it refuses the transfer syntax: ``lossless`` (decode) or ``never``.
        confirm: What counts as delivered: ``store``, ``find`` or ``commitment``.
        confirm_within: How long a confirmation may take.
        unknown_sends: After so many sends without a valid response the instance is held.
        timeout: For one DIMSE message.
        max_pdu: Bytes of the longest PDU that we take.
        downtime: When it is known to be away.
        tls: TLS towards it; None: in the clear.
    """

    title: Title
    host: Host
    port: Port
    calling: Title = "DICOMMAIL"
    associations: Count = 2
    transcode: Literal["lossless", "never"] = "lossless"
    confirm: Literal["store", "find", "commitment"] = "store"
    confirm_within: Duration = timedelta(hours=6)
    unknown_sends: Count = 4
    timeout: Duration = timedelta(seconds=60)
    max_pdu: PduSize = 131072
    downtime: tuple[Annotated[Downtime, BeforeValidator(_downtime)], ...] = ()
    tls: ClientTls | None = None


class StorageSCP(Section):
    """The DICOM door: we as a Storage SCP.

    Attributes:
        title: AE title that is always answered; routes' ``called`` add further ones.
        listen: Where it listens.
        callers: Calling AE titles that may; None: any.
        addresses: Peers that may; None: any.
        associations: How many at once.
        max_pdu: Bytes of the longest PDU that we take.
        unknown_classes: Private and unknown SOP classes: ``accept`` or ``refuse``.
        tls: TLS of the door; None: in the clear.
    """

    title: Title
    listen: Door
    callers: Annotated[tuple[Title, ...], MinLen(1)] | None = None
    addresses: Networks | None = None
    associations: Count = 25
    max_pdu: PduSize = 131072
    unknown_classes: Literal["accept", "refuse"] = "accept"
    tls: ServerTls | None = None


class Relay(Section):
    """The mail server that outbound mail is submitted to.

    Attributes:
        host: Where it is.
        port: Its port.
        tls: ``implicit``, ``starttls`` or ``none``; never downgraded by itself.
        ca: PEM anchors that it is checked with; None: the system's.
        user: Who logs in; None: no AUTH.
        password_file: Holds the password; this or ``oauth``, with ``user``.
        oauth: How a token is got; this or ``password_file``, with ``user``.
        sender: From and envelope sender of what we mail; our own doors accept reports to it.
        max_message: Bytes of one mail, after encryption and transfer encoding.
    """

    host: Host
    port: Port = 587
    tls: Literal["implicit", "starttls", "none"] = "starttls"
    ca: File | None = None
    user: Text | None = None
    password_file: Secret | None = None
    oauth: OAuth | None = None
    sender: MailAddress
    max_message: Size = 35_000_000

    @model_validator(mode="after")
    def _check(self) -> Relay:
        proofs = sum(proof is not None for proof in (self.password_file, self.oauth))
        if self.user is None and proofs:
            raise ValueError("user is missing; expected it beside password_file or oauth")
        if self.user is not None and proofs != 1:
            raise ValueError("expected exactly one of password_file and oauth beside user")
        return self


class Identity(Section):
    """A certificate of our own with its key.

    Attributes:
        certificate: PEM.
        key_file: PEM key.
    """

    certificate: File
    key_file: Secret


class SMime(Section):
    """S/MIME: who we are and whom we trust.

    Attributes:
        identities: The newest valid one signs, all of them decrypt.
        trust: Folder of PEM anchors.
        crls: Folder of CRLs, re-read when it changes; need not exist.
        crl_hosts: Hosts that may be asked for CRLs.
        revocation: ``soft``: unknown is a finding; ``hard``: unknown is retried, then held; ``off``.
        crl_grace: How long past its nextUpdate a CRL still counts.
    """

    identities: tuple[Identity, ...] = ()
    trust: Folder = Field(default=Path("trust"), validate_default=True)
    crls: Folder = Field(default=Path("crls"), validate_default=True)
    crl_hosts: tuple[Host, ...] = ()
    revocation: Literal["soft", "hard", "off"] = "soft"
    crl_grace: DurationOrZero = timedelta(days=7)


class Partner(Section):
    """Somebody who mails to us or whom we mail to.

    Attributes:
        address: Its mail address, or a pattern as ``*@clinic.example``.
        certificate: PEM certificate to encrypt to; wins over an imported one.
        pin: Only this certificate may have signed.
        peers: SMTP peers that may speak for this partner; None: any.
        smtp_user: Who must have logged in to speak for this partner; None: anybody.
        phone: Shown in notices.
        accept: Protection that its mail must have: ``any``, ``signed``, ``encrypted`` or ``signed+encrypted``.
        send: Protection of mail to it: ``plain``, ``signed`` or ``signed+encrypted``.
        cipher: ``gcm`` or ``cbc``.
        format: ``mime`` (STD-GEN-MIME) or ``zip`` (STD-GEN-ZIP-MAIL).
        multipart: ``mixed`` or ``related``.
        partial: Whether one instance that is too big may go as message/partial.
        max_message: Bytes of one mail; None: the relay's.
        max_parts: MIME parts of one mail.
        text: Template of the body; None: ours.
        headers: Further constant header fields.
        receipt: Ask for a receipt, overdue after this; None: do not ask.
    """

    address: Annotated[str, AfterValidator(_address_pattern)]
    certificate: File | None = None
    pin: Switch = False
    peers: Networks | None = None
    smtp_user: Text | None = None
    phone: Text | None = None
    accept: Literal["any", "signed", "encrypted", "signed+encrypted"] = "signed"
    send: Literal["plain", "signed", "signed+encrypted"] = "signed+encrypted"
    cipher: Literal["gcm", "cbc"] = "gcm"
    format: Literal["mime", "zip"] = "mime"
    multipart: Literal["mixed", "related"] = "mixed"
    partial: Switch = False
    max_message: Size | None = None
    max_parts: Count = 200
    text: File | None = None
    headers: Annotated[dict[str, str], AfterValidator(_extra_headers)] = Field(default_factory=dict)
    receipt: Duration | None = None

    @model_validator(mode="after")
    def _check(self) -> Partner:
        if self.pin and self.certificate is None:
            raise ValueError("pin needs a certificate to pin")
        return self


def _late(values: dict[str, Any]) -> timedelta:
    if values.get("urgent"):
        return timedelta(minutes=5)
    return timedelta(minutes=30 if values.get("mail") else 15)


class Route(Section):
    """Where what goes; the first match wins, separately for the two directions.

    A route with ``store`` takes mail to the PACS, one with ``mail`` takes images to partners. Keys of the other
    direction have no meaning.

    Attributes:
        name: Distinct, shown to people.
        store: Names of the ``[ae]`` sections that get every instance.
        mail: Names of the partners that get every collection.
        from_: ``from`` in TOML: a partner's name, an address pattern, or ``*`` for strangers too; None: any partner.
        to: Recipient or mailbox address, or a pattern; None: any.
        mailbox: Only mail of this ``[imap]`` or ``[pop3]`` section; None: any door.
        patient_mismatch: Two patients under one Patient ID: ``hold`` or ``accept``.
        issuer: Written to Issuer of Patient ID (0010,0021); None: unchanged.
        patient_id: ``keep``, or ``prefix:`` and what is put before Patient ID (0010,0020).
        accession: ``keep`` or ``clear`` Accession Number (0008,0050).
        bare_dicom: Take data sets without preamble and File Meta Information.
        uuencode: Take uuencoded attachments.
        called: The AE title that the modality called.
        calling: Calling AE title, or a pattern.
        quiet: The collection is complete after this silence (NET-10).
        max_age: A collection gets no older.
        max_size: A collection gets no bigger, in bytes.
        urgent: Goes first.
        late: A notice when it is not delivered by then.
    """

    name: Annotated[str, MinLen(1)]
    store: tuple[Annotated[str, _known("an AE", "ae")], ...] = ()
    mail: tuple[Annotated[str, _known("a partner", "partner")], ...] = ()
    from_: Annotated[str, AfterValidator(_from)] | None = Field(default=None, alias="from")
    to: Annotated[str, AfterValidator(_recipient_pattern)] | None = None
    mailbox: Annotated[str, _known("a mailbox", "imap", "pop3")] | None = None
    patient_mismatch: Literal["hold", "accept"] = "hold"
    issuer: Annotated[str, AfterValidator(_issuer)] | None = None
    patient_id: Annotated[str, AfterValidator(_patient_id_rule)] = "keep"
    accession: Literal["keep", "clear"] = "keep"
    bare_dicom: Switch = False
    uuencode: Switch = False
    called: Title | None = None
    calling: Annotated[str, AfterValidator(_calling)] = "*"
    quiet: DurationOrZero = timedelta(seconds=60)
    max_age: Duration = timedelta(minutes=30)
    max_size: Size = 2 << 30
    urgent: Switch = False
    late: Duration = Field(default_factory=_late)

    @model_validator(mode="after")
    def _check(self) -> Route:
        if bool(self.store) == bool(self.mail):
            raise ValueError("expected exactly one of store and mail")
        _distinct(self.store or self.mail)
        if self.mail and self.called is None:
            raise ValueError("called is missing; a mail route needs the AE title that the modality called")
        return self


class Console(Section):
    """The web console, /metrics and /health.

    Attributes:
        listen: Where it listens.
        users_file: Who may log in; None: health and metrics only.
        certificate: PEM chain for TLS; required when not loopback, or ``behind_proxy``.
        key_file: PEM key.
        behind_proxy: Somebody in front of it does the TLS.
    """

    listen: Door = Listen("127.0.0.1", 8080)
    users_file: UsersFile | None = None
    certificate: File | None = None
    key_file: Secret | None = None
    behind_proxy: Switch = False

    @model_validator(mode="after")
    def _check(self) -> Console:
        _demand_pair(self.certificate, self.key_file)
        if not (self.listen.loopback or self.certificate or self.behind_proxy):
            raise ValueError(f"listens on {self.listen}; beyond loopback expected certificate, or behind_proxy = true")
        return self


class Metrics(Section):
    """/metrics and /health alone, for probes.

    Attributes:
        listen: Where it listens.
    """

    listen: Door = Listen("0.0.0.0", 9102)  # noqa: S104 - the contract's default; the section itself opens the door


class Notice(Section):
    """Where notices go beside the mail to the postmaster.

    Attributes:
        webhook: URL that gets the notice as JSON. Often holds a token: never shown.
        command: Program that gets the notice as JSON on standard input.
    """

    webhook: Annotated[SecretStr, _url("https", "http")] | None = None
    command: Annotated[Path, AfterValidator(_place), AfterValidator(_demand_command)] | None = None


class Log(Section):
    """What is logged.

    Attributes:
        level: ``debug``, ``info``, ``warning`` or ``error``.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"


class Configuration(Section):
    """The whole file. A section that is absent is None or empty: that door is shut.

    Attributes:
        gateway: Who this gateway is.
        limits: What is too much.
        smtp: The SMTP door.
        imap: Mailboxes polled by IMAP, by name.
        pop3: Mailboxes polled by POP3, by name.
        ae: Storage SCPs that we send to, by name.
        storescp: The DICOM door.
        relay: Where outbound mail is submitted.
        smime: Who we are and whom we trust.
        partner: Who mails to us or whom we mail to, by name.
        route: Where what goes, in order.
        console: The web console.
        metrics: A door for probes alone.
        notice: Where notices go beside the mail.
        log: What is logged.
    """

    gateway: Gateway
    limits: Limits = Limits()
    smtp: Smtp | None = None
    imap: dict[str, Mailbox] = Field(default_factory=dict)
    pop3: dict[str, PopMailbox] = Field(default_factory=dict)
    ae: dict[str, ApplicationEntity] = Field(default_factory=dict)
    storescp: StorageSCP | None = None
    relay: Relay | None = None
    smime: SMime | None = None
    partner: dict[str, Partner] = Field(default_factory=dict)
    route: tuple[Route, ...] = ()
    console: Console | None = None
    metrics: Metrics | None = None
    notice: Notice | None = None
    log: Log = Log()
    _source: Path = PrivateAttr(default=DEFAULT_PATH)

    @property
    def source(self) -> Path:
        """The file it was read from, absolute."""
        return self._source


def _demand_pair(certificate: Path | None, key_file: Path | None) -> None:
    if (certificate is None) != (key_file is None):
        raise ValueError("expected certificate and key_file together, or neither")


# ---------------------------------------------------------------------------------------------------------------
# Loading


def find(option: Path | None, environ: Mapping[str, str]) -> Path:
    """Say which file is meant: the option, else ``$DICOM_MAIL_CONFIG``, else ``DEFAULT_PATH``."""
    if option is not None:
        return option
    return Path(environ.get("DICOM_MAIL_CONFIG") or DEFAULT_PATH)


def load(path: Path, *, credentials: Path | None = None) -> Configuration:
    """Read and check a configuration file.

    Args:
        path: The TOML file.
        credentials: Folder that is looked at first for secrets; ``$CREDENTIALS_DIRECTORY`` when None.

    Raises:
        ConfigurationError: It cannot be used. The text has one line for each problem, never the value of a secret.
    """
    document = _read(path)
    if credentials is None and (named := os.environ.get("CREDENTIALS_DIRECTORY")):
        credentials = Path(named)
    names = {kind: frozenset(_table(document, kind)) for kind in ("ae", "partner", "imap", "pop3")}
    problems = [*_strange_texts(document), *_clashes(document)]
    try:
        configuration = Configuration.model_validate(
            document, context=_Surroundings(path.absolute().parent, credentials, names)
        )
    except ValidationError as error:
        problems += [_Problem.of(detail, document) for detail in error.errors(include_url=False) if not _echo(detail)]
    if problems:
        raise ConfigurationError("\n".join(f"{path}: {problem}" for problem in problems))
    configuration._source = path.absolute()  # noqa: SLF001 - set once, here, on what was just made
    return configuration


def _echo(detail: Mapping[str, Any]) -> bool:
    """Whether an error only follows from another one: a default that could not be made, a list whose items fell out."""
    return detail["type"] == "default_factory_not_called" or (detail["type"] == "too_short" and bool(detail["input"]))


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
        if len(content) > MAX_FILE:
            raise ConfigurationError(f"{path}: longer than 1 MiB; this is no configuration")
        # QUIRK: Windows editors put a byte order mark first.
        document = tomllib.loads(content.decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file; name one with --config or $DICOM_MAIL_CONFIG") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {_why(error)}") from None
    if not document:
        raise ConfigurationError(f"{path}: is empty; expected at least [gateway] with name, postmaster and data")
    return document


def _why(error: Exception) -> str:
    match error:
        case OSError():
            return f"cannot be read: {error.strerror}"
        case UnicodeDecodeError():
            line = error.object[: error.start].count(b"\n") + 1
            return f"not UTF-8 (at line {line})"
        case tomllib.TOMLDecodeError():
            return f"not TOML: {error}"
        case RecursionError():
            return "not TOML: nested too deep"
        case _:
            return "cannot be read: its name is no file name"


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is wrong with one key."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"

    @classmethod
    def of(cls, detail: Mapping[str, Any], document: Mapping[str, Any]) -> _Problem:
        location = tuple(part for part in detail["loc"] if part != "[key]")
        key = _spell(location, document)
        value = "" if isinstance(detail["input"], dict | list) else _show(location, detail["input"])
        match detail["type"]:
            case "missing":
                return cls(key, f"missing; expected {_wanted(location)}")
            case "extra_forbidden":
                return cls(f"{key}{value}", f"unknown key{_nearest_key(location)}")
            case "value_error":
                return cls(f"{key}{value}", str(detail["ctx"]["error"]))
            case other:
                return cls(f"{key}{value}", f"expected {_expected(other, detail.get('ctx', {}))}")


_KINDS = {
    "string_type": "text in quotes",
    "path_type": "a path in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "tuple_type": 'a list, as ["…"]',
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}


def _expected(kind: str, context: Mapping[str, Any]) -> str:
    match kind:
        case "literal_error":
            return str(context["expected"]).replace("'", '"')
        case "greater_than_equal":
            return f"{context['ge']} or more"
        case "less_than_equal":
            return f"{context['le']} or less"
        case "string_too_short":
            return "text that is not empty"
        case "too_short":
            return "a list that is not empty"
        case _:
            return _KINDS.get(kind, f"another value ({kind})")


def _wanted(location: tuple[str | int, ...]) -> str:
    """What a missing key would have to be."""
    if len(location) == 1:
        return f"a section [{location[0]}]"
    examples = {"title": "an AE title", "host": "a host name or an IP address", "port": "a number from 1 to 65535"}
    examples |= {"address": "a mail address", "postmaster": "a mail address", "sender": "a mail address"}
    examples |= {"listen": 'an address and a port as "127.0.0.1:11112"', "name": "a name"}
    return examples.get(str(location[-1]), "a file" if str(location[-1]).endswith("_file") else "a value")


def _spell(location: Iterable[str | int], document: Mapping[str, Any]) -> str:
    """Write a key as a person finds it: ``ae.pacs.port``, ``route "name".store[2]``; lists count from 1."""
    spelled = ""
    parts = list(location)
    if len(parts) > 1 and parts[0] == "route" and isinstance(parts[1], int):
        name = document["route"][parts[1]].get("name") if isinstance(document["route"][parts[1]], dict) else None
        spelled = f"route {_quote(name)}" if isinstance(name, str) else f"route[{parts[1] + 1}]"
        parts = parts[2:]
    for part in parts:
        spelled += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if spelled else part
    return spelled


_SECRET_KEY = re.compile(r"pass(word|phrase)?$|secret$|token$|^key$|database$|blobs$|webhook$|_url$", re.IGNORECASE)


def _show(location: tuple[str | int, ...], value: object) -> str:
    """Show a value behind its key, as it would stand in the file; never one that may be a secret."""
    if any(_SECRET_KEY.search(str(part)) for part in location):
        return ""
    if isinstance(value, str):
        return f" = {_quote(value)}"
    return f" = {json.dumps(value, default=str)}"


def _quote(value: str) -> str:
    shown = "".join(c if c.isprintable() else "�" for c in value)
    return f'"{shown}"' if len(shown) <= 80 else f'"{shown[:79]}…"'


def _nearest(value: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, list(names), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


def keys(section: type[BaseModel]) -> tuple[str, ...]:
    """The keys of a section as TOML spells them."""
    return tuple(field.alias or name for name, field in section.model_fields.items())


def _nearest_key(location: tuple[str | int, ...]) -> str:
    section = _section(location[:-1])
    word = str(location[-1])
    if near := _nearest(word, keys(section)):
        return near
    homes = [name for name, home in sections().items() if word in keys(home)]
    return f"; it belongs to [{homes[0]}]" if homes else f"; expected one of {', '.join(keys(section))}"


def sections() -> dict[str, type[Section]]:
    """Every section of the file with its model; ``NAME`` stands where the user chooses a name."""
    return {
        "gateway": Gateway,
        "limits": Limits,
        "smtp": Smtp,
        "imap.NAME": Mailbox,
        "pop3.NAME": PopMailbox,
        "ae.NAME": ApplicationEntity,
        "storescp": StorageSCP,
        "relay": Relay,
        "smime": SMime,
        "partner.NAME": Partner,
        "route": Route,
        "console": Console,
        "metrics": Metrics,
        "notice": Notice,
        "log": Log,
    }


_INLINE: Final[dict[tuple[str, str], type[Section]]] = {
    ("ae", "tls"): ClientTls,
    ("storescp", "tls"): ServerTls,
    ("imap", "oauth"): OAuth,
    ("relay", "oauth"): OAuth,
    ("smime", "identities"): Identity,
}


def _section(location: tuple[str | int, ...]) -> type[BaseModel]:
    """The model of the table at a location."""
    if not location:
        return Configuration
    kind = str(location[0])
    for part in location[1:]:
        if (inline := _INLINE.get((kind, str(part)))) is not None:
            return inline
    known = sections()
    return known.get(kind) or known[f"{kind}.NAME"]


# ---------------------------------------------------------------------------------------------------------------
# What no single value shows


def _table(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _routes(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    routes = document.get("route")
    return [route for route in routes if isinstance(route, dict)] if isinstance(routes, list) else []


def _strange_texts(table: object, location: tuple[str | int, ...] = ()) -> Iterator[_Problem]:
    """Find control characters: they have no place in a name, a path or a header."""
    if isinstance(table, dict):
        for key, value in table.items():
            yield from _strange_texts(value, (*location, key))
    elif isinstance(table, list):
        for index, value in enumerate(table):
            yield from _strange_texts(value, (*location, index))
    elif isinstance(table, str) and any(unicodedata.category(character) in {"Cc", "Cs"} for character in table):
        yield _Problem(_spell(location, {}), "expected text without control characters")


def _clashes(document: Mapping[str, Any]) -> Iterator[_Problem]:
    """Find what contradicts itself between sections. Tolerant: wrong types are named elsewhere."""
    yield from _bad_names(document)
    yield from _repeated("route", "name", enumerate(route.get("name") for route in _routes(document)))
    addresses = (
        (name, _table(_table(document, "partner"), name).get("address")) for name in _table(document, "partner")
    )
    yield from _repeated("partner", "address", addresses)
    yield from _shared_doors(document)
    for index, route in enumerate(_routes(document)):
        for section in ("storescp", "relay"):
            if route.get("mail") and section not in document:
                yield _Problem(
                    f"{_spell(('route', index), document)}.mail", f"needs a section [{section}]; there is none"
                )


def _bad_names(document: Mapping[str, Any]) -> Iterator[_Problem]:
    for kind in ("ae", "partner", "imap", "pop3"):
        for name, section in _table(document, kind).items():
            if isinstance(section, dict) and not _NAME.fullmatch(name):
                yield _Problem(kind, f"expected a name of letters, digits, '_', '-' and '.', not {_quote(name)}")
    for name in _table(document, "imap").keys() & _table(document, "pop3").keys():
        yield _Problem(f"pop3.{name}", f"expected another name; there is [imap.{name}] already")


def _repeated(kind: str, key: str, values: Iterable[tuple[int | str, object]]) -> Iterator[_Problem]:
    seen: dict[str, int | str] = {}
    for name, value in values:
        if not isinstance(value, str):
            continue
        if (first := seen.setdefault(value.lower(), name)) != name:
            where = f"{kind}[{name + 1}]" if isinstance(name, int) else f"{kind}.{name}"
            other = f"{kind}[{first + 1}]" if isinstance(first, int) else f"{kind}.{first}"
            yield _Problem(f"{where}.{key} = {_quote(value)}", f"expected another one; {other} has it already")


def _shared_doors(document: Mapping[str, Any]) -> Iterator[_Problem]:
    seen: dict[str, str] = {}
    for section, key in (
        ("smtp", "listen"),
        ("smtp", "implicit_tls_listen"),
        ("storescp", "listen"),
        ("console", "listen"),
        ("metrics", "listen"),
    ):
        value = _table(document, section).get(key)
        if not isinstance(value, str) or value.endswith(":0"):  # port 0: the system keeps them apart
            continue
        if (first := seen.setdefault(value, f"{section}.{key}")) != f"{section}.{key}":
            yield _Problem(f"{section}.{key} = {_quote(value)}", f"expected another address; {first} listens there")
