"""A transaction on each database the ledger may live in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine

from gateway.ledger.ledger import connect


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """The databases that were asked for, each opened once."""
    opened: dict[str, Engine] = {"sqlite": connect(f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'ledger.sqlite'}")}
    yield opened
    for engine in opened.values():
        engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peer)])
def connection(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> Iterator[Connection]:
    """A transaction that is rolled back, once on SQLite and once on PostgreSQL."""
    kind = request.param
    if kind not in engines:
        engines[kind] = connect(request.getfixturevalue("postgresql").database())
    with engines[kind].connect() as made, made.begin() as transaction:
        made.info.pop("ticket", None)
        yield made
        transaction.rollback()
