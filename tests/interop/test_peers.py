"""The peers themselves, held against each other: a test with a broken peer would show nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from email import message_from_bytes, policy
from pathlib import Path

import psycopg
import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from messages import compose
from orthanc import Orthanc
from peer import Peer, Start, answers, free_port, wait_until
from postfix import Postfix
from postgresql import PostgreSQL
from pynetdicom import AE, _config
from samples import FILES, REWRITTEN, Fresh, Samples
from storescp import Storescp
from swaks import swaks

pytestmark = pytest.mark.peer


def store(
    pacs: Orthanc | Storescp, instances: Iterable[Fresh], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> set[int]:
    """Send instances by C-STORE, bytes as they are; DCMTK's own senders would write them anew."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    ae, statuses = AE(), set()
    instances = list(instances)
    for sop_class, transfer_syntax in {(one.sop_class, one.transfer_syntax) for one in instances}:
        ae.add_requested_context(sop_class, transfer_syntax)
    association = ae.associate("127.0.0.1", pacs.port, ae_title=pacs.title)
    for one in instances:
        path = folder / one.sop_instance
        path.write_bytes(one.file)
        statuses.add(association.send_c_store(path).get("Status"))
    association.release()
    return statuses


def test_orthanc_keeps_the_samples_bit_for_bit(
    orthanc: Orthanc, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a byte comparison through Orthanc can prove, and on which files."""
    sent = list(samples.many(len(FILES)))
    assert store(orthanc, sent, tmp_path, monkeypatch) == {0}
    assert {one.sop_instance for one in sent} <= orthanc.instances().keys()
    assert [one.sop_instance for one in sent if orthanc.data_set(one.sop_instance) != one.data_set] == []


def test_storescp_keeps_everything_bit_for_bit(
    start: Start, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer for files that Orthanc would write anew."""
    pacs = start(Storescp())
    sent = [samples.fresh(Path(name).name) for name in (*FILES, *REWRITTEN)]
    assert store(pacs, sent, tmp_path, monkeypatch) == {0}
    assert pacs.instances() == {one.sop_instance: one.data_set for one in sent}


def test_storescp_misbehaves_on_demand(
    start: Start, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An association aborted after the data set: no status, though the file may lie there."""
    pacs = start(Storescp("--abort-after"))
    assert store(pacs, [samples.fresh("CT_small.dcm")], tmp_path, monkeypatch) == {None}


def test_a_peer_that_was_down_comes_back_on_its_port(start: Start) -> None:
    """An outage can be played: stop, start, same port."""
    pacs = start(Storescp())
    pacs.stop()
    # The child that our first look made it fork has the port open, too, until it sees that nobody speaks.
    wait_until(lambda: not answers(pacs.port), "its port is closed")
    pacs.start()
    assert answers(pacs.port)


def test_a_peer_that_ends_at_once_fails_its_test(start: Start) -> None:
    """A peer that cannot start is seen, with what it printed."""
    with pytest.raises(pytest.fail.Exception, match=r"ended at once|not within"):
        start(Storescp("--no-such-option"))


class Sink:
    """Takes any mail and keeps it."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, list[str], bytes]] = []

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 (aiosmtpd's)
        assert isinstance(envelope.content, bytes)
        self.mails.append((envelope.mail_from or "", envelope.rcpt_tos, envelope.content))
        return "250 2.0.0 taken"


@pytest.fixture
async def sink() -> AsyncIterator[tuple[Sink, int]]:
    """A mail server at the end of the way, and its port."""
    sink, port = Sink(), free_port()
    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(sink, hostname="sink.test", data_size_limit=None), "127.0.0.1", port
    )
    yield sink, port
    server.close()
    await server.wait_closed()


def content(message: bytes) -> list[bytes]:
    """The DICOM files in a message."""
    parsed = message_from_bytes(message, policy=policy.default)
    parts = [part for part in parsed.walk() if part.get_content_type() == "application/dicom"]
    return [part.get_payload(decode=True) for part in parts]


async def test_postfix_relays_what_it_takes_by_smtp_and_from_its_sendmail(
    start: Start, samples: Samples, sink: tuple[Sink, int]
) -> None:
    """Both ways into a real mail server end at the same door, with the same bytes."""
    end, port = sink
    postfix = await asyncio.to_thread(start, Postfix({"gateway.test": port}))
    instance = samples.fresh("MR_small.dcm")
    message = compose([instance.file])
    options = ["--from", "dicom@clinic-a.test", "--to", "pacs@gateway.test"]
    sent = await asyncio.to_thread(swaks, postfix.port, *options, message=message)
    assert sent.returncode == 0, sent.stdout
    await asyncio.to_thread(postfix.sendmail, "dicom@clinic-a.test", "pacs@gateway.test", message)
    await asyncio.to_thread(wait_until, lambda: len(end.mails) == 2, "both mails arrive")
    assert [(sender, to, content(mail)) for sender, to, mail in end.mails] == [
        ("dicom@clinic-a.test", ["pacs@gateway.test"], [instance.file])
    ] * 2
    await asyncio.to_thread(wait_until, lambda: postfix.queue() == 0, "Postfix forgets them")


def test_postgresql_gives_each_test_an_empty_database(postgresql: PostgreSQL) -> None:
    """Two databases, two names, nothing in them."""
    first, second = postgresql.database(), postgresql.database()
    assert first != second
    with psycopg.connect(first.replace("+psycopg", "")) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert tables == (0,)


def test_an_absent_peer_is_a_skip_here_and_a_failure_where_it_counts(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the machine that decides, no peer may be missing unnoticed."""

    class Nobody(Peer):
        def command(self) -> list[str]:
            from peer import program

            return [program("no-such-program")]

    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not installed"):
        start(Nobody())
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no-such-program is not installed"):
        start(Nobody())
