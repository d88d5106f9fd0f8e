"""Messages in the ledger: custody, repetitions, what was read, and the outcome that follows; on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from rows import (
    HEADER,
    NOW,
    REMEMBER,
    STRANGER,
    alarms,
    arrival,
    decision,
    instance,
    outcome,
    parts,
    queue,
    read,
    send,
    stories,
    wakes,
)
from sqlalchemy import Connection, func, select

from gateway.core.findings import finding as note
from gateway.ledger import inventory, messages, verbs
from gateway.ledger.tables import event, finding, message
from gateway.ledger.tables import instance as instances
from gateway.model import Direction, Envelope, Finding, Outcome, Reading, Severity, Stage


def test_ids_sort_by_time_and_can_be_read_out() -> None:
    """An id is its direction and sixteen characters that nobody misreads; a later one sorts behind (contract)."""
    earlier = messages.new_id(Direction.IN, NOW)
    later = messages.new_id(Direction.IN, NOW + timedelta(milliseconds=1))
    assert earlier < later
    assert earlier.startswith("in-")
    assert len(earlier) == 19
    assert not set(earlier[3:]) & set("ilou")


def test_a_message_taken_in_waits_with_a_ticket_and_a_story(connection: Connection) -> None:
    """Custody is one row, one event and one ticket, in one transaction (R1, R17)."""
    assert messages.accept(connection, [arrival("in-1")]) == [None]
    assert outcome(connection, "in-1") == ("waiting", None)
    assert stories(connection, "in-1") == ["accepted"]
    assert wakes(connection) == {"receive:in-1": NOW}
    row = messages.get(connection, "in-1")
    assert row is not None
    assert (row.envelope, row.stage, row.received_at) == (arrival("in-1").envelope, Stage.RECEIVE, NOW)
    assert messages.get(connection, "in-2") is None


def test_text_that_no_database_takes_is_written_out(connection: Connection) -> None:
    """NUL and bytes that are no Unicode, in envelope, header and file ids, never make a message unstorable (R9)."""
    wild = "a\0b\udcff"
    envelope = Envelope("smtp", wild, (wild,), "192.0.2.1")
    messages.accept(connection, [arrival("in-1", envelope=envelope, header=replace(HEADER, message_id=wild))])
    one = replace(instance(1), file_id=wild, part=f"1!{wild}")
    what = Finding("other-part", Severity.INFO, f"1!{wild}", "x")
    made = replace(read(one), reading=Reading("dicom", (one,), (what,)))
    assert messages.decide(connection, "in-1", made, NOW)
    assert connection.scalar(select(instances.c.file_id)) == "a\\0b\\udcff"
    assert connection.scalar(select(message.c.message_id)) == "a\\0b\\udcff"


@pytest.mark.parametrize("state", list(Outcome))
def test_a_repeated_mail_has_the_outcome_of_the_first(connection: Connection, state: Outcome) -> None:
    """Same Message-ID and body: not read again, and its outcome follows the first one's, now and later (R2, R11)."""
    queue(connection, "in-1", body="same")
    assert messages.accept(connection, [arrival("in-2", body="same")]) == ["in-1"]
    send(connection, "pacs", state, code="x", wait=timedelta(0) if state is Outcome.WAITING else None)
    assert messages.accept(connection, [arrival("in-3", body="same")]) == ["in-1"]
    assert outcome(connection, "in-1")[0] == state
    assert outcome(connection, "in-1") == outcome(connection, "in-2") == outcome(connection, "in-3")
    assert stories(connection, "in-3") == ["accepted", "repeated"]
    told = {"report:in-1"} & set(wakes(connection))  # a partner is told what became of it
    assert set(wakes(connection)) - told == {"receive:in-1", "store:pacs"}


@pytest.mark.parametrize(
    "changes",
    [
        {"body": "other", "header": HEADER},
        {"body": "same", "header": replace(HEADER, message_id="<2@clinic-a.example>")},
        {"body": "same", "header": replace(HEADER, message_id=None)},
        {"body": "same", "at": NOW + REMEMBER, "known_since": NOW},
        {"body": "same", "decision": STRANGER},
        {"body": "same", "decision": decision("other", name="second")},
    ],
    ids=["other-body", "other-id", "no-id", "forgotten", "other-partner", "other-route"],
)
def test_another_mail_is_no_repetition(connection: Connection, changes: dict[str, object]) -> None:
    """What differs in Message-ID, body, partner or route is read and sent (R2: no skipped new mail)."""
    messages.accept(connection, [arrival("in-1", body="same", header=HEADER)])
    values = {"header": HEADER, **changes}
    assert messages.accept(connection, [arrival("in-2", **values)]) == [None]  # type: ignore[arg-type]


def test_one_mail_for_two_recipients_handed_over_twice_reaches_both_destinations(connection: Connection) -> None:
    """An MTA that splits a mail by recipient makes no repetition of what goes elsewhere (promise 3)."""
    first, second = decision("pacs", name="a"), decision("other", name="b")
    both = replace(first, routes=(*first.routes, *second.routes))
    messages.accept(connection, [arrival("in-1", body="same", decision=first)])
    assert messages.accept(connection, [arrival("in-2", body="same", decision=second)]) == [None]
    assert messages.accept(connection, [arrival("in-3", body="same", decision=second)]) == ["in-2"]
    assert messages.accept(connection, [arrival("in-4", body="same", decision=both)]) == [None]
    assert messages.accept(connection, [arrival("in-5", body="same", decision=both)]) == ["in-4"]


def test_what_was_read_becomes_a_delivery_for_each_instance_and_destination(connection: Connection) -> None:
    """Each pair waits with a next attempt and each lane has a ticket (R17)."""
    queue(connection, "in-1", instance(1), instance(2), to=("pacs", "other"))
    assert parts(connection, "in-1") == [
        (1, "pacs", "waiting", None),
        (1, "other", "waiting", None),
        (2, "pacs", "waiting", None),
        (2, "other", "waiting", None),
    ]
    assert {"store:pacs", "store:other"} <= set(wakes(connection))
    assert not messages.decide(
        connection, "in-1", read(instance(3)), NOW
    )  # decided already: a second reader changes nothing
    assert len(parts(connection, "in-1")) == 4


@pytest.mark.parametrize(
    ("changes", "expected", "alarm"),
    [
        ({"refused": "not-dicom"}, ("refused", "not-dicom"), set()),
        ({"held": "no-dicom"}, ("held", "no-dicom"), {("held", "in-1")}),
    ],
)
def test_a_mail_without_dicom_is_refused_or_held_and_says_so(
    connection: Connection, changes: dict[str, str], expected: tuple[str, str], alarm: set[tuple[str, str]]
) -> None:
    """Whoever needs a person opens a notice; the story names the outcome and its code (R9, R36)."""
    messages.accept(connection, [arrival("in-1", body="same")])
    messages.accept(connection, [arrival("in-2", body="same")])
    assert messages.decide(connection, "in-1", read(**changes), NOW)
    assert outcome(connection, "in-1") == outcome(connection, "in-2") == expected
    assert alarms(connection) == alarm
    told = inventory.show_item(connection, "in-1", NOW)["events"]
    assert any(f"{expected[0]}: {expected[1]}" == one["text"] for one in told)


def test_an_instance_known_with_other_content_is_held_and_the_others_go_on(connection: Connection) -> None:
    """Same UID, other data set: held with reused-uid; the same instance in a new mail is sent again (R11)."""
    queue(connection, "in-1", instance(1), instance(2))
    queue(connection, "in-2", instance(1, content="forged"), instance(2), instance(3))
    assert parts(connection, "in-2") == [
        (1, "pacs", "held", "reused-uid"),
        (2, "pacs", "waiting", None),
        (3, "pacs", "waiting", None),
    ]
    send(connection, "pacs")
    assert outcome(connection, "in-1") == ("delivered", None)
    assert outcome(connection, "in-2") == ("held", "reused-uid")
    assert alarms(connection) == {("held", "in-2")}


def test_another_transfer_syntax_is_other_content(connection: Connection) -> None:
    """Equal means UID, transfer syntax and data set (what "the same instance" means)."""
    queue(connection, "in-1", instance(1))
    queue(connection, "in-2", replace(instance(1), transfer_syntax="1.2.840.10008.1.2"))
    assert outcome(connection, "in-2") == ("held", "reused-uid")


@pytest.mark.parametrize("order", [("", "forged"), ("forged", "")])
def test_two_contents_of_one_uid_in_a_mail_hold_what_is_not_known(
    connection: Connection, order: tuple[str, str]
) -> None:
    """In whichever order they come, content that differs from what is queued never reaches a PACS (R11)."""
    queue(connection, "in-1", instance(1))
    one, two = (replace(instance(1, content=content), part=part) for content, part in zip(order, "12", strict=True))
    queue(connection, "in-2", one, two)
    forged = 1 + order.index("forged")
    assert (forged, "pacs", "held", "reused-uid") in parts(connection, "in-2")


def test_the_second_content_of_a_uid_in_a_mail_is_held(connection: Connection) -> None:
    """With nothing known before, the first content is sent and the second is held (AMB-23)."""
    queue(connection, "in-1", instance(1), instance(1, content="second", held="reused-uid"))
    assert parts(connection, "in-1") == [(1, "pacs", "waiting", None), (2, "pacs", "held", "reused-uid")]


def test_what_is_held_makes_nothing_known(connection: Connection) -> None:
    """A damaged copy that is held never keeps the sound one out, in the same mail or in a later one (R11)."""
    queue(connection, "in-1", instance(1, content="damaged", held="truncated-data-set"), instance(1))
    assert parts(connection, "in-1") == [(1, "pacs", "held", "truncated-data-set"), (2, "pacs", "waiting", None)]
    queue(connection, "in-2", instance(2, content="damaged", held="truncated-data-set"))
    queue(connection, "in-3", instance(2))
    assert outcome(connection, "in-3") == ("waiting", None)


def test_the_outcome_of_a_message_is_its_first_problem(connection: Connection) -> None:
    """Waiting while anything is open, then held before failed before refused before delivered (promise 3)."""
    queue(connection, "in-1", instance(1, held="bad"), instance(2), to=("pacs", "other"))
    assert outcome(connection, "in-1") == ("waiting", None)
    send(connection, "pacs")
    assert outcome(connection, "in-1") == ("waiting", None)
    send(connection, "other", Outcome.FAILED, code="class-refused", status=0x0122)
    assert outcome(connection, "in-1") == ("held", "bad")


def test_the_code_is_that_of_the_first_problem(connection: Connection) -> None:
    """A person sees why, without looking into the parts (promise 3)."""
    queue(connection, "in-1", instance(1), instance(2))
    send(connection, "pacs", Outcome.FAILED, code="class-refused", status=0x0122)
    assert outcome(connection, "in-1") == ("failed", "class-refused")
    assert alarms(connection) == {("failed", "in-1")}


def test_only_what_is_open_in_receive_can_be_held_there(connection: Connection) -> None:
    """A hold that comes too late changes nothing."""
    messages.accept(connection, [arrival("in-1")])
    assert messages.hold(connection, "in-1", "poison", "it crashed", NOW)
    assert outcome(connection, "in-1") == ("held", "poison")
    assert not messages.hold(connection, "in-1", "other", "again", NOW)
    assert stories(connection, "in-1") == ["accepted", "held", "notice-opened"]


def test_failures_and_crashes_are_counted_apart(connection: Connection) -> None:
    """A crash is no failed try, and both are told (R27)."""
    messages.accept(connection, [arrival("in-1")])
    assert [messages.count_try(connection, "in-1", "failed", NOW) for _ in range(2)] == [1, 2]
    messages.count_crashes(connection, ["in-1"], NOW)
    row = messages.get(connection, "in-1")
    assert row is not None
    assert (row.tries, row.crashes) == (2, 1)
    assert stories(connection, "in-1") == ["accepted", "receive-failed", "receive-failed", "crashed"]


def test_a_message_read_again_has_its_findings_once(connection: Connection) -> None:
    """Findings are those of the last reading."""
    messages.accept(connection, [arrival("in-1")])
    what = Finding("other-part", Severity.INFO, "1", "a part that is not DICOM")
    made = replace(read(held="no-dicom"), reading=Reading("other", (), (what,)))
    for _ in range(2):
        connection.execute(message.update().values(outcome="waiting", stage="receive"))
        assert messages.decide(connection, "in-1", made, NOW)
    assert connection.scalar(select(func.count()).select_from(finding)) == 1


def test_the_same_mail_twice_in_one_burst_is_one_and_a_repetition(connection: Connection) -> None:
    """Mails that share a transaction are compared with each other too; those without Message-ID are not (R2)."""
    nameless = replace(HEADER, message_id=None)
    burst = [
        arrival("in-1", body="same"),
        arrival("in-2", body="same"),
        arrival("in-3", body="same", decision=decision("other", name="second")),
        arrival("in-4", body="none", header=nameless),
        arrival("in-5", body="none", header=nameless),
        arrival("in-6", body="same"),
    ]
    assert messages.accept(connection, burst) == [None, "in-1", None, None, None, "in-1"]
    assert set(wakes(connection)) == {"receive:in-1", "receive:in-3", "receive:in-4", "receive:in-5"}


def test_what_a_rule_changed_is_told_without_its_values(connection: Connection) -> None:
    """Promise 5: which rules, how many instances; the row has the size in the blob and the hash of what came."""
    changed = replace(instance(1), changed=("patient_id", "issuer"), attached=90)
    messages.accept(connection, [arrival("in-1")])
    messages.decide(connection, "in-1", read(changed, instance(2)), NOW)
    text = connection.scalar(select(event.c.text).where(event.c.message == "in-1", event.c.kind == "rewritten"))
    assert text == "1 of 2 instances were changed by the route's rules: patient_id, issuer"
    assert list(connection.scalars(select(instances.c.size))) == [100, 100]
    queue(connection, "in-2", instance(3))
    assert "rewritten" not in stories(connection, "in-2")


def test_an_urgent_mismatch_is_stored_and_a_person_is_told_at_once(connection: Connection) -> None:
    """The notice is open until somebody says that they have seen it."""
    messages.accept(connection, [arrival("in-1")])
    found = read(instance(1))
    noted = (note("patient-mismatch-urgent", "1"), note("patient-mismatch-urgent", "2"))
    messages.decide(connection, "in-1", replace(found, reading=replace(found.reading, findings=noted)), NOW)
    assert outcome(connection, "in-1") == ("waiting", None)
    assert alarms(connection) == {("patient-mismatch-urgent", "in-1")}
    send(connection, "pacs")
    assert outcome(connection, "in-1") == ("delivered", None)
    assert alarms(connection) == {("patient-mismatch-urgent", "in-1")}
    verbs.release(connection, "in-1", NOW, "ann")
    assert alarms(connection) == set()
    assert outcome(connection, "in-1") == ("delivered", None)
    with pytest.raises(verbs.WrongStateError):
        verbs.release(connection, "in-1", NOW, "ann")


def test_nobody_is_told_that_an_urgent_mail_was_stored_which_is_held(connection: Connection) -> None:
    """Its routes contradict each other: one notice, about that, and no other that a release would leave open."""
    messages.accept(connection, [arrival("in-1")])
    found = read(instance(1), to=(), blob="", held="rules-differ")
    reading = replace(found.reading, findings=(note("patient-mismatch-urgent", "1"),))
    messages.decide(connection, "in-1", replace(found, reading=reading), NOW)
    assert outcome(connection, "in-1") == ("held", "rules-differ")
    assert alarms(connection) == {("held", "in-1")}
