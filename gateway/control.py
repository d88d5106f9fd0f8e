"""The operator's verbs on the queue: asked of the running daemon, or done here when none runs.

Questions (list, show, reconcile) are read from the ledger, beside whoever writes it. Changes go through the control
socket in the data folder, mode 0600, and the daemon records who asked. When no daemon runs, the caller takes the lock
of the data folder and does the work itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from gateway.config import Configuration
from gateway.errors import GatewayError, LedgerError, UsageError
from gateway.ledger import deliveries, inventory, restoration, verbs
from gateway.ledger.ledger import Lock, connect, schema
from gateway.ledger.spool import Scrap, held_bytes, wipe
from gateway.ledger.submissions import RELAY
from gateway.ledger.tables import metadata

log = structlog.get_logger(__name__)

PATIENCE: Final = 30.0
"""Seconds the command line waits for the daemon."""

LONGEST_LINE: Final = 1 << 16

Document = dict[str, Any]


def ledger_url(configuration: Configuration) -> str:
    """Where the ledger of a configuration lies."""
    return f"sqlite:///{configuration.gateway.data / 'ledger.sqlite'}"


def ledger_files(configuration: Configuration) -> list[Path]:
    """The files of the ledger, some of which may not be there."""
    path = configuration.gateway.data / "ledger.sqlite"
    return [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")]


def spool_root(configuration: Configuration) -> Path:
    """Where the bytes of a configuration lie."""
    return configuration.gateway.data / "spool"


def call(configuration: Configuration, verb: str, **arguments: Any) -> Document:
    """Do one verb and return its JSON document.

    Args:
        configuration: Names the data folder and the destinations.
        verb: ``list``, ``show``, ``reconcile``, ``retry``, ``hold``, ``release``, ``drop``, ``resolve``, ``pause`` or
            ``resume``.
        arguments: What the verb needs, as ``id`` or ``outcome``.

    Raises:
        GatewayError: The id is unknown, the verb has no meaning now, or ledger or daemon cannot be reached.
    """
    if verb in _QUESTIONS:
        return _ask(configuration, verb, arguments)
    answer = ask_daemon(configuration, verb, arguments)
    return answer if answer is not None else _do_alone(configuration, verb, arguments)


# Questions


def _list(connection: Connection, _root: Path, arguments: Mapping[str, Any]) -> Document:
    return inventory.list_items(connection, datetime.now(UTC), **arguments)


def _show(connection: Connection, _root: Path, arguments: Mapping[str, Any]) -> Document:
    return inventory.show_item(connection, arguments["id"], datetime.now(UTC))


def _original(connection: Connection, root: Path, arguments: Mapping[str, Any]) -> Document:
    return {"path": str(root / inventory.original(connection, arguments["id"]))}


def _reconcile(connection: Connection, root: Path, _arguments: Mapping[str, Any]) -> Document:
    return inventory.reconcile(connection, partial(held_bytes, root))


_QUESTIONS: Final[Mapping[str, Callable[[Connection, Path, Mapping[str, Any]], Document]]] = {
    "list": _list,
    "show": _show,
    "original": _original,
    "reconcile": _reconcile,
}


def _ask(configuration: Configuration, verb: str, arguments: Mapping[str, Any]) -> Document:
    with reading(configuration) as connection:
        return _QUESTIONS[verb](connection, spool_root(configuration), arguments)


@contextlib.contextmanager
def reading(configuration: Configuration) -> Iterator[Connection]:
    """Read the ledger beside whoever writes it; everything is seen at one moment.

    Raises:
        LedgerError: It cannot be read, or it is of another release.
    """
    path = configuration.gateway.data / "ledger.sqlite"
    try:
        exists = path.exists()
    except OSError as error:
        raise LedgerError(f"the ledger {path} cannot be read: {error.strerror}") from None
    # Before the first start there is nothing, and that is no error.
    engine = create_engine(f"sqlite:///{path}" if exists else "sqlite://", hide_parameters=True)
    try:
        with engine.connect() as connection:
            if exists:
                connection.execute(text("PRAGMA busy_timeout = 10000"))
                # Without it each question would see another moment, and the proof would not add up beside a writer.
                connection.execute(text("BEGIN"))
                _demand_release(connection, path)
            else:
                metadata.create_all(connection)
            yield connection
    except GatewayError:
        raise
    except Exception as error:
        raise LedgerError(
            f"the ledger {path} cannot be read: {type(error).__name__}",
            hint="is this its owner, and is it of this release?",
        ) from error
    finally:
        engine.dispose()


def _demand_release(connection: Connection, path: Path) -> None:
    current, wanted = schema(connection)
    if current is not None and current != wanted:
        raise LedgerError(
            f"the ledger {path} is of an earlier release (schema {current}, this one has {wanted})",
            hint="start the gateway of this release once: it brings the ledger up to date",
        )


# Changes


def change(connection: Connection, verb: str, arguments: Mapping[str, Any], who: str) -> list[Scrap]:
    """Do one change inside a transaction; return the bytes that are to be wiped after it is committed.

    Raises:
        GatewayError: The verb has no meaning for this id now.
    """
    now = datetime.now(UTC)
    match verb, dict(arguments):
        case "retry", {"id": key, **rest}:
            verbs.retry(connection, key, now, who, force=bool(rest.get("force")))
        case "hold", {"id": key}:
            verbs.hold(connection, key, now, who)
        case "release", {"id": key}:
            verbs.release(connection, key, now, who)
        case "drop", {"id": key, **rest}:
            scraps = verbs.drop(connection, key, now, who)
            if rest.get("erase"):
                verbs.erased(connection, key, now, who)
                return scraps
        case "resolve", {"id": key, "verdict": ("delivered" | "resend" | "dropped") as verdict}:
            verbs.resolve(connection, key, verdict, now, who)
        case (("pause" | "resume"), {"ae": name}):
            restoration.pause(connection, name, verb == "pause", now, who)
        case _:
            raise UsageError(f"there is no verb {verb} with these arguments")
    return []


def describe(connection: Connection, arguments: Mapping[str, Any]) -> Document:
    """What a change answers with: the item as it is now, or the destination."""
    if "id" in arguments:
        return inventory.show_item(connection, arguments["id"], datetime.now(UTC))
    condition = deliveries.condition(connection, arguments["ae"])
    return {"name": lane_name(condition.name), "paused": condition.paused, "trouble": condition.trouble}


def lanes(configuration: Configuration) -> list[str]:
    """Every lane there is: the destinations, and the relay."""
    return [*configuration.ae, *([RELAY] if configuration.relay is not None else [])]


def lane_name(lane: str) -> str:
    """What people call a lane."""
    return "relay" if lane == RELAY else lane


def resolve_lane(configuration: Configuration, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Find the lane that a person names: a destination, or the relay where no destination is called so.

    Raises:
        GatewayError: There is no such lane.
    """
    name = arguments.get("ae")
    if name is None or name in lanes(configuration):
        return dict(arguments)
    if name != lane_name(RELAY) or configuration.relay is None:
        known = ", ".join(map(lane_name, lanes(configuration))) or "none"
        raise GatewayError(f"there is no destination {name}", hint=f"configured: {known}")
    return {**arguments, "ae": RELAY}


def _do_alone(configuration: Configuration, verb: str, arguments: Mapping[str, Any]) -> Document:
    arguments = resolve_lane(configuration, arguments)
    lock = Lock(configuration.gateway.data)
    try:
        engine = connect(ledger_url(configuration))
        try:
            with engine.begin() as connection:
                scraps = change(connection, verb, arguments, person(os.getuid()))
            for scrap in scraps:
                wipe(spool_root(configuration), scrap)
            with engine.connect() as connection:
                return describe(connection, arguments)
        except (SQLAlchemyError, OSError) as error:
            raise LedgerError(f"it could not be done: {type(error).__name__}") from error
        finally:
            engine.dispose()
    finally:
        lock.release()


# The socket


def ask_daemon(configuration: Configuration, verb: str, arguments: Mapping[str, Any]) -> Document | None:
    """Ask the running daemon; None when none runs.

    Raises:
        GatewayError: It said no, or nothing.
    """
    path = configuration.gateway.data / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
        wire.settimeout(PATIENCE)
        try:
            wire.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise GatewayError(f"the control socket {path} cannot be used: {error.strerror or error}") from None
        try:
            wire.sendall(json.dumps({"verb": verb, "arguments": arguments}).encode() + b"\n")
            with wire.makefile("rb") as stream:
                answer = json.loads(stream.read())
        except (OSError, ValueError):
            raise GatewayError("the gateway gave no answer on its control socket") from None
    if "error" in answer:
        kind = UsageError if answer["exit"] == UsageError.exit_code else GatewayError
        raise kind(answer["error"], hint=answer["hint"])
    document: Document = answer["result"]
    return document


class ControlSocket:
    """The daemon's side of the control socket.

    Args:
        path: Where it lies; a stale one of a former life is replaced, which the lock on the folder makes safe.
        perform: Does a verb for a person and returns its document.
    """

    def __init__(self, path: Path, perform: Callable[[str, Mapping[str, Any], str], Any]) -> None:
        self._path = path
        self._perform = perform
        self._server: asyncio.Server | None = None
        self._working: set[asyncio.Task[Document]] = set()

    async def open(self) -> None:
        """Begin to listen.

        Raises:
            GatewayError: The socket cannot be made.
        """
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=LONGEST_LINE)
        except OSError as error:
            raise GatewayError(f"the control socket {self._path} cannot be made: {error.strerror or error}") from None
        finally:
            os.umask(before)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                work = asyncio.create_task(self._answer(await reader.readline(), _peer(writer)))
                self._working.add(work)
                work.add_done_callback(self._working.discard)
                # Who waits no longer ends nothing: half a drop would say that bytes are wiped that are there.
                answer = await asyncio.shield(work)
                writer.write(json.dumps(answer).encode())
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError):
            pass  # the caller is gone or talks nonsense; nothing was begun, or it is on record
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, line: bytes, who: str) -> Document:
        try:
            request = json.loads(line)
            result = await self._perform(request["verb"], request["arguments"], who)
        except GatewayError as error:
            return {"error": error.text, "hint": error.hint, "exit": error.exit_code}
        except Exception as error:  # noqa: BLE001  the caller gets a line, the log the type, the daemon goes on
            log.error("control_failed", exception=type(error).__name__)  # noqa: TRY400
            return {"error": f"the gateway failed: {type(error).__name__}", "hint": "", "exit": 1}
        return {"result": result}


def _peer(writer: asyncio.StreamWriter) -> str:
    """Name the person at the other end, as the kernel knows it."""
    wire = writer.get_extra_info("socket")
    _, uid, _ = struct.unpack("3i", wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return person(uid)


def person(uid: int) -> str:
    """Name a user of this machine."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container runs under any number
        return f"uid {uid}"
