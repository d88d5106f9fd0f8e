"""Certificates, keys, anchors and CRLs from their files: a bad one is named and left aside, and stops nothing."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from pydantic import BaseModel

from gateway.config import Advice, Configuration
from gateway.core import expiry
from gateway.core.cms import keyring, revocation, trust
from gateway.core.cms.failure import ProtectionError
from gateway.core.cms.revocation import Coverage, Source, State
from gateway.core.cms.signed import Identity
from gateway.core.cms.trust import Overdue, Trust
from gateway.core.expiry import Lasting
from gateway.core.unsealing import Keyring, Store, der
from gateway.edges.revocation import LONGEST as LONGEST_CRL
from gateway.edges.revocation import MOST as MOST_FETCHED
from gateway.edges.revocation import remembered
from gateway.errors import ConfigurationError
from gateway.stages.compose import UnprotectedError, protect

LONGEST: Final = 1 << 20
"""Bytes of a file with certificates."""

MOST_FILES: Final = MOST_FETCHED
"""Files of a folder that are read: at least the CRLs that are fetched, an authority may spread its list."""

SUFFIXES: Final = frozenset({".pem", ".crt", ".cer", ".der", ".crl"})

Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Keys:
    """What was found.

    Attributes:
        keyring: All that can be used.
        problems: What cannot.
    """

    keyring: Keyring
    problems: tuple[Advice, ...] = ()


def load(configuration: Configuration) -> Keys:
    """Read everything that the configuration names. Blocks."""
    problems: list[Advice] = []
    certificates = {name: found for name in configuration.partner if (found := _partner(configuration, name, problems))}
    overdue = tuple(late for name in configuration.partner if (late := _overdue(configuration, name, problems)))
    settings = configuration.smime
    if settings is None:
        pinned = Keyring(Store(overdue=overdue), trust=Trust((), overdue=overdue), partners=certificates)
        return Keys(pinned, tuple(problems))
    identities: list[Identity] = []
    pairs: list[tuple[bytes, bytes]] = []
    for number, one in enumerate(settings.identities, 1):
        try:
            chain, secret = _read(one.certificate, LONGEST), _read(one.key_file, LONGEST)
            identities.append(keyring.identity(chain, secret))
            pairs.append((chain, secret))
        except ConfigurationError as error:
            problems.append(_problem(f"smime.identities[{number}]", f"{one.certificate} cannot be used: {error.text}"))
    anchors = tuple(dict.fromkeys(_anchors(settings.trust, problems)))
    crls = tuple(one for folder in _crl_folders(configuration) for one in _crls(folder, problems))
    others = (one for found in (*certificates.values(), *(each.chain for each in identities)) for one in found)
    intermediates = tuple(dict.fromkeys(others))
    known = Trust(anchors, intermediates, crls, settings.revocation, settings.crl_grace, overdue)
    store = Store(
        tuple(pairs),
        tuple(map(der, anchors)),
        tuple(map(der, intermediates)),
        tuple(one.public_bytes(Encoding.DER) for one in crls),
        settings.revocation,
        settings.crl_grace,
        overdue,
    )
    return Keys(Keyring(store, tuple(identities), known, certificates), tuple(problems))


def stamp(configuration: Configuration) -> Stamp:
    """Tell one state of the folders with anchors, CRLs and imported certificates from another. Blocks."""
    paths = [
        path for name in configuration.partner for path in (imported(configuration, name), trusted(configuration, name))
    ]
    if configuration.smime is not None:
        folders = (configuration.smime.trust, *_crl_folders(configuration))
        paths += [path for folder in folders for path in _files(folder)]
    return tuple(_stamps(paths))


def imported(configuration: Configuration, name: str) -> Path:
    """Where the imported certificate of a partner lies."""
    return configuration.gateway.data / "partners" / f"{name}.pem"


def trusted(configuration: Configuration, name: str) -> Path:
    """Where it is written down that the certificate of a partner counts for some days after it has run out."""
    return configuration.gateway.data / "partners" / f"{name}.trust"


def fetched(configuration: Configuration) -> Path:
    """The folder with the CRLs that were fetched."""
    return configuration.gateway.data / "crls"


def _crl_folders(configuration: Configuration) -> list[Path]:
    assert configuration.smime is not None
    return list(dict.fromkeys((configuration.smime.crls, fetched(configuration))))


def _stamps(paths: Iterable[Path]) -> Iterator[tuple[str, int, int]]:
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            continue
        yield str(path), state.st_mtime_ns, state.st_size


def _problem(key: str, what: str) -> Advice:
    return Advice("problem", what, "put a good file there and reload; all else goes on without it", key)


def _partner(configuration: Configuration, name: str, problems: list[Advice]) -> tuple[x509.Certificate, ...]:
    """The certificates of a partner: from the configuration, else imported."""
    path = configuration.partner[name].certificate or imported(configuration, name)
    if path == imported(configuration, name) and _is_missing(path):
        return ()
    return _taken(keyring.certificates, path, LONGEST, f"partner.{name}.certificate", problems) or ()


def _is_missing(path: Path) -> bool:
    """Whether there is no such file; one that this user may not see is a problem of its own."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


T = TypeVar("T")


def _taken(parse: Callable[[bytes], T], path: Path, most: int, key: str, problems: list[Advice]) -> T | None:
    """Read one file; None, and a problem, when it cannot be used."""
    try:
        return parse(_read(path, most))
    except ConfigurationError as error:
        problems.append(_problem(key, f"{path} cannot be used: {error.text}"))
    except Exception as error:  # noqa: BLE001  whatever a hostile file makes a library raise, all else goes on
        problems.append(_problem(key, f"{path} cannot be used: {type(error).__name__}"))
    return None


def _overdue(configuration: Configuration, name: str, problems: list[Advice]) -> Overdue | None:
    path = trusted(configuration, name)
    if _is_missing(path):
        return None
    return _taken(read_trusted, path, LONGEST, f"partner.{name}.certificate", problems)


def read_trusted(block: bytes) -> Overdue:
    """Read which key of a partner counts, and until when.

    Raises:
        ConfigurationError: It cannot be read.
    """
    try:
        found = json.loads(block)
        return Overdue(str(found["key"]), datetime.fromisoformat(found["until"]).astimezone())
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise ConfigurationError("it was not written by dicom-mail partner trust") from None


def _anchors(folder: Path, problems: list[Advice]) -> Iterator[x509.Certificate]:
    for path in _first(folder, "smime.trust", problems):
        yield from _taken(keyring.certificates, path, LONGEST, "smime.trust", problems) or ()


def _crls(folder: Path, problems: list[Advice]) -> Iterator[x509.CertificateRevocationList]:
    for path in _first(folder, "smime.crls", problems):
        crl = _taken(keyring.revocations, path, LONGEST_CRL, "smime.crls", problems)
        if crl is not None:
            yield crl


def _first(folder: Path, key: str, problems: list[Advice]) -> list[Path]:
    found = _files(folder)
    if len(found) > MOST_FILES:
        problems.append(_problem(key, f"{folder} holds more than {MOST_FILES} files: the last ones are not read"))
    return found[:MOST_FILES]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError:
        return []  # it need not exist


def _open(name: str, flags: int) -> int:
    """Open what must be a file: a pipe of that name would never be opened, or never end."""
    file = os.open(name, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(None, "it is no file")
    return file


def _read(path: Path, most: int) -> bytes:
    try:
        with open(path, "rb", opener=_open) as file:
            block = file.read(most + 1)
    except OSError as error:
        raise ConfigurationError(f"it cannot be read: {error.strerror}") from None
    if len(block) > most:
        raise ConfigurationError(f"it is longer than {most} bytes")
    return block


def review(configuration: Configuration, now: datetime) -> Iterator[Advice]:
    """Say which files cannot be used, what runs out, and to which partner nothing could be sent. Blocks."""
    found = load(configuration)
    yield from found.problems
    ring = found.keyring
    if configuration.smime is not None and ring.identities and keyring.signer(ring.identities, now) is None:
        yield Advice("problem", "no certificate of ours can sign now", "put a valid one there", "smime.identities")
    if configuration.smime is not None and not ring.trust.anchors:
        what = f"{configuration.smime.trust} holds no anchor: only pinned certificates count"
        yield Advice("warning", what, "put the certificates of the authorities there", "smime.trust")
    yield from _unfresh(configuration, ring, now)
    if (own := keyring.signer(ring.identities, now)) is not None and keyring.is_revoked(own, ring.trust, now):
        yield Advice("problem", "our certificate is revoked: nothing is signed", "get a new one", "smime.identities")
    for key, one in expiry.due(lasting(configuration, ring, now), {}, now).items():
        yield Advice("problem" if one.over else "warning", one.text, one.do, key)
    for name in dict.fromkeys(name for route in configuration.route for name in route.mail):
        try:
            protect(ring, name, configuration.partner[name], now)
        except UnprotectedError as error:
            do = "put it right and reload; until then its mail is held"
            yield Advice("problem", error.text, do, f"partner.{name}.send")


def sources(ring: Keyring, now: datetime) -> tuple[Source, ...]:
    """Where the CRLs about our certificates and those of partners are to be had. Blocks: it looks for paths."""
    found: dict[Source, None] = {}
    chains = [(one.certificate, one.chain) for one in ring.identities]
    chains += [(one, ()) for some in ring.partners.values() for one in some if not trust.is_authority(one)]
    for certificate, chain in chains:
        with contextlib.suppress(ProtectionError):
            path = trust.find_path(certificate, chain, ring.trust, now)
            found |= dict.fromkeys(revocation.sources(path))
    return tuple(found)


def _unfresh(configuration: Configuration, ring: Keyring, now: datetime) -> Iterator[Advice]:
    """Say of which issuer no CRL tells anything now, or will not for long."""
    settings = configuration.smime
    if settings is None or settings.revocation == "off":
        return
    some = (*sources(ring, now), *remembered(fetched(configuration)))
    for one in revocation.coverage(some, ring.trust, now):
        if one.state is State.FRESH:
            continue
        level: Literal["problem", "warning"] = "warning"
        if settings.revocation == "hard" and not one.state.counts:
            level = "problem"
        yield Advice(level, _staleness(one, settings.crl_grace), _remedy(one, settings.crl_hosts), "smime.crls")


def _staleness(one: Coverage, grace: timedelta) -> str:
    if one.until is None:
        return f"no CRL of {one.issuer} is at hand: nobody knows whether its certificates are revoked"
    if one.state is State.STALE:
        return f"the CRL of {one.issuer} ended on {one.until:%Y-%m-%d} and counts until {one.until + grace:%Y-%m-%d}"
    return f"the CRL of {one.issuer} ended on {one.until:%Y-%m-%d} and counts no more"


def _remedy(one: Coverage, hosts: tuple[str, ...]) -> str:
    named = dict.fromkeys(each.host for each in one.sources if each.host)
    asked = [each.host for each in one.sources if each.is_allowed(hosts)]
    if asked:
        return f"see that {asked[0]} can be reached from here: the running gateway fetches it"
    put = "put its CRL into the folder smime.crls"
    return f"add {next(iter(named))} to smime.crl_hosts, or {put}" if named else put


# What runs out


def lasting(configuration: Configuration, ring: Keyring, now: datetime) -> Iterator[Lasting]:
    """Every S/MIME certificate that is in use, with the name of what it is for: ours, partners', their authorities'."""
    used = [*_own(ring, now), *_partners(configuration, ring, now)]
    for subject, one in used:
        yield Lasting(subject, one.not_valid_after_utc)
    for subject, some in (("issuer", _issuers(ring, [one for _, one in used])), ("smime.trust", ring.trust.anchors)):
        for one in _longest(some):
            yield Lasting(f"{subject} {_called(one)}", one.not_valid_after_utc)


def _own(ring: Keyring, now: datetime) -> Iterator[tuple[str, x509.Certificate]]:
    """Ours that signs and ours that is encrypted to; what was replaced is kept to read old mail, and may run out."""
    if not ring.identities:
        return
    last = max(ring.identities, key=lambda one: one.certificate.not_valid_after_utc)
    signer = keyring.signer(ring.identities, now) or last
    yield "smime.identities", signer.certificate
    reader = keyring.reader(ring.identities, now)
    if reader is not None and reader is not signer:
        yield "smime.identities to read", reader.certificate


def _partners(configuration: Configuration, ring: Keyring, now: datetime) -> Iterator[tuple[str, x509.Certificate]]:
    for name in configuration.partner:
        certificate = ring.certificate(name, now)
        if certificate is not None:
            yield f"partner.{name}", certificate


def _issuers(ring: Keyring, used: Collection[x509.Certificate]) -> list[x509.Certificate]:
    """The authorities between certificates in use and their anchors, as far as they lie in a file of ours."""
    waiting = [one for one in ring.trust.intermediates if one not in ring.trust.anchors and trust.is_authority(one)]
    names, found = {one.issuer for one in used}, []
    while more := [one for one in waiting if one.subject in names]:
        found += more
        names = {one.issuer for one in more}
        waiting = [one for one in waiting if one not in more]
    return found


def _longest(some: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    """Of each authority the certificate that lasts longest: an older one beside it may run out."""
    ordered = sorted(some, key=lambda one: one.not_valid_after_utc)
    return list({one.subject: one for one in ordered}.values())


def _called(certificate: x509.Certificate) -> str:
    """The common name of an authority, fit for a line and a label."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    text = str(names[0].value) if names else certificate.subject.rfc4514_string()
    return "".join(one for one in text if one.isprintable())[:64]


def doors(configuration: Configuration) -> Iterator[Lasting]:
    """The TLS certificates that the configuration names; what cannot be read is said elsewhere. Blocks."""
    for key, path, _ in named(configuration, ""):
        if key.startswith(("smime.", "partner.")):
            continue
        try:
            found = keyring.certificates(_read(path, LONGEST))
        except ConfigurationError:
            continue
        yield Lasting(key, min(one.not_valid_after_utc for one in found))


def named(section: BaseModel, key: str) -> Iterator[tuple[str, Path, Path | None]]:
    """Every certificate that a configuration names: its key, its file, the file of its private key."""
    path = getattr(section, "certificate", None)
    if path is not None:
        yield f"{key}certificate", path, getattr(section, "key_file", None)
    for name, value in section:
        if isinstance(value, BaseModel):
            yield from named(value, f"{key}{name}.")
        elif isinstance(value, dict):
            for inner, one in value.items():
                if isinstance(one, BaseModel):
                    yield from named(one, f"{key}{name}.{inner}.")
        elif isinstance(value, tuple):
            for number, one in enumerate(value, 1):
                if isinstance(one, BaseModel):
                    yield from named(one, f"{key}{name}[{number}].")
