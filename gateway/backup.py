"""A backup of a data folder while its gateway works: the ledger of one moment, and every byte that it needs.

The ledger is copied by SQLite's own means, so that the copy is what one transaction saw. The files of the spool never
change once they have their name; so those the copy speaks of are copied after it. What the gateway deleted meanwhile
was done with, or else a newer copy of the ledger is taken, which knows. At the end everything is read once more from
the disk, and the conservation proof is made on the copy (R34).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

from sqlalchemy import ColumnElement, Connection, Engine, create_engine, select, text, update

from gateway.config import Configuration
from gateway.errors import GatewayError, LedgerError, UsageError
from gateway.ledger import inventory, pseudonyms, restoration
from gateway.ledger.events import tell
from gateway.ledger.spool import held_bytes
from gateway.ledger.tables import fact, instance, message, submission
from gateway.model import Outcome

ROUNDS: Final = 5
"""Copies of the ledger that are taken until all that waits in one has its bytes."""

BLOCK: Final = 1 << 20

SUMS: Final = "SHA256SUMS"
"""Written last: a folder without it is no backup. ``sha256sum --check`` reads it."""

LEDGER: Final = "ledger.sqlite"

PUBLIC: Final = ("partners",)
"""Folders of the data folder that belong to it and hold no secret."""

KEYS: Final = (pseudonyms.KEY, "tokens")
"""What is secret in the data folder."""

PG_DUMP: Final = (
    "pg_dump --format=custom --file=ledger.dump DATABASE, then copy the blobs; before a restored ledger is used: "
    "INSERT INTO fact (name, value) VALUES ('backup made at', '2026-11-23T00:00:00+00:00'), with the time of the dump"
)


@dataclass(slots=True)
class _Copy:
    """A backup in the making: what lies in it, with its digest."""

    source: Path
    target: Path
    sums: dict[str, str] = field(default_factory=dict)
    size: int = 0

    def take(self, name: str, source: Path | None = None) -> bool:
        """Copy one file of the data folder, or of another place; tell whether it is there."""
        try:
            with (source or self.source / name).open("rb", buffering=0) as file:
                self._write(name, file.fileno())
        except FileNotFoundError:
            return False
        return True

    def _write(self, name: str, source: int) -> None:
        path = self.target / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with _new(path) as out:
            while block := os.read(source, BLOCK):
                digest.update(block)
                out.write(block)
                self.size += len(block)
        self.sums[name] = digest.hexdigest()

    def lacks(self, name: str) -> bool:
        """Tell whether a file was not copied, or has grown since: instances are appended to a segment."""
        if name not in self.sums:
            return True
        with contextlib.suppress(FileNotFoundError):
            if (self.source / name).stat().st_size > (self.target / name).stat().st_size:
                self.drop(name)
                return True
        return False

    def drop(self, name: str) -> None:
        """Take a file out again."""
        self.size -= (self.target / name).stat().st_size
        (self.target / name).unlink()
        del self.sums[name]


def _new(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def make(configuration: Configuration, target: Path, *, with_keys: bool = False) -> dict[str, Any]:
    """Write a backup into a new folder and verify it; return what was written.

    Args:
        configuration: Names the data folder.
        target: A folder that is empty, or is not there yet.
        with_keys: Also what is secret: the key of pseudonyms, and tokens for mailboxes.

    Raises:
        UsageError: The ledger is none of ours to copy, or the folder cannot be meant.
        GatewayError: It could not be written or does not verify; nothing of it is left.
    """
    if configuration.gateway.database is not None:
        raise UsageError("the ledger is in PostgreSQL, which has its own means", hint=PG_DUMP)
    data = configuration.gateway.data
    try:
        (data / LEDGER).stat()
    except FileNotFoundError:
        raise GatewayError(f"there is no ledger in {data}", hint="the gateway makes it at its first start") from None
    except OSError as error:
        text = f"the ledger in {data} cannot be read: {error.strerror}"
        raise GatewayError(text, hint="run this as the gateway's user") from None
    target = _claim(target.absolute(), data)
    try:
        return _make(configuration, _Copy(data, target), with_keys=with_keys)
    except OSError as error:
        _clear(target)
        raise GatewayError(f"the backup could not be written: {error.strerror}; nothing of it is left") from None
    except BaseException:
        _clear(target)
        raise


def _claim(target: Path, data: Path) -> Path:
    if target.is_relative_to(data.absolute()):
        raise UsageError("a backup cannot lie in the data folder", hint="name a folder on another disk")
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise UsageError(f"{target} is not empty", hint="name a new folder for each backup")
    except OSError as error:
        raise GatewayError(f"{target} cannot be used: {error.strerror}") from None
    return target


def _clear(target: Path) -> None:
    for path in target.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _make(configuration: Configuration, copy: _Copy, *, with_keys: bool) -> dict[str, Any]:
    now = datetime.now(UTC)
    for name in (*PUBLIC, *(KEYS if with_keys else ())):
        for path in _files(copy.source, name):
            copy.take(path)
    copy.take("gateway.toml", configuration.source)
    absent = _copy_ledger_and_spool(copy)
    proof = _finish(copy, absent, now)
    copy.sums[LEDGER] = _digest(copy.target / LEDGER)
    copy.size += (copy.target / LEDGER).stat().st_size
    _sync(copy.target)
    _verify(copy)
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(copy.sums.items()))
    with _new(copy.target / SUMS) as file:
        file.write(lines.encode())
    _sync(copy.target)
    return {
        "folder": str(copy.target),
        "files": len(copy.sums),
        "size": copy.size,
        "keys": with_keys,
        "items": proof["in"],
        "unaccounted": proof["unaccounted"],
    }


def _files(folder: Path, name: str) -> Iterator[str]:
    path = folder / name
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return (str(one.relative_to(folder)) for one in found if one.is_file() and not one.is_symlink())


# Ledger and spool


def _copy_ledger_and_spool(copy: _Copy) -> set[str]:
    """Copy the ledger, and what it needs; return the keys whose bytes are not there."""
    before: set[str] | None = None
    for _ in range(ROUNDS):
        _snapshot(copy.source / LEDGER, copy.target / LEDGER)
        engine = _open(copy.target / LEDGER)
        try:
            with engine.connect() as connection:
                needed = _needed(connection)
                absent = {key for key in needed if copy.lacks(f"spool/{key}") and not copy.take(f"spool/{key}")}
                undecided = absent & _needed(connection, undecided=True)
        finally:
            engine.dispose()
        if not undecided or undecided == before:
            break  # all is there, or it is missing for good: then the proof says so
        before = undecided
    for name in [name for name in copy.sums if name.startswith("spool/")]:
        if name.removeprefix("spool/") not in needed:
            copy.drop(name)  # an earlier copy of the ledger spoke of it
    return absent


def _snapshot(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    _new(target).close()
    try:
        with (
            closing(sqlite3.connect(source.absolute().as_uri() + "?mode=rw", uri=True, timeout=10)) as ledger,
            closing(sqlite3.connect(target)) as out,
        ):
            ledger.backup(out)  # in one step: what one transaction sees, whoever writes meanwhile
            out.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise LedgerError(f"the ledger cannot be copied: {type(error).__name__}", hint="is the disk full?") from error


def _open(path: Path) -> Engine:
    return create_engine(f"sqlite:///{path}", hide_parameters=True)


def _needed(connection: Connection, *, undecided: bool = False) -> set[str]:
    """Name the bytes that rows speak of: of all items, or of those about which nothing is decided."""
    mine: ColumnElement[bool] = message.c.purged_at.is_(None)
    if undecided:
        mine &= message.c.outcome.in_([Outcome.WAITING, Outcome.HELD, Outcome.FAILED])
    rows = connection.execute(select(message.c.blob, message.c.instances_blob).where(mine))
    found = {blob for row in rows for blob in row if blob}
    for table in (instance, submission):
        blobs = (
            select(table.c.blob).join(message, message.c.id == table.c.message).where(mine, table.c.blob.is_not(None))
        )
        found.update(connection.scalars(blobs))
    return found


def _finish(copy: _Copy, absent: set[str], now: datetime) -> dict[str, Any]:
    """Mark the copy as one, let it know what was deleted while it was made, and prove that it is whole."""
    engine = _open(copy.target / LEDGER)
    try:
        with engine.begin() as connection:
            restoration.mark(connection, now)
            # The gateway that is restored from this did not crash: it never ran.
            connection.execute(fact.delete().where(fact.c.name == "running since"))
            for key in _done_without(connection, absent):
                connection.execute(update(message).where(message.c.id == key).values(purged_at=now))
                tell(connection, now, "purged", "its bytes were deleted while a backup was made", message=key)
        with engine.connect() as connection:
            if connection.scalar(text("PRAGMA integrity_check(1)")) != "ok":
                raise LedgerError("the copy of the ledger is damaged", hint="is the disk healthy?")
            return inventory.reconcile(connection, partial(held_bytes, copy.target / "spool"))
    finally:
        engine.dispose()


def _done_without(connection: Connection, absent: set[str]) -> list[str]:
    done = message.c.outcome.in_([Outcome.DELIVERED, Outcome.REFUSED]) & message.c.purged_at.is_(None)
    blobs = (message.c.blob, message.c.instances_blob, instance.c.blob, submission.c.blob)
    rows = connection.execute(
        select(message.c.id, *blobs)
        .outerjoin(instance, instance.c.message == message.c.id)
        .outerjoin(submission, submission.c.message == message.c.id)
        .where(done)
    )
    return sorted({row[0] for row in rows if absent.intersection(row[1:])}) if absent else []


# The disk


def _digest(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        # What was just written would be read from memory, and say nothing of the disk.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(copy: _Copy) -> None:
    for name, digest in copy.sums.items():
        if _digest(copy.target / name) != digest:
            raise GatewayError("the backup does not read back as it was written", hint="is that disk healthy?")


_libc = ctypes.CDLL(None, use_errno=True)


def _sync(folder: Path) -> None:
    """Put the file system of a folder on disk: one call for a hundred thousand files."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(file):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(file)
