"""PostgreSQL: a cluster of its own, reached through a socket in its folder."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psycopg
from peer import Peer, absent


def _binaries() -> Path:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    if not versions:
        absent("postgresql is not installed: tests/peers/install")
    return versions[-1].parent


class PostgreSQL(Peer):
    """An empty PostgreSQL that listens on no port. Its durability is off: it lives as long as the tests."""

    farewell = signal.SIGINT  # SIGTERM would wait until every client has gone

    def __init__(self) -> None:
        super().__init__()
        self._names = (f"test{number}" for number in itertools.count())
        # It refuses to run as root.
        self._as = [shutil.which("setpriv") or "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        self._as = self._as if os.geteuid() == 0 else []

    def command(self) -> Sequence[str]:
        binaries, data = _binaries(), self.folder / "data"
        if not data.exists():
            if self._as:
                shutil.chown(self.folder, "postgres", "postgres")
            subprocess.run(
                [
                    *self._as,
                    str(binaries / "initdb"),
                    "-D",
                    str(data),
                    "-U",
                    "gateway",
                    "-A",
                    "trust",
                    "-E",
                    "UTF8",
                    "-N",
                ],
                check=True,
                capture_output=True,
                cwd="/",
            )
        return [*self._as, str(binaries / "postgres"), "-D", str(data), "-k", str(self.folder), "-F", "-h", ""]

    def ready(self) -> bool:
        try:
            psycopg.connect(self._conninfo).close()
        except psycopg.OperationalError:
            return False
        return True

    def database(self) -> str:
        """The SQLAlchemy URL of a new, empty database."""
        name = next(self._names)
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgresql+psycopg://gateway@/{name}?host={self.folder}"

    @property
    def _conninfo(self) -> str:
        return f"host={self.folder} user=gateway dbname=postgres"
