"""CRLs at work: fetched while they are needed, looked at by check, and a person is told when nobody knows for a day."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pki
import pytest
from crl_server import CrlServer, Page
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection

from gateway import config, freshness, keys
from gateway.config import Configuration
from gateway.core.cms import revocation
from gateway.core.cms.revocation import Coverage, Inspection, Source, State
from gateway.edges.revocation import MOST
from gateway.freshness import Freshness
from gateway.ledger import notices, revocations
from gateway.ledger.ledger import Ledger, connect

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


# The notice


def cover(state: State, name: str = "Issuing 01234567") -> Coverage:
    """What is known of an issuer."""
    return Coverage(name, name.encode().hex().ljust(64, "0"), state, None, ())


def test_a_notice_opens_after_a_day_without_a_crl_and_closes_when_one_counts(connection: Connection) -> None:
    """Once each, however often it is looked at; another issuer has one of its own (R33)."""
    gaps = [cover(State.MISSING), cover(State.EXPIRED, "Other 89abcdef"), cover(State.STALE, "Third 00000000")]
    for hours in (0, 1, 23.9):
        revocations.note(connection, gaps, NOW + timedelta(hours=hours))
        assert notices.open_notices(connection) == []
    for hours in (24, 25, 48):
        revocations.note(connection, gaps, NOW + timedelta(hours=hours))
    found = notices.open_notices(connection)
    assert {(one.kind, one.about) for one in found} == {
        ("revocation-unknown", "Issuing 01234567"),
        ("revocation-unknown", "Other 89abcdef"),
    }
    revocations.note(connection, [cover(State.FRESH), gaps[1]], NOW + 3 * DAY)
    assert [one.about for one in notices.open_notices(connection)] == ["Other 89abcdef"]
    revocations.note(connection, [], NOW + 3 * DAY)
    assert notices.open_notices(connection) == []
    revocations.note(connection, gaps[:1], NOW + 4 * DAY)
    assert notices.open_notices(connection) == [], "it counts anew"


# The task


def person(url: str = "") -> pki.Holder:
    """A partner whose certificate may name where its CRL is to be had."""
    extra: dict[str, x509.ExtensionType] = {}
    if url:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
        extra["points"] = x509.CRLDistributionPoints([point])
    return pki.leaf(since=NOW - DAY, until=NOW + 30 * DAY, extra=extra)


def crl(*revoked: x509.Certificate, issuer: pki.Holder | None = None, until: timedelta = 7 * DAY) -> bytes:
    """A list that is current, or ended."""
    made = pki.revocations(issuer or pki.issuing(), *revoked, since=NOW - 30 * DAY, until=NOW + until)
    return made.public_bytes(Encoding.DER)


@dataclass
class Site:
    """A gateway's configuration with one partner, and its CRLs."""

    folder: Path
    renewed: int = 0
    freshness: Freshness = field(init=False)

    def __post_init__(self) -> None:
        for name in ("trust", "crls"):
            (self.folder / name).mkdir()
        anchor = self.folder / "trust" / "root.pem"
        anchor.write_bytes(pki.root().certificate.public_bytes(Encoding.PEM))
        (self.folder / "crls" / "root.crl").write_bytes(crl(issuer=pki.root()))

    def configure(self, partner: pki.Holder, more: str = 'crl_hosts = ["127.0.0.1"]') -> Configuration:
        """Write its files and read them."""
        chain = (partner.certificate, pki.issuing().certificate)
        (self.folder / "partner.pem").write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
        text = '[gateway]\nname = "gw.test"\npostmaster = "it@gw.test"\ndata = "data"\n'
        text += '[partner.clinic]\naddress = "anna@clinic.test"\ncertificate = "partner.pem"\n'
        path = self.folder / "gateway.toml"
        path.write_text(f"{text}[smime]\n{more}\n", "utf-8")
        return config.load(path)

    def start(self, partner: pki.Holder, more: str = 'crl_hosts = ["127.0.0.1"]') -> Freshness:
        """Make the task, not yet running."""
        self.configuration = self.configure(partner, more)
        self.ledger = Ledger(connect(f"sqlite:///{self.folder / 'ledger.sqlite'}"))
        ring = keys.load(self.configuration).keyring
        self.freshness = Freshness(self.configuration, self.ledger, ring, self.inspect, self.renew)
        return self.freshness

    async def inspect(self, path: Path, source: Source, last_update: datetime | None, now: datetime) -> Inspection:
        """Look at what came."""
        return revocation.inspect(path, source, last_update, now)

    async def renew(self) -> None:
        """Read the folders anew."""
        self.renewed += 1
        self.freshness.keyring = keys.load(self.configuration).keyring

    async def until(self, states: set[State]) -> None:
        """Wait until the issuers are in these states, as the running task sees it."""
        async with asyncio.timeout(20):
            while {one.state for one in self.freshness.coverage} != states:  # noqa: ASYNC110  it tells nobody
                await asyncio.sleep(0.01)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Looks often."""
    monkeypatch.setattr(freshness, "LOOK", 0.02)
    made = Site(tmp_path)
    yield made
    if hasattr(made, "ledger"):
        made.ledger.close()


@pytest.fixture
def server() -> Iterator[CrlServer]:
    """A distribution point."""
    with CrlServer() as made:
        yield made


async def test_the_crls_of_partners_are_fetched_before_any_mail_comes(site: Site, server: CrlServer) -> None:
    """What is in use is known at the start, and again after a restart without asking."""
    server.pages["/people.crl"] = Page(crl())
    running = site.start(person(server.url("/people.crl")))
    await running.open()
    task = asyncio.create_task(running.run())
    await site.until({State.FRESH})
    assert site.renewed == 1
    assert [one.fault for one in running.asked] == [None]
    task.cancel()
    await running.close()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert keys.load(site.configuration).keyring.trust.crls
    assert len(keys.load(site.configuration).keyring.store.crls) == 2
    assert len(server.asked) == 1


def test_every_crl_that_is_fetched_is_read_and_a_folder_that_holds_too_many_files_is_named(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is left out could be the one that tells of a revocation."""
    configuration = site.configure(person("http://crl.test/"), "")
    folder = keys.fetched(configuration)
    folder.mkdir(parents=True)
    for number in range(MOST):
        (folder / f"{number:03}.crl").write_bytes(crl())
    found = keys.load(configuration)
    assert len(found.keyring.trust.crls) == MOST + 1
    assert not found.problems
    monkeypatch.setattr(keys, "MOST_FILES", 3)
    [problem] = keys.load(configuration).problems
    assert (problem.key, "more than 3 files" in problem.what) == ("smime.crls", True)


async def test_a_fault_that_nobody_foresaw_does_not_end_the_task(
    site: Site, server: CrlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CRLs are kept fresh for years."""
    server.pages["/people.crl"] = Page(crl())
    running = site.start(person(server.url("/people.crl")))
    faults = iter([ValueError("strange")])
    true = keys.sources

    def sources(*args: Any) -> Any:
        for fault in faults:
            raise fault
        return true(*args)

    monkeypatch.setattr(keys, "sources", sources)
    task = asyncio.create_task(running.run())
    await site.until({State.FRESH})
    task.cancel()


async def test_a_mail_waits_for_a_crl_only_so_long(
    site: Site, server: CrlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that drips stops no mail; the question goes on."""
    monkeypatch.setattr(freshness, "PATIENCE", 0.2)
    server.pages["/people.crl"] = Page(crl(), drip=5)
    running = site.start(person())
    source = Source(server.url("/people.crl"), pki.issuing().certificate.public_bytes(Encoding.DER))
    await running.fetch([source])
    assert site.renewed == 0
    await running.close()


async def test_with_off_nobody_is_asked(site: Site, server: CrlServer) -> None:
    """``revocation = "off"``: no question, no notice."""
    running = site.start(person(server.url("/people.crl")), 'crl_hosts = ["127.0.0.1"]\nrevocation = "off"')
    await running._look(NOW)
    assert (running.asked, running.coverage, server.asked) == ((), (), [])
    running.reload(cast("Configuration", SimpleNamespace(smime=None)))
    assert running.asked == ()


# What check says


def said(site: Site, partner: pki.Holder, more: str = "") -> list[tuple[str, str, str]]:
    """Level, words and advice about CRLs."""
    found = keys.review(site.configure(partner, more), NOW)
    return [(one.level, one.what, one.do) for one in found if one.key == "smime.crls"]


def test_check_says_which_crl_is_missing_and_what_to_do(site: Site) -> None:
    """The remedy depends on what the certificate names, and who may be asked."""
    url = "http://crl.clinic.test/people.crl"
    ((level, what, do),) = said(site, person())
    assert (level, do) == ("warning", "put its CRL into the folder smime.crls")
    assert what.startswith("no CRL of Issuing ")
    ((_, _, do),) = said(site, person(url))
    assert do == "add crl.clinic.test to smime.crl_hosts, or put its CRL into the folder smime.crls"
    ((_, _, do),) = said(site, person(url), 'crl_hosts = ["crl.clinic.test"]')
    assert do == "see that crl.clinic.test can be reached from here: the running gateway fetches it"
    ((level, _, _),) = said(site, person(), 'revocation = "hard"')
    assert level == "problem"
    assert said(site, person(), 'revocation = "off"') == []


def test_check_says_which_crl_has_ended(site: Site) -> None:
    """Within the grace it still counts: no problem, also under ``hard``."""
    place = site.folder / "crls" / "people.crl"
    for until, level, words in (
        (-DAY, "warning", "and counts until"),
        (-9 * DAY, "problem", "and counts no more"),
    ):
        place.write_bytes(crl(until=until))
        ((found, what, _),) = said(site, person(), 'revocation = "hard"')
        assert found == level
        assert f"ended on {NOW + until:%Y-%m-%d} {words}" in what
    place.write_bytes(crl())
    assert said(site, person(), 'revocation = "hard"') == []


def test_the_state_of_the_folders_changes_when_a_crl_is_fetched(site: Site) -> None:
    """So that the running gateway reads it."""
    configuration = site.configure(person())
    before = keys.stamp(configuration)
    keys.fetched(configuration).mkdir(parents=True)
    (keys.fetched(configuration) / "a.crl").write_bytes(crl())
    assert keys.stamp(configuration) != before
