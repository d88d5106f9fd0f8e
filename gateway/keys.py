"""Certificates, keys, anchors and CRLs from their files: a bad one is named and left aside, and stops nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.config import Advice, Configuration
from gateway.core.cms import keyring, revocation, trust
from gateway.core.cms.failure import ProtectionError
from gateway.core.cms.revocation import Coverage, Source, State
from gateway.core.cms.signed import Identity
from gateway.core.cms.trust import Trust
from gateway.core.unsealing import Keyring, Store, der
from gateway.edges.revocation import LONGEST as LONGEST_CRL
from gateway.edges.revocation import remembered
from gateway.errors import ConfigurationError
from gateway.stages.compose import UnprotectedError, protect

LONGEST: Final = 1 << 20
"""Bytes of a file with certificates."""

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
    crls = tuple(one for folder in _crl_folders(configuration) for one in _crls(folder, problems))
    others = (one for found in (*certificates.values(), *(each.chain for each in identities)) for one in found)
    intermediates = tuple(dict.fromkeys(others))
    known = Trust(anchors, intermediates, crls, settings.revocation, settings.crl_grace)
    store = Store(
        tuple(pairs),
        tuple(map(der, anchors)),
        tuple(map(der, intermediates)),
        tuple(one.public_bytes(Encoding.DER) for one in crls),
        settings.revocation,
        settings.crl_grace,
    )
    return Keys(Keyring(store, tuple(identities), known, certificates), tuple(problems))


def stamp(configuration: Configuration) -> Stamp:
    """Tell one state of the folders with anchors, CRLs and imported certificates from another. Blocks."""
    folders = [configuration.gateway.data / "partners"]
    if configuration.smime is not None:
        folders += [configuration.smime.trust, *_crl_folders(configuration)]
    return tuple(_stamps(folders))


def fetched(configuration: Configuration) -> Path:
    """The folder with the CRLs that were fetched."""
    return configuration.gateway.data / "crls"


def _crl_folders(configuration: Configuration) -> list[Path]:
    assert configuration.smime is not None
    return list(dict.fromkeys((configuration.smime.crls, fetched(configuration))))


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
    yield from _unfresh(configuration, ring, now)
    if (own := keyring.signer(ring.identities, now)) is not None and keyring.is_revoked(own, ring.trust, now):
        yield Advice("problem", "our certificate is revoked: nothing is signed", "get a new one", "smime.identities")
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


def _in_use(configuration: Configuration, ring: Keyring, now: datetime) -> Iterator[tuple[str, x509.Certificate]]:
    """The certificates that are used now, with the key that names each: ours that signs, and one of each partner."""
    own = keyring.signer(ring.identities, now)
    if own is not None:
        yield "smime.identities", own.certificate
    for name in configuration.partner:
        certificate = ring.certificate(name, now)
        if certificate is not None:
            yield f"partner.{name}.certificate", certificate
