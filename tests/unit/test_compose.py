"""COMPOSE and SUBMIT together: from the image that is acknowledged to the mail that the relay took."""

from __future__ import annotations

import email
import email.policy
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path
from typing import cast

import pytest
from outbound import CALLER, CONFIGURATION, Outbound, Postman
from postgresql import PostgreSQL
from rows import NOW, configuration
from sqlalchemy import update

from gateway.config import Configuration
from gateway.errors import LowDiskError, RelayError, UsageError
from gateway.ledger import submissions, verbs
from gateway.ledger.drafts import Draft
from gateway.ledger.janitor import Janitor
from gateway.ledger.tables import submission
from gateway.model import Reply
from gateway.stages import compose


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peer)])
async def out(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Outbound]:
    """The way out on both databases."""
    url = ""
    if request.param == "postgresql":
        peer: PostgreSQL = request.getfixturevalue("postgresql")
        url = peer.database()
    made = Outbound(tmp_path, url)
    yield made
    made.close()


def parsed(content: bytes) -> EmailMessage:
    return cast("EmailMessage", email.message_from_bytes(content, policy=email.policy.default))


def images(content: bytes) -> list[bytes]:
    """The DICOM files of a mail, without the DICOMDIR."""
    parts = [one for one in parsed(content).walk() if one.get_content_type() == "application/dicom"]
    return [one.get_content() for one in parts if one.get_param("id") != "DICOMDIR"]


async def test_a_study_goes_as_one_mail_and_is_delivered(out: Outbound) -> None:
    """The whole way: acknowledged, collected, composed, submitted; each instance says which mail carried it."""
    await out.send(1, 2, 3)
    await out.work()
    [item] = await out.items()
    assert (item["direction"], item["outcome"], item["stage"], item["partner"]) == (
        "out",
        "delivered",
        "submit",
        "clinic-a",
    )
    [(mail, content)] = out.postman.mails
    assert (mail.sender, mail.recipients) == ("dicom@gw.example", ("dicom@clinic-a.example",))
    assert mail.envelope_id == f"{item['id']}.1"
    assert parsed(content)["Message-ID"] == item["message_id"]
    assert [(one["destination"], one["mail"]) for one in item["instances_detail"]] == [
        ("clinic-a", item["message_id"])
    ] * 3
    assert len(images(content)) == 3
    assert (await out.proof())["unaccounted"] == 0
    assert await out.tickets() == []


async def test_what_is_mailed_is_what_came(out: Outbound) -> None:
    """Byte for byte (R8)."""
    one = out.image(1, size=5000)
    assert await out.accept(one) == 0
    await out.work()
    [file] = images(out.postman.mails[0][1])
    assert hashlib.sha256(file).hexdigest() == one.sha256


async def test_several_partners_share_files_and_have_items_of_their_own(out: Outbound) -> None:
    """One collection, one submission for each; a file goes when the last that needs it does."""
    await out.send(1, 2, called="TWO")
    await out.work()
    first, second = await out.items()
    assert {first["partner"], second["partner"]} == {"clinic-a", "clinic-b"}
    assert len(list((out.folder / "spool").glob("*/*.dcm"))) == 2
    with out.ledger.engine.begin() as connection:
        verbs.retry(connection, first["id"], NOW, "anna", force=True)
        gone = verbs.drop(connection, first["id"], NOW, "anna")
    assert [blob for blob in gone if blob.key.endswith(".dcm")] == []
    assert (await out.proof())["unaccounted"] == 0


async def test_the_same_instance_twice_is_one(out: Outbound) -> None:
    """A sender that did not hear us sends it again: acknowledged again, mailed once (R11)."""
    await out.send(1)
    await out.send(1)
    await out.work()
    [item] = await out.items()
    assert item["instances"] == 1
    assert len(list((out.folder / "spool").glob("*/*.dcm"))) == 1


async def test_other_content_under_a_known_uid_is_kept_and_held(out: Outbound) -> None:
    """Custody is taken, so that nothing is lost; a person decides (R11)."""
    await out.send(1, 2)
    await out.send(1, content="another")
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["code"], item["delivered"], item["instances"]) == ("held", "reused-uid", 2, 3)
    with out.ledger.engine.begin() as connection:
        verbs.release(connection, item["id"], NOW, "anna")
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["delivered"]) == ("delivered", 3)
    assert [one["part"] for one in item["mails"]] == [1, 1]  # a mail is never changed: a further one carries it
    assert len(images(out.postman.mails[1][1])) == 1
    assert (await out.proof())["unaccounted"] == 0


async def test_a_late_instance_makes_the_next_generation(out: Outbound) -> None:
    """Never a changed mail (R10)."""
    await out.send(1)
    await out.work()
    await out.send(2)
    await out.work()
    first, second = await out.items()
    assert [len(images(content)) for _, content in out.postman.mails] == [1, 1]
    assert "generation 2" in second["events"][0]["text"]
    assert first["outcome"] == second["outcome"] == "delivered"


async def test_an_open_collection_waits_for_more_until_a_person_has_enough(out: Outbound) -> None:
    """Silence completes it, or a word."""
    await out.send(1, called="SLOW")
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["stage"], out.postman.mails) == ("waiting", "compose", [])
    assert item["next_attempt"] is not None
    await out.send(2, called="SLOW")
    with out.ledger.engine.begin() as connection:
        verbs.retry(connection, item["id"], NOW, "anna", force=False)
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["delivered"]) == ("delivered", 2)


async def test_a_collection_that_is_full_waits_for_no_silence(out: Outbound, tmp_path: Path) -> None:
    """Nothing can join it any more (NET-10)."""
    out.use(moved(tmp_path, 'quiet = "60s"', 'quiet = "60s"\nmax_size = "1 KB"'))
    await out.send(1, called="SLOW", size=2000)
    await out.work()
    [item] = await out.items()
    assert item["outcome"] == "delivered"


async def test_clear_text_never_leaves_where_protection_is_asked_for(out: Outbound) -> None:
    """Held, with the reason, and nothing was submitted (R21)."""
    await out.send(1, called="SEALED")
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["code"]) == ("held", "no-identity")
    assert out.postman.mails == []
    assert (await out.proof())["unaccounted"] == 0


async def test_a_study_that_is_too_big_goes_as_several_mails(out: Outbound) -> None:
    """Each a file-set of its own, none above the limit, and the parts are counted (R22, FSC-8)."""
    await out.send(*range(1, 6), called="SMALL", size=4500)
    await out.work()
    [item] = await out.items()
    assert item["outcome"] == "delivered"
    assert [len(content) <= 20_000 for _, content in out.postman.mails] == [True] * 3
    assert [(one["part"], one["parts"]) for one in item["mails"]] == [(1, 3), (2, 3), (3, 3)]
    assert sum(len(images(content)) for _, content in out.postman.mails) == 5
    assert len({one["mail"] for one in item["instances_detail"]}) == 3


async def test_an_instance_that_is_too_big_goes_in_pieces_where_the_partner_allows_it(out: Outbound) -> None:
    """Message/partial; delivered when all pieces are."""
    await out.send(1, called="SMALL", size=40_000)
    await out.work()
    [item] = await out.items()
    assert item["outcome"] == "delivered"
    assert len(out.postman.mails) > 2
    assert {parsed(content).get_content_type() for _, content in out.postman.mails} == {"message/partial"}
    assert [parsed(content)["Message-ID"] for _, content in out.postman.mails] == [
        one["message_id"] for one in item["mails"]
    ]
    assert len(item["instances_detail"][0]["mails"]) == len(out.postman.mails)


async def test_an_instance_that_is_too_big_is_held_elsewhere_and_the_others_go(tmp_path: Path) -> None:
    """With the reason (R22)."""
    out = Outbound(tmp_path, most="20 KB")
    await out.send(1, size=40_000)
    await out.send(2)
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["code"], item["delivered"]) == ("held", "too-big", 1)
    assert (await out.proof())["unaccounted"] == 0
    out.close()


async def test_what_the_relay_announces_counts_too(out: Outbound) -> None:
    """The least of the three limits (R22, SMTP-14)."""
    out.postman.announced = 20_000
    await out.send(*range(1, 6), size=4500)
    await out.work()
    assert [len(content) <= 20_000 for _, content in out.postman.mails] == [True] * 3


async def test_a_mail_that_the_relay_finds_too_big_is_composed_anew_when_a_person_tries_again(out: Outbound) -> None:
    """Smaller, because the relay has said so meanwhile."""
    out.postman.answers = (Reply(552, "5.3.4"), Reply(250))
    await out.send(*range(1, 6), size=4500)
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["code"]) == ("failed", "mail-too-big")
    out.postman.announced = 20_000
    with out.ledger.engine.begin() as connection:
        verbs.retry(connection, item["id"], NOW, "anna", force=False)
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["delivered"]) == ("delivered", 5)
    assert len(out.postman.mails) == 4
    assert (await out.proof())["unaccounted"] == 0


@pytest.mark.parametrize("verdict", ["delivered", "dropped"])
async def test_what_waits_to_be_composed_is_not_lost_when_a_doubt_is_resolved(tmp_path: Path, verdict: str) -> None:
    """Also while COMPOSE waits for something itself, as a CRL or room on the disk (R17)."""
    out = Outbound(tmp_path, most="20 KB")
    out.postman.answers = (Reply(552, "5.3.4"), None, Reply(250))
    await out.send(1, 2, called="ONE", size=9000)
    with out.ledger.engine.begin() as connection:
        verbs.retry(connection, (await out.items())[0]["id"], NOW, "anna", force=False)
    await out.work()
    [item] = await out.items()
    assert [(one["outcome"], one["code"]) for one in item["mails"]] == [
        ("failed", "mail-too-big"),
        ("waiting", "in-doubt"),
    ]
    with out.ledger.engine.begin() as connection:
        connection.execute(update(submission).where(submission.c.number == 2).values(outcome="held"))
        submissions.follow(connection, item["id"], NOW)
        verbs.retry(connection, item["id"], NOW, "anna", force=False)
        verbs.resolve(connection, item["id"], verdict, NOW, "anna")
    assert (await out.proof())["unaccounted"] == 0
    await Janitor(out.ledger, out.spool).reissue(NOW)
    await out.work()
    [item] = await out.items()
    assert sorted(one["outcome"] for one in item["instances_detail"]) == sorted(
        ["delivered", "delivered" if verdict == "delivered" else "refused"]
    )
    assert (await out.proof())["unaccounted"] == 0
    out.close()


async def test_a_refusal_fails_the_mail_with_a_notice(out: Outbound) -> None:
    """Permanent is permanent, and a person is told."""
    out.postman.answers = (Reply(550, "5.1.1"),)
    await out.send(1)
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["code"]) == ("failed", "relay-refused")
    assert item["mails"][0]["status"] == "550"
    assert any("notice" in one["text"] for one in item["events"])
    assert await out.tickets() == []


async def test_a_deferral_is_tried_again_with_the_same_message_id(out: Outbound) -> None:
    """The same mail, byte for byte (R26)."""
    out.postman.answers = (Reply(451, "4.3.0"), Reply(250))
    await out.send(1)
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["code"], item["attempts"]) == ("waiting", "relay-deferred", 1)
    with out.ledger.engine.begin() as connection:
        verbs.retry(connection, item["id"], NOW, "anna", force=False)
    await out.work()
    [item] = await out.items()
    assert item["outcome"] == "delivered"
    assert out.postman.mails[0][1] == out.postman.mails[1][1]


async def test_a_lost_reply_is_a_doubt_that_is_repeated_and_counted(out: Outbound) -> None:
    """With its Message-ID, after a greeting, and a person is asked in the end (RFC 1047)."""
    out.postman.answers = (None,)
    await out.send(1)
    for round_ in range(4):
        await out.work()
        [item] = await out.items()
        assert item["instances_detail"][0]["sends_unknown"] == round_ + 1
        assert item["code"] == "in-doubt"
        if round_ < 3:
            assert item["outcome"] == "waiting"
            with out.ledger.engine.begin() as connection:  # time passes
                connection.exec_driver_sql("UPDATE submission SET next_attempt = composed_at")
                connection.exec_driver_sql("UPDATE ticket SET due = (SELECT min(composed_at) FROM submission)")
    assert item["outcome"] == "held"
    assert out.postman.greetings >= 3
    assert len({content for _, content in out.postman.mails}) == 1
    with out.ledger.engine.begin() as connection:
        assert verbs.resolve(connection, item["id"], "delivered", NOW, "anna") == 1
    [item] = await out.items()
    assert (item["outcome"], (await out.proof())["unaccounted"]) == ("delivered", 0)


async def test_a_relay_that_is_down_keeps_everything_and_is_one_trouble(out: Outbound) -> None:
    """Nothing is counted against the mail; it goes by itself when the relay is back (R16)."""
    out.postman.down = RelayError("it is down", lasting=True)
    await out.send(1)
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["attempts"]) == ("waiting", 0)
    assert await out.tickets() == ["submit:relay"]
    out.postman.down = None
    with out.ledger.engine.begin() as connection:
        verbs.retry(connection, item["id"], NOW, "anna", force=False)
    await out.work()
    assert [one["outcome"] for one in await out.items()] == ["delivered"]


async def test_a_crash_while_a_mail_is_on_the_wire_makes_a_doubt(out: Outbound) -> None:
    """It is repeated with its Message-ID; nothing else is (R26)."""
    await out.send(1)
    await out.work(1)
    work = await out.ledger.read(lambda c: submissions.due(c, NOW.replace(year=2030), 9))
    assert len(work) == 1
    await out.ledger.write(lambda c: submissions.mark(c, work[0]))
    out.close()
    out.open()
    await out.work(1)
    [item] = await out.items()
    assert (item["outcome"], item["code"], item["instances_detail"][0]["sends_unknown"]) == ("waiting", "in-doubt", 1)


async def test_who_has_no_route_is_told_so(out: Outbound) -> None:
    """Clearly, and nothing is kept."""
    assert out.compose.titles() == {"ONE", "TWO", "SEALED", "SMALL", "SLOW"}
    assert out.compose.welcomes(replace(CALLER, called="TWO"))
    assert not out.compose.welcomes(replace(CALLER, calling="MR1", called="TWO"))
    one = out.image(1, caller=replace(CALLER, called="GATEWAY"))
    assert await out.accept(one) == 0x0124
    assert not one.draft.path.exists()
    assert await out.items() == []


async def test_a_full_disk_takes_nothing(out: Outbound, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room is no custody (R5, R20)."""
    monkeypatch.setattr(out.spool, "free", lambda: 1)
    one = out.image(1)
    with pytest.raises(LowDiskError):
        await out.accept(one)
    assert not one.draft.path.exists()


async def test_a_disk_that_does_not_take_a_file_leaves_no_row(out: Outbound, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows were made already; they are not committed (R1, R20)."""

    def fail(_: Draft) -> None:
        raise OSError(5, "Input/output error")

    for size in (100, 9 << 20):
        one = out.image(1, size=size)
        with monkeypatch.context() as patch:
            patch.setattr(Draft, "sync", fail)
            with pytest.raises(OSError, match="Input/output error"):
                await out.accept(one)
        assert not one.draft.path.exists()
    assert await out.items() == []
    await out.send(1)
    assert len(await out.items()) == 1


async def test_a_partner_that_is_gone_holds_its_images(out: Outbound, tmp_path: Path) -> None:
    """Until a person puts it back (R17)."""
    await out.send(1, called="SLOW")
    text = CONFIGURATION.replace("MAX", "35 MB")
    out.use(configuration(tmp_path, text.replace("clinic-a", "clinic-c")))
    [item] = await out.items()
    with out.ledger.engine.begin() as connection:
        verbs.retry(connection, item["id"], NOW, "anna", force=False)
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["code"]) == ("held", "partner-removed")


def moved(tmp_path: Path, old: str, new: str) -> Configuration:
    """The configuration with something else in it."""
    return configuration(tmp_path, CONFIGURATION.replace("MAX", "35 MB").replace(old, new))


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [(Reply(550, "5.1.1"), "failed"), (Reply(451, "4.3.0"), "waiting")],
    ids=["refused", "deferred"],
)
async def test_a_mail_to_an_address_that_was_corrected_goes_to_the_new_one(
    out: Outbound, tmp_path: Path, answer: Reply, outcome: str
) -> None:
    """Outside and inside, and never again to the old one: somebody else may read there."""
    out.postman.answers = (answer, Reply(250))
    await out.send(1)
    await out.work()
    [item] = await out.items()
    assert item["outcome"] == outcome
    out.use(moved(tmp_path, "dicom@clinic-a.example", "images@clinic-a.example"))
    with out.ledger.engine.begin() as connection:
        verbs.retry(connection, item["id"], NOW, "anna", force=False)
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["delivered"]) == ("delivered", 1)
    assert [one["code"] for one in item["mails"]] == ["composed-anew", None]
    [_, (mail, content)] = out.postman.mails
    assert (mail.recipients, parsed(content)["To"]) == (("images@clinic-a.example",), "images@clinic-a.example")
    assert (await out.proof())["unaccounted"] == 0


@pytest.mark.parametrize(("partner", "called", "size"), [("clinic-a", "ONE", 100), ("small", "SMALL", 40_000)])
async def test_a_mail_in_clear_does_not_leave_after_protection_was_asked_for(
    out: Outbound, tmp_path: Path, partner: str, called: str, size: int
) -> None:
    """It waited for the relay meanwhile; neither does a piece of one whose first pieces have left (R21)."""
    out.postman.answers = (Reply(250), Reply(250), Reply(451, "4.3.0")) if called == "SMALL" else (Reply(451, "4.3.0"),)
    await out.send(1, called=called, size=size)
    await out.work()
    [item] = await out.items()
    assert item["outcome"] == "waiting"
    left = len(out.postman.mails)
    address = f'address = "dicom@{partner}.example"\n'
    out.use(moved(tmp_path, f'{address}send = "plain"', address))
    with out.ledger.engine.begin() as connection:
        verbs.retry(connection, item["id"], NOW, "anna", force=False)
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["code"], len(out.postman.mails)) == ("held", "no-identity", left)
    assert (await out.proof())["unaccounted"] == 0


async def test_a_mail_to_a_partner_that_is_gone_is_not_submitted(out: Outbound, tmp_path: Path) -> None:
    """It waited for the relay meanwhile; a person decides, and who is put back gets it (R17)."""
    out.postman.answers = (Reply(451, "4.3.0"), Reply(250))
    await out.send(1)
    await out.work()
    [item] = await out.items()
    before = out.configuration
    out.use(moved(tmp_path, "clinic-a", "clinic-c"))
    with out.ledger.engine.begin() as connection:
        verbs.retry(connection, item["id"], NOW, "anna", force=False)
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["code"], len(out.postman.mails)) == ("held", "partner-removed", 1)
    assert (await out.proof())["unaccounted"] == 0
    out.use(before)
    with out.ledger.engine.begin() as connection:
        verbs.release(connection, item["id"], NOW, "anna")
    await out.work()
    [item] = await out.items()
    assert item["outcome"] == "delivered"


async def test_bytes_that_are_gone_hold_their_instance_and_no_other(out: Outbound) -> None:
    """The others go; the proof tells."""
    await out.send(1, called="SLOW")
    [blob] = (out.folder / "spool").glob("*/*.dcm")
    await out.send(2, called="SLOW")
    blob.unlink()
    [item] = await out.items()
    with out.ledger.engine.begin() as connection:
        verbs.retry(connection, item["id"], NOW, "anna", force=False)
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["code"], item["delivered"]) == ("held", "bytes-missing", 1)


async def test_composing_that_fails_three_times_is_a_persons_matter(
    out: Outbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody foresaw it; nothing is lost (R9)."""

    def wrong(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("gateway.core.letter.write", wrong)
    await out.send(1)
    [item] = await out.items()
    for _ in range(3):
        await out.compose.look(item["id"])
    [item] = await out.items()
    assert (item["outcome"], item["code"]) == ("held", "not-composed")
    assert list((out.folder / "spool").glob("*/*.eml")) == []


async def test_what_a_person_holds_or_drops_is_not_mailed(out: Outbound) -> None:
    """At any stage."""
    await out.send(1, called="SLOW")
    await out.send(1, called="TWO")
    slow, *others = await out.items()
    with out.ledger.engine.begin() as connection:
        verbs.hold(connection, slow["id"], NOW, "anna")
        for one in others:
            verbs.drop(connection, one["id"], NOW, "anna")
    await out.work()
    assert out.postman.mails == []
    assert [one["outcome"] for one in await out.items()] == ["held", "refused", "refused"]
    await out.send(2, called="SLOW")  # it begins the next generation
    assert len(await out.items()) == 4
    assert (await out.proof())["unaccounted"] == 0


async def test_a_person_sends_to_a_partner_by_hand(out: Outbound) -> None:
    """Unknown partners are named."""
    course = out.compose.course_to("clinic-b")
    assert course.partners == (("clinic-b", "dicom@clinic-b.example"),)
    with pytest.raises(UsageError, match="no partner clinic-x"):
        out.compose.course_to("clinic-x")


def test_the_postman_is_a_relay() -> None:
    """The stand-in has what the stage asks for."""
    assert Postman().announced is None


@pytest.mark.parametrize("down", [None, RelayError("away")])
async def test_a_relay_that_does_not_say_how_big_is_asked_once_and_not_for_each_collection(
    out: Outbound, down: RelayError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No collection waits for a relay that is away, after the first that did; later it is asked again."""
    out.postman.down = down
    for study in ("1.2.91", "1.2.92", "1.2.93"):
        await out.send(1, called="SLOW", study=study)
    with out.ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE collection SET opened_at = '2020-01-01', last_at = '2020-01-01'")
    keys = [item["id"] for item in await out.items()]
    for key in keys[:2]:
        await out.compose.look(key)
    assert out.postman.greetings == 1
    monkeypatch.setattr(compose, "ASK_AGAIN", 0.0)
    out.compose = compose.Compose(out.configuration, out.ledger, out.spool, out.postman)
    await out.compose.look(keys[2])
    assert out.postman.greetings == 2
    assert {item["stage"] for item in await out.items()} == {"submit"}
