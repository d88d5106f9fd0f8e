"""The story in plain words: every fact that matters has its sentence, and what comes next is never left open (R36)."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core import codes, explanation, status
from gateway.core.explanation import Story

AT = "2026-11-23T18:00:00.000Z"
LATER = "2026-11-23T18:05:00.000Z"


def part(destination: str = "pacs", **changes: Any) -> dict[str, Any]:
    """One instance at one destination."""
    plain = {"outcome": "delivered", "sends": 1, "sends_unknown": 0, "status": "0x0000", "code": None, "comment": None}
    return {"destination": destination, "stored": None, "mails": [], **plain, **changes}


def mail(**changes: Any) -> dict[str, Any]:
    """One mail of a collection."""
    plain = {"message_id": "<a@gw>", "part": 1, "parts": 1, "size": 2000, "outcome": "delivered", "code": None}
    return {**plain, "sends": 1, "sends_unknown": 0, "status": "250", "comment": "2.0.0", **changes}


def item(**changes: Any) -> dict[str, Any]:
    """A mail of one image that is delivered, unless told."""
    plain: dict[str, Any] = {
        "id": "in-7",
        "direction": "in",
        "outcome": "delivered",
        "stage": "store",
        "partner": "clinic-a",
        "instances": 1,
        "delivered": 1,
        "code": None,
        "door": "smtp",
        "peer": "192.0.2.1",
        "account": None,
        "size": 1_500_000,
        "received": AT,
        "duplicate_of": None,
        "part_of": None,
        "protection": None,
        "kind": "dicom",
        "content": [{"study": "1.2.3", "instances": 1, "classes": ["CT Image Storage"]}],
        "findings": [],
        "routes": ["in"],
        "urgent": False,
        "remarks": [],
        "instances_detail": [part()],
        "mails": [],
        "purged": False,
        "next_attempt": None,
        "doubtful": 0,
    }
    return plain | changes


def told(lanes: dict[str, Any] | None = None, **changes: Any) -> Story:
    return explanation.explain(item(**changes), lanes or {})


def lane(**changes: Any) -> dict[str, Any]:
    """A destination that is well, unless told."""
    return {"paused": False, "down_since": None, "trouble": None, "next_probe": None, **changes}


def words(story: Story) -> str:
    return "\n".join(sentence.text for sentence in story.past)


WAITING: dict[str, Any] = {
    "outcome": "waiting",
    "delivered": 0,
    "next_attempt": LATER,
    "instances_detail": [part(outcome="waiting", status="0xA700", sends=3)],
}


def test_a_delivered_mail_is_told_from_its_coming_to_its_answer() -> None:
    """Came when, by which door, from whom; what was in it; who decided; what the peer said."""
    story = told()
    assert story.headline == "in-7, mail from clinic-a: delivered, 1 of 1 instance delivered"
    assert story.past[0] == explanation.Sentence(
        "A mail of 1.5 MB from clinic-a came by the door smtp from 192.0.2.1.", AT
    )
    assert words(story).splitlines()[1:] == [
        "Nobody asked for a signature: its partner may send without.",
        "In it: 1 instance (CT Image Storage) of study 1.2.3.",
        "Route in sends it to pacs.",
        "pacs: of 1 instance 1 delivered; each was sent at most 1 time.",
        "pacs, 1 instance: the last answer was 0x0000, success (PS3.4 B.2.3).",
    ]
    assert (story.next.text, story.next.at, story.do) == ("Nothing more is to be done.", None, ())


@pytest.mark.parametrize(
    ("size", "said"),
    [(1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (3 * 10**9, "3.0 GB")],
)
def test_sizes_are_as_people_say_them(size: int, said: str) -> None:
    """In the units of file managers."""
    assert f"A mail of {said} from" in words(told(size=size))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"door": "imap.radiology"}, "from clinic-a was taken from the mailbox imap.radiology."),
        ({"account": "clinic"}, "came by the door smtp from 192.0.2.1, logged in as clinic."),
        ({"partner": None}, "from a sender whom no partner entry names came by"),
        ({"duplicate_of": "in-1"}, "It is the same mail as in-1 and has its outcome"),
        ({"part_of": "in-1"}, "It is a piece of the message that in-1 stands for"),
        ({"urgent": True}, "Route in sends it to pacs. It is urgent."),
        ({"routes": []}, "No route takes it."),
        ({"instances_detail": []}, "Route in takes it; nothing of it was handed to a destination."),
        ({"purged": True}, "Its bytes are gone by now"),
        ({"kind": "report", "content": []}, "It is a report about a mail, not images."),
        ({"kind": None, "content": [], "outcome": "waiting"}, "It was not read yet."),
        ({"remarks": [{"at": AT, "text": "released (by eve)"}]}, "Released (by eve)."),
    ],
)
def test_what_is_special_is_said(changes: dict[str, Any], said: str) -> None:
    """Each fact has its sentence."""
    assert said in words(told(**changes))


def test_what_was_not_read_for_want_of_a_kind_says_nothing_of_its_content() -> None:
    """A mail that is held before it was read has no content that anybody knows."""
    assert "In it" not in words(told(kind=None, content=[], outcome="held", code="poison", instances_detail=[]))
    assert "Nobody asked" not in words(told(kind="other", content=[]))


def verdict(**changes: Any) -> dict[str, Any]:
    return {"encrypted": False, "signed": False, "verified": False, "signer": None, "code": None, **changes}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"signed": True, "verified": True, "signer": "ct@clinic-a.example"}, "Its signature is good: ct@clinic-a"),
        ({"encrypted": True, "signed": True, "verified": True}, "It was encrypted, and its signature is good: the pin"),
        ({"signed": True, "code": "revoked"}, "It was signed, but that does not count (revoked): "),
        ({"encrypted": True, "signed": True, "code": "weak-key"}, "It was encrypted and signed, but that does not"),
        ({"code": "malformed"}, "It was not readably protected, but that does not count (malformed): The protection"),
        ({"encrypted": True}, "It was encrypted and not signed."),
        ({}, "It was neither encrypted nor signed."),
    ],
)
def test_the_verdict_about_a_signature_is_said_in_words(found: dict[str, Any], said: str) -> None:
    """And so is why it does not count."""
    assert said in words(told(protection=verdict(**found)))


def test_findings_are_said_once_with_their_number() -> None:
    """A thousand images with one flaw are one sentence."""
    one = {"code": "meta-length", "severity": "info", "where": "2", "text": "the group length is wrong."}
    other = {**one, "code": "odd-length", "severity": "warning", "text": "its length is odd."}
    text = words(told(findings=[one, {**one, "where": "3"}, other]))
    assert "Noticed (info, meta-length, 2 times): the group length is wrong." in text
    assert "Noticed (warning, odd-length): its length is odd." in text


def test_what_waits_says_what_the_peer_said_and_when_it_is_tried_again() -> None:
    """The status in words, the number of sends, the next attempt, and the verb that hurries it."""
    story = told(**WAITING)
    assert "pacs: of 1 instance 1 waiting; each was sent at most 3 times." in words(story)
    assert "the last answer was 0xA700, refused: out of resources" in words(story)
    assert (story.next.text, story.next.at) == ("It is sent to pacs.", LATER)
    assert story.do == ("dicom-mail queue retry in-7: try it now",)


def test_a_destination_that_is_down_is_named_with_its_trouble_and_its_next_probe() -> None:
    """The caller asks whether it is us or the PACS."""
    lanes = {"pacs": lane(down_since=AT, trouble="connection refused", next_probe=LATER)}
    story = told(lanes, **WAITING | {"instances_detail": [part(outcome="waiting", status=None, sends=0)]})
    assert explanation.Sentence("pacs takes nothing since then: connection refused.", AT) in story.past
    assert "1 waiting; nothing was sent yet." in words(story)
    assert story.next == explanation.Sentence(
        "pacs is asked whether it is there; then what waits goes out by itself.", LATER
    )
    assert story.do[0] == "dicom-mail echo pacs"
    assert "takes nothing since then." in words(told({"pacs": lane(down_since=AT)}, **WAITING))


def test_a_paused_destination_waits_for_a_person() -> None:
    """Then there is no time to name, and the verb is."""
    story = told({"pacs": lane(paused=True)}, **WAITING)
    assert story.next.at is None
    assert story.next.text.startswith("Nothing is sent to pacs: a person paused it")
    assert story.do[0] == "dicom-mail queue resume pacs"
    both = [part(outcome="waiting"), part("other", outcome="waiting")]
    some = told({"pacs": lane(paused=True)}, **WAITING | {"instances_detail": both})
    assert (some.next.text, some.next.at) == ("It is sent to other.", LATER)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage": "receive", "instances_detail": []}, "It is read."),
        (
            {"stage": "receive", "code": "fragment-waiting", "instances_detail": []},
            "It goes on when the missing pieces",
        ),
        ({"instances_detail": [part(outcome="waiting", stored=AT)]}, "pacs is asked for the proof that it has stored"),
        ({"duplicate_of": "in-1"}, "It goes with in-1."),
        ({"part_of": "in-2"}, "It goes with in-2."),
    ],
)
def test_what_comes_next_is_said_for_each_stage(changes: dict[str, Any], said: str) -> None:
    """What waits always waits for something (R17)."""
    assert told(**WAITING | changes).next.text.startswith(said)


def test_doubts_are_counted_and_a_person_is_told_how_to_clear_them() -> None:
    """In doubt is never silent."""
    doubt = part(outcome="held", status=None, comment="no answer", sends=4, sends_unknown=4, code="in-doubt")
    story = told(outcome="held", code="in-doubt", doubtful=1, instances_detail=[doubt])
    assert (
        "no answer came (no answer); 4 sends had no valid answer, so it may be there or not; in-doubt: A send"
        in words(story)
    )
    assert story.do[0] == "look in the PACS, then dicom-mail queue resolve in-7 delivered, or resend, or dropped"
    assert story.do[1:] == (
        "dicom-mail queue release in-7: let it go on, when the cause is gone",
        "dicom-mail queue drop in-7: refuse it for good",
    )
    assert "a person decides" in story.next.text


def test_what_is_held_as_a_whole_says_why() -> None:
    """Before there were deliveries."""
    story = told(outcome="held", code="no-dicom", instances=0, content=[], kind="other", instances_detail=[])
    assert story.headline == "in-7, mail from clinic-a: held (no-dicom)"
    assert "It is held (no-dicom): A partner's mail in which no usable DICOM was found." in words(story)
    assert "It is held (never-heard): never-heard" in words(
        told(outcome="held", code="never-heard", instances_detail=[])
    )


def test_what_failed_can_be_tried_again() -> None:
    """And what repeats it names the first, which the verbs work on."""
    gone = part(outcome="failed", status="0x0122", code="class-refused")
    assert told(outcome="failed", code="class-refused", instances_detail=[gone]).do == (
        "dicom-mail queue retry in-7: try it again, when the cause is gone",
        "dicom-mail queue drop in-7: refuse it for good",
    )
    assert (
        told(outcome="failed", duplicate_of="in-1", instances_detail=[]).do[0].startswith("dicom-mail queue retry in-1")
    )


OUT: dict[str, Any] = {
    "id": "out-7",
    "direction": "out",
    "stage": "submit",
    "door": "storescp",
    "account": "CT1",
    "routes": ["opinion"],
    "instances_detail": [part("clinic-a", status=None, mails=["<a@gw>"])],
    "mails": [mail()],
}


def test_images_on_their_way_out_are_told_with_their_mails() -> None:
    """Who sent them, which route, each mail and what the relay said."""
    story = told(**OUT)
    assert story.headline == "out-7, images for clinic-a: delivered, 1 of 1 instance delivered"
    assert words(story).splitlines() == [
        "Images of one study came by C-STORE from CT1, 1.5 MB in all.",
        "In it: 1 instance (CT Image Storage) of study 1.2.3.",
        "Route opinion mails it to clinic-a.",
        "Mail 1 of 1, 2.0 kB, <a@gw>: delivered, the relay answered 250 2.0.0, it took the mail.",
    ]
    assert "were handed in by somebody" in words(told(**OUT | {"door": "send", "account": None}))
    assert "Route" not in words(told(**OUT | {"routes": []}))


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (
            mail(outcome="waiting", status="451", code="relay-deferred"),
            "answered 451 2.0.0, not now. The relay answered",
        ),
        (mail(outcome="failed", status="550", comment=None, code="relay-refused"), "answered 550, never as it is. The"),
        (mail(outcome="waiting", status="999", comment=None), "answered 999, an answer nobody knows."),
        (mail(outcome="held", status=None, sends_unknown=4, code="in-doubt"), ": held; 4 sends had no answer. A send"),
        (mail(outcome="waiting", status=None), "<a@gw>: waiting."),
    ],
)
def test_what_the_relay_said_is_put_in_words(one: dict[str, Any], said: str) -> None:
    """A reply code means nothing to who is woken at night."""
    assert said in words(told(**OUT | {"mails": [one]}))


def test_images_that_no_mail_carries_say_why() -> None:
    """Counted by their code; those that only wait to be composed say nothing of it."""
    parts = [
        part("clinic-a", outcome="held", code="too-big"),
        part("clinic-a", outcome="held", code="too-big"),
        part("clinic-a", outcome="waiting", code=None),
    ]
    text = words(told(**OUT | {"outcome": "held", "instances_detail": parts, "mails": []}))
    assert "2 instances in no mail (too-big): One image is too big" in text
    assert text.count("in no mail") == 1


def test_the_relay_is_a_lane_of_its_own() -> None:
    """Composing waits for nobody; what is composed waits for the relay, down or paused."""
    waiting = OUT | {"outcome": "waiting", "next_attempt": LATER}
    assert told(**waiting | {"stage": "compose"}).next.text.startswith("Its mails are written")
    assert told(**waiting).next == explanation.Sentence("It is sent to the mail relay.", LATER)
    down = told({"relay": lane(down_since=AT, trouble="no route", next_probe=LATER)}, **waiting)
    assert explanation.Sentence("The mail relay takes nothing since then: no route.", AT) in down.past
    assert down.do[0] == "dicom-mail check"
    paused = told({"relay": lane(paused=True)}, **waiting)
    assert paused.next.text.startswith("Nothing is sent to the mail relay")
    assert paused.do[0] == "dicom-mail queue resume relay"


def test_every_code_has_a_meaning() -> None:
    """Those of items, of protection, of findings and of a PACS's answers; no code, and one nobody knows, has none."""
    assert codes.meaning("no-dicom").startswith("A partner's mail")
    assert codes.meaning("revoked")
    assert codes.meaning("patient-mismatch")
    assert {codes.meaning(row.verdict.code) for row in status.TABLE}.isdisjoint({""})
    assert codes.meaning(None) == codes.meaning("never-heard") == ""
    assert not any("`" in codes.meaning(code) for code in (*codes.ITEMS, *codes.PROTECTION))
