"""The log says what is listed and nothing else (R35): whoever speaks, whatever they hand in."""

from __future__ import annotations

import ast
import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog

from gateway import logs
from gateway.errors import ConfigurationError, GatewayError

CANARY = "Kanarienvogel^Zyx"
PACKAGE = Path(__file__).parents[2] / "gateway"


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """A configured log that is read here; everything is put back behind the test."""
    for owner, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    stream = io.StringIO()
    logs.configure("debug", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    """What was written, less the time."""
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    for line in found:
        assert line.pop("at")
    return found


def test_a_listed_fact_comes_out_as_one_json_object(stream: io.StringIO) -> None:
    """Time, level, event, logger first; then the facts."""
    logs.get("gateway.edges.smtp").info("accepted", id="in-abc123", size=5, door="imap.radiology", duplicate_of=None)
    assert lines(stream) == [
        {
            "level": "info",
            "event": "accepted",
            "logger": "gateway.edges.smtp",
            "id": "in-abc123",
            "size": 5,
            "door": "imap.radiology",
            "duplicate_of": None,
        }
    ]


def test_what_is_not_listed_is_dropped_and_counted(stream: io.StringIO) -> None:
    """Neither an unknown key nor a value that does not look like its key comes out."""
    before = logs.WITHHELD._value.get()
    logs.get("x").info(
        "read", patient=CANARY, code=CANARY, id=CANARY, size=CANARY, status="0xA700", peer="::1", host=CANARY
    )
    assert lines(stream) == [
        {"level": "info", "event": "read", "logger": "x", "status": "0xA700", "peer": "::1", "withheld": 5}
    ]
    assert logs.WITHHELD._value.get() == before + 5


@pytest.mark.parametrize("event", [CANARY, "mail from Zyx Kanarienvogel", "Subject: x", "a" * 10 + " b", ""])
def test_a_sentence_is_no_event(stream: io.StringIO, event: str) -> None:
    """Free text cannot come out by the one place that every line has."""
    logs.get("x").error(event)
    assert lines(stream) == [{"level": "error", "event": "unnamed", "logger": "x", "withheld": 1}]


def test_an_exception_is_its_type_and_our_line(stream: io.StringIO) -> None:
    """Its text is dropped, that of its cause too, and no frame of a library is named."""

    def fail() -> None:
        try:
            int(CANARY)
        except ValueError as error:
            raise OSError(CANARY) from error

    ours = {"__name__": "gateway.stages.receive", "fail": fail}
    code = compile("def read():\n    fail()\n", "receive.py", "exec")
    exec(code, ours)
    try:
        ours["read"]()  # type: ignore[operator]
    except OSError:
        logs.get("x").exception("read-failed", code="unreadable")
    assert lines(stream) == [
        {
            "level": "error",
            "event": "read-failed",
            "logger": "x",
            "code": "unreadable",
            "exception": "OSError",
            "cause": "ValueError",
            "where": "gateway.stages.receive:2",
        }
    ]
    assert CANARY not in stream.getvalue()


def test_a_group_of_exceptions_speaks_by_its_first(stream: io.StringIO) -> None:
    """That a task group failed says nothing; what failed in it does."""
    group = ExceptionGroup(CANARY, [ExceptionGroup(CANARY, [KeyError(CANARY)]), OSError(CANARY)])
    logs.get("x").error("task-failed", exc_info=group)
    assert lines(stream) == [{"level": "error", "event": "task-failed", "logger": "x", "exception": "KeyError"}]


def test_only_an_error_of_the_configuration_is_quoted(stream: io.StringIO) -> None:
    """Why a reload was refused is for the hospital's IT; nobody else can use its key (R32)."""
    logs.get("x").error("reload-refused", exc_info=ConfigurationError("route.store: expected an AE", hint="add it"))
    logs.get("x").error("reload-refused", exc_info=GatewayError(CANARY), configuration=CANARY)
    assert [line.get("configuration") for line in lines(stream)] == ["route.store: expected an AE (add it)", None]
    assert CANARY not in stream.getvalue()


def test_a_library_is_heard_but_not_quoted(stream: io.StringIO) -> None:
    """Message, arguments and extra of a foreign record are dropped; its name, level and exception's type stay."""
    try:
        raise RuntimeError(CANARY)  # noqa: TRY301
    except RuntimeError:
        logging.getLogger("aiosmtpd").exception("%s is ill", CANARY, extra={"patient": CANARY})
    logging.getLogger("some.library").warning(CANARY)
    assert lines(stream) == [
        {"level": "error", "event": "library", "logger": "aiosmtpd", "exception": "RuntimeError"},
        {"level": "warning", "event": "library", "logger": "some.library"},
    ]


@pytest.mark.parametrize("name", ["mail.log", "pynetdicom.acse", "pydicom", "aioimaplib.aioimaplib", "asyncio"])
def test_talkative_libraries_are_not_even_asked(stream: io.StringIO, name: str) -> None:
    """At debug level too: their lines hold mail and data sets."""
    logging.getLogger(name).info(CANARY)
    assert not logging.getLogger(name).isEnabledFor(logging.INFO)
    assert stream.getvalue() == ""


def test_a_warning_of_python_is_its_category(stream: io.StringIO) -> None:
    """Its text may quote a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = logs._on_warning
        warnings.warn(CANARY, UserWarning, stacklevel=1)
    assert lines(stream) == [
        {"level": "warning", "event": "python-warning", "logger": "python", "category": "UserWarning"}
    ]


def test_crashes_nobody_caught_are_types_too(stream: io.StringIO) -> None:
    """Of the program, of a thread, of a destructor."""
    error = ValueError(CANARY)
    sys.excepthook(ValueError, error, None)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    threading.excepthook(SimpleNamespace(exc_value=error))  # type: ignore[arg-type]
    sys.unraisablehook(SimpleNamespace(exc_value=error))  # type: ignore[arg-type]
    assert [(line["event"], line["exception"]) for line in lines(stream)] == [
        ("crash", "ValueError"),
        ("thread-crash", "ValueError"),
        ("unraisable", "ValueError"),
    ]


def test_the_level_is_kept_and_configuring_twice_doubles_nothing(stream: io.StringIO) -> None:
    """One line each, and below the level none."""
    logs.configure("warning", stream)
    logs.get("x").info("quiet")
    logs.get("x").warning("loud")
    logging.getLogger("some.library").error("x")
    assert [line["event"] for line in lines(stream)] == ["loud", "library"]


def test_a_log_that_cannot_be_written_stops_nothing(stream: io.StringIO) -> None:
    """Work is more than its log."""
    stream.close()
    logs.get("x").info("lost")


def test_without_a_stream_lines_go_to_standard_error() -> None:
    """In a process of its own, with a crash at the end: one line each, and nothing of the text."""
    program = f"""
import asyncio, logging, warnings
from gateway import logs
from gateway.errors import ConfigurationError, GatewayError
logs.configure()
logs.get("gateway").info("started", port=25)
logging.getLogger("pydicom").warning("{CANARY}")
warnings.warn("{CANARY}")
async def fail():
    raise ValueError("{CANARY}")
async def main():
    asyncio.get_running_loop().create_task(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
asyncio.run(main())
raise RuntimeError("{CANARY}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert CANARY not in done.stderr
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["event"], line["logger"], line.get("exception")) for line in found] == [
        ("started", "gateway", None),
        ("library", "pydicom", None),
        ("python-warning", "python", None),
        ("library", "asyncio", "ValueError"),
        ("crash", "python", "RuntimeError"),
    ]


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of a logger in the package, with its place."""
    methods = {"debug", "info", "warning", "error", "critical", "exception"}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in methods
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id.strip("_") in {"log", "logger", "say"}
            ):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def test_every_call_in_the_package_comes_out_whole() -> None:
    """Events are constant words, and every key that is handed in is listed."""
    wrong = []
    for place, call in log_calls():
        event = call.args[0].value if len(call.args) == 1 and isinstance(call.args[0], ast.Constant) else None
        if not logs.ALLOWED["event"](event):
            wrong.append(f"{place}: the event is no constant word")
        wrong += [
            f"{place}: {key.arg} is not listed"
            for key in call.keywords
            if key.arg != "exc_info" and key.arg not in logs.ALLOWED
        ]
    assert wrong == []
