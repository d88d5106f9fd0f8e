"""CRLs by HTTP: asked of the named hosts alone, taken only from their issuer, and nothing that comes can do harm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pki
import pytest
from crl_server import CrlServer, Page
from cryptography.hazmat.primitives.serialization import Encoding
from pki import DAY, NOW

from gateway.core.cms import revocation
from gateway.core.cms.revocation import Fault, Inspection, Source
from gateway.edges.revocation import FORGET, CrlFetcher, remembered
from gateway.errors import WorkerError

ISSUER = pki.issuing().certificate.public_bytes(Encoding.DER)
CRL = pki.revocations(pki.issuing()).public_bytes(Encoding.DER)


async def inspect(path: Path, source: Source, last_update: datetime | None, now: datetime) -> Inspection:
    """Look at what came, here."""
    return revocation.inspect(path, source, last_update, now)


@dataclass
class Clock:
    """Tells the time of the tests."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def server() -> Iterator[CrlServer]:
    """A distribution point."""
    with CrlServer() as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    """Stands still."""
    return Clock()


@pytest.fixture
def fetcher(tmp_path: Path, clock: Clock) -> CrlFetcher:
    """May ask this machine by its number only."""
    return CrlFetcher(tmp_path / "crls", ("127.0.0.1",), inspect, lambda: 0.5, clock=clock, deadline=10)


def of(url: str) -> Source:
    """A source of the issuing authority."""
    return Source(url, ISSUER)


def fault(fetcher: CrlFetcher, source: Source) -> Fault | None:
    """What went wrong the last time."""
    return fetcher.records[source.name].fault


def files(fetcher: CrlFetcher) -> dict[str, bytes]:
    """The CRLs that are kept, by name; nothing else may lie there but what is known of them."""
    found = {path.name: path for path in fetcher.folder.iterdir() if path.suffix != ".json"}
    return {name: path.read_bytes() for name, path in found.items()}


async def test_a_crl_is_fetched_kept_and_asked_for_again_only_when_it_changed(
    server: CrlServer, fetcher: CrlFetcher, clock: Clock
) -> None:
    """Conditional requests; a newer one takes its place; it is known again after a restart."""
    source = of(server.url("/one.crl"))
    server.pages["/one.crl"] = Page(CRL, headers={"ETag": '"1"', "Last-Modified": "Sun, 22 Nov 2026 12:00:00 GMT"})
    assert await fetcher.fetch([source])
    assert files(fetcher) == {f"{source.name}.crl": CRL}
    assert not await fetcher.fetch([source])  # not due
    assert len(server.asked) == 1
    clock.now += DAY
    assert not await fetcher.renew()
    assert server.asked[-1][1]["if-none-match"] == '"1"'
    assert server.asked[-1][1]["if-modified-since"] == "Sun, 22 Nov 2026 12:00:00 GMT"
    newer = pki.revocations(pki.issuing(), since=NOW + DAY, until=NOW + 9 * DAY).public_bytes(Encoding.DER)
    server.pages["/one.crl"] = Page(newer, headers={"ETag": '"2"'})
    again = CrlFetcher(fetcher.folder, fetcher.hosts, inspect, lambda: 0.5, clock=clock)
    again.load()
    assert again.sources == remembered(fetcher.folder) == (source,)
    clock.now += DAY
    assert await again.renew()
    assert files(fetcher) == {f"{source.name}.crl": newer}
    (fetcher.folder / f"{source.name}.crl").unlink()
    clock.now += DAY
    assert await again.renew()
    assert "if-none-match" not in server.asked[-1][1]  # what is gone is fetched whole
    assert {path.stat().st_mode & 0o777 for path in fetcher.folder.iterdir()} <= {0o600, 0o644}


async def test_only_the_named_hosts_are_asked(server: CrlServer, fetcher: CrlFetcher) -> None:
    """Not even by another name of the same machine, and not by a way round."""
    server.pages["/one.crl"] = Page(CRL)
    assert not await fetcher.fetch([of(server.url("/one.crl", "localhost")), of("")])
    assert server.asked == []
    server.pages["/away"] = Page(status=302, headers={"Location": server.url("/one.crl", "localhost")})
    server.pages["/file"] = Page(status=302, headers={"Location": "file:///etc/passwd"})
    server.pages["/round"] = Page(status=301, headers={"Location": "/round"})
    server.pages["/here"] = Page(status=301, headers={"Location": "/one.crl"})
    for path in ("/away", "/file", "/round"):
        source = of(server.url(path))
        assert not await fetcher.fetch([source])
        assert fault(fetcher, source) is Fault.REDIRECTED
    assert len(server.asked) == 6
    assert await fetcher.fetch([of(server.url("/here"))])


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (Page(b"<html>", status=404), Fault.REFUSED),
        (Page(CRL, status=500), Fault.REFUSED),
        (Page(status=304), Fault.REFUSED),
        (Page(b"\x30\x80" * 1000), Fault.MALFORMED),
        (Page(), Fault.MALFORMED),
        (Page(CRL, headers={"Content-Encoding": "gzip"}), None),
        (Page(pki.revocations(pki.root()).public_bytes(Encoding.DER)), Fault.WRONG_ISSUER),
        (Page(pki.revocations(pki.issuing(), signer=pki.root()).public_bytes(Encoding.DER)), Fault.BAD_SIGNATURE),
        (Page(bytes(20_000)), Fault.TOO_LONG),
        (Page(b"", announced=1 << 40), Fault.TOO_LONG),
        (Page(CRL, announced=len(CRL) + 1), Fault.UNREACHABLE),
        (Page(CRL, drip=0.2), Fault.TOO_SLOW),
    ],
)
async def test_what_is_no_crl_changes_nothing(
    server: CrlServer, fetcher: CrlFetcher, page: Page, expected: Fault | None
) -> None:
    """Huge, slow, cut, packed, forged or garbage: it is named, nothing of it stays, and it is asked less and less."""
    server.pages["/one.crl"] = page
    source = of(server.url("/one.crl"))
    fetcher.longest, fetcher.deadline = 10_000, 2 if page.drip else 10
    assert await fetcher.fetch([source]) is (expected is None)
    assert fault(fetcher, source) is expected
    assert set(files(fetcher)) == ({f"{source.name}.crl"} if expected is None else set())


async def test_a_server_that_is_not_there_is_left_alone_for_a_growing_while(fetcher: CrlFetcher, clock: Clock) -> None:
    """R16; and a clock that jumps back does not silence us for years (R29)."""
    with CrlServer() as gone:
        source = of(gone.url("/one.crl"))
    waits = []
    for count in range(3):
        assert not await (fetcher.renew() if count else fetcher.fetch([source]))
        due = fetcher.records[source.name].due
        assert due is not None
        waits.append(due - clock.now)
        assert not await fetcher.fetch([source])
        assert fetcher.records[source.name].failures == len(waits)
        clock.now = due
        assert not await fetcher.fetch([source])  # for what failed no mail waits
        assert fetcher.records[source.name].failures == len(waits)
    assert waits == [revocation.after_failure(number, 0.5) for number in (1, 2, 3)]
    assert fault(fetcher, source) is Fault.UNREACHABLE
    clock.now -= timedelta(days=400)
    assert not await fetcher.renew()
    assert fetcher.records[source.name].failures == 4


async def test_a_worker_that_dies_over_a_crl_and_a_full_disk_are_faults(
    server: CrlServer, fetcher: CrlFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that comes ends the task that keeps CRLs fresh."""
    server.pages["/one.crl"] = server.pages["/two.crl"] = Page(CRL)

    async def dying(*_: object) -> Inspection:
        raise WorkerError("the worker process died")

    fetcher.inspect = dying
    assert not await fetcher.fetch([of(server.url("/one.crl"))])
    assert fault(fetcher, of(server.url("/one.crl"))) is Fault.MALFORMED

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.edges.revocation._write_all", full)
    assert not await fetcher.fetch([of(server.url("/two.crl"))])
    assert fault(fetcher, of(server.url("/two.crl"))) is Fault.NO_ROOM
    assert files(fetcher) == {}


async def test_who_gives_up_waiting_does_not_end_a_question_that_others_wait_for(
    server: CrlServer, fetcher: CrlFetcher
) -> None:
    """One question for many mails, and a mail that stops waiting takes nothing from the others."""
    server.pages["/one.crl"] = Page(CRL, drip=0.001)
    source = of(server.url("/one.crl"))
    first, second = (asyncio.create_task(fetcher.fetch([source])) for _ in range(2))
    await asyncio.sleep(0.1)
    first.cancel()
    assert await second
    assert len(server.asked) == 1
    server.pages["/two.crl"] = Page(CRL, drip=5)
    third = asyncio.create_task(fetcher.fetch([of(server.url("/two.crl"))]))
    await asyncio.sleep(0.1)
    await fetcher.close()
    with pytest.raises(asyncio.CancelledError):
        await third


async def test_what_nobody_needs_any_more_is_forgotten(server: CrlServer, fetcher: CrlFetcher, clock: Clock) -> None:
    """No server is asked for ever because of one mail years ago, and no file stays."""
    server.pages["/one.crl"] = Page(CRL)
    source = of(server.url("/one.crl"))
    await fetcher.fetch([source])
    clock.now += timedelta(days=59)
    await fetcher.renew()
    assert fetcher.sources == (source,)
    clock.now += timedelta(days=2)
    await fetcher.renew()
    assert fetcher.sources == ()
    assert list(fetcher.folder.iterdir()) == []


async def test_what_is_in_use_is_not_forgotten_because_there_is_no_room_for_more(
    fetcher: CrlFetcher, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is named first."""
    monkeypatch.setattr("gateway.edges.revocation.MOST", 1)
    old, new = of("http://crl.test/old"), of("http://crl.test/new")
    await fetcher.learn([old], clock.now)
    for _ in range(3):
        clock.now += FORGET / 2 + DAY
        await fetcher.learn([new, old], clock.now)
        await fetcher.renew()
    assert fetcher.sources == (old,)


async def test_no_more_than_a_number_of_sources_is_remembered(
    fetcher: CrlFetcher, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded: whoever issues a thousand certificates does not fill the disk with addresses."""
    monkeypatch.setattr("gateway.edges.revocation.MOST", 3)
    await fetcher.learn([of(f"http://crl.test/{number}") for number in range(5)], clock.now)
    assert len(fetcher.sources) == len(remembered(fetcher.folder)) == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: "junk",
        lambda _: "[]",
        lambda values: json.dumps({**values, "url": "http://elsewhere.test/"}),
        lambda values: json.dumps({**values, "wanted": "junk"}),
        lambda values: json.dumps({**values, "issuer": "AAAA"}),
    ],
)
async def test_a_spoiled_record_is_passed_over(fetcher: CrlFetcher, clock: Clock, spoil: object) -> None:
    """Whatever a person or a disk made of it: it is learned again."""
    await fetcher.learn([of("http://crl.test/one.crl")], clock.now)
    (path,) = fetcher.folder.glob("*.json")
    path.write_text(spoil(json.loads(path.read_text("utf-8"))), "utf-8")  # type: ignore[operator]
    fetcher.load()
    assert fetcher.sources == ()
    assert not await fetcher.renew()
