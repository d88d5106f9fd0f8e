"""One connection, shared commits: how every fact gets on disk.

Callers hand in a change (a function of a connection) and await its commit. One transaction is open at a time; changes
that arrive while it commits form the next, so a burst costs one sync and a lone change waits for nobody. What comes
from a loop is run by a thread of its own. A thread that would only wait runs its change itself, together with those of
all others that wait for their turn: then a lone change costs no switch from thread to thread.
A change may run twice (when a neighbour in its transaction fails, each is tried alone), so it must do nothing but
speak to its connection.

Embedded: SQLite in WAL mode with synchronous=FULL, both read back at the start, because anything less loses what
was acknowledged when the power goes. Several nodes: the same tables on PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import structlog
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import FolderInUseError, GatewayError, LedgerError
from gateway.ledger.batches import Batches

T = TypeVar("T")
Item = TypeVar("Item")

log = structlog.get_logger(__name__)

LEDGER_PAUSE: Final = 5.0
"""Seconds until what the ledger did not take is offered again."""

MOST_CHANGES: Final = 256
"""Changes in one transaction: enough to share a sync, few enough that nobody waits long."""

CHECKPOINT_EVERY: Final = 4000
"""Pages (4 KiB) of the write-ahead log after which whoever commits moves them into the database: some 300 instances."""

MIGRATIONS: Final = Path(__file__).parent / "migrations"
"""Alembic's scripts: one for each schema there was, named by its number."""

NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "fuse.sshfs", "9p"}
)
"""Where SQLite's locks and syncs cannot be trusted."""


class Lock:
    """The right of one process to a data folder (R30). Released by the kernel when the process ends, however it ends.

    Raises:
        FolderInUseError: Another process has it.
        GatewayError: The folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise GatewayError(
                f"the data folder {folder} cannot be used: {error.strerror}",
                hint="gateway.data must name a folder that this user may write",
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._file, 32, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            raise FolderInUseError(
                f"the data folder {folder} is in use by process {owner or 'unknown'}",
                hint="one gateway owns a data folder; stop the other one first",
            ) from None
        with contextlib.suppress(OSError):  # it is for people; a full disk must not keep the queue from draining
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Give the folder back."""
        os.close(self._file)


@dataclass(slots=True)
class _Change:
    run: Callable[[Connection, list[Any]], Sequence[Any]]
    item: Any
    done: asyncio.Future[Any] | Future[Any]
    ready: Callable[[], None] | None = None


class Ledger:
    """The domain tables behind one connection that writes and a few that read.

    Args:
        engine: From ``connect``; its schema is current.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.on_commit: Callable[[], None] = lambda: None
        """Called on the caller's loop after a transaction that put a ticket."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changes: Batches[_Change] = Batches(MOST_CHANGES)
        self._offers: deque[_Change] = deque()
        self._riders: deque[_Change] = deque()
        self._turn = threading.Lock()
        self._closed = False
        self._connection = engine.connect()
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="ledger-read")
        self._writer = threading.Thread(target=self._work, name="ledger-write", daemon=True)
        self._writer.start()

    async def write(self, change: Callable[[Connection], T]) -> T:
        """Run a change and return its result once it is committed.

        Raises:
            LedgerError: The database did not take it; nothing of the change was kept.
            Exception: Whatever the change itself raised; nothing of it was kept.
        """
        return await self.write_together(lambda connection, _: [change(connection)], None)

    async def write_together(self, change: Callable[[Connection, list[Item]], Sequence[T]], item: Item) -> T:
        """Run a change that takes many items at once, for the burst: those that wait form one call.

        Args:
            change: A module's function; calls with the same function are put together. One result for each item.
            item: Ours.

        Raises:
            LedgerError: The database did not take it; nothing of the item was kept.
            Exception: Whatever the change raised for this item alone; nothing of it was kept.
        """
        self._loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = self._loop.create_future()
        self._put(_Change(change, item, done))
        # A caller that is cancelled must not leave a future that nobody reads half-settled.
        return await asyncio.shield(done)

    def commit(
        self,
        change: Callable[[Connection, list[Item]], Sequence[T]],
        item: Item,
        ready: Callable[[], None],
        patience: float,
    ) -> T:
        """Run a change whose bytes the disk still works on, and return its result once it is committed. For threads.

        Args:
            change: As for ``write_together``.
            item: Ours.
            ready: Comes back when the bytes are durable that the rows speak of, and raises when they will not be; then
                nothing of the item is kept. Called by this thread or by another that commits for it, once or by both
                at the same time. All who write wait with it: it must be short.
            patience: Seconds to wait for a turn.

        Raises:
            LedgerError: The database did not take it, or the ledger is closed; nothing of the item was kept.
            TimeoutError: There was no turn; it may be kept yet, or not.
            Exception: Whatever the change or ``ready`` raised; nothing of it was kept.
        """
        mine = _Change(change, item, Future(), ready)
        self._offers.append(mine)
        if not self._turn.acquire(blocking=False):
            with contextlib.suppress(Exception):  # it is raised again where it counts
                ready()  # while the others commit, the disk works for us
            if not self._turn.acquire(timeout=patience):
                raise TimeoutError
        try:
            while not mine.done.done():  # of very many that wait, another may have left us for the next transaction
                self._commit_offers()
        finally:
            self._turn.release()
        return cast("T", mine.done.result())

    def add(self, change: Callable[[Connection, list[Item]], Sequence[Any]], item: Item) -> None:
        """Let a change go with the next transaction, whoever makes it, before all else in it. For threads.

        For what can be found out again: nobody waits for it, and it is lost when the process dies first or the database
        does not take it.
        """
        self._riders.append(_Change(change, item, Future()))

    def _put(self, change: _Change) -> None:
        if not self._writer.is_alive():
            raise LedgerError("the ledger is closed")
        self._changes.put(change)

    async def insist(self, change: Callable[[Connection], T], given_up: Callable[[], bool]) -> T:
        """Run a change that must not get lost: what a peer said. While it is not taken, it is kept and offered again.

        Args:
            change: As for ``write``.
            given_up: Says that nobody may wait any longer: the gateway stops.

        Raises:
            LedgerError: The database did not take it, and nobody may wait any longer.
        """
        while True:
            try:
                return await self.write(change)
            except LedgerError as error:
                log.error("outcome_not_recorded", exception=type(error).__name__)  # noqa: TRY400
                if given_up():
                    raise
                await asyncio.sleep(LEDGER_PAUSE)

    async def read(self, question: Callable[[Connection], T]) -> T:
        """Ask a question on a connection of its own; it sees what was committed before, all of the same moment.

        Raises:
            LedgerError: The database did not answer.
        """

        def ask() -> T:
            try:
                with self.engine.connect() as connection:
                    return question(connection)
            except SQLAlchemyError as error:
                raise LedgerError(f"the ledger did not answer: {type(error).__name__}") from error

        return await asyncio.get_running_loop().run_in_executor(self._readers, ask)

    def close(self) -> None:
        """Commit what was handed in, then close the database."""
        self._changes.close()
        self._writer.join()
        with self._turn:
            while self._offers:  # of threads that wait for their turn, or gave up waiting
                self._commit_offers()
            while riders := self._take_riders():
                self._commit(riders)
            self._closed = True
            self._connection.close()
        self._readers.shutdown()
        self.engine.dispose()

    def _work(self) -> None:
        for batch in self._changes:
            with self._turn:
                self._commit([*self._take_riders(), *batch])

    def _commit_offers(self) -> None:
        """Commit what threads offered and nobody has committed yet, whoever offered it. For whose turn it is."""
        batch: list[_Change] = []
        while self._offers and len(batch) < MOST_CHANGES:
            batch.append(self._offers.popleft())
        if self._closed:
            for change in batch:
                _settle(change.done, _Failure(LedgerError("the ledger is closed")))
        elif batch:
            self._commit([*self._take_riders(), *batch])

    def _take_riders(self) -> list[_Change]:
        return [self._riders.popleft() for _ in range(min(len(self._riders), MOST_CHANGES))]

    def _commit(self, batch: list[_Change]) -> None:
        connection = self._connection
        connection.info.pop("ticket", None)
        try:
            with connection.begin():
                results = _run(connection, batch)
                for change in batch:
                    if change.ready is not None:
                        change.ready()
        except Exception as error:  # noqa: BLE001  each caller gets its own error, whatever it is
            if len(batch) > 1:
                for change in batch:
                    self._commit([change])
                return
            results = [_told(error)]
        woken = connection.info.pop("ticket", False)
        waiting = []
        for change, result in zip(batch, results, strict=True):
            if isinstance(change.done, Future):
                _settle(change.done, result)
            else:
                waiting.append((change.done, result))
        if self._loop is not None and (waiting or woken):
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for an answer any more
                self._loop.call_soon_threadsafe(self._answer, waiting, woken)

    def _answer(self, waiting: list[tuple[asyncio.Future[Any], Any]], woken: bool) -> None:
        for done, result in waiting:
            _settle(done, result)
        if woken:
            self.on_commit()


def _settle(done: asyncio.Future[Any] | Future[Any], result: Any) -> None:
    if done.cancelled():
        return
    if isinstance(result, _Failure):
        done.set_exception(result.error)
    else:
        done.set_result(result)


def _run(connection: Connection, batch: list[_Change]) -> list[Any]:
    """Run the changes of one transaction, those with the same function as one call; results in the batch's order."""
    together: dict[Callable[..., Any], list[int]] = {}
    for at, change in enumerate(batch):
        together.setdefault(change.run, []).append(at)
    results: list[Any] = [None] * len(batch)
    for run, places in together.items():
        for at, result in zip(places, run(connection, [batch[at].item for at in places]), strict=True):
            results[at] = result
    return results


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception


def _told(error: Exception) -> _Failure:
    if isinstance(error, SQLAlchemyError):
        # The statement and its values stay out of sight: they may hold addresses.
        told = LedgerError(f"the ledger did not take a change: {type(error).__name__}")
        told.__cause__ = error
        return _Failure(told)
    return _Failure(error)


def connect(url: str) -> Engine:
    """Open the database, bring its schema up to date, and make sure that it keeps what it is told.

    Args:
        url: A SQLAlchemy URL, ``sqlite:///…`` or ``postgresql+psycopg://…``.

    Raises:
        LedgerError: It cannot be opened, it is of a newer release, or it does not keep its promises.
    """
    engine = create_engine(url, hide_parameters=True)
    try:
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine, Path(engine.url.database or ""))
        with engine.connect() as connection:
            migrate(connection)
    except SQLAlchemyError as error:
        engine.dispose()
        raise LedgerError(
            f"the ledger cannot be opened: {type(error).__name__}",
            hint="is the data folder writable and its disk healthy?",
        ) from error
    except LedgerError:
        engine.dispose()
        raise
    return engine


def connect_reader(url: str) -> Engine:
    """Open the database beside its writer, for questions alone: whatever is asked, nothing can be changed by it."""
    engine = create_engine(url, hide_parameters=True)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _only_read(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA busy_timeout = 10000")

    return engine


def migrate(connection: Connection) -> None:
    """Bring the schema to this release's. A ledger of a newer release is refused and not touched (R28).

    Raises:
        LedgerError: The ledger is of a newer release.
    """
    current, wanted = schema(connection)
    connection.rollback()
    if current == wanted:
        return
    # Most starts have nothing for it to do, and it takes long to be loaded.
    from alembic import command, config  # noqa: PLC0415

    logging.getLogger("alembic").setLevel(logging.CRITICAL)
    steps = config.Config()
    steps.set_main_option("script_location", str(MIGRATIONS))
    steps.attributes["connection"] = connection
    command.upgrade(steps, "head")
    connection.commit()


def schema(connection: Connection) -> tuple[str | None, str]:
    """Tell which schema a ledger has, None for none yet, and which one this release wants. Changes nothing.

    Raises:
        LedgerError: The ledger is of a newer release.
    """
    known = sorted(step.name.partition("_")[0] for step in (MIGRATIONS / "versions").glob("[0-9]*.py"))
    begun = inspect(connection).has_table("alembic_version")
    current = connection.scalar(text("SELECT version_num FROM alembic_version")) if begun else None
    if current is not None and current not in known:
        raise LedgerError(
            f"the ledger was written by a newer release (schema {current})",
            hint="install that release again, or restore a backup made before the upgrade",
        )
    return current, known[-1]


def _prepare_sqlite(engine: Engine, path: Path) -> None:
    kind = file_system(path.parent)
    if kind in NETWORK_FILE_SYSTEMS:
        raise LedgerError(
            f"the data folder lies on a network file system ({kind}), where SQLite cannot keep its promises",
            hint="put gateway.data on a local disk, or use gateway.database",
        )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy says BEGIN, not the driver
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA busy_timeout = 10000")
        cursor.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_EVERY}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection  # with every instance: past what others need
        driver.execute("BEGIN")

    try:
        with engine.connect() as connection:
            journal = connection.execute(text("PRAGMA journal_mode")).scalar()
            synchronous = connection.execute(text("PRAGMA synchronous")).scalar()
    except SQLAlchemyError as error:
        raise LedgerError(
            f"the ledger {path} cannot be opened: {type(error).__name__}",
            hint="is the file a ledger, the data folder writable and its disk healthy?",
        ) from error
    if (journal, synchronous) != ("wal", 2):
        raise LedgerError(f"SQLite refuses to be durable here: journal_mode {journal}, synchronous {synchronous}")
    path.chmod(0o600)


def demand_health(connection: Connection) -> None:
    """Look the whole file over, after a stop that was not clean (SQLite only: PostgreSQL does so itself).

    Raises:
        LedgerError: It is damaged.
    """
    if connection.dialect.name == "sqlite":
        found = connection.execute(text("PRAGMA quick_check(1)")).scalar()
        if found != "ok":
            raise LedgerError("the ledger is damaged", hint="is the disk healthy? restore the ledger from a backup")


def file_system(folder: Path) -> str:
    """Name the file system a folder lies on, as the kernel does."""
    best, kind = "", "unknown"
    target = str(folder.resolve())
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        fields, _, rest = line.partition(" - ")
        mount = fields.split()[4].replace("\\040", " ")
        covers = target == mount or target.startswith(mount.rstrip("/") + "/")
        if covers and len(mount) >= len(best):
            best, kind = mount, rest.split()[0]
    return kind
