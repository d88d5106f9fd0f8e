"""What the gateway states about itself (CS-1 to CS-13). The words are in ``statement.md``, the facts are from the code.

Nothing here says what is supported: each table is asked of the module that decides about it, so that the statement
cannot promise what the gateway does not do.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markdown_it import MarkdownIt
from pydantic import BaseModel
from pydicom.uid import UID, AllTransferSyntaxes

from gateway import __version__, model
from gateway.config import Configuration
from gateway.config.sections import SECTIONS
from gateway.core import commitment, contexts, negotiation, patient, query, records, status
from gateway.edges.storescp import answers

_NETWORK: Final = ("limits", "ae.NAME", "ae.NAME.tls", "storescp", "storescp.tls", "route")
"""Tables of the configuration that change what the gateway does on the network or with a file-set."""

_HTML: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>DICOM conformance statement</title>
<style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ border: 1px solid #999; padding: .25rem .5rem; text-align: left; vertical-align: top; }}
th {{ background: #eee; }}
@media print {{ body {{ max-width: none; margin: 0; font-size: 9pt; }} tr {{ break-inside: avoid; }} }}
</style>
{body}</html>
"""


class Form(StrEnum):
    """What a statement is written in."""

    MARKDOWN = "md"
    HTML = "html"


class Named(NamedTuple):
    """A UID and the name the standard gives it."""

    name: str
    uid: str


class StorageClass(NamedTuple):
    """A SOP class of storage, and the directory record that describes its instances (PS3.3 Table F.4-1)."""

    name: str
    uid: str
    record: str


class Syntax(NamedTuple):
    """A transfer syntax.

    Attributes:
        name: The standard's.
        uid: Its UID.
        decoded: Whether it is decoded for a destination that refuses it: ``yes``, ``no``, or ``where allowed``.
    """

    name: str
    uid: str
    decoded: str


class Answer(NamedTuple):
    """A status of C-STORE and what follows from it (CS-7)."""

    status: str
    meaning: str
    behaviour: str


class Setting(NamedTuple):
    """A setting of the configuration (CS-13).

    Attributes:
        key: As the TOML spells it.
        default: What it is when nobody sets it.
        meaning: From the model's own words.
    """

    key: str
    default: str
    meaning: str


BEHAVIOUR: Final = {
    status.Action.DELIVERED: "Counts as delivered; a warning is recorded with the instance.",
    status.Action.DUPLICATE: "Counts as delivered where the gateway's own record agrees; else as held.",
    status.Action.RETRY: "Sent again after a growing pause",
    status.Action.INSTANCE: "The instance fails and a person is told; the others go on.",
    status.Action.CLASS: "Instances of this class and syntax fail for this peer and a person is told.",
    status.Action.DESTINATION: "Nothing is sent to the peer until a C-ECHO succeeds; a person is told.",
    status.Action.STOP: "Sending to the peer stops and a person is told.",
    status.Action.UNKNOWN: "In doubt: counted, spaced, repeated after a C-ECHO; held after `unknown_sends` of them.",
}
"""What the Storage SCU does, in words for a reader of the statement."""


def write(configuration: Configuration | None, form: Form = Form.MARKDOWN) -> str:
    """Write the statement.

    Args:
        configuration: The installation it is about; None: the product, as it is before anybody configures it.
        form: Markdown, or one HTML page without anything external.
    """
    text = _environment().get_template("statement.md").render(facts(configuration))
    if form is Form.MARKDOWN:
        return text
    return _HTML.format(body=MarkdownIt("commonmark", {"html": False}).enable("table").render(text))


def facts(configuration: Configuration | None) -> dict[str, Any]:
    """Gather everything the words of the statement name."""
    return {
        "version": __version__,
        "class_uid": model.IMPLEMENTATION_CLASS_UID,
        "version_name": model.IMPLEMENTATION_VERSION_NAME,
        "classes": tuple(_classes()),
        "private_record": records.PRIVATE,
        "syntaxes": tuple(_syntaxes()),
        "fall_backs": tuple(Named(UID(each).name, each) for each in contexts.FALL_BACKS),
        "verification": _named(contexts.VERIFICATION[0]),
        "commitment": _named(commitment.SOP_CLASS),
        "query": _named(query.SOP_CLASS),
        "answers": tuple(_answers()),
        "statuses": tuple(answers.STATUSES.items()),
        "rejections": tuple(answers.REJECTIONS.items()),
        "reasons": tuple((f"0x{code:04X}", meaning) for code, meaning in commitment.REASONS.items()),
        "character_sets": tuple(term for term in patient.CHARACTER_SETS if term),
        "settings": {table: tuple(_settings(SECTIONS[table])) for table in _NETWORK},
        "most_contexts": contexts.MOST,
        "configuration": configuration,
    }


def _environment() -> Environment:
    # No page for a browser comes out of it unescaped: the HTML form is made of the Markdown, with HTML switched off.
    return Environment(
        loader=FunctionLoader(lambda name: files("gateway.conformance").joinpath(name).read_text(encoding="utf-8")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - as said above
    )


def _named(uid: str) -> Named:
    return Named(UID(uid).name, uid)


def _classes() -> Iterator[StorageClass]:
    for uid in sorted(negotiation.STORAGE, key=lambda one: [int(part) for part in one.split(".")]):
        yield StorageClass(UID(uid).name, uid, records.TYPES.get(uid, records.PRIVATE))


def _syntaxes() -> Iterator[Syntax]:
    for uid in AllTransferSyntaxes:
        if negotiation.choose((uid,)) is None:
            continue
        decoded = "yes" if uid in contexts.DECODABLE else "where allowed" if uid in contexts.LOSSY else "no"
        yield Syntax(uid.name, str(uid), decoded)


def _answers() -> Iterator[Answer]:
    for row in status.TABLE:
        codes = f"0x{row.first:04X}" if row.first == row.last else f"0x{row.first:04X} to 0x{row.last:04X}"
        yield Answer(codes, row.verdict.meaning, _behaviour(row.verdict))
    yield Answer("any other", status.UNLISTED.meaning, _behaviour(status.UNLISTED))
    yield Answer("none", status.NO_ANSWER.meaning, _behaviour(status.NO_ANSWER))
    for verdict in status.REFUSALS.values():
        yield Answer("not sent", verdict.meaning, _behaviour(verdict))


def _behaviour(verdict: status.Verdict) -> str:
    words = BEHAVIOUR[verdict.action]
    if verdict.action is not status.Action.RETRY:
        return words
    return f"{words}, {verdict.tries} times, then failed." if verdict.bounded else f"{words}, until `give_up`."


def _settings(section: type[BaseModel]) -> Iterator[Setting]:
    meanings = _meanings(section)
    for name, field in section.model_fields.items():
        if field.is_required():
            default = "required"
        elif field.default_factory is not None:
            default = "depends"
        else:
            default = _size(field.default) if field.annotation is int else _plain(field.default)
        yield Setting(field.alias or name, default, meanings[name])


def _meanings(section: type[BaseModel]) -> dict[str, str]:
    """The words of a model's docstring, by attribute."""
    found: dict[str, str] = {}
    name = ""
    for line in (section.__doc__ or "").partition("Attributes:")[2].splitlines():
        text = line.strip()
        if line.startswith(" " * 8) and not line.startswith(" " * 9):
            name, _, text = text.partition(": ")
            found[name] = text
        elif text:
            found[name] += f" {text}"
    return {key: text.replace("``", "`").replace("None: ", "absent: ") for key, text in found.items()}


def _plain(value: object) -> str:
    """Write a default as the configuration would."""
    if value is None:
        return "absent"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, tuple):
        return "none" if not value else ", ".join(map(str, value))
    return f"`{value}`" if isinstance(value, str | Path) else str(value)


def _size(value: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if value and value % size == 0:
            return f"{value // size} {unit}"
    return str(value)


def _duration(value: timedelta) -> str:
    seconds = int(value.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
