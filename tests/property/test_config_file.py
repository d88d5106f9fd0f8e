"""Whatever stands in a file: it is loaded, or refused in clear lines; nothing else ever happens."""

import json
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from gateway import config
from gateway.config.sections import SECTIONS, keys
from gateway.config.values import Door, Duration, Size, Surroundings
from gateway.errors import ConfigurationError

AROUND = Surroundings(Path("/etc/dicom-mail"), None, {})

WORDS = sorted({word for name, model in SECTIONS.items() for word in (*keys(model), *name.split("."))})
SCALARS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["5m", "35 MB", "127.0.0.1:0", "127.0.0.1", "*", "a@b.example", "any", "none", "pacs", ".", "/"]),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.dates(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(
    st.sampled_from(sorted(config.Configuration.model_fields)) | st.text(max_size=5), VALUES, max_size=6
)


def toml(value: object) -> str:
    """Write a value as TOML, inline."""
    match value:
        case dict():
            return "{" + ", ".join(f"{key_of(name)} = {toml(inner)}" for name, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(toml(inner) for inner in value) + "]"
        case str():
            return key_of(value)
        case bool():
            return str(value).lower()
        case date():
            return value.isoformat()
        case _:
            return str(value)


def key_of(text: str) -> str:
    """Write a text as a TOML basic string."""
    return json.dumps(text, ensure_ascii=True) if all(ord(c) < 0x10000 for c in text) else f'"{text}"'


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS)
def test_any_document_is_loaded_or_refused_line_by_line(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, object]
) -> None:
    """No other exception gets out, and no value breaks a line (R32)."""
    path = tmp_path_factory.getbasetemp() / "any.toml"
    text = "\n".join(f"{key_of(name)} = {toml(value)}" for name, value in document.items())
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        loaded = config.load(path)
    except ConfigurationError as error:
        lines = str(error).split("\n")
        assert all(line.startswith(f"{path}: ") and line.isprintable() for line in lines)
    else:
        assert all(advice.what and advice.do for advice in config.advice(loaded))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_clearly(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Bytes that are no configuration end in one clear error."""
    path = tmp_path_factory.getbasetemp() / "bytes.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError):
        config.load(path)


@given(st.integers(1, 10_000), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]))
def test_durations_mean_what_they_say(count: int, unit: tuple[str, float]) -> None:
    """A number and its unit, with or without a space."""
    adapter: TypeAdapter[timedelta] = TypeAdapter(Duration)
    for text in (f"{count}{unit[0]}", f"{count} {unit[0]}"):
        assert adapter.validate_python(text, context=AROUND) == timedelta(seconds=count * unit[1])


@given(
    st.integers(1, 10**15 - 1),
    st.sampled_from([("B", 1), ("kB", 10**3), ("MB", 10**6), ("KiB", 2**10), ("GiB", 2**30)]),
)
def test_sizes_mean_what_they_say(count: int, unit: tuple[str, int]) -> None:
    """To the byte, also where a float would round."""
    adapter: TypeAdapter[int] = TypeAdapter(Size)
    assert adapter.validate_python(f"{count} {unit[0]}", context=AROUND) == count * unit[1]


@given(st.ip_addresses(), st.integers(0, 65535))
def test_addresses_to_listen_on_come_back_as_they_went(address: object, port: int) -> None:
    """What is written in a message is what the file has."""
    adapter: TypeAdapter[config.Listen] = TypeAdapter(Door)
    listen = config.Listen(str(address), port)
    assert adapter.validate_python(str(listen), context=AROUND) == listen


@given(st.text(max_size=12))
def test_no_text_crashes_a_value(text: str) -> None:
    """Each kind of value takes a text or refuses it, and raises nothing else."""
    for kind in (Duration, Size, Door, config.ApplicationEntity.model_fields["downtime"].rebuild_annotation()):
        adapter: TypeAdapter[object] = TypeAdapter(kind)
        try:
            adapter.validate_python(text, context=AROUND)
        except ValidationError as error:
            assert error.error_count() == 1  # noqa: PT017 - both ways are good, an exception of another kind is not
