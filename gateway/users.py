"""Users files: who may log in at a door, one line ``name:argon2id-PHC[:role]`` each.

Passwords are hashed with Argon2id (RFC 9106) and never kept, shown or logged. Lines that begin with ``#`` and blank
lines stay as they are.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import InvalidHashError, VerificationError

from gateway.errors import ConfigurationError, GatewayError, UsageError

DEFAULT_ROLE: Final = "user"
"""What a line without a role means."""

MAX_PASSWORD: Final = 1024
"""Characters; a longer one is no password, and is not worth hashing."""

_NAME = re.compile(r"[^\s:#\x00-\x1f\x7f][^:\x00-\x1f\x7f]{0,254}(?<!\s)")
_ROLE = re.compile(r"[a-z][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may log in.

    Attributes:
        name: As given at login; upper and lower case differ.
        role: What he may do there.
    """

    name: str
    role: str


class Users:
    """The users of one door, as their file says.

    Args:
        path: The file.
        reader: Belongs to whoever reads the file, and so does a new one; None: to whoever has its folder.

    Nothing is read before ``load``; a file that is refused then changes nothing in what was known before.
    ``verify`` and ``add`` take tens of milliseconds and megabytes by design: call them from a thread.
    """

    def __init__(self, path: Path, reader: Path | None = None) -> None:
        self.path = path
        self._reader = reader or path.parent
        self._hasher = PasswordHasher()
        self._known: dict[str, tuple[str, str]] = {}

    def load(self) -> None:
        """Read the file.

        Raises:
            ConfigurationError: There is none, or a line of it is no user. The line is named, never shown.
        """
        self._known = _known(self.path, _lines(self.path))

    def follow(self, other: Users) -> None:
        """Know whom another one has read, and where."""
        self.path, self._known = other.path, other._known

    def verify(self, name: str, password: str) -> str | None:
        """Say what role a name with this password has; None when the two do not belong together.

        An unknown name costs the same work as a known one, so the time tells nothing.
        """
        if not self._known or not 0 < len(password) <= MAX_PASSWORD:
            return None
        decoy = next(iter(self._known.values()))
        known, role = self._known.get(name, decoy)
        try:
            self._hasher.verify(known, _prepared(password))
        except (VerificationError, InvalidHashError):
            return None
        return role if name in self._known else None

    def mark(self, name: str) -> str | None:
        """A digest of a user's hash and role: when it is another one, what he began before is over; None: no user."""
        known = self._known.get(name)
        return None if known is None else hashlib.sha256(":".join(known).encode()).hexdigest()

    def list(self) -> tuple[User, ...]:
        """Who may log in, by name."""
        return tuple(User(name, self._known[name][1]) for name in sorted(self._known))

    def add(self, name: str, password: str, role: str | None = None) -> bool:
        """Add a user, or give a known one a new password (and role, where one is named).

        Returns:
            Whether the user is new.

        Raises:
            UsageError: The name, the password or the role cannot be one.
            ConfigurationError: The file holds something else.
            OSError: The file cannot be written; then it is as it was.
        """
        if not _NAME.fullmatch(name):
            raise UsageError("a user's name has 1 to 255 characters, no colon, and does not begin with #")
        if not 0 < len(password) <= MAX_PASSWORD:
            raise UsageError(f"a password has 1 to {MAX_PASSWORD} characters")
        if role is not None and not _ROLE.fullmatch(role):
            raise UsageError("a role is a word of small letters")
        phc = self._hasher.hash(_prepared(password))
        with _alone(self.path.parent):
            lines = _lines(self.path) if self.path.exists() else []
            known = _known(self.path, lines)
            role = role or known.get(name, ("", DEFAULT_ROLE))[1]
            line = f"{name}:{phc}" + ("" if role == DEFAULT_ROLE else f":{role}")
            kept = [line if _name(old) == name else old for old in lines]
            _write(self.path, kept if name in known else [*kept, line], self._reader)
        self.load()
        return name not in known

    def remove(self, name: str) -> None:
        """Take a user out.

        Raises:
            GatewayError: Nobody has this name.
            ConfigurationError: The file is missing or holds something else.
            OSError: The file cannot be written; then it is as it was.
        """
        with _alone(self.path.parent):
            lines = _lines(self.path)
            if name not in _known(self.path, lines):
                raise GatewayError(f"no user of this name in {self.path}", hint="dicom-mail user list")
            _write(self.path, [line for line in lines if _name(line) != name], self._reader)
        self.load()


def _prepared(password: str) -> str:
    # The same password typed on two systems may come composed or decomposed (RFC 4013 §2.2).
    return unicodedata.normalize("NFKC", password)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return lines if lines[-1] else lines[:-1]
    except FileNotFoundError:
        raise ConfigurationError(f"no users file {path}", hint="dicom-mail user add NAME") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: not UTF-8") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None


def _is_user(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def _name(line: str) -> str | None:
    return line.partition(":")[0] if _is_user(line) else None


def _known(path: Path, lines: list[str]) -> dict[str, tuple[str, str]]:
    """Hash and role by name."""
    known: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(lines, 1):
        if not _is_user(line):
            continue
        name, phc, role = _parts(line)
        if not (_NAME.fullmatch(name) and _is_argon2id(phc) and _ROLE.fullmatch(role)):
            raise ConfigurationError(f"{path}: line {number}: expected name:argon2id-hash or name:argon2id-hash:role")
        if name in known:
            raise ConfigurationError(f"{path}: line {number}: this user stands there twice")
        known[name] = (phc, role)
    return known


def _parts(line: str) -> tuple[str, str, str]:
    parts = line.rstrip("\r").split(":")
    if len(parts) == 2:
        parts.append(DEFAULT_ROLE)
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else ("", "", "")


def _is_argon2id(phc: str) -> bool:
    try:
        return extract_parameters(phc).type is Type.ID
    except (InvalidHashError, ValueError):
        return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other writers of a folder out: two users added at once are two users."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, lines: list[str], reader: Path) -> None:
    """Replace the file as a whole, on disk before it is seen: for its owner, and for its group where it was before."""
    text = "".join(f"{line}\n" for line in lines)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            # Root may add users for a daemon that is not root, and must not take the file away from it.
            owner = (path if path.exists() else reader).stat()
            with suppress(PermissionError):
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                if stat.S_ISREG(owner.st_mode):  # root's, and read by the gateway as of its group
                    os.fchmod(file.fileno(), stat.S_IRUSR | stat.S_IWUSR | (owner.st_mode & stat.S_IRGRP))
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
