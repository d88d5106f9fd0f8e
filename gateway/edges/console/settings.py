"""The configuration in force as a page shows it: every key, whether the file sets it, and no secret."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, SecretStr

from gateway.config import Configuration

HIDDEN: Final = "hidden"
"""Stands for a secret. Where a secret lies in a file, the name of the file is none."""


@dataclass(frozen=True, slots=True)
class Table:
    """A section of the configuration.

    Attributes:
        name: As in the file.
        rows: Key, value in words, and whether the file sets it.
    """

    name: str
    rows: tuple[tuple[str, str, bool], ...]


def tables(configuration: Configuration) -> Iterator[Table]:
    """Yield every section that is in force."""
    for kind in type(configuration).model_fields:
        value = getattr(configuration, kind)
        if isinstance(value, BaseModel):
            yield _table(kind, value)
        elif isinstance(value, dict):
            for name, section in value.items():
                yield _table(f"{kind}.{name}", section)
        elif isinstance(value, tuple | list):
            for section in value:
                if isinstance(section, BaseModel):
                    yield _table(f'{kind} "{getattr(section, "name", "")}"', section)


def _table(name: str, section: BaseModel) -> Table:
    return Table(name, tuple(_rows(section)))


def _rows(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, bool]]:
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            yield from _rows(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key.rstrip('_')}", _written(value), key in section.model_fields_set


def _written(value: Any) -> str:
    match value:
        case SecretStr():
            return HIDDEN
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case dict():
            return ", ".join(f"{key} = {_written(one)}" for key, one in value.items())
        case tuple() | list() | set() | frozenset():
            return ", ".join(map(_written, value))
        case _:
            return str(value)
