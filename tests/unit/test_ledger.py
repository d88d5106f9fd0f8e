"""The ledger: durable or refused, migrated or refused, and one writer that shares its commits."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from rows import NOW
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    DateTime,
    Engine,
    MetaData,
    Table,
    create_engine,
    event,
    insert,
    inspect,
    select,
    text,
)

from gateway.errors import LedgerError
from gateway.ledger import inventory
from gateway.ledger import ledger as ledgers
from gateway.ledger.ledger import MOST_CHANGES, Ledger, connect, file_system
from gateway.ledger.tables import fact, message, metadata


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peer)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    return str(request.getfixturevalue("postgresql").database())


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Ledger]:
    """A ledger that is closed in the end."""
    made = Ledger(connect(url))
    yield made
    made.close()


def note(name: str) -> ledgers.Callable[[Connection], str]:
    def change(connection: Connection) -> str:
        connection.execute(insert(fact).values(name=name, value="x"))
        return name

    return change


def names(connection: Connection) -> set[str]:
    return set(connection.scalars(select(fact.c.name)))


class Commits:
    """Counts the transactions that an engine commits."""

    def __init__(self, engine: Engine) -> None:
        self.count = 0
        event.listen(engine, "commit", self._add)

    def _add(self, _connection: Connection) -> None:
        self.count += 1


# The database


def migrations() -> Config:
    """What Alembic wants to know."""
    config = Config()
    config.set_main_option("script_location", str(ledgers.MIGRATIONS))
    return config


def test_the_schemas_are_those_alembic_knows(url: str) -> None:
    """One line of numbers, the newest last: a start tells by names alone whether there is anything to migrate (R28)."""
    scripts = ScriptDirectory.from_config(migrations())
    engine = connect(url)
    with engine.connect() as connection:
        newest = ledgers.schema(connection)
        assert newest == (scripts.get_current_head(), scripts.get_current_head())
        for script in scripts.walk_revisions():
            connection.execute(text(f"UPDATE alembic_version SET version_num = '{script.revision}'"))
            assert ledgers.schema(connection) == (script.revision, newest[1])
            assert Path(script.path).name.startswith(f"{script.revision}_")
    engine.dispose()


def test_migrations_from_nothing_make_the_tables_that_the_code_knows(url: str) -> None:
    """An upgrade from empty equals the metadata, on both databases (R28)."""
    engine = connect(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert {"ticket", "message", "delivery"} <= set(inspect(connection).get_table_names())
    engine.dispose()


def test_a_ledger_is_opened_again_as_it_was(url: str) -> None:
    """The second start migrates nothing and loses nothing (R28)."""
    for _ in range(2):
        engine = connect(url)
        with engine.begin() as connection:
            found = names(connection)
            if not found:
                connection.execute(insert(fact).values(name="kept", value="x"))
        engine.dispose()
    assert found == {"kept"}


def test_a_ledger_of_the_first_release_is_brought_up_to_date(url: str) -> None:
    """What an old ledger knows stays, and it has every table of this release (R28)."""
    engine = create_engine(url)
    config = migrations()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text("INSERT INTO fact (name, value) VALUES ('kept', 'x')"))
        connection.commit()
        assert "fragment_set" not in inspect(connection).get_table_names()
    engine.dispose()
    engine = connect(url)
    with engine.connect() as connection:
        assert names(connection) == {"kept"}
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_a_ledger_of_every_release_is_brought_up_to_date_with_what_is_in_it(url: str) -> None:
    """Each schema there ever was, with an item in it, opens in this release and is found as it was (R28)."""
    scripts = ScriptDirectory.from_config(migrations())
    revisions = [script.revision for script in scripts.walk_revisions()][::-1]
    assert revisions[0] == "0001"
    engine, config = create_engine(url), migrations()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        for revision in revisions:
            command.upgrade(config, revision)
            old = Table("message", MetaData(), autoload_with=connection)
            connection.execute(insert(old).values({one.name: _any(one) for one in old.columns} | {"id": revision}))
            connection.commit()
    engine.dispose()
    engine = connect(url)
    with engine.connect() as connection:
        assert sorted(connection.scalars(select(message.c.id))) == revisions
        assert {inventory.show_item(connection, key, NOW)["outcome"] for key in revisions} == {"waiting"}
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def _any(column: Column[Any]) -> object:
    """A value for a column of a row that waits: what an old release may have written."""
    known = {"outcome": "waiting", "stage": "receive", "direction": "in", "recipients": [], "routes": []}
    if column.name in known:
        value = known[column.name]
        return json.dumps(value) if isinstance(value, list) and not isinstance(column.type, JSON) else value
    if column.nullable:
        return None
    if isinstance(column.type, DateTime):
        return NOW if column.type.timezone else NOW.replace(tzinfo=None)
    return {str: "x", int: 0, bool: False, float: 0.0}[column.type.python_type]


def test_a_ledger_of_a_newer_release_is_refused_and_not_touched(url: str) -> None:
    """A downgrade is one clear line, and changes nothing (R28)."""
    engine = connect(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(LedgerError, match=r"written by a newer release \(schema 9999\)") as caught:
        connect(url)
    assert "install that release again" in caught.value.hint
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
    engine.dispose()


def test_sqlite_keeps_what_it_is_told(tmp_path: Path) -> None:
    """WAL and synchronous=FULL on every connection, foreign keys too; the file is nobody else's to read (R1)."""
    engine = connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    with engine.connect() as one, engine.connect() as two:
        for connection in (one, two):
            values = [
                connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
            assert values == ["wal", 2, 1]
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    engine.dispose()


def test_a_database_that_will_not_be_durable_is_refused() -> None:
    """What SQLite answers is read back: in memory it has no WAL, and custody would be a lie (R1)."""
    with pytest.raises(LedgerError, match="refuses to be durable here: journal_mode memory"):
        connect("sqlite://")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """SQLite's locks and syncs cannot be trusted there (R1)."""
    monkeypatch.setattr(ledgers, "file_system", lambda _: kind)
    with pytest.raises(LedgerError, match=rf"network file system \({kind}\)") as caught:
        connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    assert "local disk" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_is_named_as_the_kernel_does() -> None:
    """The mount that covers the folder most closely counts."""
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(Path("/proc")) == "proc"
    assert file_system(Path("/proceedings")) == file_system(Path("/"))


def test_a_file_that_is_no_ledger_is_one_clear_line(tmp_path: Path) -> None:
    """Neither a traceback nor what the file holds (R32)."""
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"SECRET " * 1000)
    with pytest.raises(LedgerError, match="cannot be opened: DatabaseError") as caught:
        connect(f"sqlite:///{path}")
    assert "SECRET" not in str(caught.value)


def test_a_database_server_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    """The same for PostgreSQL."""
    with pytest.raises(LedgerError, match="the ledger cannot be opened: OperationalError"):
        connect(f"postgresql+psycopg://gateway@/nowhere?host={tmp_path}")


# The writer


async def test_a_change_is_committed_when_its_caller_goes_on(ledger: Ledger) -> None:
    """What write returns is on disk and visible to every reader (R1)."""
    assert await ledger.write(note("a")) == "a"
    assert await ledger.read(names) == {"a"}


async def test_changes_that_wait_share_a_transaction(ledger: Ledger) -> None:
    """A burst costs one commit for up to MOST_CHANGES changes (group commit)."""
    commits, go, begun = Commits(ledger.engine), threading.Event(), threading.Event()

    def slow(connection: Connection) -> str:
        begun.set()
        go.wait(10)
        return note("first")(connection)

    first = asyncio.create_task(ledger.write(slow))
    await asyncio.to_thread(begun.wait, 10)
    burst = [asyncio.create_task(ledger.write(note(str(number)))) for number in range(MOST_CHANGES + 10)]
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(first, *burst)
    assert commits.count == 3
    assert len(await ledger.read(names)) == MOST_CHANGES + 11


async def test_a_change_that_fails_does_no_harm_to_its_neighbours(ledger: Ledger) -> None:
    """Each caller gets its own result, whatever shared its transaction; of the failed ones nothing is kept."""
    go, begun = threading.Event(), threading.Event()

    def slow(_: Connection) -> None:
        begun.set()
        go.wait(10)

    def wrong(connection: Connection) -> None:
        note("half")(connection)
        raise KeyError("mine")

    first = asyncio.create_task(ledger.write(slow))
    await asyncio.to_thread(begun.wait, 10)
    calls = [note("a"), wrong, note("b"), note("a"), note("c")]
    tasks = [asyncio.create_task(ledger.write(call)) for call in calls]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    go.set()
    await first
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [results[0], results[2], results[4]] == ["a", "b", "c"]
    assert isinstance(results[1], KeyError)
    assert isinstance(results[3], LedgerError)
    assert await ledger.read(names) == {"a", "b", "c"}


async def test_an_error_shows_neither_statement_nor_values(ledger: Ledger) -> None:
    """They may hold addresses (R35): the type of the error is all there is, and a reader's is the same."""
    await ledger.write(note("SECRET"))
    with pytest.raises(LedgerError) as caught:
        await ledger.write(note("SECRET"))
    assert str(caught.value) == "the ledger did not take a change: IntegrityError"
    with pytest.raises(LedgerError) as caught:
        await ledger.read(lambda c: c.execute(text("SELECT 'SECRET' FROM nowhere")))
    assert str(caught.value) in {f"the ledger did not answer: {name}Error" for name in ("Operational", "Programming")}


async def test_a_caller_that_goes_away_takes_nobody_along(ledger: Ledger) -> None:
    """A cancelled caller's change is committed all the same, and the next one is served."""
    go, begun = threading.Event(), threading.Event()

    def slow(connection: Connection) -> str:
        begun.set()
        go.wait(10)
        return note("slow")(connection)

    tasks = [asyncio.create_task(ledger.write(slow)), asyncio.create_task(ledger.write(note("next")))]
    await asyncio.to_thread(begun.wait, 10)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    go.set()
    assert await ledger.write(note("after")) == "after"
    assert await ledger.read(names) == {"slow", "next", "after"}


async def test_closing_commits_what_was_handed_in(tmp_path: Path) -> None:
    """Nothing that was accepted for writing is forgotten at the end; later callers are told, not left waiting."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    ledger = Ledger(connect(url))
    go, begun = threading.Event(), threading.Event()

    def slow(_: Connection) -> None:
        begun.set()
        go.wait(10)

    tasks = [asyncio.create_task(ledger.write(slow))]
    await asyncio.to_thread(begun.wait, 10)
    tasks += [asyncio.create_task(ledger.write(note(str(number)))) for number in range(20)]
    await asyncio.sleep(0)
    threading.Timer(0.05, go.set).start()
    ledger.close()
    await asyncio.gather(*tasks)
    with pytest.raises(LedgerError, match="the ledger is closed"):
        await ledger.write(note("late"))
    engine = connect(url)
    with engine.connect() as connection:
        assert len(names(connection)) == 20
    engine.dispose()


async def test_a_ledger_survives_the_loop_of_its_callers(tmp_path: Path) -> None:
    """A caller whose loop is gone gets no answer; the writer goes on for the others."""
    ledger = Ledger(connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}"))
    go, begun = threading.Event(), threading.Event()

    def slow(_: Connection) -> None:
        begun.set()
        go.wait(10)

    def another_life() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(ledger.write(slow))
        loop.run_until_complete(asyncio.sleep(0))
        begun.wait(10)
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()

    await asyncio.to_thread(another_life)
    go.set()
    assert await ledger.write(note("a")) == "a"
    ledger.close()


async def test_a_full_disk_is_an_error_that_passes(tmp_path: Path) -> None:
    """A database that has no room keeps nothing of the change, and goes on when there is room again (R5)."""
    ledger = Ledger(connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}"))
    pages = await ledger.write(lambda c: c.scalar(text("PRAGMA page_count")))
    await ledger.write(lambda c: c.execute(text(f"PRAGMA max_page_count = {pages}")).scalar())

    def big(connection: Connection) -> None:
        connection.execute(insert(fact).values(name="big", value="x" * 100_000))

    with pytest.raises(LedgerError, match="OperationalError"):
        await ledger.write(big)
    await ledger.write(lambda c: c.execute(text("PRAGMA max_page_count = 100000")).scalar())
    assert await ledger.read(names) == set()
    await ledger.write(big)
    assert await ledger.read(names) == {"big"}
    ledger.close()


async def test_a_reader_sees_one_moment(tmp_path: Path) -> None:
    """Two questions in one read see the same rows, whatever is written in between (R34)."""
    ledger = Ledger(connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}"))
    loop = asyncio.get_running_loop()

    def twice(connection: Connection) -> tuple[set[str], set[str]]:
        before = names(connection)
        asyncio.run_coroutine_threadsafe(ledger.write(note("between")), loop).result(10)
        return before, names(connection)

    before, after = await ledger.read(twice)
    assert before == after == set()
    ledger.close()


def together(connection: Connection, items: list[str]) -> list[str]:
    return [note(item)(connection) for item in items]


def commit(ledger: Ledger, name: str, ready: Callable[[], None] = lambda: None) -> Future[str]:
    """Let a thread of its own commit a name."""
    done: Future[str] = Future()

    def run() -> None:
        try:
            done.set_result(ledger.commit(together, name, ready, 10))
        except Exception as error:  # noqa: BLE001 - the one who reads the result gets it
            done.set_exception(error)

    threading.Thread(target=run).start()
    return done


async def test_a_change_is_committed_when_its_bytes_are_ready(ledger: Ledger) -> None:
    """Its rows are made while the disk works, and nobody sees them before (R1, R20)."""
    asked, ready = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        assert ready.wait(10)

    done = commit(ledger, "a", wait)
    assert await asyncio.to_thread(asked.wait, 10)
    assert not done.done()
    assert await ledger.read(names) == set()
    ready.set()
    assert await asyncio.to_thread(done.result, 10) == "a"
    assert await ledger.read(names) == {"a"}


class Holding:
    """Keeps the turn until it is released, and counts who got ready meanwhile."""

    def __init__(self, ledger: Ledger) -> None:
        self.asked, self.free = threading.Event(), threading.Event()
        self.waiting = threading.Semaphore(0)
        self.done = commit(ledger, "first", self._wait)

    def _wait(self) -> None:
        self.asked.set()
        assert self.free.wait(10)

    def ready(self) -> None:
        self.waiting.release()

    async def start(self) -> None:
        assert await asyncio.to_thread(self.asked.wait, 10)

    async def gather(self, count: int) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self.waiting.acquire, timeout=10)


async def test_a_change_whose_bytes_are_lost_fails_alone(ledger: Ledger) -> None:
    """The disk's error reaches the one who offered it; its neighbours in the transaction are kept (R1)."""
    holding = Holding(ledger)
    await holding.start()

    def fail() -> None:
        holding.ready()
        raise OSError(5, "Input/output error")

    lost = commit(ledger, "b", fail)
    kept = [commit(ledger, name, holding.ready) for name in ("a", "d")]
    written = asyncio.create_task(ledger.write(note("c")))
    await holding.gather(3)
    holding.free.set()
    assert await asyncio.to_thread(holding.done.result, 10) == "first"
    assert [await asyncio.to_thread(one.result, 10) for one in kept] == ["a", "d"]
    with pytest.raises(OSError, match="Input/output error"):
        await asyncio.to_thread(lost.result, 10)
    assert await written == "c"
    assert await ledger.read(names) == {"first", "a", "c", "d"}


async def test_threads_that_wait_for_their_turn_share_a_commit(ledger: Ledger) -> None:
    """One of them commits for all, and their bytes get durable while they wait (R1)."""
    commits = Commits(ledger.engine)
    holding = Holding(ledger)
    await holding.start()
    others = [commit(ledger, f"{key}", holding.ready) for key in range(20)]
    await holding.gather(20)
    holding.free.set()
    assert [await asyncio.to_thread(one.result, 10) for one in others] == [f"{key}" for key in range(20)]
    assert commits.count == 2


async def test_of_many_threads_none_is_left_behind(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction takes only so many; whoever is not among them has its own (R1)."""
    monkeypatch.setattr(ledgers, "MOST_CHANGES", 3)
    commits = Commits(ledger.engine)
    holding = Holding(ledger)
    await holding.start()
    others = [commit(ledger, f"{key}", holding.ready) for key in range(20)]
    await holding.gather(20)
    holding.free.set()
    assert [await asyncio.to_thread(one.result, 10) for one in others] == [f"{key}" for key in range(20)]
    assert commits.count == 8


async def test_a_thread_waits_for_its_turn_only_so_long(ledger: Ledger) -> None:
    """A disk that hangs hangs no sender for ever; what was handed in may be kept yet, with the next one (R4)."""
    holding = Holding(ledger)
    await holding.start()
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(ledger.commit, together, "late", lambda: None, 0.05)
    holding.free.set()
    assert await asyncio.to_thread(holding.done.result, 10) == "first"
    assert await asyncio.to_thread(ledger.commit, together, "next", lambda: None, 10) == "next"
    assert await ledger.read(names) == {"first", "late", "next"}


async def test_what_a_thread_gave_up_waiting_for_is_committed_at_the_end(url: str) -> None:
    """Closing commits all that was handed in, in whoever's name (R1)."""
    ledger = Ledger(connect(url))
    holding = Holding(ledger)
    await holding.start()
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(ledger.commit, together, "late", lambda: None, 0.05)
    holding.free.set()
    assert await asyncio.to_thread(holding.done.result, 10) == "first"
    ledger.close()
    with connect(url).connect() as connection:
        assert names(connection) == {"first", "late"}
    connection.engine.dispose()


async def test_a_change_of_a_thread_that_puts_a_ticket_wakes_the_loop(ledger: Ledger) -> None:
    """Whoever made it; and a ledger that is closed takes none."""
    woken = asyncio.Event()
    ledger.on_commit = woken.set
    await ledger.write(note("the loop is known"))

    def put(connection: Connection, items: list[str]) -> list[str]:
        connection.info["ticket"] = True
        return items

    assert await asyncio.to_thread(ledger.commit, put, "a", lambda: None, 10) == "a"
    async with asyncio.timeout(10):
        await woken.wait()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.commit(put, "a", lambda: None, 10)


async def test_what_nobody_waits_for_goes_with_the_next_transaction_and_before_it(ledger: Ledger) -> None:
    """Whoever makes it; alone it costs none."""
    ledger.add(together, "rider")
    assert await ledger.read(names) == set()
    seen = await asyncio.to_thread(lambda: ledger.commit(lambda c, _: [names(c)], None, lambda: None, 10))
    assert seen == {"rider"}
    ledger.add(together, "another")
    assert await ledger.write(names) == {"rider", "another"}


async def test_what_nobody_waits_for_harms_nobody(ledger: Ledger) -> None:
    """Neither when it fails itself, nor when its neighbour does."""

    def fail(_: Connection, __: list[str]) -> list[str]:
        raise ZeroDivisionError

    ledger.add(fail, "x")
    assert await ledger.write(note("a")) == "a"
    ledger.add(together, "b")
    with pytest.raises(ZeroDivisionError):
        await ledger.write_together(fail, "x")
    assert await ledger.read(names) == {"a", "b"}


async def test_closing_commits_what_nobody_waits_for(url: str) -> None:
    """As all that was handed in."""
    ledger = Ledger(connect(url))
    for number in range(MOST_CHANGES + 1):
        ledger.add(together, f"{number}")
    ledger.close()
    engine = connect(url)
    with engine.connect() as connection:
        assert len(names(connection)) == MOST_CHANGES + 1
    engine.dispose()
