"""A backup: the ledger of one moment with all its bytes, whatever happens meanwhile, or nothing at all (R34)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rows import NOW, configuration, instance, queue, send
from sqlalchemy import Connection, Engine, create_engine, select, update

from gateway import backup, cli, control
from gateway.config import Configuration
from gateway.errors import GatewayError, LedgerError, UsageError
from gateway.ledger import inventory, restoration
from gateway.ledger.ledger import connect
from gateway.ledger.spool import held_bytes
from gateway.ledger.tables import fact, message
from gateway.ledger.tables import instance as instances


@pytest.fixture
def settings(tmp_path: Path) -> Configuration:
    """A gateway with a delivered and a waiting mail."""
    made = configuration(tmp_path)
    made.gateway.data.mkdir(mode=0o700)
    (made.gateway.data / "search.key").write_bytes(b"k" * 32)
    (made.gateway.data / "tokens").mkdir()
    (made.gateway.data / "tokens" / "imap.box").write_text("SECRET", encoding="utf-8")
    (made.gateway.data / "partners").mkdir()
    (made.gateway.data / "partners" / "clinic-a.pem").write_text("certificate", encoding="utf-8")
    (made.gateway.data / "lock").write_text("1", encoding="utf-8")
    engine = connect(control.ledger_url(made))
    with engine.begin() as connection:
        connection.execute(fact.insert().values(name="running since", value="now"))
        queue(connection, "in-1")
        send(connection, "pacs")
        queue(connection, "in-2", instance(2))
    engine.dispose()
    for key in ("in-1", "in-2"):
        for kind in ("eml", "dcm"):
            file = made.gateway.data / "spool" / "2026112312" / f"{key}.{kind}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(f"{key} {kind}".encode() * 1000)
    return made


def opened(folder: Path) -> Engine:
    return create_engine(f"sqlite:///{folder / 'ledger.sqlite'}")


def proof(folder: Path) -> dict[str, Any]:
    engine = opened(folder)
    with engine.connect() as connection:
        found = inventory.reconcile(connection, partial(held_bytes, folder / "spool"))
    engine.dispose()
    return found


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_backup_has_the_ledger_its_bytes_and_no_secret(settings: Configuration, tmp_path: Path) -> None:
    """And a list of digests that anybody can check; nobody else can read it."""
    target = tmp_path / "backup"
    document = backup.make(settings, target)
    spool = {f"spool/2026112312/in-{n}.{kind}" for n in (1, 2) for kind in ("eml", "dcm")}
    assert files(target) == {"ledger.sqlite", "gateway.toml", "partners/clinic-a.pem", "SHA256SUMS", *spool}
    assert (document["items"], document["unaccounted"], document["files"]) == (2, 0, 7)
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=target, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert target.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in target.rglob("spool/**/*")} == {0}
    assert proof(target)["unaccounted"] == 0


def test_a_backup_is_for_its_owner_alone(settings: Configuration, tmp_path: Path) -> None:
    """In a folder that others may look into, too: the configuration may hold the token of a webhook."""
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup").chmod(0o755)
    settings.source.chmod(0o644)
    backup.make(settings, tmp_path / "backup")
    files = [path for path in (tmp_path / "backup").rglob("*") if path.is_file()]
    modes = {path.name: path.stat().st_mode & 0o077 for path in files}
    assert {name for name, mode in modes.items() if mode} == set()


def test_keys_go_along_when_a_person_says_so(settings: Configuration, tmp_path: Path) -> None:
    """Only then: what unlocks must not lie beside what is locked."""
    backup.make(settings, tmp_path / "backup", with_keys=True)
    assert {"search.key", "tokens/imap.box"} <= files(tmp_path / "backup")


def test_the_copy_knows_that_it_is_one(settings: Configuration, tmp_path: Path) -> None:
    """Whoever starts on it sends nothing at first, and takes it for no crash; the original is as it was."""
    backup.make(settings, tmp_path / "backup")
    marks = {}
    for folder in (tmp_path / "backup", settings.gateway.data):
        engine = opened(folder)
        with engine.connect() as connection:
            names = set(connection.scalars(select(fact.c.name)))
            marks[folder.name] = (restoration.is_marked(connection), "running since" in names)
        engine.dispose()
    assert marks == {"backup": (True, False), "data": (False, True)}


def meanwhile(monkeypatch: pytest.MonkeyPatch, change: Callable[[int], None]) -> None:
    """Let something happen in the gateway after each copy of the ledger; counted from 1."""
    made, count = backup._snapshot, 0

    def snapshot(source: Path, target: Path) -> None:
        nonlocal count
        made(source, target)
        count += 1
        change(count)

    monkeypatch.setattr(backup, "_snapshot", snapshot)


def edit(settings: Configuration, change: Callable[[Connection], object]) -> None:
    engine = opened(settings.gateway.data)
    with engine.begin() as connection:
        change(connection)
    engine.dispose()


def wipe(settings: Configuration, key: str) -> None:
    for kind in ("eml", "dcm"):
        (settings.gateway.data / "spool" / "2026112312" / f"{key}.{kind}").unlink()


def test_what_is_purged_while_it_is_made_is_known_as_purged(
    settings: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delivered mail may go at any moment: the copy then says that its bytes are gone."""
    meanwhile(monkeypatch, lambda _: wipe(settings, "in-1"))
    document = backup.make(settings, tmp_path / "backup")
    assert document["unaccounted"] == 0
    engine = opened(tmp_path / "backup")
    with engine.connect() as connection:
        purged = dict(connection.execute(select(message.c.id, message.c.purged_at)).all())
    engine.dispose()
    assert (purged["in-1"] is not None, purged["in-2"]) == (True, None)


def test_what_was_waiting_and_is_gone_is_looked_up_in_a_newer_copy(
    settings: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person may have dropped and erased it meanwhile: custody in the copy is the truth of one moment."""

    def drop(count: int) -> None:
        if count == 1:
            wipe(settings, "in-2")
            edit(settings, lambda c: c.execute(update(message).where(message.c.id == "in-2").values(purged_at=NOW)))

    meanwhile(monkeypatch, drop)
    assert backup.make(settings, tmp_path / "backup")["unaccounted"] == 0
    assert {name for name in files(tmp_path / "backup") if name.startswith("spool/")} == {
        "spool/2026112312/in-1.eml",
        "spool/2026112312/in-1.dcm",
    }


def test_what_comes_in_while_it_is_made_is_whole_or_not_in_it(
    settings: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that an earlier copy spoke of and the last one does not are taken out again."""

    def change(count: int) -> None:
        if count == 1:
            wipe(settings, "in-2")
            edit(settings, lambda c: c.execute(update(message).values(purged_at=NOW)))

    meanwhile(monkeypatch, change)
    backup.make(settings, tmp_path / "backup")
    assert not [name for name in files(tmp_path / "backup") if name.startswith("spool/")]


def test_a_segment_that_grows_while_it_is_made_is_copied_as_far_as_its_rows_say(
    settings: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An association goes on sending: a newer copy of the ledger speaks of more than the first copy of the file has."""
    segment = settings.gateway.data / "spool" / "2026112312" / "one.seg"
    segment.write_bytes(b"first")
    edit(settings, lambda c: c.execute(update(instances).values(blob="2026112312/one.seg")))

    def grow(count: int) -> None:
        if count == 1:
            wipe(settings, "in-2")  # makes a second round
            segment.write_bytes(b"first, second")
            edit(settings, lambda c: c.execute(update(message).where(message.c.id == "in-2").values(purged_at=NOW)))

    meanwhile(monkeypatch, grow)
    backup.make(settings, tmp_path / "backup")
    assert (tmp_path / "backup" / "spool" / "2026112312" / "one.seg").read_bytes() == b"first, second"


def test_bytes_that_are_missing_for_good_are_said_to_be(
    settings: Configuration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no reason to have no backup at all; but it is no good one, and the exit code says so."""
    wipe(settings, "in-2")
    command = ["backup", str(tmp_path / "backup"), "--config", str(settings.source)]
    assert cli.perform(command) == 1
    assert "1 items are unaccounted for in it" in capsys.readouterr().out
    assert cli.perform([*command[:1], str(tmp_path / "again"), *command[2:], "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["unaccounted"] == 1


@pytest.mark.parametrize("where", ["data", "data/backup", "full"])
def test_a_folder_that_cannot_be_meant_is_refused(settings: Configuration, tmp_path: Path, where: str) -> None:
    """Not into the data folder, and over nothing."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine", encoding="utf-8")
    before = files(tmp_path)
    with pytest.raises(UsageError):
        backup.make(settings, tmp_path / where)
    assert files(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_one_clear_line(settings: Configuration, tmp_path: Path) -> None:
    """Whatever the reason."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(GatewayError, match="file/backup cannot be used: Not a directory"):
        backup.make(settings, tmp_path / "file" / "backup")


def test_nothing_is_left_of_a_backup_that_failed(
    settings: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, a disk that lies, a damaged ledger: half a backup with images of patients helps nobody."""
    target = tmp_path / "backup"

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(backup, "_sync", full)
        with pytest.raises(GatewayError, match="could not be written: No space left on device; nothing of it is left"):
            backup.make(settings, target)
    assert files(target) == set()
    with monkeypatch.context() as patch:
        digests = iter(range(1000))
        patch.setattr(backup, "_digest", lambda _: str(next(digests)))
        with pytest.raises(GatewayError, match="does not read back as it was written"):
            backup.make(settings, target)
    assert files(target) == set()
    (settings.gateway.data / "ledger.sqlite").write_bytes(b"no ledger" * 1000)
    with pytest.raises(LedgerError, match="cannot be copied: DatabaseError"):
        backup.make(settings, target)
    assert files(target) == set()


def test_without_a_ledger_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    """One clear line."""
    with pytest.raises(GatewayError, match="there is no ledger in"):
        backup.make(configuration(tmp_path), tmp_path / "backup")


def test_a_ledger_in_postgresql_is_backed_up_by_its_own_means(tmp_path: Path) -> None:
    """And it is said how (exit code 2)."""
    text = '[gateway]\nname = "gw.example"\npostmaster = "it@gw.example"\n'
    text += 'database = "postgresql://db/gw"\nblobs = "file:///shared"\n'
    with pytest.raises(UsageError, match="PostgreSQL") as caught:
        backup.make(configuration(tmp_path, text), tmp_path / "backup")
    assert "pg_dump --format=custom" in caught.value.hint
