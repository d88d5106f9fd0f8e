"""What we tell the log: JSON lines of event names and allow-listed facts, and nothing else (PRV-2, R35).

A log lies on machines and in the hands of people who may not see patient data. So nothing is trusted to be harmless: a
key that is not listed here does not come out, a value that does not look like its kind does not either, an exception is
its type and the line of our own code, and what a library wants to say is that it spoke, at which level.

Events are named as words with dashes or underscores (``smtp-session-failed``). Their place is standard error, one
object a line: systemd or the container's runtime keeps them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO

import structlog
from prometheus_client import Counter

from gateway.errors import ConfigurationError
from gateway.model import utc

WITHHELD: Final = Counter(
    "dicom_mail_log_values_withheld",
    "Values that were handed to the log and did not come out: their key is not listed, or they do not look like it.",
    registry=None,
)
"""Anything but 0 is a defect of ours, not a leak."""

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
"""The level names of the configuration."""

_TALKATIVE: Final = (
    "pynetdicom",
    "pydicom",
    "aioimaplib",
    "uvicorn",
    "asyncio",
    "sqlalchemy",
)
"""Libraries whose finer levels hold mail lines, data sets or PDUs: never even formatted."""


def _matches(pattern: str) -> Callable[[object], bool]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _number(value: object) -> bool:
    return isinstance(value, int | float)


def _address(value: object) -> bool:
    try:
        ipaddress.ip_address(str(value))
    except ValueError:
        return False
    return True


_word = _matches(r"[a-z][a-z0-9]*(?:[-_.][a-z0-9]+){0,7}")
_id = _matches(r"(?:in|out)-[A-Za-z0-9-]{1,40}")
_type = _matches(r"[A-Za-z_][A-Za-z0-9_.]{0,99}")
_name = _matches(r"[\w](?:[\w .+/-]{0,62}[\w])?")
_status = _matches(r"0x[0-9A-F]{4}|[245]\d\d|[245]\.\d{1,3}\.\d{1,3}")
_moment = _matches(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z")
_version = _matches(r"[0-9][0-9A-Za-z.+-]{0,31}")
_key = _matches(r"[A-Za-z0-9_.\[\]-]{1,80}")
_place = _matches(r"[a-z_.]{1,60}:\d{1,5}")


class _Explained(str):
    """The text of a ConfigurationError: it quotes the file of the hospital's IT, never a mail."""

    __slots__ = ()


ALLOWED: Final[Mapping[str, Callable[[object], bool]]] = {
    # what and where
    "event": _word,
    "level": _word,
    "logger": _type,
    "at": _moment,
    "where": _place,
    # items: our own ids, and the outer contract's words
    **dict.fromkeys(("id", "duplicate_of"), _id),
    **dict.fromkeys(("code", "direction", "kind", "outcome", "stage", "state", "reason", "verb", "signal"), _word),
    "status": lambda value: _status(value) or _number(value),
    # names from the configuration, chosen by the hospital
    **dict.fromkeys(("destination", "partner", "route", "mailbox", "door", "section", "listener"), _name),
    "key": _key,  # of the configuration
    # what is wrong with the configuration: the one text that comes out, and only from its own error
    "configuration": lambda value: isinstance(value, _Explained),
    # machines
    **dict.fromkeys(("peer", "host"), _address),
    "port": _number,
    "version": _version,
    "revision": _version,
    # amounts; a duration is in seconds, a size in bytes
    **dict.fromkeys(("attempt", "attempts", "connections", "count", "crashes", "instances", "messages"), _number),
    **dict.fromkeys(("delivered", "failed", "held", "refused", "waiting", "unknown", "sends"), _number),
    **dict.fromkeys(("seconds", "next_seconds", "size", "free", "parts", "findings", "associations"), _number),
    **dict.fromkeys(("pid", "rows", "tickets"), _number),
    # exceptions: type names only
    **dict.fromkeys(("exception", "error", "cause", "category"), _type),
}
"""Every key that may come out, and what its value must look like."""


def configure(level: str = "info", stream: TextIO | None = None) -> None:
    """Send every log line of this process through the allow-list, the libraries' and Python's own included.

    Call it once at the start of a process, worker processes too.

    Args:
        level: One of LEVELS.
        stream: Where lines go; absent, whatever standard error is when a line is written.
    """
    structlog.configure(
        processors=[_head, _exception, _allow, structlog.processors.JSONRenderer(ensure_ascii=True)],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *names: _Lines(stream, str(names[0]) if names else "gateway"),
    )
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Library)]:
        root.removeHandler(old)
    root.addHandler(_Library())
    root.setLevel(max(LEVELS[level], logging.WARNING))
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.showwarning = _on_warning
    sys.excepthook = _on_crash
    sys.unraisablehook = _on_unraisable
    threading.excepthook = _on_thread_crash


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a module, as ``log = logs.get(__name__)``. It may be made before ``configure``."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return logger


def where(trace: TracebackType | None) -> str:
    """The line of our own code that was nearest to what went wrong, as ``gateway.edges.smtp:443``."""
    found = ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] == "gateway":
            found = f"{module}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


class _Lines:
    """Where finished lines go. A log that cannot be written stops nothing: work is more than its log."""

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self.name = name
        self._stream = stream

    def write(self, line: str) -> None:
        stream = self._stream or sys.stderr
        with contextlib.suppress(OSError, ValueError):
            stream.write(f"{line}\n")
            stream.flush()

    debug = info = warning = error = critical = write


class _Library(logging.Handler):
    """What comes by Python's own logging: whose it is and how grave; its text may hold anything and is dropped."""

    def emit(self, record: logging.LogRecord) -> None:
        say = structlog.get_logger(record.name)
        exception = record.exc_info if record.exc_info and record.exc_info[0] else None
        if record.levelno >= logging.ERROR:
            say.error("library", exc_info=exception)
        else:
            say.warning("library", exc_info=exception)


def _head(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put first what every line begins with."""
    head = {"at": utc(datetime.now(UTC)), "level": method, "event": event.pop("event", None), "logger": logger.name}
    return {**head, **event}


def _exception(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace an exception by its type, the type of its cause and the line of ours; its text may hold anything."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]  # a group says only that there were some
    if isinstance(error, BaseException):
        event["exception"] = type(error).__name__
        if isinstance(error, ConfigurationError):
            event["configuration"] = _Explained(error)
        if found := where(error.__traceback__):
            event["where"] = found
        if cause := error.__cause__ or error.__context__:
            event["cause"] = type(cause).__name__
    return event


def _allow(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Let through what is listed and looks like it; count the rest."""
    kept = {key: value for key, value in event.items() if key in ALLOWED and (value is None or ALLOWED[key](value))}
    if withheld := len(event) - len(kept):
        WITHHELD.inc(withheld)
        kept["withheld"] = withheld
    kept.setdefault("event", "unnamed")
    return kept


def _on_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del message, filename, lineno, file, line
    structlog.get_logger("python").warning("python-warning", category=category.__name__)


def _on_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger("python").critical("crash", exc_info=(kind, error, trace))


def _on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    structlog.get_logger("python").error("unraisable", exc_info=unraisable.exc_value)


def _on_thread_crash(crash: threading.ExceptHookArgs) -> None:
    structlog.get_logger("python").error("thread-crash", exc_info=crash.exc_value)
