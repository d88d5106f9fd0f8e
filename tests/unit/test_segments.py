"""Segments: the instances of one sender in one file, each durable before anybody says so, each deleted by itself."""

from __future__ import annotations

import email
import hashlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from outbound import CALLER, Outbound
from rows import NOW
from sqlalchemy import Connection, select, update

from gateway.core import letter
from gateway.errors import LedgerError
from gateway.ledger import collections, drafts, verbs
from gateway.ledger import spool as spools
from gateway.ledger.collections import Learned
from gateway.ledger.drafts import Segment, Slice
from gateway.ledger.janitor import Janitor
from gateway.ledger.ledger import MOST_CHANGES
from gateway.ledger.spool import Scrap, Spool
from gateway.ledger.tables import instance, message
from gateway.stages.compose import COMPARISONS


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """A spool that is closed in the end."""
    made = Spool(tmp_path / "spool")
    yield made
    made.close()


@pytest.fixture
async def out(tmp_path: Path) -> AsyncIterator[Outbound]:
    """The stages of the way out."""
    made = Outbound(tmp_path)
    yield made
    made.close()


def append(segment: Segment, *blocks: bytes) -> Slice:
    made = segment.draft()
    for block in blocks:
        made.write(block)
    return made


def settle(spool: Spool, draft: Slice) -> str:
    commit = spool.prepare(draft, ".dcm")
    spool.settle(commit)
    return commit.key


BIG = b"b" * (drafts.SMALL + 1)


def test_instances_lie_one_behind_another(spool: Spool) -> None:
    """Each at its offset, whatever the size of the blocks in which it came; the key is the segment's."""
    segment = spool.segment()
    wholes = [(b"one",), (b"head", BIG), (BIG, BIG, b"tail")]
    made = []
    for blocks in wholes:
        made.append(append(segment, *blocks))
        assert settle(spool, made[-1]) == segment.key
    segment.close()
    content = spool.path(segment.key).read_bytes()
    assert [content[one.start : one.end] for one in made] == [b"".join(blocks) for blocks in wholes]
    assert made[-1].end == len(content)
    assert spool.path(segment.key).stat().st_mode & 0o777 == 0o600


def test_a_draft_reads_back_what_is_not_on_disk_yet(spool: Spool) -> None:
    """It is judged before it is synced."""
    segment = spool.segment()
    settle(spool, append(segment, b"first"))
    assert append(segment, b"second").read(3, 2) == b"on"
    segment.close()


@pytest.mark.parametrize("content", [b"small", BIG], ids=["in memory", "in the file"])
def test_what_is_discarded_is_cut_off_and_the_next_begins_there(spool: Spool, content: bytes) -> None:
    """Nothing that was refused stays behind an instance that was taken."""
    segment = spool.segment()
    settle(spool, append(segment, b"kept"))
    gone = append(segment, content)
    gone.discard()
    gone.discard()
    assert spool.path(segment.key).read_bytes() == b"kept"
    with pytest.raises(FileNotFoundError):
        gone.sync()
    settle(spool, append(segment, b"next"))
    segment.close()
    assert spool.path(segment.key).read_bytes() == b"keptnext"


def test_a_segment_of_nothing_is_deleted(spool: Spool) -> None:
    """An association that only asked leaves no file."""
    segment = spool.segment()
    append(segment, BIG).discard()
    segment.close()
    assert not spool.has(segment.key)


def test_a_segment_is_full_at_its_size(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What began in it is finished in it."""
    monkeypatch.setattr(drafts, "SEGMENT", 10)
    segment = spool.segment()
    append(segment, b"x" * 9)
    assert not segment.is_full
    append(segment, b"x" * 100)
    assert segment.is_full
    segment.close()


class Disk:
    """Writes down what is done to make a segment durable, and fails where it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self.broken = ""
        write, sync, folder = os.pwrite, os.fdatasync, spools._sync_folder
        monkeypatch.setattr(spools.os, "pwrite", lambda *a: self._step("write") or write(*a))
        monkeypatch.setattr(spools.os, "fdatasync", lambda file: self._step("sync") or sync(file))
        monkeypatch.setattr(spools, "_sync_folder", lambda path: self._step(f"folder {path.name[:5]}") or folder(path))

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if self.broken and name.startswith(self.broken):
            raise OSError(5, "Input/output error")


def test_the_name_is_durable_before_the_first_byte_and_the_bytes_before_the_answer(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folder and name once, then one sync for each instance (R1, R20)."""
    disk = Disk(monkeypatch)
    segment = spool.segment()
    hour = f"folder {spool.path(segment.key).parent.name[:5]}"
    assert disk.steps == ["folder spool", hour]
    disk.steps.clear()
    for _ in range(2):
        settle(spool, append(segment, b"bytes"))
    assert disk.steps == ["write", "sync"] * 2
    segment.close()


def test_a_disk_that_refuses_a_sync_gets_no_further_instance_into_that_file(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says once that it lost something, and nobody knows what (R1)."""
    segment = spool.segment()
    settle(spool, append(segment, b"kept"))
    disk = Disk(monkeypatch)
    disk.broken = "sync"
    with pytest.raises(OSError, match="Input/output error"):
        settle(spool, append(segment, b"lost"))
    disk.broken = ""
    assert segment.is_full
    segment.close()
    assert spool.path(segment.key).read_bytes() == b"kept"


@pytest.mark.parametrize("step", ["folder spool", "folder 2"])
def test_a_segment_whose_name_is_not_durable_is_none(spool: Spool, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """It is tried anew with the next instance."""
    disk = Disk(monkeypatch)
    disk.broken = step
    with pytest.raises(OSError, match="Input/output error"):
        spool.segment()
    assert list(spool.root.rglob("*.seg")) == []
    disk.broken = ""
    segment = spool.segment()
    settle(spool, append(segment, b"x"))
    segment.close()
    assert list(spool.root.rglob("*.seg")) == [spool.path(segment.key)]
    assert spool.path(segment.key).read_bytes() == b"x"


def test_a_folder_that_the_sweep_took_is_made_anew(spool: Spool) -> None:
    """It was empty for a moment."""
    spool.segment().close()
    [folder] = [path for path in spool.root.iterdir() if path != spool.drafts]
    folder.rmdir()
    segment = spool.segment()
    settle(spool, append(segment, b"x"))
    segment.close()
    assert spool.has(segment.key)


def test_two_threads_that_wait_for_one_instance_sync_it_once(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own thread, and the one that commits for all."""
    segment = spool.segment()
    disk = Disk(monkeypatch)
    commit = spool.prepare(append(segment, b"x"), ".dcm")
    threads = [threading.Thread(target=spool.settle, args=[commit]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert disk.steps.count("sync") == 1
    segment.close()


def test_a_sweep_does_not_see_a_segment_that_may_grow(spool: Spool) -> None:
    """An association may be silent for longer than a sweep thinks bytes can be on their way (R1)."""
    segment = spool.segment()
    settle(spool, append(segment, b"x"))
    assert list(spool.keys(time.time() + 60)) == []
    segment.close()
    assert [key for key, _ in spool.keys(time.time() + 60)] == [segment.key]


@pytest.mark.parametrize("holes", [True, False], ids=["holes", "no holes"])
def test_one_instance_is_erased_and_its_neighbours_are_not(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, holes: bool
) -> None:
    """Also where the file system makes no holes."""
    if not holes:
        monkeypatch.setattr(drafts._libc, "fallocate", lambda *_: -1)
    segment = spool.segment()
    made = [append(segment, letter * (3 << 20)) for letter in (b"a", b"b", b"c")]
    for draft in made:
        settle(spool, draft)
    spool.erase([Scrap(segment.key, made[1].start, made[1].size)])
    settle(spool, append(segment, b"d"))
    segment.close()
    content = spool.path(segment.key).read_bytes()
    assert content == b"a" * (3 << 20) + bytes(3 << 20) + b"c" * (3 << 20) + b"d"
    spool.erase([Scrap("2026112312/never.seg", 0, 5)])


def test_another_thread_syncs_what_its_own_gave_up_waiting_for(spool: Spool) -> None:
    """The descriptor is another file's by then; that of the segment is what is meant (R1)."""
    segment = spool.segment()
    commit = spool.prepare(append(segment, BIG), ".dcm")
    commit.draft.begin_sync()
    file = segment.file
    segment.close()
    other = os.open(spool.root / "other", os.O_RDWR | os.O_CREAT)
    assert other == file
    os.write(other, b"other")
    spool.settle(commit)
    assert spool.path(commit.key).read_bytes() == BIG
    commit.draft.discard()
    assert spool.path(commit.key).read_bytes() == b""
    assert os.pread(other, 9, 0) == b"other"
    os.close(other)


def test_a_segment_that_is_gone_when_it_is_synced_is_not_durable(spool: Spool) -> None:
    """Whatever took it."""
    segment = spool.segment()
    commit = spool.prepare(append(segment, BIG), ".dcm")
    commit.draft.begin_sync()
    segment.close()
    spool.remove(segment.key)
    with pytest.raises(FileNotFoundError):
        spool.settle(commit)


# What its rows say


async def taken(out: Outbound, *numbers: int, called: str = "SLOW") -> Segment:
    """Hand in some instances as one association does."""
    segment = out.spool.segment()
    for number in numbers:
        one = out.image(number, caller=replace(CALLER, called=called), segment=segment)
        assert await out.accept(one) == 0
    return segment


def where(connection: Connection) -> list[tuple[str, int, int]]:
    columns = instance.c.blob, instance.c.start, instance.c.size
    return [tuple(row) for row in connection.execute(select(*columns).order_by(instance.c.start))]


async def test_a_repeated_instance_takes_no_room(out: Outbound) -> None:
    """It is cut off again, and the next one is where it would have been (R11)."""
    segment = await taken(out, 1, 1, 2)
    segment.close()
    rows = await out.ledger.read(where)
    assert len(rows) == 2
    assert rows[1][1] == rows[0][2]
    assert out.spool.path(segment.key).stat().st_size == sum(size for _, _, size in rows)


SENT = ((1, "1.2.9"), (2, "1.2.8"), (3, "1.2.9"))


async def test_each_instance_of_a_segment_is_mailed_as_it_came(out: Outbound) -> None:
    """Two studies in one association, and one file; each part says the hash of its file (R23)."""
    segment = out.spool.segment()
    for number, study in SENT:
        assert await out.accept(out.image(number, study=study, segment=segment)) == 0
    segment.close()
    await out.work()
    assert len(out.postman.mails) == 2
    parts = [part for _, content in out.postman.mails for part in email.message_from_bytes(content).walk()]
    images = [part for part in parts if part.get_content_type() == "application/dicom" and part[letter.HASH_FIELD]]
    contents = [part.get_payload(decode=True) for part in images]
    assert sorted(contents) == sorted(out.image(number, study=study).draft.read(0, 1 << 20) for number, study in SENT)
    assert [part[letter.HASH_FIELD] for part in images] == [hashlib.sha256(one).hexdigest() for one in contents]
    assert (await out.proof())["unaccounted"] == 0


async def test_a_person_erases_one_item_and_not_its_neighbour_in_the_file(out: Outbound) -> None:
    """Also while the association goes on (R34)."""
    segment = out.spool.segment()
    for number, study in ((1, "1.2.9"), (2, "1.2.8")):
        caller = replace(CALLER, called="SLOW")
        assert await out.accept(out.image(number, study=study, caller=caller, segment=segment)) == 0
    first, _ = await out.items()
    with out.ledger.engine.begin() as connection:
        scraps = verbs.drop(connection, first["id"], NOW, "anna")
        verbs.erased(connection, first["id"], NOW, "anna")
    (_, start, size), (_, other, length) = await out.ledger.read(where)
    assert scraps == [Scrap(segment.key, start, size)]
    out.spool.erase(scraps)
    assert await out.accept(out.image(3, study="1.2.8", segment=segment)) == 0
    segment.close()
    content = out.spool.path(segment.key).read_bytes()
    assert content[start : start + size] == bytes(size)
    assert b"1.2.3.2" in content[other : other + length]
    assert (await out.proof())["unaccounted"] == 0


async def test_the_sweep_erases_what_a_crash_left_between_its_neighbours(out: Outbound) -> None:
    """A person was told that it is wiped; what is needed beside it may be held for months (R26)."""
    segment = out.spool.segment()
    for number, study in ((1, "1.2.9"), (2, "1.2.8")):
        caller = replace(CALLER, called="SLOW")
        assert await out.accept(out.image(number, study=study, caller=caller, segment=segment)) == 0
    segment.close()
    first, _ = await out.items()
    with out.ledger.engine.begin() as connection:
        verbs.drop(connection, first["id"], NOW, "anna")
        verbs.erased(connection, first["id"], NOW, "anna")
    # Here the power goes: the row says so, and nothing is erased.
    (_, start, size), (_, other, length) = await out.ledger.read(where)
    keeper = Janitor(out.ledger, out.spool)
    assert await keeper.sweep(datetime.now(UTC)) == 0  # too young
    assert b"1.2.3.1" in out.spool.path(segment.key).read_bytes()
    assert await keeper.sweep(datetime.now(UTC) + timedelta(days=2)) == 0
    content = out.spool.path(segment.key).read_bytes()
    assert content[start : start + size] == bytes(size)
    assert b"1.2.3.2" in content[other : other + length]
    before = out.spool.path(segment.key).stat()
    assert await keeper.sweep(datetime.now(UTC) + timedelta(days=2)) == 0
    assert out.spool.path(segment.key).stat().st_ctime_ns == before.st_ctime_ns  # once is enough


async def test_bytes_that_two_partners_share_go_with_the_last_of_them(out: Outbound) -> None:
    """A range is needed as long as any row needs it."""
    (await taken(out, 1, called="TWO")).close()
    first, second = await out.items()
    await out.ledger.write(lambda c: c.execute(update(message).values(outcome="held")))
    with out.ledger.engine.begin() as connection:
        assert verbs.drop(connection, first["id"], NOW, "anna") == []
        verbs.erased(connection, first["id"], NOW, "anna")
        assert len(verbs.drop(connection, second["id"], NOW, "anna")) == 1


async def test_the_sweep_cuts_off_what_was_never_acknowledged(out: Outbound) -> None:
    """Behind the last row there is only what was on its way in; not before a day, and twice a sweep (R20, R26, R29)."""
    segment = await taken(out, 1, 2)
    append(segment, BIG).sync()
    never = out.spool.segment()
    append(never, BIG).sync()
    whole = await taken(out, 3)
    whole.close()
    sizes = {one.key: one.path.stat().st_size for one in (segment, never, whole)}
    again = Spool(out.spool.root)  # of the life after the crash: nothing is appended to them
    keeper = Janitor(out.ledger, again)
    later = datetime.now(UTC) + timedelta(days=2)
    assert [await keeper.sweep(datetime.now(UTC)) for _ in range(2)] == [0, 0]
    assert await keeper.sweep(later) == 0
    assert {key: again.path(key).stat().st_size for key in sizes} == sizes
    assert await keeper.sweep(later) == 2
    assert again.path(segment.key).stat().st_size == sizes[segment.key] - len(BIG)
    assert not again.has(never.key)
    assert again.path(whole.key).stat().st_size == sizes[whole.key]
    again.close()
    os.close(segment.file)
    os.close(never.file)


async def test_retention_erases_instances_and_the_sweep_takes_the_file(out: Outbound) -> None:
    """First the bytes of what was done, then the file that nothing needs (R34)."""
    segment = await taken(out, 1)
    segment.close()
    await out.ledger.write(lambda c: c.execute(update(message).values(outcome="delivered", closed_at=NOW)))
    keeper = Janitor(out.ledger, out.spool)
    later = NOW + timedelta(days=8)
    assert await keeper.purge(later, timedelta(days=7), timedelta(days=30)) == 1
    content = out.spool.path(segment.key).read_bytes()
    assert content == bytes(len(content))
    long_ago = time.time() - 3 * 86400
    os.utime(out.spool.path(segment.key), (long_ago, long_ago))
    now = datetime.now(UTC)
    assert await keeper.sweep(now) == 0  # a suspect
    assert await keeper.sweep(now) == 1
    assert not out.spool.has(segment.key)


# What they hold, which nobody knows yet


def known(connection: Connection) -> list[tuple[str, str]]:
    columns = instance.c.sha256, instance.c.data_set_sha256
    return [tuple(row) for row in connection.execute(select(*columns).order_by(instance.c.start))]


async def test_what_an_instance_holds_is_written_down_by_whoever_commits_next(out: Outbound) -> None:
    """Nobody waits for that."""
    segment = out.spool.segment()
    one = out.image(1, segment=segment)
    assert await out.accept(one) == 0
    assert await out.ledger.read(known) == [("", "")]
    out.ledger.add(collections.learn, Learned(one.draft.key, one.draft.start, data_set_sha256="digest"))
    assert await out.ledger.read(known) == [("", "")]
    assert await out.accept(out.image(2, segment=segment)) == 0
    assert await out.ledger.read(known) == [("", "digest"), ("", "")]
    segment.close()


async def test_what_an_instance_holds_is_hashed_when_it_is_composed(out: Outbound) -> None:
    """Its sender waits for its custody, not for that; the mail says the hash of the file (R23)."""
    segment = out.spool.segment()
    received = []
    for number in (1, 2):
        received.append(out.image(number, segment=segment))
        assert await out.accept(received[-1]) == 0
    segment.close()
    assert await out.ledger.read(known) == [("", ""), ("", "")]
    await out.work()
    content = out.spool.path(segment.key).read_bytes()
    files = [content[one.draft.start :][: one.size] for one in received]
    assert await out.ledger.read(known) == [
        (hashlib.sha256(file).hexdigest(), hashlib.sha256(file[one.data_set :]).hexdigest())
        for file, one in zip(files, received, strict=True)
    ]


@pytest.mark.parametrize("learned", [False, True], ids=["not hashed yet", "hashed"])
async def test_the_same_instance_is_one_though_nobody_had_looked_at_it(out: Outbound, learned: bool) -> None:
    """Both are looked at when its UID comes again (R11)."""
    segment = out.spool.segment()
    first = out.image(1, segment=segment)
    assert await out.accept(first) == 0
    if learned:
        digest = hashlib.sha256(first.draft.read(first.data_set, first.size - first.data_set)).hexdigest()
        out.ledger.add(collections.learn, Learned(first.draft.key, first.draft.start, data_set_sha256=digest))
    again = out.image(1, segment=segment)
    assert await out.accept(again) == 0
    assert again.draft.end == again.draft.start
    segment.close()
    [item] = await out.items()
    assert item["instances"] == 1


async def test_a_repeated_instance_is_taken_while_a_big_study_is_hashed(out: Outbound) -> None:
    """What was found out about thousands of others waits to be written down; this one waits for none of it (R11)."""
    segment = await taken(out, 1)
    for number in range(2 * (COMPARISONS + 1) * MOST_CHANGES):
        out.ledger.add(collections.learn, Learned(f"elsewhere/{number}.seg", 0, "file", "data set"))
    caller = replace(CALLER, called="SLOW")
    assert await out.accept(out.image(1, caller=caller, segment=segment)) == 0
    segment.close()
    [item] = await out.items()
    assert item["instances"] == 1


async def test_another_content_under_the_uid_is_held_though_nobody_had_looked_at_it(out: Outbound) -> None:
    """Kept, and a person decides (R11)."""
    segment = await taken(out, 1)
    caller = replace(CALLER, called="SLOW")
    assert await out.accept(out.image(1, content="another", caller=caller, segment=segment)) == 0
    segment.close()
    [item] = await out.items()
    assert [one["outcome"] for one in item["instances_detail"]] == ["waiting", "held"]


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "gone"])
async def test_an_instance_whose_forerunner_is_gone_is_held(out: Outbound, cut: bool) -> None:
    """Nobody can say that it was the same: that loses nothing, and tells a person (R11)."""
    segment = await taken(out, 1)
    segment.close()
    if cut:
        os.truncate(out.spool.path(segment.key), 300)
    else:
        out.spool.remove(segment.key)
    (await taken(out, 1)).close()
    [item] = await out.items()
    assert [one["outcome"] for one in item["instances_detail"]] == ["waiting", "held"]


async def test_a_uid_that_is_new_at_every_look_is_tried_again_later(
    out: Outbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for ever: the sender is told that we could not take it now (R6)."""
    monkeypatch.setattr(collections, "accept", lambda _, arrivals: [None] * len(arrivals))
    segment = out.spool.segment()
    with pytest.raises(LedgerError, match="again and again"):
        await out.accept(out.image(1, segment=segment))
    segment.close()


async def test_a_file_that_became_shorter_is_not_mailed(out: Outbound) -> None:
    """Not half of an image, whatever befell the disk (R8)."""
    segment = await taken(out, 1)
    segment.close()
    os.truncate(out.spool.path(segment.key), 300)
    [item] = await out.items()
    with out.ledger.engine.begin() as connection:
        verbs.retry(connection, item["id"], NOW, "anna", force=True)
    for _ in range(3):
        await out.compose.look(item["id"])
    [item] = await out.items()
    assert (item["outcome"], item["code"], out.postman.mails) == ("held", "not-composed", [])
