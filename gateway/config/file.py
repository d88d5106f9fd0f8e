"""The configuration file: found, read, and every problem in it named in one go.

One line for each problem: the file, the key, the value (never a secret), what is expected, the nearest known name.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from gateway.config.sections import DEFAULT_PATH, NAMED, SECTIONS, Configuration, keys, section_at
from gateway.config.values import NAME, Surroundings, nearest, quote
from gateway.errors import ConfigurationError

MAX_FILE: Final = 1 << 20
"""Bytes that a configuration may have; more is no configuration."""


def find(option: Path | None, environ: Mapping[str, str]) -> Path:
    """Say which file is meant: the option, else ``$DICOM_MAIL_CONFIG``, else ``DEFAULT_PATH``."""
    if option is not None:
        return option
    return Path(environ.get("DICOM_MAIL_CONFIG") or DEFAULT_PATH)


def load(path: Path, *, credentials: Path | None = None) -> Configuration:
    """Read and check a configuration file.

    Args:
        path: The TOML file.
        credentials: Folder that is looked at first for secrets; ``$CREDENTIALS_DIRECTORY`` when None.

    Raises:
        ConfigurationError: It cannot be used. The text has one line for each problem, never the value of a secret.
    """
    document = _read(path)
    if credentials is None and (named := os.environ.get("CREDENTIALS_DIRECTORY")):
        credentials = Path(named)
    names = {kind: frozenset(_table(document, kind)) for kind in ("ae", "partner", "imap", "pop3")}
    problems = [*_strange_texts(document), *_clashes(document)]
    try:
        configuration = Configuration.model_validate(
            document, context=Surroundings(path.absolute().parent, credentials, names)
        )
    except ValidationError as error:
        problems += [_Problem.of(detail, document) for detail in error.errors(include_url=False) if not _echo(detail)]
    if problems:
        raise ConfigurationError("\n".join(f"{path}: {problem}" for problem in problems))
    configuration.remember(path.absolute())
    return configuration


def _echo(detail: Mapping[str, Any]) -> bool:
    """Whether an error only follows from another one: a default that could not be made, a list whose items fell out."""
    return detail["type"] == "default_factory_not_called" or (detail["type"] == "too_short" and bool(detail["input"]))


def _read(path: Path) -> dict[str, Any]:
    content = _content(path)
    try:
        # QUIRK: Windows editors put a byte order mark first.
        document = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}: not UTF-8 (at line {line})") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: not TOML: nested too deep") from None
    except ValueError as error:  # TOMLDecodeError, and numbers too long for int()
        raise ConfigurationError(f"{path}: not TOML: {error}") from None
    if not document:
        raise ConfigurationError(f"{path}: is empty; expected at least [gateway] with name, postmaster and data")
    return document


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file; name one with --config or $DICOM_MAIL_CONFIG") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigurationError("the configuration: its name has a NUL and is no file name") from None
    if len(content) > MAX_FILE:
        raise ConfigurationError(f"{path}: longer than 1 MiB; this is no configuration")
    return content


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is wrong with one key."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"

    @classmethod
    def of(cls, detail: Mapping[str, Any], document: Mapping[str, Any]) -> _Problem:
        location = tuple(part for part in detail["loc"] if part != "[key]")
        key = _spell(location, document)
        value = "" if isinstance(detail["input"], dict | list) else _show(location, detail["input"])
        match detail["type"]:
            case "missing":
                return cls(key, f"missing; expected {_table_at(location) or _wanted(location)}")
            case "extra_forbidden":
                return cls(f"{key}{value}", f"unknown key{_nearest_key(location)}")
            case "value_error":
                return cls(f"{key}{value}", str(detail["ctx"]["error"]))
            case other:
                return cls(
                    f"{key}{value}", f"expected {_table_at(location) or _expected(other, detail.get('ctx', {}))}"
                )


_KINDS = {
    "string_type": "text in quotes",
    "path_type": "a path in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "tuple_type": 'a list, as ["…"]',
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}


def _table_at(location: tuple[str | int, ...]) -> str:
    """What a table must look like where there is something else; empty where no table belongs."""
    if location == ("route",):
        return "tables, as [[route]]"
    if len(location) == 2 and location[0] in NAMED:
        return f"a section with a name, as [{location[0]}.NAME]"
    if len(location) == 1:
        return f"a section, as [{location[0]}{'.NAME' if location[0] in NAMED else ''}]"
    return ""


def _expected(kind: str, context: Mapping[str, Any]) -> str:
    match kind:
        case "literal_error":
            return str(context["expected"]).replace("'", '"')
        case "greater_than_equal":
            return f"{context['ge']} or more"
        case "less_than_equal":
            return f"{context['le']} or less"
        case "string_too_short":
            return "text that is not empty"
        case "too_short":
            return "a list that is not empty"
        case _:
            return _KINDS.get(kind, f"another value ({kind})")


_EXAMPLES = {
    "title": "an AE title",
    "host": "a host name or an IP address",
    "port": "a number from 1 to 65535",
    "address": "a mail address",
    "postmaster": "a mail address",
    "sender": "a mail address",
    "listen": 'an address and a port as "0.0.0.0:11112"',
    "name": "a name",
}


def _wanted(location: tuple[str | int, ...]) -> str:
    """What a missing key would have to be."""
    key = str(location[-1])
    return _EXAMPLES.get(key, "a file" if key.endswith("_file") or key == "certificate" else "text in quotes")


def _name_of_route(document: Mapping[str, Any], index: int) -> object:
    """What a route calls itself; anything may stand in its place."""
    routes = document.get("route")
    route = routes[index] if isinstance(routes, list) else None
    return route.get("name") if isinstance(route, dict) else None


def _spell(location: Iterable[str | int], document: Mapping[str, Any]) -> str:
    """Write a key as a person finds it: ``ae.pacs.port``, ``route "name".store[2]``; lists count from 1."""
    spelled = ""
    parts = list(location)
    if len(parts) > 1 and parts[0] == "route" and isinstance(parts[1], int):
        name = _name_of_route(document, parts[1])
        spelled = f"route {quote(name)}" if isinstance(name, str) else f"route[{parts[1] + 1}]"
        parts = parts[2:]
    for part in parts:
        if isinstance(part, int):
            spelled += f"[{part + 1}]"
        else:
            spelled += ("." if spelled else "") + (part if _BARE_KEY.fullmatch(part) else quote(part))
    return spelled


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")  # TOML 1.0, Keys
_SECRET_KEY = re.compile(r"pass(word|phrase)?$|secret$|token$|^key$|database$|blobs$|webhook$|_url$", re.IGNORECASE)


def _show(location: tuple[str | int, ...], value: object) -> str:
    """Show a value behind its key, as it would stand in the file; never one that may be a secret."""
    if any(_SECRET_KEY.search(str(part)) for part in location):
        return ""
    if isinstance(value, str):
        return f" = {quote(value)}"
    return f" = {json.dumps(value, default=str)}"


def _nearest_key(location: tuple[str | int, ...]) -> str:
    known, word = keys(section_at(location[:-1])), str(location[-1])
    if near := nearest(word, known):
        return near
    if _SECRET_KEY.search(word):
        return "; secrets are files, never values in here"
    homes = [name for name, home in SECTIONS.items() if word in keys(home)]
    return f"; it belongs to [{homes[0]}]" if homes else f"; expected one of {', '.join(known)}"


def _table(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _routes(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    routes = document.get("route")
    return [route for route in routes if isinstance(route, dict)] if isinstance(routes, list) else []


def _strange_texts(table: object, location: tuple[str | int, ...] = ()) -> Iterator[_Problem]:
    """Find control characters: they have no place in a name, a path or a header."""
    if isinstance(table, dict):
        for key, value in table.items():
            yield from _strange_texts(value, (*location, key))
    elif isinstance(table, list):
        for index, value in enumerate(table):
            yield from _strange_texts(value, (*location, index))
    elif isinstance(table, str) and any(unicodedata.category(character) in {"Cc", "Cs"} for character in table):
        yield _Problem(_spell(location, {}), "expected text without control characters")


def _clashes(document: Mapping[str, Any]) -> Iterator[_Problem]:
    """Find what contradicts itself between sections. Tolerant: wrong types are named elsewhere."""
    yield from _bad_names(document)
    yield from _repeated("route", "name", enumerate(route.get("name") for route in _routes(document)))
    addresses = (
        (name, _table(_table(document, "partner"), name).get("address")) for name in _table(document, "partner")
    )
    yield from _repeated("partner", "address", addresses)
    yield from _shared_doors(document)
    for index, route in enumerate(_routes(document)):
        for section in ("storescp", "relay"):
            if route.get("mail") and section not in document:
                yield _Problem(
                    f"{_spell(('route', index), document)}.mail", f"needs a section [{section}]; there is none"
                )


def _bad_names(document: Mapping[str, Any]) -> Iterator[_Problem]:
    for kind in ("ae", "partner", "imap", "pop3"):
        for name, section in _table(document, kind).items():
            if isinstance(section, dict) and not NAME.fullmatch(name):
                yield _Problem(kind, f"expected a name of letters, digits, '_', '-' and '.', not {quote(name)}")
    for name in _table(document, "imap").keys() & _table(document, "pop3").keys():
        yield _Problem(f"pop3.{name}", f"expected another name; there is [imap.{name}] already")


def _repeated(kind: str, key: str, values: Iterable[tuple[int | str, object]]) -> Iterator[_Problem]:
    seen: dict[str, int | str] = {}
    for name, value in values:
        if not isinstance(value, str):
            continue
        if (first := seen.setdefault(value.lower(), name)) != name:
            where = f"{kind}[{name + 1}]" if isinstance(name, int) else f"{kind}.{name}"
            other = f"{kind}[{first + 1}]" if isinstance(first, int) else f"{kind}.{first}"
            yield _Problem(f"{where}.{key} = {quote(value)}", f"expected another one; {other} has it already")


def _shared_doors(document: Mapping[str, Any]) -> Iterator[_Problem]:
    seen: dict[str, str] = {}
    for section, key in (
        ("smtp", "listen"),
        ("smtp", "implicit_tls_listen"),
        ("storescp", "listen"),
        ("console", "listen"),
        ("metrics", "listen"),
    ):
        value = _table(document, section).get(key)
        if not isinstance(value, str) or value.endswith(":0"):  # port 0: the system keeps them apart
            continue
        if (first := seen.setdefault(value, f"{section}.{key}")) != f"{section}.{key}":
            yield _Problem(f"{section}.{key} = {quote(value)}", f"expected another address; {first} listens there")
