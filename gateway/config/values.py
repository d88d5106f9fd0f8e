"""What may stand behind a key: durations, sizes, addresses, names and files, each checked where it is read."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, NamedTuple
from urllib.parse import urlsplit

from annotated_types import Ge, Le, MinLen
from pydantic import AfterValidator, BeforeValidator, SecretStr, Strict, ValidationInfo

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Listen(NamedTuple):
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


NAME: Final = re.compile(r"\w[\w .-]{0,63}")
"""What the user may call a section."""

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)\s*(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)")
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_DOWNTIME = re.compile(
    r"(?:(?P<first>[A-Z][a-z]{2})(?:-(?P<last>[A-Z][a-z]{2}))? )?(?P<start>[\d:]{5})-(?P<end>[\d:]{5})"
)
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
    size = int(Decimal(match[1]) * _BYTES[match[2]])
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


def _helo_name(value: str) -> str:
    if not _is_host(value):
        raise ValueError('expected the name of this host, as "gw.hospital.example"')
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


_ASCII: Final = re.compile(r"[!-\[\]-~]([ -\[\]-~]*[!-\[\]-~])?")
"""Text that is the same in every character set of DICOM (PS3.5 6.1.2.1), without backslash and padding."""


def _patient_id_rule(value: str) -> str:
    prefix = value.removeprefix("prefix:")
    if value != "keep" and (prefix == value or not _ASCII.fullmatch(prefix) or len(prefix) > 32):
        raise ValueError('expected "keep" or a prefix of 1 to 32 ASCII characters, as "prefix:A-"')
    return value


def _issuer(value: str) -> str:
    if len(value) > 64 or not _ASCII.fullmatch(value):  # LO, PS3.5 6.2
        raise ValueError("expected 1 to 64 ASCII characters without backslash")
    return value


_OWN_FIELDS: Final = frozenset(
    {"from", "sender", "reply-to", "to", "cc", "bcc", "date", "subject", "message-id", "in-reply-to", "references"}
    | {"mime-version", "received", "return-path", "auto-submitted", "disposition-notification-to"}
)


def _extra_headers(headers: dict[str, str]) -> dict[str, str]:
    for name in headers:
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"expected names of header fields (RFC 5322), not {quote(name)}")
        if name.lower() in _OWN_FIELDS or name.lower().startswith("content-"):
            raise ValueError(f"expected further header fields; {name} is written by the gateway itself")
    return headers


def quote(value: str) -> str:
    """Show a text on one line, in quotes, and not too long."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in value)
    return f'"{shown}"' if len(shown) <= 80 else f'"{shown[:79]}…"'


def nearest(value: str, names: Iterable[str]) -> str:
    """Ask back for the most similar of some names; nothing when none is similar."""
    near = difflib.get_close_matches(value, list(names), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What validators need to know beside the value.

    Attributes:
        folder: Of the configuration file; relative paths begin here.
        credentials: What systemd hands over; looked at first for secrets.
        names: The names that each kind of section has.
    """

    folder: Path
    credentials: Path | None
    names: Mapping[str, frozenset[str]]


def _surroundings(info: ValidationInfo) -> Surroundings | None:
    return info.context if isinstance(info.context, Surroundings) else None


def is_there(path: Path) -> bool:
    """Whether a path exists, as far as this user may see."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def _place(value: Path, info: ValidationInfo) -> Path:
    """Make a path absolute."""
    around = _surroundings(info)
    if str(value) == ".":
        raise ValueError("expected a path")
    return around.folder / value if around else value


def _place_secret(value: Path, info: ValidationInfo) -> Path:
    """Make the path of a secret absolute: $CREDENTIALS_DIRECTORY first, else beside the configuration."""
    around = _surroundings(info)
    if around and around.credentials and is_there(around.credentials / value):
        return around.credentials / value
    return _place(value, info)


def _demand_file(value: Path, info: ValidationInfo) -> Path:
    if _surroundings(info) is None:
        return value
    try:
        value.stat()
    except PermissionError:
        raise ValueError(f"this user may not read {value}") from None
    except OSError:
        raise ValueError(f"no file {value}") from None
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
            raise ValueError(f"expected {kind}; there is no {wanted}{nearest(value, names)}")
        return value

    return AfterValidator(check)


def _from(value: str, info: ValidationInfo) -> str:
    around = _surroundings(info)
    if value == "*" or around is None or value in around.names["partner"]:
        return value
    if "@" in value:
        return _address_pattern(value)
    near = nearest(value, sorted(around.names["partner"]))
    raise ValueError(f'expected a partner, an address pattern or "*"; there is no [partner.{value}]{near}')


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    for value, times in Counter(values).items():
        if times > 1:
            raise ValueError(f"expected each name once; {quote(value)} stands there {times} times")
    return values


Duration = Annotated[timedelta, BeforeValidator(_duration), AfterValidator(_positive)]
DurationOrZero = Annotated[timedelta, BeforeValidator(_duration)]
Size = Annotated[int, BeforeValidator(_size)]
Count = Annotated[int, Strict(), Ge(1)]
PduSize = Annotated[int, Strict(), Ge(4096), Le(2**32 - 1)]
Switch = Annotated[bool, Strict()]
Text = Annotated[str, MinLen(1)]

Port = Annotated[int, Strict(), Ge(1), Le(65535)]
HeloName = Annotated[str, AfterValidator(_helo_name)]
Host = Annotated[str, AfterValidator(_host)]
Door = Annotated[Listen, BeforeValidator(_listen)]
Networks = Annotated[tuple[Annotated[Network, BeforeValidator(_network)], ...], MinLen(1)]
DatabaseUrl = Annotated[SecretStr, _url("postgresql")]
BlobsUrl = Annotated[SecretStr, _url("s3", "file")]
WebUrl = Annotated[SecretStr, _url("https", "http")]

Title = Annotated[str, AfterValidator(_ae_title)]
CallingPattern = Annotated[str, AfterValidator(_calling)]
Downtimes = tuple[Annotated[Downtime, BeforeValidator(_downtime)], ...]
Issuer = Annotated[str, AfterValidator(_issuer)]
PatientIdRule = Annotated[str, AfterValidator(_patient_id_rule)]

MailAddress = Annotated[str, AfterValidator(_address)]
AddressPattern = Annotated[str, AfterValidator(_address_pattern)]
RecipientPattern = Annotated[str, AfterValidator(_recipient_pattern)]
Headers = Annotated[dict[str, str], AfterValidator(_extra_headers)]

Folder = Annotated[Path, AfterValidator(_place)]
File = Annotated[Path, AfterValidator(_place), AfterValidator(_demand_file)]
Command = Annotated[Path, AfterValidator(_place), AfterValidator(_demand_command)]
Secret = Annotated[Path, AfterValidator(_place_secret), AfterValidator(_demand_file)]
UsersFile = Annotated[Path, AfterValidator(_place_secret)]  # may be missing: `dicom-mail user add` makes it

Sender = Annotated[str, AfterValidator(_from)]
AeNames = Annotated[tuple[Annotated[str, _known("an AE", "ae")], ...], AfterValidator(_distinct)]
PartnerNames = Annotated[tuple[Annotated[str, _known("a partner", "partner")], ...], AfterValidator(_distinct)]
MailboxName = Annotated[str, _known("a mailbox", "imap", "pop3")]
