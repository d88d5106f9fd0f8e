"""Mailboxes in pure rules: what is fetched, where it is filed, and what servers write (IMAP-1, R2, R3)."""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import mailbox, sasl
from gateway.core.mailbox import Filing, Known, Plan, State, Waiting
from gateway.model import Outcome, Stage

OURS = "DicomMail-0001"


def test_a_look_sorts_mails_into_new_known_and_too_big() -> None:
    """New and re-used UIDs are fetched, what was filed is filed again, what is left or pending rests (R2)."""
    found = [
        Waiting("1", 10, "a"),
        Waiting("2", 10, "a"),
        Waiting("3", 99, "a"),
        Waiting("4", 10, "a"),
        Waiting("5", 10, "b"),
        Waiting("6", 10, "a"),
        Waiting("7", 10, "a", frozenset({"\\Deleted"})),
    ]
    known = {
        "2": Known(10, "a", Filing.FILED),
        "4": Known(10, "a", Filing.LEFT),
        "5": Known(10, "a", Filing.LEFT),
        "6": Known(10, "a", Filing.TAKEN),
        "7": Known(10, "a", Filing.FILED),
    }
    plan = mailbox.plan(found, known, 50, OURS)
    assert plan == Plan((found[0], found[4]), (found[2],), ("2",), None)


def test_a_uidl_alone_is_no_reason_to_delete_again() -> None:
    """Without a date a name may be another mail's by now: it is fetched once more, and its content tells (R2)."""
    found = [Waiting("1", 10), Waiting("2", 10), Waiting("3", 99)]
    known = {
        "1": Known(10, "", Filing.FILED),
        "2": Known(10, "", Filing.LEFT),
        "3": Known(99, "", Filing.FAILED),
    }
    assert mailbox.plan(found, known, 50, OURS) == Plan((found[0],), (), ("3",))


@pytest.mark.parametrize(
    ("keywords", "other"),
    [
        ({"\\Seen", OURS}, None),
        ({OURS.upper()}, None),
        ({"dicommail-0000"}, "dicommail-0000"),
        ({"DicomMail-0000", OURS}, "DicomMail-0000"),
        ({"DicomMail-2", OURS}, None),
        (set(), None),
    ],
)
def test_the_mark_of_an_elder_gateway_is_told_from_ours(keywords: set[str], other: str | None) -> None:
    """Whatever a server makes of its case; of two, the younger one stops."""
    marked = [Waiting("1", 1, "", frozenset(keywords)), Waiting("2", 1)]
    assert mailbox.plan(marked, {}, 9, OURS).foreign == other


@pytest.mark.parametrize(
    ("stage", "outcome", "code", "fragment", "other", "expected"),
    [
        (Stage.RECEIVE, Outcome.WAITING, None, False, "leave", None),
        (Stage.RECEIVE, Outcome.WAITING, None, False, "move", Filing.FILED),
        (Stage.RECEIVE, Outcome.WAITING, None, True, "leave", Filing.FILED),
        (Stage.RECEIVE, Outcome.REFUSED, "not-dicom", False, "leave", Filing.LEFT),
        (Stage.RECEIVE, Outcome.REFUSED, "not-dicom", False, "move", Filing.FILED),
        (Stage.RECEIVE, Outcome.REFUSED, "dropped", False, "leave", Filing.FILED),
        (Stage.RECEIVE, Outcome.DELIVERED, "report", False, "leave", Filing.LEFT),
        (Stage.RECEIVE, Outcome.HELD, "no-dicom", False, "leave", Filing.LEFT),
        (Stage.RECEIVE, Outcome.HELD, "not-dicom", False, "leave", Filing.FILED),
        (Stage.STORE, None, None, False, "leave", Filing.LEFT),
        (Stage.STORE, None, None, False, "move", Filing.FILED),
        (Stage.STORE, Outcome.WAITING, None, False, "leave", Filing.FILED),
    ],
)
def test_a_mail_is_filed_by_what_its_item_has_come_to(
    stage: Stage, outcome: Outcome | None, code: str | None, fragment: bool, other: str, expected: Filing | None
) -> None:
    """What is not for us stays unless moving was asked for; what is not known yet waits."""
    assert mailbox.filing(stage, outcome, code, fragment=fragment, other=other) is expected


def test_a_person_is_told_at_once_or_after_a_time() -> None:
    """What lasts by its nature, and what lasts in fact; a full disk has a notice of its own (R3)."""
    now, later = timedelta(0), mailbox.PATIENCE
    assert mailbox.is_alarming(State.LOGIN_REFUSED, now)
    assert [mailbox.is_alarming(State.UNREACHABLE, each) for each in (now, later)] == [False, True]
    assert not mailbox.is_alarming(State.OK, later)
    assert not mailbox.is_alarming(State.NO_ROOM, later)
    assert set(mailbox.REMEDY) == set(State) - {State.OK}


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_the_pause_grows_to_a_cap(failures: int, dice: float) -> None:
    """With jitter, and never without end (R16)."""
    pause = mailbox.back_off(failures, dice)
    assert mailbox.FIRST_WAIT * 0.8 <= pause <= mailbox.LONGEST_WAIT * 1.2


@given(st.sets(st.integers(1, 20_000) | st.integers(2**31, 2**32 - 1), max_size=1500))
def test_sets_name_every_uid_once_and_few_at_a_time(uids: set[int]) -> None:
    """Whatever lies in the folder: 300 at most, in lines of a bounded length."""
    named = []
    for each in mailbox.sets(uids):
        count = 0
        for part in each.split(","):
            first, _, last = part.partition(":")
            one = range(int(first), int(last or first) + 1)
            count += len(one)
            named += one
        assert count <= mailbox.MOST_AT_ONCE
        assert len(each) <= mailbox.LONGEST_SET
    assert sorted(named) == sorted(uids)
    assert len(named) == len(set(named))


def test_a_long_run_of_uids_is_cut() -> None:
    """18 000 waiting mails are asked about in ranges."""
    assert list(mailbox.sets(range(1, 18_001)))[:2] == ["1:300", "301:600"]
    scattered = list(mailbox.sets(range(10**9, 10**9 + 1200, 2)))
    assert len(scattered) == 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            b'12 FETCH (UID 5 RFC822.SIZE 44 INTERNALDATE "17-Jul-1996 02:44:25 -0700" FLAGS (\\Seen x))',
            Waiting("5", 44, "17-Jul-1996 02:44:25 -0700", frozenset({"\\Seen", "x"})),
        ),
        (b"12 fetch (flags () rfc822.size 44 uid 5)", Waiting("5", 44)),
        (b"12 FETCH (FLAGS (:-( x) UID 5)", None),
        (b"12 FETCH (RFC822.SIZE 5)", None),
    ],
)
def test_fetch_responses_are_read(line: bytes, expected: Waiting | None) -> None:
    """In any order of items; what is no answer to our question is none of ours."""
    assert mailbox.waiting(line) == expected


def test_search_responses_are_read() -> None:
    """One line with every UID; an empty one for an empty folder."""
    assert mailbox.found_uids(b"SEARCH 4 5 99999999999 x 7") == [4, 5, 7]
    assert mailbox.found_uids(b"SEARCH") == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'LIST (\\HasNoChildren) "/" "A \\"b\\""', ("/", 'A "b"')),
        (b'LIST () "." INBOX.Done', (".", "INBOX.Done")),
        (b'LIST () "\\\\" Done', ("\\", "Done")),
        (b"LIST () NIL Done", ("", "Done")),
        (b'LIST (\\Noselect) "/" Done', None),
        (b'LIST (\\NonExistent) "/" Done', None),
        (b"LIST nonsense", None),
    ],
)
def test_list_responses_are_read(line: bytes, expected: tuple[str, str] | None) -> None:
    """A name that cannot be selected is no folder."""
    assert mailbox.listed(line) == expected


def test_folders_are_looked_for_where_servers_have_them() -> None:
    """As named, and below the personal prefix; levels by the server's separator."""
    assert mailbox.candidates("Done", "/", "") == ("Done",)
    assert mailbox.candidates("inbox", ".", "INBOX.") == ("INBOX",)
    assert mailbox.candidates("A/B", ".", "INBOX.") == ("A.B", "INBOX.A.B")
    assert mailbox.candidates("INBOX/Done", ".", "INBOX.") == ("INBOX.Done",)
    assert mailbox.candidates("A/B", "", "") == ("A/B",)
    assert mailbox.personal_prefix(b'NAMESPACE (("INBOX." ".")) NIL NIL') == "INBOX."
    assert mailbox.personal_prefix(b"NAMESPACE NIL NIL NIL") == ""


@pytest.mark.parametrize(
    ("name", "encoded"),
    [("Gelöscht", "Gel&APY-scht"), ("A&B", "A&-B"), ("台北", "&U,BTFw-"), ("plain", "plain"), ("", "")],
)
def test_folder_names_are_written_in_modified_utf7(name: str, encoded: str) -> None:
    """The examples of RFC 3501 §5.1.3 and of German servers."""
    assert mailbox.modified_utf7(name) == encoded


def test_strings_are_quoted() -> None:
    """Backslash and quote."""
    assert mailbox.quoted('a"b\\c') == '"a\\"b\\\\c"'


def test_claims_sort_by_age_and_keep_the_name() -> None:
    """A gateway that begins anew is younger, and still itself."""
    old, new = (mailbox.new_claim(moment, "ab12") for moment in (datetime(2026, 1, 1, tzinfo=UTC), datetime.now(UTC)))
    assert old < new
    assert mailbox.name_in(old) == mailbox.name_in(new.upper()) == "ab12"
    assert mailbox.elder_claim({old}, new) is None
    assert mailbox.elder_claim({old}, mailbox.new_claim(datetime.now(UTC), "cd34")) == old


def test_a_marker_message_is_found_by_its_subject() -> None:
    """It is a message that people can read, too."""
    text = mailbox.write_marker(OURS, "gw@hospital.example")
    assert mailbox.marker_in(b"1 FETCH (UID 5 BODY[HEADER.FIELDS (SUBJECT)] {9} " + text.encode()) == OURS
    assert mailbox.marker_in(b"1 FETCH (UID 5 BODY[HEADER.FIELDS (SUBJECT)] {9} Subject: x") is None
    assert all(len(line) < 998 for line in text.split("\r\n"))
    assert text.isascii()


def test_mechanisms_are_written_as_their_documents_say() -> None:
    """PLAIN, XOAUTH2 and OAUTHBEARER, the last with the escapes of its names."""
    assert b64decode(sasl.plain("u", "pässword")) == "\0u\0pässword".encode()
    assert b64decode(sasl.xoauth2("u", "t")) == b"user=u\1auth=Bearer t\1\1"
    expected = b"n,a=u=3D=2C,\1host=h\1port=993\1auth=Bearer t\1\1"
    assert b64decode(sasl.oauthbearer("u=,", "t", "h", 993)) == expected
    assert b64decode(sasl.DUMMY) == b"\1"
