"""Pseudonyms in the ledger: under which keyed hashes an item is found, and the key.

The key lies beside the ledger, in a file that only the gateway reads, and is made when it is first needed. Without it
the pseudonyms are noise; with another one what was written before is not found any more.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, bindparam, delete, insert, select

from gateway.core import pseudonym as words
from gateway.errors import GatewayError
from gateway.ledger.prepared import Prepared
from gateway.ledger.tables import pseudonym

KEY: Final = "search.key"
"""The name of the key's file in the data folder."""

# Asked with every instance of a modality.
_KNOWN: Final = Prepared(select(pseudonym.c.digest).where(pseudonym.c.message == bindparam("mine")))


def make_key(folder: Path) -> bytes:
    """Read the key of a data folder; make one when there is none. For its owner.

    Raises:
        GatewayError: It cannot be read or made.
    """
    path = folder / KEY
    if (key := read_key(folder)) is not None:
        return key
    new = secrets.token_bytes(words.KEY_BYTES)
    draft = path.with_suffix(".new")
    try:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, new)
            os.fsync(file)
        finally:
            os.close(file)
        draft.rename(path)  # whole or not at all: half a key would find nothing for ever
    except OSError as error:
        raise GatewayError(f"the key {path} cannot be made: {error.strerror}") from None
    return new


def read_key(folder: Path) -> bytes | None:
    """Read the key of a data folder; None when there is none yet.

    Raises:
        GatewayError: It cannot be read, or is no key.
    """
    path = folder / KEY
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GatewayError(f"the key {path} cannot be read: {error.strerror}", hint="is this its owner?") from None
    if len(key) != words.KEY_BYTES:
        raise GatewayError(
            f"{path} is no key: it has {len(key)} bytes, not {words.KEY_BYTES}",
            hint="put it back from a backup; without it patients of the past cannot be searched for",
        )
    return key


def note(connection: Connection, key: str, some: Iterable[str]) -> None:
    """Let an item be found under some pseudonyms, and under no others."""
    connection.execute(delete(pseudonym).where(pseudonym.c.message == key))
    rows = [{"message": key, "digest": digest} for digest in sorted(set(some))]
    if rows:
        connection.execute(insert(pseudonym), rows)


def known(connection: Connection, key: str) -> set[str]:
    """Under which pseudonyms an item is found."""
    return {digest for (digest,) in _KNOWN.ask(connection, {"mine": key})}
