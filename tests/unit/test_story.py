"""Documents as stories: everything that matters is shown, nothing that a terminal would obey."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console, RenderableType

from gateway import story
from gateway.core import wording

UID = "1.2.840.113619.2.55.3.604688119.969.1268071029.320"
ESCAPE = "\x1b[2J\x1b]0;owned\x07"


@pytest.fixture(autouse=True)
def _in_hamburg(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def shown(renderable: RenderableType, width: int = 240) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def item(**changes: Any) -> dict[str, Any]:
    return {
        "id": "in-7f3a",
        "direction": "in",
        "outcome": "waiting",
        "stage": "store",
        "partner": "clinic-a",
        "instances": 3,
        "delivered": 2,
        "attempts": 1,
        "next_attempt": "2026-11-23T18:02:11.000Z",
        "age_seconds": 125.0,
        "code": None,
        "message_id": "<a@clinic-a.example>",
        "events": [
            {"at": "2026-11-23T18:00:00.500Z", "text": "taken in by smtp"},
            {"at": "2026-11-23T18:00:01.000Z", "text": "read: 3 instances"},
        ],
        "instances_detail": [
            {
                "sop_instance": UID,
                "destination": "pacs",
                "outcome": "waiting",
                "sends": 2,
                "sends_unknown": 1,
                "status": "0xA700",
                "mail": None,
            }
        ],
        "timing": {"receive_seconds": 0.012, "read_seconds": 0.25, "store_seconds": None},
    } | changes


READING: dict[str, Any] = {
    "kind": "dicom",
    "instances": [
        {
            "sop_class": "1.2.840.10008.5.1.4.1.1.2",
            "sop_instance": UID,
            "study": "1.2.3",
            "series": "1.2.3.4",
            "transfer_syntax": "1.2.840.10008.1.2.1",
            "sha256": "00",
            "size": 526_358,
            "file_id": "IMG1",
            "part": "2",
        }
    ],
    "dicomdir": {"complete": False, "missing": ["IMG2"]},
    "partial": None,
    "protection": {"encrypted": False, "signed": False, "verified": False, "signer": None, "code": None},
    "other_parts": [{"part": "1", "type": "text/plain", "size": 12}],
    "findings": [{"code": "dicomdir-incomplete", "severity": "warning", "where": "3", "text": "a file is missing"}],
    "partner": "clinic-a",
    "route": "in",
    "destinations": ["pacs", "archive"],
    "outcome": "delivered",
}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0123, "0.0123 s"), (9.5, "9.5 s"), (59.9, "59 s"), (125, "2 min"), (7300, "2 h"), (200_000, "2 d")],
)
def test_spans_are_as_people_say_them(seconds: float, said: str) -> None:
    """Short, and never zero for something."""
    assert wording.span(seconds) == said


def test_times_are_local() -> None:
    """Who reads it at three in the morning has a watch on the wall, not UTC."""
    assert story.local("2026-11-23T18:02:11.123Z") == "2026-11-23 19:02:11"


def test_queue_shows_each_item_with_what_a_person_needs() -> None:
    """Id, outcome, how much is delivered, when it is tried again."""
    text = shown(story.queue({"items": [item(), item(id="in-2", outcome="failed", next_attempt=None, code="gave-up")]}))
    assert text.startswith("2 items\n")
    assert "in-7f3a  in  waiting  store  clinic-a  2/3        1         19:02:11  2 min" in text
    assert "in-2     in  failed" in text
    assert "gave-up" in text


def test_queue_ends_with_notices_and_troubled_destinations() -> None:
    """What needs a person stands last, where the eye is; destinations that are well are not named."""
    notice = {
        "kind": "down",
        "about": "pacs",
        "text": "pacs is down",
        "do": "look at it",
        "since": "2026-11-23T18:00:00Z",
    }
    well = {"name": "archive", "paused": False, "down_since": None, "trouble": None, "next_probe": None}
    ill = well | {"name": "pacs", "trouble": "connection refused", "down_since": "2026-11-23T18:00:00Z"}
    document = {"items": [], "cut": True, "notices": [notice, notice | {"do": ""}], "destinations": [well, ill]}
    assert shown(story.queue(document)).splitlines() == [
        "0 items, the newest only",
        "notice  pacs is down, since 2026-11-23 19:00:00: look at it",
        "notice  pacs is down, since 2026-11-23 19:00:00",
        "pacs: not paused, in trouble: connection refused, since 2026-11-23 19:00:00",
    ]


def test_item_reads_as_a_story() -> None:
    """What it is, what happened when, where each instance is, what comes next."""
    text = shown(story.item(item()))
    assert text.splitlines()[:6] == [
        "in-7f3a  mail from clinic-a: waiting",
        "2 of 3 instances delivered, 1 attempt, in stage store, 2 min old, next attempt 2026-11-23 19:02:11",
        "Message-ID <a@clinic-a.example>",
        "",
        "2026-11-23 19:00:00  taken in by smtp",
        "2026-11-23 19:00:01  read: 3 instances",
    ]
    assert UID in text
    assert "0xA700" in text
    assert "took: receive 0.012 s, read 0.25 s" in text
    assert "dicom-mail queue retry in-7f3a" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outcome": "held", "code": "no-dicom"}, "held (no-dicom)"),
        ({"outcome": "held"}, "release in-7f3a, or drop in-7f3a"),
        ({"outcome": "failed"}, "It was given up"),
        ({"partner": None}, "mail from nobody we know"),
        ({"direction": "out"}, "images for clinic-a"),
        ({"duplicate_of": "in-1"}, "repeats in-1"),
        (
            {"findings": [{"severity": "warning", "code": "x", "where": "", "text": "odd"}], "instances_detail": []},
            "warning  x: odd",
        ),
        (
            {"timing": dict.fromkeys(("receive_seconds", "read_seconds", "store_seconds")), "message_id": None},
            "nothing yet",
        ),
    ],
)
def test_item_says_what_is_special(changes: dict[str, Any], said: str) -> None:
    """The reason of a hold, the way back, the first of two."""
    assert said in shown(story.item(item(**changes)))


def test_proof_says_in_a_sentence_whether_it_holds() -> None:
    """Then the numbers, in both units (R34)."""
    counts = {"in": 6, "delivered": 1, "waiting": 2, "refused": 0, "held": 3, "failed": 0}
    good = counts | {"unaccounted": 0, "doubtful": 1, "instances": counts, "astray": []}
    text = shown(story.proof(good))
    assert text.startswith("All that was taken in is accounted for: 6.\n")
    assert text.count("6") == 3
    bad = good | {"unaccounted": 1, "astray": ["in-7f3a"]}
    text = shown(story.proof(bad))
    assert text.startswith("The proof does not hold: 1 of 6 are unaccounted for.")
    assert text.endswith("unaccounted: in-7f3a; dicom-mail queue show in-7f3a")


def test_reading_says_what_would_happen_and_why() -> None:
    """First the decision, then the content."""
    lines = shown(story.reading(READING)).splitlines()
    assert lines[0] == "This would be delivered: from clinic-a, by route in to pacs, archive."
    assert lines[1] == "It is DICOM, 1 instance of 1 study, unprotected."
    assert any(UID in line and "IMG1" in line for line in lines)
    assert lines[-3:] == [
        "The DICOMDIR names files that did not come: IMG2",
        "part 1: text/plain, 12 bytes, kept with the original",
        "warning  dicomdir-incomplete in part 3: a file is missing",
    ]


def test_reading_says_how_many_of_those_found_can_go_on() -> None:
    """AMB-40: n of m; an error without a place is about all of them."""
    one = READING["instances"][0]
    error = {"severity": "error", "code": "no-study", "where": "9", "text": "none"}
    some = READING | {"instances": [one, one | {"part": "9"}], "findings": [error]}
    assert "2 instances of 1 study, 1 of 2 can go on, unprotected." in shown(story.reading(some))
    none = some | {"findings": [error | {"where": ""}]}
    assert "2 instances of 1 study, 0 of 2 can go on, unprotected." in shown(story.reading(none))


def test_reading_of_a_protected_fragment_says_so() -> None:
    """Number and total, protection and its failure code, nobody known."""
    protection = {"encrypted": True, "signed": True, "verified": False, "signer": "a@b.example", "code": "no-trust"}
    changes = {"kind": "partial", "partial": {"id": "x", "number": 2, "total": None}, "protection": protection}
    changes |= {"instances": [], "dicomdir": None, "other_parts": [], "findings": [], "partner": None, "route": None}
    lines = shown(story.reading(READING | changes | {"outcome": "waiting"})).splitlines()
    assert lines == [
        "This would be waiting: from nobody we know, no route takes it.",
        "It is a fragment, number 2 of unknown, encrypted and signed, signer a@b.example, code no-trust.",
    ]


def test_verdict_is_one_line_with_what_to_do() -> None:
    """Columns that a script can cut."""
    assert (
        shown(story.verdict("problem", "smtp", "port 25 is taken", "stop it"))
        == "problem    smtp: port 25 is taken -> stop it"
    )
    assert shown(story.verdict("ok", "disk", "")) == "ok         disk"


def test_destination_is_one_line() -> None:
    """Paused or not."""
    assert shown(story.destination({"name": "pacs", "paused": True, "trouble": ""})) == "pacs: paused"


def test_no_mail_plays_with_the_terminal() -> None:
    """Control characters of a hostile mail never reach the screen, and markup is only text."""
    hostile = f"{ESCAPE}[bold]"
    detail = item()["instances_detail"][0] | {"sop_instance": hostile, "destination": hostile}
    events = [{"at": "2026-11-23T18:00:00Z", "text": hostile}]
    mail = item(message_id=hostile, partner=hostile, code=hostile, events=events, instances_detail=[detail])
    finding = {"code": hostile, "severity": "error", "where": hostile, "text": hostile}
    read = READING | {"partner": hostile, "route": hostile, "destinations": [hostile], "findings": [finding]}
    read |= {"other_parts": [{"part": hostile, "type": hostile, "size": 1}], "kind": hostile}
    read |= {"dicomdir": {"complete": False, "missing": [hostile]}}
    for text in (shown(story.item(mail)), shown(story.queue({"items": [mail]})), shown(story.reading(read))):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "[bold]" in text


def test_nothing_is_cut_on_a_narrow_terminal() -> None:
    """A UID that is cut is no UID: cells fold."""
    text = shown(story.item(item()), width=60)
    assert "…" not in text
