"""Mailboxes in the ledger: what was taken, where it lies, and how each mailbox is, on both databases (R2, R3)."""

from __future__ import annotations

from datetime import timedelta

import pytest
from rows import NOW, alarms, arrival, queue
from sqlalchemy import Connection, delete, select

from gateway.core.mailbox import CLAIM, PATIENCE, Filing, Known, State, name_in
from gateway.ledger import inventory, mailboxes, messages, notices
from gateway.ledger.mailboxes import Folder, Taken, Unfiled
from gateway.ledger.tables import event, mailbox_mail, message
from gateway.model import Outcome, Stage

INBOX = Folder("mail.example:993", "gw", "INBOX", 7)
DOOR = "imap.a"


def taken(uid: str, key: str | None = None, *, sha256: str = "", filing: Filing = Filing.TAKEN) -> Taken:
    return Taken(uid, 100, "17-Jul-1996", sha256 or (key or ""), key, filing)


def test_a_gateway_keeps_its_claim(connection: Connection) -> None:
    """Whatever restarts, as long as it looks."""
    mine = mailboxes.claim(connection, NOW)
    assert mine.startswith(CLAIM)
    mailboxes.note(connection, DOOR, State.OK, "", NOW)
    assert mailboxes.claim(connection, NOW + timedelta(hours=20)) == mine
    # Whoever comes back after days is the younger one, under the same name.
    later = mailboxes.claim(connection, NOW + timedelta(days=4))
    assert (later > mine, name_in(later)) == (True, name_in(mine))


def test_a_folder_has_one_number_for_each_life_of_its_uids(connection: Connection) -> None:
    """IMAP-1: server, account, folder and UIDVALIDITY."""
    lives = [INBOX, Folder("mail.example:993", "gw", "INBOX", 8), Folder("mail.example:993", "other", "INBOX", 7)]
    numbers = [mailboxes.number(connection, one) for one in lives]
    assert len(set(numbers)) == 3
    assert [mailboxes.number(connection, one) for one in lives] == numbers


def test_what_was_taken_is_known_with_its_filing(connection: Connection) -> None:
    """A UID that is used again is another mail: the later one counts (R2)."""
    number = mailboxes.number(connection, INBOX)
    mailboxes.record(connection, number, [], NOW)
    mailboxes.record(connection, number, [taken("1", "in-1"), taken("2")], NOW)
    mailboxes.record(connection, number, [Taken("1", 50, "18-Jul-1996", "", None, Filing.FAILED)], NOW)
    mailboxes.file(connection, number, ["2"], Filing.LEFT, NOW)
    assert mailboxes.known(connection, number) == {
        "1": Known(50, "18-Jul-1996", Filing.FAILED),
        "2": Known(100, "17-Jul-1996", Filing.LEFT),
    }


def test_content_is_known_again_under_any_uid(connection: Connection) -> None:
    """By its item; once that was purged, by the row of the same account; never by another account's (R2)."""
    number = mailboxes.number(connection, INBOX)
    later = mailboxes.number(connection, Folder("mail.example:993", "gw", "INBOX", 8))
    stranger = mailboxes.number(connection, Folder("mail.example:993", "other", "INBOX", 7))
    one = arrival("in-1")
    messages.accept(connection, [one])
    assert mailboxes.item_of(connection, DOOR, number, one.sha256) is None  # it came by another door
    mailboxes.record(connection, number, [taken("1", "in-1", sha256=one.sha256)], NOW)
    found = [mailboxes.item_of(connection, DOOR, each, one.sha256) for each in (number, later, stranger)]
    assert found == ["in-1", "in-1", None]
    connection.execute(message.update().where(message.c.id == "in-1").values(door=DOOR))
    connection.execute(delete(mailbox_mail))
    assert mailboxes.item_of(connection, DOOR, stranger, one.sha256) == "in-1"


def test_mails_to_be_filed_come_with_what_their_items_have_come_to(connection: Connection) -> None:
    """Nothing is known any more of one whose item was purged."""
    number = mailboxes.number(connection, INBOX)
    messages.accept(connection, [arrival("in-1")])
    queue(connection, "in-2")
    mailboxes.record(connection, number, [taken("1", "in-1"), taken("2", "in-2")], NOW)
    mailboxes.record(connection, number, [taken("3", "in-3"), taken("4", filing=Filing.FAILED)], NOW)
    found = {one.uid: one for one in mailboxes.unfiled(connection, number)}
    assert found == {
        "1": Unfiled("1", Stage.RECEIVE, Outcome.WAITING, None, False),
        "2": Unfiled("2", Stage.STORE, Outcome.WAITING, None, False),
        "3": Unfiled("3", Stage.STORE, None, None, False),
    }


def test_mails_that_are_gone_are_forgotten_after_a_time(connection: Connection) -> None:
    """What lies there still, what is not filed and what is young stays known."""
    number = mailboxes.number(connection, INBOX)
    every = [str(uid) for uid in range(1200)]
    mailboxes.record(connection, number, [taken(uid, filing=Filing.FILED) for uid in every], NOW)
    mailboxes.record(connection, number, [taken("pending")], NOW)
    mailboxes.record(connection, number, [taken("young", filing=Filing.LEFT)], NOW + timedelta(days=2))
    assert mailboxes.forget(connection, number, {"7"}, NOW + timedelta(days=1)) == 1199
    assert set(mailboxes.known(connection, number)) == {"7", "pending", "young"}
    assert mailboxes.forget(connection, number, {"7"}, NOW + timedelta(days=1)) == 0


# How a mailbox is


def events(connection: Connection) -> list[str]:
    return [each for each in connection.scalars(select(event.c.kind).order_by(event.c.id)) if "mailbox" in each]


def test_a_trouble_that_may_pass_is_told_after_a_time_and_closed_when_well(connection: Connection) -> None:
    """One opening, one closing; its beginning is that of the trouble, whatever it was meanwhile (R3, R33)."""
    minute = timedelta(minutes=1)
    assert mailboxes.note(connection, DOOR, State.OK, "", NOW)
    assert mailboxes.note(connection, DOOR, State.UNREACHABLE, "away", NOW + minute)
    assert mailboxes.note(connection, DOOR, State.SILENT, "mute", NOW + 2 * minute)
    assert not mailboxes.note(connection, DOOR, State.SILENT, "mute", NOW + 9 * minute)
    assert alarms(connection) == set()
    mailboxes.note(connection, DOOR, State.UNREACHABLE, "away", NOW + minute + PATIENCE)
    assert alarms(connection) == {("mailbox-down", DOOR)}
    [health] = mailboxes.health(connection)
    assert (health.state, health.since, health.looked_at) == (State.UNREACHABLE, NOW + minute, NOW)
    [shown] = inventory.list_items(connection, NOW)["mailboxes"]
    assert (shown["name"], shown["state"], shown["since"]) == (DOOR, "unreachable", "2026-11-23T12:01:00.000Z")
    assert shown["do"]
    mailboxes.note(connection, DOOR, State.OK, "", NOW + 20 * minute)
    assert alarms(connection) == set()
    assert events(connection) == [
        *("mailbox-unreachable", "mailbox-silent", "mailbox-unreachable", "mailbox-ok"),
    ]
    [well] = inventory.list_items(connection, NOW)["mailboxes"]
    assert (well["state"], well["do"], well["since"]) == ("ok", "", well["looked_at"])


@pytest.mark.parametrize(
    "state",
    [State.CERTIFICATE, State.LOGIN_REFUSED, State.TOKEN_EXPIRED, State.FOLDER_MISSING, State.SHARED],
)
def test_what_needs_a_person_is_told_at_once(connection: Connection, state: State) -> None:
    """And an open notice says what is the matter now, without telling anybody again (R3)."""
    mailboxes.note(connection, DOOR, state, "why", NOW)
    [one] = notices.open_notices(connection)
    assert (one.kind, one.about, str(state) in one.text, "why" in one.text) == ("mailbox-down", DOOR, True, True)
    mailboxes.note(connection, DOOR, State.SILENT, "mute", NOW + PATIENCE)
    [again] = notices.open_notices(connection)
    assert (again.id, again.opened_at, "silent" in again.text) == (one.id, NOW, True)


def test_a_full_disk_has_a_notice_of_its_own(connection: Connection) -> None:
    """R5: the mailbox is no reason for a second one."""
    mailboxes.note(connection, DOOR, State.NO_ROOM, "full", NOW)
    mailboxes.note(connection, DOOR, State.NO_ROOM, "full", NOW + 3 * PATIENCE)
    assert alarms(connection) == set()
    assert mailboxes.health(connection)[0].state is State.NO_ROOM


def test_mails_that_were_too_big_are_told_and_the_newest_count_stays(connection: Connection) -> None:
    """R7: nothing of them was taken, so a person must look."""
    mailboxes.note_too_big(connection, DOOR, "Failed", 1, 500, NOW)
    mailboxes.note_too_big(connection, DOOR, "Failed", 3, 500, NOW)
    [one] = notices.open_notices(connection)
    assert (one.kind, one.about, "3 mails of more than 500 bytes" in one.text) == ("mail-too-big", DOOR, True)


def test_a_mailbox_that_is_configured_no_more_has_no_state(connection: Connection) -> None:
    """Nor a notice that nothing could close."""
    mailboxes.note(connection, DOOR, State.SHARED, "why", NOW)
    mailboxes.note(connection, "imap.b", State.SHARED, "why", NOW)
    mailboxes.retire(connection, ["imap.b"], NOW)
    assert [one.door for one in mailboxes.health(connection)] == ["imap.b"]
    assert alarms(connection) == {("mailbox-down", "imap.b")}
