"""Certificates, keys, anchors and CRLs from their files: a bad one is named and left aside, and stops nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.config import Advice, Configuration
from gateway.core.cms import keyring
from gateway.core.cms.signed import Identity
from gateway.core.cms.trust import Trust
from gateway.core.unsealing import Keyring, Store, der
from gateway.errors import ConfigurationError
from gateway.stages.compose import UnprotectedError, protect

LONGEST: Final = 1 << 20
"""Bytes of a file with certificates."""

LONGEST_CRL: Final = 32 << 20
"""Bytes of a CRL: a big authority's has some hundred thousand entries."""

MOST_FILES: Final = 200
"""Files of a folder that are read."""

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
    settings = configuration.smime
    if settings is None:
        return Keys(Keyring(partners=certificates), tuple(problems))
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
    crls = tuple(_crls(settings.crls, problems))
    others = (one for found in (*certificates.values(), *(each.chain for each in identities)) for one in found)
    intermediates = tuple(dict.fromkeys(others))
    trust = Trust(anchors, intermediates, crls, settings.revocation, settings.crl_grace)
    store = Store(
        tuple(pairs),
        tuple(map(der, anchors)),
        tuple(map(der, intermediates)),
        tuple(one.public_bytes(Encoding.DER) for one in crls),
        settings.revocation,
        settings.crl_grace,
    )
    return Keys(Keyring(store, tuple(identities), trust, certificates), tuple(problems))


def stamp(configuration: Configuration) -> Stamp:
    """Tell one state of the folders with anchors, CRLs and imported certificates from another. Blocks."""
    folders = [configuration.gateway.data / "partners"]
    if configuration.smime is not None:
        folders += [configuration.smime.trust, configuration.smime.crls]
    return tuple(_stamps(folders))


def _stamps(folders: list[Path]) -> Iterator[tuple[str, int, int]]:
    for folder in folders:
        for path in _files(folder):
            try:
                state = path.stat()
            except OSError:
                continue
            yield str(path), state.st_mtime_ns, state.st_size


def _problem(key: str, what: str) -> Advice:
    return Advice("problem", what, "put a good file there and reload; all else goes on without it", key)


def _partner(configuration: Configuration, name: str, problems: list[Advice]) -> tuple[x509.Certificate, ...]:
    """The certificates of a partner: from the configuration, else imported."""
    imported = configuration.gateway.data / "partners" / f"{name}.pem"
    path = configuration.partner[name].certificate or imported
    if path == imported and not imported.exists():
        return ()
    try:
        return keyring.certificates(_read(path, LONGEST))
    except ConfigurationError as error:
        problems.append(_problem(f"partner.{name}.certificate", f"{path} cannot be used: {error.text}"))
        return ()


def _anchors(folder: Path, problems: list[Advice]) -> Iterator[x509.Certificate]:
    for path in _files(folder):
        try:
            yield from keyring.certificates(_read(path, LONGEST))
        except ConfigurationError as error:
            problems.append(_problem("smime.trust", f"{path} cannot be used: {error.text}"))


def _crls(folder: Path, problems: list[Advice]) -> Iterator[x509.CertificateRevocationList]:
    for path in _files(folder):
        try:
            yield keyring.revocations(_read(path, LONGEST_CRL))
        except ConfigurationError as error:
            problems.append(_problem("smime.crls", f"{path} cannot be used: {error.text}"))


def _files(folder: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError:
        return []  # it need not exist
    return found[:MOST_FILES]


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            block = file.read(most + 1)
    except OSError as error:
        raise ConfigurationError(f"it cannot be read: {error.strerror}") from None
    if len(block) > most:
        raise ConfigurationError(f"it is longer than {most} bytes")
    return block


WARN: Final = (60, 30, 14, 3)
"""Days before a certificate runs out at which people are told."""


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
    for key, certificate in _in_use(configuration, ring, now):
        days = (certificate.not_valid_after_utc - now).days
        if days < 0:
            yield Advice("problem", f"a certificate has run out {-days} days ago", "ask for a new one", key)
        elif days <= WARN[0]:
            yield Advice("warning", f"a certificate runs out in {days} days", "ask for a new one", key)
    for name in dict.fromkeys(name for route in configuration.route for name in route.mail):
        try:
            protect(ring, name, configuration.partner[name], now)
        except UnprotectedError as error:
            do = "put it right and reload; until then its mail is held"
            yield Advice("problem", error.text, do, f"partner.{name}.send")


def _in_use(configuration: Configuration, ring: Keyring, now: datetime) -> Iterator[tuple[str, x509.Certificate]]:
    """The certificates that are used now, with the key that names each: ours that signs, and one of each partner."""
    own = keyring.signer(ring.identities, now)
    if own is not None:
        yield "smime.identities", own.certificate
    for name in configuration.partner:
        certificate = ring.certificate(name, now)
        if certificate is not None:
            yield f"partner.{name}.certificate", certificate
