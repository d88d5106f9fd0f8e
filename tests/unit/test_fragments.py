"""Fragments in RECEIVE: joined once whatever their order, told of when some are missing, and never mixed (R10)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fragments import Gateway, cut
from rows import CONFIGURATION, alarms, configuration, stories
from sqlalchemy import func, select, update

from gateway.core.partial import BLOCK
from gateway.errors import LedgerError
from gateway.ledger import fragments, inventory, janitor, messages, verbs
from gateway.ledger.fragments import Standing
from gateway.ledger.tables import fragment, fragment_set, message, ticket
from gateway.stages import receive as receiving
from tests.samples import corpus, data_set, dicom_file, element, mail, part

ROUTES = CONFIGURATION.replace('store = ["pacs"]', 'store = ["pacs"]\nto = "pacs@gw.example"', 1) + (
    '\n[[route]]\nname = "second"\nfrom = "clinic-a"\nto = "other@gw.example"\nstore = ["other"]\n'
)
ONE, TWO = (
    dicom_file(data_set(instance=f"1.2.3.{n}", more=element(0x7FE00010, "OW", bytes([n]) * 4000))) for n in (1, 2)
)
WHOLE = mail(part(ONE), part(TWO), fields="Message-ID: <whole@clinic-a.example>\r\n")
LINES = WHOLE.count(b"\n")
AT = [LINES // 4, LINES // 2, 3 * LINES // 4]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peer)])
async def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Gateway]:
    """RECEIVE with the real reader, on each database."""
    url = request.getfixturevalue("postgresql").database() if request.param == "postgresql" else None
    made = Gateway(tmp_path, configuration(tmp_path, ROUTES), url)
    yield made
    made.close()


async def send(gateway: Gateway, *mails: bytes, to: str = "pacs@gw.example") -> list[str]:
    """Take mails in and work each off before the next comes."""
    keys = []
    for one in mails:
        keys.append(await gateway.accept(one, to=[to]))
        await gateway.work()
    return keys


async def act(gateway: Gateway, verb: str, key: str) -> None:
    """Do a person's verb, and what follows."""
    now = datetime.now(UTC)
    await gateway.ledger.write(lambda c: getattr(verbs, verb)(c, key, now, "anna"))
    await gateway.work()


async def count(gateway: Gateway, table: object) -> int:
    return await gateway.ledger.read(lambda c: c.scalar(select(func.count()).select_from(table)) or 0)  # type: ignore[arg-type]


# Joined


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
@pytest.mark.parametrize("total", [True, False])
async def test_the_whole_comes_out_byte_for_byte_in_any_order(
    gateway: Gateway, order: tuple[int, ...], total: bool
) -> None:
    """The first that came stands for the whole; the others wait with it, and no file is left over (R8, R10)."""
    pieces = cut(WHOLE, AT, total=total)
    keys = await send(gateway, *(pieces[n] for n in order[:-1]))
    assert {await gateway.state(key) for key in keys} == {("waiting", "fragment-waiting")}
    assert gateway.readings == 0
    keys += await send(gateway, pieces[order[-1]])
    assert await gateway.files() == [("pacs", ONE), ("pacs", TWO)]
    assert {await gateway.state(key) for key in keys} == {("waiting", None)}
    assert gateway.drafts() == []
    assert (await gateway.proven())["waiting"] == 4
    shown = await gateway.ledger.read(lambda c: [inventory.show_item(c, key, gateway.now) for key in keys])
    assert [one["kind"] for one in shown] == ["dicom", "partial", "partial", "partial"]
    assert [one["part_of"] for one in shown] == [None, *[keys[0]] * 3]
    assert [one["duplicate_of"] for one in shown] == [None] * 4
    assert [one["instances"] for one in shown] == [2, 0, 0, 0]


async def test_a_person_reads_what_is_missing(gateway: Gateway) -> None:
    """The story of the first tells what is here and what is not; that of another names the first (R36)."""
    pieces = cut(WHOLE, range(0, LINES, LINES // 7))
    assert len(pieces) >= 7
    first, second = await send(gateway, pieces[3], pieces[0])
    assert f"fragment 4 came: 1 of {len(pieces)} is here, missing 1, 2, 3, 5, 6" in await gateway.story(first)
    assert f"fragment 1 came: 2 of {len(pieces)} are here, missing 2, 3, 5, 6" in await gateway.story(first)
    assert f"it is fragment 1 of the message that {first} stands for" in await gateway.story(second)


@pytest.mark.parametrize(
    ("standing", "text"),
    [
        (Standing(1, 7, (1, 3, 4), ()), "3 of 7 are here, missing 2, 5, 6, 7"),
        (Standing(1, 2, (1, 2), ()), "2 of 2 are here"),
        (Standing(1, None, (1, 3), ()), "2 are here, missing 2; how many there are is not known yet"),
        (Standing(1, None, (1,), ()), "1 is here; how many there are is not known yet"),
        (
            Standing(1, 30, (1,), ()),
            f"1 of 30 is here, missing {', '.join(str(n) for n in range(2, 22))} and 9 more",
        ),
    ],
)
def test_a_standing_is_one_clause(standing: Standing, text: str) -> None:
    """However many are missing, and also while nobody knows how many there are."""
    assert str(standing) == text


async def test_what_a_real_program_cut_comes_out_whole(gateway: Gateway) -> None:
    """Cut by mpack and carried by Postfix, as it arrived, and backwards (R10)."""
    root = corpus()
    if root is None:
        pytest.skip("the corpus of real files is not beside the project")
    text = ROUTES.replace("dicom@clinic-a.example", "*@hospital.test")
    gateway.receive.reload(configuration(gateway.folder, text))
    mails = [(root / f"composed/o5-mpack-partial/arrival{n}.eml").read_bytes() for n in range(5, 0, -1)]
    await send(gateway, *mails)
    [(_, file)] = await gateway.files()
    assert len(file) == 197506
    assert (await gateway.proven())["in"] == 5


async def test_the_same_again_is_skipped(gateway: Gateway) -> None:
    """The mail again, or its content in another mail, before, after, and while the rest is missing (PRT-8)."""
    one, two = cut(WHOLE, [LINES // 2])
    other_one, other_two = cut(WHOLE, [LINES // 2])
    keys = await send(gateway, one, one, other_one)
    assert await count(gateway, fragment) == 1
    keys += await send(gateway, two, other_two, one, other_one, two)
    assert {await gateway.state(key) for key in keys} == {("waiting", None)}
    assert await gateway.files() == [("pacs", ONE), ("pacs", TWO)]
    assert (await gateway.proven())["in"] == 8
    assert gateway.readings == 1


async def test_a_repetition_that_came_before_the_first_was_read_follows_it(gateway: Gateway) -> None:
    """Accepted together, read later: all have the outcome of the whole (R2)."""
    one, two = cut(WHOLE, [LINES // 2])
    keys = [await gateway.accept(mail) for mail in (two, one, one, two)]
    await gateway.work()
    assert {await gateway.state(key) for key in keys} == {("waiting", None)}
    heads = await gateway.ledger.read(
        lambda c: set(c.scalars(select(message.c.duplicate_of).where(message.c.duplicate_of.is_not(None))))
    )
    assert len(heads) == 1
    assert len(await gateway.files()) == 2


async def test_two_senders_with_one_id_are_kept_apart(gateway: Gateway) -> None:
    """An id alone is not trusted (PRT-7)."""
    text = ROUTES.replace('accept = "signed"', 'accept = "any"')
    gateway.receive.reload(configuration(gateway.folder, text))
    other = mail(part(TWO), fields="Message-ID: <other@clinic-b.example>\r\n")
    a = cut(WHOLE, [LINES // 2])
    b = cut(other, [30], sender="dicom@clinic-b.example")
    await send(gateway, a[0], b[1])
    await send(gateway, b[0], a[1])
    assert sorted(await gateway.files()) == sorted([("pacs", ONE), ("pacs", TWO), ("pacs", TWO)])
    assert await count(gateway, fragment_set) == 2


async def test_an_id_used_again_with_another_total_is_another_set(gateway: Gateway) -> None:
    """The total is part of the key once it is known (PRT-7, AMB-34)."""
    other = mail(part(TWO), fields="Message-ID: <other@clinic-a.example>\r\n")
    a, b = cut(WHOLE, AT), cut(other, [30])
    await send(gateway, a[0], b[1], a[1], a[2], b[0], a[3])
    assert sorted(await gateway.files()) == sorted([("pacs", ONE), ("pacs", TWO), ("pacs", TWO)])


async def test_an_id_used_again_after_the_whole_was_read_begins_anew(gateway: Gateway) -> None:
    """A sender whose ids are a clock's: what was read is not touched (PRT-7)."""
    other = mail(part(TWO), fields="Message-ID: <other@clinic-a.example>\r\n")
    await send(gateway, *cut(WHOLE, [LINES // 2]))
    await send(gateway, *cut(other, [30]))
    assert len(await gateway.files()) == 3
    assert await count(gateway, fragment_set) == 2


async def test_each_recipient_gets_the_whole_however_the_mail_was_handed_over(gateway: Gateway) -> None:
    """An MTA may hand one fragment over for both, and another one once for each (promise 3)."""
    one, two = cut(WHOLE, [LINES // 2])
    await gateway.accept(one, to=["pacs@gw.example", "other@gw.example"])
    await gateway.work()
    await send(gateway, two, to="other@gw.example")
    assert {name for name, _ in await gateway.files()} == {"pacs", "other"}
    await send(gateway, two, to="pacs@gw.example")
    assert len(await gateway.files()) == 4


async def test_a_recipient_who_comes_after_the_whole_was_read_gets_a_set_of_its_own(gateway: Gateway) -> None:
    """What asks for another destination is no repetition (promise 3)."""
    one, two = cut(WHOLE, [LINES // 2])
    await send(gateway, one, two)
    await send(gateway, two, one, to="other@gw.example")
    assert [name for name, _ in await gateway.files()] == ["pacs", "pacs", "other", "other"]


async def test_fragments_of_a_fragment_are_joined_first(gateway: Gateway) -> None:
    """PRT-6, with the outer and the inner sets in any order."""
    inner = cut(WHOLE, [LINES // 2], name="inner")
    outer = [cut(one, [20, 40], name=f"outer{n}") for n, one in enumerate(inner)]
    keys = await send(gateway, *outer[1], outer[0][2], outer[0][0], outer[0][1])
    assert await gateway.files() == [("pacs", ONE), ("pacs", TWO)]
    assert {await gateway.state(key) for key in keys} == {("waiting", None)}
    assert (await gateway.proven())["in"] == 6
    assert gateway.drafts() == []


async def test_fragments_that_lie_in_each_other_too_deep_are_held(gateway: Gateway) -> None:
    """A limit and a clear code instead of an endless descent (PRT-6)."""
    made = WHOLE
    for n in range(receiving.MOST_JOINS + 2):
        [made] = cut(made, [], name=f"level{n}")
    [key] = await send(gateway, made)
    assert await gateway.state(key) == ("held", "too-deep")
    await act(gateway, "release", key)
    assert len(await gateway.files()) == 2


async def test_the_whole_is_asked_for_its_protection_not_its_fragments(gateway: Gateway) -> None:
    """What is sealed is sealed first and cut then (PRT-11); unsigned, the whole is held."""
    pieces = cut(WHOLE, [LINES // 2], sender="dicom@clinic-b.example")
    [first] = await send(gateway, pieces[0])
    assert await gateway.state(first) == ("waiting", "fragment-waiting")
    await send(gateway, pieces[1])
    assert await gateway.state(first) == ("held", "not-signed")
    await act(gateway, "release", first)
    assert await gateway.state(first) == ("held", "not-signed")
    assert gateway.readings == 0
    assert gateway.drafts() == []


async def test_a_fragment_of_a_report_from_a_stranger_is_refused(gateway: Gateway) -> None:
    """Nobody waits for mail that no partner sent (promise 3)."""
    [key] = await send(gateway, cut(WHOLE, [9], sender="who@else.example")[0], to="team@gw.example")
    assert await gateway.state(key) == ("refused", "not-dicom")


# Missing


async def test_a_set_that_stays_incomplete_is_held_with_one_notice_and_joined_late(gateway: Gateway) -> None:
    """After fragment_age; what comes then closes the notice, and no data is lost (PRT-8)."""
    pieces = cut(WHOLE, AT)
    keys = await send(gateway, *pieces[:2])
    await gateway.pass_hours(71)
    assert {await gateway.state(key) for key in keys} == {("waiting", "fragment-waiting")}
    await gateway.pass_hours(2)
    assert {await gateway.state(key) for key in keys} == {("held", "fragment-incomplete")}
    assert await gateway.ledger.read(alarms) == {("held", keys[0])}
    assert "waited long enough for fragments: 2 of 4 are here, missing 3, 4" in await gateway.story(keys[0])
    assert (await gateway.proven())["held"] == 2
    keys += await send(gateway, pieces[2])
    assert {await gateway.state(key) for key in keys} == {("waiting", "fragment-waiting")}
    assert await gateway.ledger.read(alarms) == set()
    await gateway.pass_hours(71)  # the wait begins anew
    assert await gateway.state(keys[0]) == ("waiting", "fragment-waiting")
    await gateway.pass_hours(2)
    assert await gateway.ledger.read(alarms) == {("held", keys[0])}
    await send(gateway, pieces[3])
    assert await gateway.files() == [("pacs", ONE), ("pacs", TWO)]
    assert await gateway.ledger.read(alarms) == set()


@pytest.mark.parametrize("jump", [timedelta(days=30), timedelta(days=-30)])
async def test_neither_a_clock_that_jumps_nor_a_long_stop_expires_a_set(gateway: Gateway, jump: timedelta) -> None:
    """Only time in which somebody looked counts, and it goes on counting (R29)."""
    [key] = await send(gateway, cut(WHOLE, AT)[0])
    gateway.now += jump
    await gateway.receive.look(key)
    assert await gateway.state(key) == ("waiting", "fragment-waiting")
    await gateway.pass_hours(69)
    assert await gateway.state(key) == ("waiting", "fragment-waiting")
    await gateway.pass_hours(4)
    assert await gateway.state(key) == ("held", "fragment-incomplete")


async def test_a_look_says_when_to_look_again(gateway: Gateway) -> None:
    """The wait is on disk: a ticket that is due when it ends (R17)."""
    [key] = await send(gateway, cut(WHOLE, AT)[0])
    again = await gateway.receive.look(key)
    assert again == gateway.now + timedelta(hours=72)


async def test_a_release_waits_once_more(gateway: Gateway) -> None:
    """And a person's hold stops the whole, with what comes meanwhile."""
    pieces = cut(WHOLE, AT)
    [key] = await send(gateway, pieces[0])
    await gateway.pass_hours(73)
    await act(gateway, "release", key)
    assert await gateway.state(key) == ("waiting", "fragment-waiting")
    await gateway.pass_hours(71)
    await act(gateway, "hold", key)
    keys = await send(gateway, *pieces[1:])
    assert {await gateway.state(one) for one in (key, *keys)} == {("held", "by-operator")}
    assert gateway.readings == 0
    await act(gateway, "release", key)
    assert len(await gateway.files()) == 2


async def test_a_drop_is_of_all_that_came_and_what_comes_then_is_not_lost(gateway: Gateway) -> None:
    """A verb on another fragment names the one that stands for the whole; a resend after a drop is joined (R34)."""
    pieces = cut(WHOLE, [LINES // 2])
    first, other = cut(WHOLE, AT)[:2]
    key, second = await send(gateway, first, other)
    for verb in ("drop", "hold", "release"):
        with pytest.raises(verbs.WrongStateError, match=f"is a fragment: {key} stands for the whole"):
            await act(gateway, verb, second)
    await act(gateway, "drop", key)
    assert await gateway.state(second) == ("refused", "dropped")
    await send(gateway, *pieces)
    assert len(await gateway.files()) == 2
    assert (await gateway.proven())["refused"] == 2


# Contradictions and limits


async def test_two_contents_for_one_place_are_both_held_and_nothing_is_guessed(gateway: Gateway) -> None:
    """A person says which: drop the newcomer and release the set (PRT-8, AMB-34)."""
    pieces = cut(WHOLE, [LINES // 2])
    forged = cut(WHOLE.replace(b"A", b"B"), [LINES // 2])
    key, newcomer = await send(gateway, pieces[0], forged[0])
    assert await gateway.state(key) == await gateway.state(newcomer) == ("held", "fragment-conflict")
    assert await gateway.ledger.read(alarms) == {("held", key), ("held", newcomer)}
    await send(gateway, pieces[1])
    assert gateway.readings == 0
    await act(gateway, "release", newcomer)
    assert await gateway.state(newcomer) == ("held", "fragment-conflict")
    await act(gateway, "drop", newcomer)
    await act(gateway, "release", key)
    assert await gateway.files() == [("pacs", ONE), ("pacs", TWO)]


async def test_what_is_missing_does_not_complete_a_set_with_two_contents_for_one_place(gateway: Gateway) -> None:
    """Waited for in vain, then contradicted, then complete: it stays held for a person, who is told anew (PRT-8)."""
    pieces = cut(WHOLE, [LINES // 2])
    forged = cut(WHOLE.replace(b"A", b"B"), [LINES // 2])
    [key] = await send(gateway, forged[0])
    await gateway.pass_hours(73)
    assert await gateway.state(key) == ("held", "fragment-incomplete")
    newcomer, rest = await send(gateway, *pieces)
    assert {await gateway.state(one) for one in (key, newcomer, rest)} == {("held", "fragment-conflict")}
    assert await gateway.ledger.read(alarms) == {("held", key), ("held", newcomer)}
    assert f"notice: {key} is held: fragment-conflict" in await gateway.story(key)
    assert gateway.readings == 0
    await act(gateway, "release", key)
    assert await gateway.files()


async def test_the_newcomer_may_be_the_right_one(gateway: Gateway) -> None:
    """Drop the set and release the newcomer: it begins a set of its own."""
    pieces = cut(WHOLE, [LINES // 2])
    forged = cut(WHOLE.replace(b"A", b"B"), [LINES // 2])
    key, newcomer = await send(gateway, forged[0], pieces[0])
    await act(gateway, "drop", key)
    await act(gateway, "release", newcomer)
    await send(gateway, pieces[1])
    assert await gateway.files() == [("pacs", ONE), ("pacs", TWO)]


async def test_a_fragment_that_fits_two_sets_is_put_into_none(gateway: Gateway) -> None:
    """Without a total nobody can tell which (AMB-34)."""
    a, b = cut(WHOLE, AT), cut(WHOLE, [LINES // 3, LINES // 2])
    without = cut(WHOLE, [10, 20, 30], total=False)[1]
    *_, key = await send(gateway, a[0], b[0], without)
    assert await gateway.state(key) == ("held", "fragment-conflict")


async def test_a_total_smaller_than_what_came_is_of_another_set(gateway: Gateway) -> None:
    """Fragment 4 is not one of two."""
    four = cut(WHOLE, [10, 20, 30, 40], total=False)[3]
    two = cut(WHOLE, [LINES // 2])
    await send(gateway, four, *two)
    assert len(await gateway.files()) == 2


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ("parts = 3", "it is one of more than 3"),
        ('message = "6 KB"', "the whole is bigger than"),
    ],
)
async def test_a_set_that_is_too_much_is_held_until_the_limit_is_raised(
    gateway: Gateway, limits: str, says: str
) -> None:
    """Number and size of a whole; the newcomer is held and nothing is lost (PRT-8)."""
    text = ROUTES.replace("[limits]", f"[limits]\n{limits}")
    gateway.receive.reload(configuration(gateway.folder, text))
    keys = await send(gateway, *cut(WHOLE, AT))
    held = [key for key in keys if await gateway.state(key) == ("held", "fragment-limit")]
    assert held
    assert says in await gateway.story(held[0])
    gateway.receive.reload(configuration(gateway.folder, ROUTES))
    for key in held:
        await act(gateway, "release", key)
    assert await gateway.files() == [("pacs", ONE), ("pacs", TWO)]


async def test_a_sender_may_have_only_so_much_that_waits(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open sets and bytes are counted for each sender; other senders do not notice (PRT-8)."""
    monkeypatch.setattr(fragments, "MOST_SETS", 2)
    firsts = [cut(WHOLE, AT, name=f"set{n}")[0] for n in range(3)]
    *_, third = await send(gateway, *firsts)
    assert await gateway.state(third) == ("held", "fragment-limit")
    assert "its sender has 2 messages of which fragments are missing" in await gateway.story(third)
    [other] = await send(gateway, cut(WHOLE, AT, name="set9", sender="dicom@clinic-b.example")[0])
    assert await gateway.state(other) == ("waiting", "fragment-waiting")
    await send(gateway, *cut(WHOLE, AT, name="set0")[1:])  # a set that is open may be completed
    await act(gateway, "release", third)
    assert await gateway.state(third) == ("waiting", "fragment-waiting")
    monkeypatch.setattr(fragments, "MOST_WHOLES", 0)
    [fourth] = await send(gateway, cut(WHOLE, AT, name="set1")[1])
    assert await gateway.state(fourth) == ("held", "fragment-limit")
    assert "bytes of fragments that wait for others" in await gateway.story(fourth)


# Faults


async def test_a_header_that_grows_over_the_limit_is_held(gateway: Gateway) -> None:
    """A clear code, at once (MIM limits)."""
    text = ROUTES.replace("[limits]", '[limits]\nheader = "4 KB"')
    gateway.receive.reload(configuration(gateway.folder, text))
    long = b"".join(b"X-%d: y\r\n" % n for n in range(600)) + WHOLE
    key, _ = await send(gateway, *cut(long, [601]))
    assert await gateway.state(key) == ("held", "header-too-long")
    assert gateway.drafts() == []


async def test_a_fragment_whose_bytes_are_gone_is_told_of(gateway: Gateway) -> None:
    """A row without its bytes is never silent (R1)."""
    one, two = cut(WHOLE, [LINES // 2])
    key, second = await gateway.accept(one), await gateway.accept(two)
    row = await gateway.ledger.read(lambda c: messages.get(c, second))
    assert row is not None
    gateway.spool.remove(row.blob)
    await gateway.receive.look(key)
    # It was there when it found its place, and is not when the whole is made.
    gateway.spool.path(row.blob).write_bytes(two)
    await gateway.receive.look(second)
    gateway.spool.remove(row.blob)
    await gateway.receive.look(key)
    assert await gateway.state(key) == ("held", "bytes-missing")


async def test_a_person_who_is_quicker_wins(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was dropped before it found its set, or while it was waited for, stays dropped (R34)."""
    key = await gateway.accept(cut(WHOLE, AT)[0])
    head = receiving._head

    def slow(*arguments: object) -> object:
        with gateway.ledger.engine.begin() as connection:
            connection.execute(update(message).where(message.c.id == key).values(outcome="held"))
        return head(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(receiving, "_head", slow)
    assert await gateway.receive.look(key) is None
    assert await count(gateway, fragment_set) == 0
    assert await gateway.ledger.write(lambda c: fragments.wait(c, key, timedelta(1), gateway.now)) is None


@pytest.mark.parametrize("step", ["take", "sources", "decide"])
async def test_a_stop_at_any_step_loses_nothing_and_joins_once(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The ledger fails at that moment for every fragment, then a new life begins (R26)."""

    def fail(*_: object) -> None:
        raise LedgerError("the power is gone")

    for one in cut(WHOLE, AT):
        await gateway.accept(one)
        with monkeypatch.context() as patch:
            patch.setattr(messages if step == "decide" else fragments, step, fail)
            patch.setattr(messages, "count_try", fail)
            for key in await gateway.waiting():
                try:
                    await gateway.receive.look(key)
                except LedgerError:
                    continue
        await gateway.restart()
        await gateway.proven()
        await gateway.work()
    assert await gateway.files() == [("pacs", ONE), ("pacs", TWO)]
    assert (await gateway.proven())["in"] == 4


async def test_a_set_that_waits_is_not_blamed_for_stops(gateway: Gateway) -> None:
    """Nothing of it is opened while it waits; the whole starts with a clean slate and may be poison itself (R27)."""
    one, two = cut(WHOLE, [LINES // 2])
    [key] = await send(gateway, one)
    for _ in range(receiving.POISON):
        await gateway.ledger.write(lambda c: messages.count_crashes(c, [key], gateway.now))
    await gateway.receive.look(key)
    assert await gateway.state(key) == ("waiting", "fragment-waiting")
    second = await gateway.accept(two)
    await gateway.receive.look(second)
    row = await gateway.ledger.read(lambda c: messages.get(c, key))
    assert row is not None
    assert row.crashes == 0
    for _ in range(receiving.POISON):
        await gateway.ledger.write(lambda c: messages.count_crashes(c, [key], gateway.now))
    await gateway.receive.look(key)
    assert await gateway.state(key) == await gateway.state(second) == ("held", "poison")
    await act(gateway, "release", key)
    assert await gateway.files() == [("pacs", ONE), ("pacs", TWO)]


async def test_losing_every_ticket_loses_no_set(gateway: Gateway) -> None:
    """The reconciler puts one for the message that stands for the whole (R17)."""
    one, two = cut(WHOLE, [LINES // 2])
    [key] = await send(gateway, one)
    second = await gateway.accept(two)
    await gateway.receive.look(second)
    await gateway.ledger.write(lambda c: c.execute(ticket.delete()))
    assert await janitor.Janitor(gateway.ledger, gateway.spool).reissue(gateway.now) == 1
    await gateway.work()
    assert await gateway.state(second) == await gateway.state(key) == ("waiting", None)
    assert len(await gateway.files()) == 2


# Housekeeping


async def test_a_purge_takes_sets_that_are_done_and_none_that_is_held(gateway: Gateway) -> None:
    """Bytes by retention, rows later, held ones never; the proof adds up (R34)."""
    inner = cut(WHOLE, [LINES // 2], name="inner")
    nested = [piece for n, one in enumerate(inner) for piece in cut(one, [20], name=f"outer{n}")]
    done = await send(gateway, *nested)
    await act(gateway, "drop", done[0])
    held = await send(gateway, *cut(WHOLE, AT)[:2])
    await gateway.pass_hours(73)
    keeper = janitor.Janitor(gateway.ledger, gateway.spool)
    later = datetime.now(UTC) + timedelta(days=90)
    before = await gateway.proven()
    assert await keeper.purge(later, timedelta(days=7), timedelta(days=30)) == 5
    assert await count(gateway, message) == 2
    assert await count(gateway, fragment_set) == 1
    assert await count(gateway, fragment) == 2
    assert await gateway.proven() == before
    assert {await gateway.state(key) for key in held} == {("held", "fragment-incomplete")}
    assert len(list(gateway.spool.root.rglob("*.eml"))) == 2


async def test_each_fragment_has_its_story(gateway: Gateway) -> None:
    """By kind, for machines (R36)."""
    one, two = cut(WHOLE, [LINES // 2])
    key, second, third = await send(gateway, one, two, cut(WHOLE, [LINES // 2])[1])
    told = await gateway.ledger.read(lambda c: [stories(c, one) for one in (key, second, third)])
    assert told == [["accepted", "fragment", "fragment", "read"], ["accepted", "fragment"], ["accepted", "repeated"]]


async def test_a_large_fragment_is_copied_in_blocks(gateway: Gateway) -> None:
    """Over several blocks, byte for byte (R8)."""
    big = dicom_file(data_set(more=element(0x7FE00010, "OW", bytes(range(256)) * (BLOCK // 128))))
    whole = mail(part(big))
    await send(gateway, *cut(whole, [whole.count(b"\n") // 2]))
    assert await gateway.files() == [("pacs", big)]
