"""Users files: who may log in, and what a broken file says."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gateway.errors import ConfigurationError, GatewayError, UsageError
from gateway.users import MAX_PASSWORD, User, Users

PHC = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$hTGmJJ4Lk1AnBYuEeYV8gOkWgU1Cvwc1WEjQLVIJP3U"


@pytest.fixture
def users(tmp_path: Path) -> Users:
    return Users(tmp_path / "smtp-users")


def test_user_who_was_added_may_log_in(users: Users) -> None:
    """The right password gives the role, another one or another name nothing."""
    assert users.add("clinic-a", "correct horse")
    assert users.verify("clinic-a", "correct horse") == "user"
    assert users.verify("clinic-a", "wrong horse") is None
    assert users.verify("CLINIC-A", "correct horse") is None
    assert users.verify("clinic-b", "correct horse") is None


def test_password_is_kept_as_argon2id_only(users: Users) -> None:
    """The file is for its owner alone and holds no password (RFC 9106)."""
    users.add("clinic-a", "CANARY-password")
    text = users.path.read_text()
    assert text.startswith("clinic-a:$argon2id$v=19$")
    assert text.endswith("\n")
    assert "CANARY" not in text
    assert stat.S_IMODE(users.path.stat().st_mode) == 0o600


def test_adding_a_known_user_changes_password_and_keeps_the_role(users: Users) -> None:
    """A new password for the same person, on the same line."""
    users.add("anna", "first", role="operator")
    users.add("bert", "other")
    assert not users.add("anna", "second")
    assert users.verify("anna", "first") is None
    assert users.verify("anna", "second") == "operator"
    assert users.list() == (User("anna", "operator"), User("bert", "user"))
    assert [line.partition(":")[0] for line in users.path.read_text().splitlines()] == ["anna", "bert"]


def test_removed_user_may_not_log_in(users: Users) -> None:
    """The others stay, comments too."""
    users.path.write_text(f"# who\nanna:{PHC}\n\nbert:{PHC}:viewer\n")
    users.remove("anna")
    assert users.list() == (User("bert", "viewer"),)
    assert users.path.read_text() == f"# who\n\nbert:{PHC}:viewer\n"
    users.remove("bert")
    assert users.verify("bert", "x") is None


def test_removing_nobody_is_an_error(users: Users) -> None:
    """A typing error must not look like success; the exit code is 1."""
    users.path.write_text("# nobody yet\n")
    with pytest.raises(GatewayError, match="no user of this name") as caught:
        users.remove("anna")
    assert caught.value.exit_code == 1


def test_same_password_may_be_typed_composed_or_decomposed(users: Users) -> None:
    """An umlaut is one letter on every keyboard (RFC 4013)."""
    users.add("anna", "M\u00fcnchen")
    assert users.verify("anna", "Mu\u0308nchen") == "user"


@pytest.mark.parametrize("password", ["", "x" * (MAX_PASSWORD + 1)], ids=["empty", "endless"])
def test_what_is_no_password_is_never_one(users: Users, password: str) -> None:
    """Neither when it is set nor at login."""
    with pytest.raises(UsageError, match="a password has"):
        users.add("anna", password)
    users.add("anna", "x")
    assert users.verify("anna", password) is None


@pytest.mark.parametrize("name", ["", "a:b", "#a", " a", "a\n", "a ", "x" * 256])
def test_what_is_no_name_is_refused(users: Users, name: str) -> None:
    """A name must not break the file."""
    with pytest.raises(UsageError, match="a user's name"):
        users.add(name, "x")
    assert not users.path.exists()


def test_what_is_no_role_is_refused(users: Users) -> None:
    """A role is one word."""
    with pytest.raises(UsageError, match="role"):
        users.add("anna", "x", role="Chief Officer")


def test_unknown_name_costs_as_much_as_a_known_one(users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time must not tell who is there: one hash of the same cost each."""
    users.path.write_text(f"anna:{PHC}\n")
    users.load()
    hashed: list[str] = []
    monkeypatch.setattr(users, "_hasher", type("Spy", (), {"verify": lambda _self, phc, _word: hashed.append(phc)})())
    assert users.verify("anna", "x") == "user"
    assert users.verify("nobody", "x") is None
    assert hashed == [PHC, PHC]


def test_nobody_may_log_in_before_the_file_is_read(users: Users) -> None:
    """An empty door is a shut one."""
    users.path.write_text(f"anna:{PHC}\n")
    assert users.verify("anna", "x") is None


@pytest.mark.parametrize(
    "line",
    [
        "anna",
        "anna:secret",
        f"anna:{PHC}:viewer:more",
        f"anna:{PHC}:Viewer",
        f":{PHC}",
        f"anna:{PHC.replace('argon2id', 'argon2i')}",
        "anna:$argon2id$v=19$m=x,t=1,p=1$c2FsdA$aGFzaA",
        "anna:$2b$12$CANARYCANARYCANARYCANARY",
    ],
)
def test_malformed_line_is_named_and_never_shown(users: Users, line: str) -> None:
    """Line number and what is expected, without the hash; what was known before stays."""
    users.path.write_text(f"anna:{PHC}\r\n")
    users.load()
    users.path.write_text(f"# comment\nbert:{PHC}\n{line}\n")
    with pytest.raises(ConfigurationError, match=r"smtp-users: line 3: expected name:argon2id-hash") as caught:
        users.load()
    assert "CANARY" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert users.list() == (User("anna", "user"),)


def test_user_twice_is_an_error(users: Users) -> None:
    """Nobody could say which line holds."""
    users.path.write_text(f"anna:{PHC}\nanna:{PHC}\n")
    with pytest.raises(ConfigurationError, match="line 2: this user stands there twice"):
        users.load()


def test_missing_unreadable_and_foreign_files_are_named(users: Users) -> None:
    """One clear line each."""
    with pytest.raises(ConfigurationError, match="no users file"):
        users.load()
    users.path.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        users.load()
    users.path.unlink()
    users.path.mkdir()
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        users.load()


def test_file_stays_as_it_was_when_writing_fails(users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs nobody the login, and leaves no temporary file."""
    users.path.write_text(f"anna:{PHC}\n")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.users.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        users.add("bert", "x")
    assert users.path.read_text() == f"anna:{PHC}\n"
    assert list(users.path.parent.iterdir()) == [users.path]


def test_two_users_added_at_once_are_two_users(users: Users) -> None:
    """No writer overwrites another."""
    threads = [threading.Thread(target=Users(users.path).add, args=(f"user-{n}", "x")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    users.load()
    assert len(users.list()) == 4


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_root_leaves_the_file_with_its_owner(users: Users) -> None:
    """Root adds a user, and the daemon can still read the file."""
    os.chown(users.path.parent, 12345, 12346)
    users.add("anna", "x")
    assert (users.path.stat().st_uid, users.path.stat().st_gid) == (12345, 12346)
    os.chown(users.path, 23456, 23457)
    users.remove("anna")
    assert (users.path.stat().st_uid, users.path.stat().st_gid) == (23456, 23457)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_root_leaves_the_file_readable_for_the_group_of_the_gateway(users: Users) -> None:
    """As the configuration is installed: root's, 0640. Else the next start would not find out who may log in."""
    users.add("clinic-a", "one")
    os.chown(users.path, 0, 12346)
    users.path.chmod(0o640)
    users.add("clinic-b", "two")
    users.remove("clinic-a")
    found = users.path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 12346, 0o640)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
@pytest.mark.parametrize("has_run", [True, False])
def test_a_new_file_in_a_folder_of_roots_is_for_the_gateway(tmp_path: Path, has_run: bool) -> None:
    """The first user of the console, added by root to /etc/dicom-mail: owned as the data, or as the configuration."""
    config = tmp_path / "gateway.toml"
    console = '[console]\nusers_file = "console-users"\n'
    config.write_text(f'[gateway]\nname = "gw.test"\npostmaster = "a@b.test"\ndata = "data"\n{console}', "utf-8")
    os.chown(config, 0, 12346)
    config.chmod(0o640)
    if has_run:
        (tmp_path / "data").mkdir(mode=0o700)
        os.chown(tmp_path / "data", 12345, 12346)
    command = [sys.executable, "-m", "gateway", "--config", str(config), "user", "add", "anna", "--door", "console"]
    subprocess.run(command, input="secret\n", text=True, check=True, capture_output=True)
    found = (tmp_path / "console-users").stat()
    owned = (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
    assert owned == ((12345, 12346, 0o600) if has_run else (0, 12346, 0o640))
