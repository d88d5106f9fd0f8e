"""The verbs explain and events, on a ledger of their own: what they print, and what they never repeat (R35, R36)."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rows import configuration, instance, queue, send
from sqlalchemy import text

from gateway import cli, control, searching
from gateway.config import Configuration
from gateway.core import pseudonym
from gateway.core.pseudonym import Identity
from gateway.errors import GatewayError, LedgerError, UsageError
from gateway.ledger import deliveries, pseudonyms, searches
from gateway.ledger.ledger import connect

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Configuration:
    """A gateway with one mail that was delivered, of a patient."""
    made = configuration(tmp_path)
    made.gateway.data.mkdir(mode=0o700)
    key = pseudonyms.make_key(made.gateway.data)
    words = pseudonym.of_instance(key, Identity(b"CANARYID4711", b"CANARYACC"))
    engine = connect(control.ledger_url(made))
    with engine.begin() as connection:
        queue(connection, "in-1", replace(instance(1), pseudonyms=words))
        send(connection, "pacs")
        deliveries.pause(connection, "pacs", True, NOW, "eve")
    engine.dispose()
    return made


def said(settings: Configuration, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.perform([*words, "--config", str(settings.source)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "words",
    [("in-1",), ("1.2.3",), ("--patient", "canaryid 4711"), ("--accession", "CANARYACC"), ("--from", "clinic-a")],
)
def test_a_story_is_told_for_whatever_is_known(
    settings: Configuration, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """In words and as one JSON document; a patient's number does not come back (R35)."""
    code, out, err = said(settings, capsys, "explain", *words)
    assert (code, err) == (0, "")
    assert out.startswith("1 item: 1 delivered\n\nin-1, mail from clinic-a: delivered, 1 of 1 instance delivered\n")
    assert "Nothing more is to be done." in out
    code, document, _ = said(settings, capsys, "explain", *words, "--json")
    assert [one["id"] for one in json.loads(document)["items"]] == ["in-1"]
    assert "canary" not in (out + document).lower()


@pytest.mark.parametrize(
    "words", [("CANARYNAME^X",), ("--patient", "CANARYID9"), ("--from", "CANARY", "--since", "1h")]
)
def test_nothing_found_ends_with_one_and_says_what_can_be_searched(
    settings: Configuration, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """What was typed is not repeated: a screen is seen by others (R35)."""
    code, out, err = said(settings, capsys, "explain", *words)
    assert (code, out) == (1, "")
    assert "what can be searched: a Study or SOP Instance UID" in err
    assert "CANARY" not in err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ((), "expected one thing to look for"),
        (("in-1", "--patient", "1"), "expected one thing to look for"),
        (("--patient", " "), "the number is empty"),
        (("in-1", "--since", "tomorrow"), "--since: expected a time"),
        (("in-1", "--since", "-1h"), "--since: expected a time"),
    ],
)
def test_a_question_that_has_no_meaning_is_a_usage_error(
    settings: Configuration, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], what: str
) -> None:
    """Exit code 2, one line."""
    code, out, err = said(settings, capsys, "explain", *words)
    assert (code, out) == (2, "")
    assert what in err


def test_without_its_key_no_patient_can_be_searched(settings: Configuration) -> None:
    """And it says so, rather than that there is nothing."""
    (settings.gateway.data / pseudonyms.KEY).unlink()
    with pytest.raises(GatewayError, match="so no patient can be searched for"):
        searching.explain(settings, patient="1")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("2h", NOW - timedelta(hours=2)),
        ("2026-11-20T08:00:00Z", datetime(2026, 11, 20, 8, tzinfo=UTC)),
        ("2026-11-20T08:00+02:00", datetime(2026, 11, 20, 6, tzinfo=UTC)),
        ("2026-11-20", datetime(2026, 11, 20).astimezone(UTC)),
    ],
)
def test_a_time_is_a_span_or_a_moment(typed: str, meant: datetime) -> None:
    """Local, unless it names its zone."""
    assert searching.moment(typed, NOW) == meant


@pytest.mark.parametrize("typed", ["", "yesterday", "99999999d", "0001-01-01T00:00+14:00"])
def test_what_is_no_time_is_refused(typed: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(UsageError):
        searching.moment(typed, NOW)


def test_events_are_one_document_written_piece_by_piece(
    settings: Configuration, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the list is, a page of it is in memory; who did what is named (AUD-1, AUD-2)."""
    monkeypatch.setattr(searches, "PAGE", 2)
    code, out, _ = said(settings, capsys, "events", "--json")
    found = json.loads(out)["events"]
    assert code == 0
    assert [one["kind"] for one in found] == ["accepted", "read", "sent", "now-delivered", "destination-paused"]
    assert found[-1]["who"] == "eve"
    code, out, _ = said(settings, capsys, "events")
    assert out.splitlines()[0].endswith("in-1 from clinic-a: accepted 1000 bytes from clinic-a by smtp, peer 192.0.2.1")
    assert out.splitlines()[-1].endswith("by eve: pacs was paused")
    assert "canary" not in out.lower()


def test_no_events_are_an_empty_list(settings: Configuration, capsys: pytest.CaptureFixture[str]) -> None:
    """Still one JSON document."""
    code, out, _ = said(settings, capsys, "events", "--since", "2999-01-01", "--json")
    assert (code, json.loads(out)) == (0, {"events": []})


@pytest.mark.parametrize(
    ("schema", "what"), [("9999", "written by a newer release"), ("0001", "of an earlier release")]
)
@pytest.mark.parametrize("words", [("explain", "in-1"), ("events",), ("queue", "list"), ("reconcile",)])
def test_a_ledger_of_another_release_is_one_clear_line(
    settings: Configuration, capsys: pytest.CaptureFixture[str], schema: str, what: str, words: tuple[str, ...]
) -> None:
    """Nothing is answered from tables that mean something else (R28)."""
    engine = connect(control.ledger_url(settings))
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{schema}'"))
    engine.dispose()
    code, out, err = said(settings, capsys, *words)
    assert (code, out) == (1, "")
    assert what in err
    assert len(err.splitlines()) == 1


def test_a_ledger_that_cannot_be_read_is_one_clear_line(settings: Configuration) -> None:
    """Neither a traceback nor what the file holds."""
    (settings.gateway.data / "ledger.sqlite").write_bytes(b"SECRET" * 1000)
    with pytest.raises(LedgerError, match="cannot be read: DatabaseError"):
        searching.explain(settings, word="in-1")
