"""Worker processes: bounded, replaced when they die, and never believed beyond values."""

from __future__ import annotations

import asyncio
import errno
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core import reader
from gateway.core.reader import Rules
from gateway.edges import worker as workers
from gateway.edges.worker import Workers, _attempt, _open_answer
from gateway.errors import GatewayError, WorkerError
from gateway.model import Envelope, Finding, Outcome, Reading, Severity, Span

RULES = Rules(100, 8, 1 << 20, 1 << 30, 1 << 30, 200)


@pytest.fixture
async def one() -> AsyncIterator[Workers]:
    """A pool of one worker with little patience and little memory."""
    made = Workers(1, memory=256 << 20, seconds=5)
    await made.open()
    yield made
    await made.close()


def mail(folder: Path) -> tuple[Span, Path]:
    path, out = folder / "mail", folder / "out"
    path.write_bytes(b"From: a@b\r\nContent-Type: application/dicom\r\n\r\nno DICOM\r\n")
    out.write_bytes(b"")
    return Span(path, 0, path.stat().st_size), out


async def read(pool: Workers, folder: Path) -> Reading:
    span, out = mail(folder)
    return await pool.run(reader.read_to, span, RULES, out)


async def test_a_message_is_read_by_another_process(one: Workers, tmp_path: Path) -> None:
    """Values come back, enumerations as themselves."""
    found = await read(one, tmp_path)
    assert found.kind == "dicom"
    assert found.findings[0].severity is Severity.WARNING


async def test_what_a_function_says_comes_back_as_it_was(one: Workers, tmp_path: Path) -> None:
    """An error of the disk stays one; a bug is named by its type alone (R35)."""
    span, _ = mail(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        await one.run(reader.read_to, span, RULES, tmp_path / "nowhere" / "out")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(WorkerError, match=r"the worker failed: AttributeError$"):
        await one.run(reader.read_to, "SECRET", RULES, tmp_path / "out")  # type: ignore[arg-type]
    assert (await read(one, tmp_path)).kind == "dicom"


async def test_a_worker_that_dies_is_replaced(one: Workers, tmp_path: Path) -> None:
    """While it works or while it waits; the next message is read (R17)."""
    (worker,) = one._all
    call = asyncio.create_task(one.run(_sleep, 30))
    await asyncio.sleep(0.2)
    worker._process.kill()
    with pytest.raises(WorkerError, match="the worker process died") as caught:
        await call
    assert "worker_memory" in caught.value.hint
    assert (await read(one, tmp_path)).kind == "dicom"
    (worker,) = one._all
    worker._process.kill()
    await worker._process.wait()
    assert (await read(one, tmp_path)).kind == "dicom"


_sleep = __import__("time").sleep


async def test_a_worker_that_overruns_its_time_is_ended(tmp_path: Path) -> None:
    """It cannot hold anybody up, and its place is free again."""
    pool = Workers(1, memory=256 << 20, seconds=1)
    await pool.open()
    with pytest.raises(WorkerError, match="longer than 1 s") as caught:
        await pool.run(_sleep, 30)
    assert "worker_time" in caught.value.hint
    assert (await read(pool, tmp_path)).kind == "dicom"
    await pool.close()


async def test_a_worker_has_only_so_much_memory(one: Workers, tmp_path: Path) -> None:
    """What asks for more ends with an error, and the machine lives."""
    with pytest.raises(WorkerError, match=r"MemoryError|worker process died") as caught:
        await one.run(bytes, 1 << 30)
    assert "worker_memory" in caught.value.hint
    assert (await read(one, tmp_path)).kind == "dicom"


async def test_a_worker_that_cannot_be_started_costs_no_place(
    one: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that has no process to give for a moment still reads the next message (R17)."""
    with pytest.raises(asyncio.CancelledError):
        await _cut(one)

    async def fail(_: int) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(workers._Worker, "start", fail)
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                await asyncio.wait_for(read(one, tmp_path), 5)
    assert (await asyncio.wait_for(read(one, tmp_path), 5)).kind == "dicom"


async def _cut(pool: Workers) -> None:
    task = asyncio.create_task(pool.run(_sleep, 30))
    await asyncio.sleep(0.05)
    task.cancel()
    await task


async def test_an_answer_without_end_is_no_answer(one: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker cannot fill our memory either."""
    monkeypatch.setattr(workers, "LONGEST_ANSWER", 10)
    with pytest.raises(WorkerError, match="died"):
        await one.run(_sleep, 0)


# Whatever happened in the worker


def answer(kind: str, value: object) -> bytes:
    return pickle.dumps((kind, value))


def test_answers_are_values_of_ours() -> None:
    """What a reader returns passes, and so do the errors it may say."""
    value = (Reading("dicom", (), (Finding("x", Severity.INFO, "", ""),)), Outcome.HELD, Path("/x"))
    assert _open_answer(answer("done", value)) == value
    with pytest.raises(OSError, match="No space left"):
        _open_answer(answer("os-error", errno.ENOSPC))
    with pytest.raises(GatewayError, match="so"):
        _open_answer(answer("refused", "so"))
    with pytest.raises(WorkerError, match="the worker failed: ValueError"):
        _open_answer(answer("failed", "ValueError"))


class Call:
    """Makes its unpickler call something."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize(
    "body",
    [
        answer("done", Call(eval, "1 + 1")),
        answer("done", Call(__import__("os").system, "true")),
        answer("done", Call(getattr, Envelope, "__init__")),
        answer("done", Call(getattr, Path, "home")),
        b"\x80\x04\x8c\x13gateway.edges.worker\x8c\x09os.system\x93\x8c\x04true\x85R.",
        b"\x80\x04\x8c\x13gateway.edges.worker\x8c\x0cimport_module\x93\x8c\x02os\x85R.",
        b"\x80\x04\x8c\x13gateway.edges.worker\x8c\x04main\x93\x8c\x011\x85R.",
        b"\x80\x04\x8c\x0fgateway.control\x8c\x04Lock\x93\x8c\x04/tmp\x85R.",
        b"nonsense",
        b"",
        pickle.dumps("done"),
    ],
)
def test_a_worker_that_was_taken_over_makes_us_call_nothing(body: bytes) -> None:
    """No function, no name with dots, nothing a module only imported: such an answer is none."""
    with pytest.raises(WorkerError, match="no valid answer"):
        _open_answer(body)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (len, ("abc",), ("done", 3)),
        (len, (5,), ("failed", "TypeError")),
        (open, ("/nowhere/at/all",), ("os-error", errno.ENOENT)),
    ],
)
def test_a_request_becomes_one_answer(
    function: object, arguments: tuple[object, ...], expected: tuple[str, object]
) -> None:
    """Whatever it brings about."""
    name = function.__qualname__  # type: ignore[attr-defined]
    assert _attempt(pickle.dumps((function.__module__, name, arguments, {}))) == expected  # type: ignore[attr-defined]


def test_a_refusal_is_told_by_its_text() -> None:
    """The gateway's own errors come back as such."""
    request = pickle.dumps(("gateway.ledger.ledger", "Lock", (Path("/proc/nowhere"),), {}))
    kind, text = _attempt(request)
    assert kind == "refused"
    assert "/proc/nowhere cannot be used" in text


def test_a_worker_ends_when_nobody_asks_any_more() -> None:
    """Its input ends with the gateway, and so does it."""
    command = [sys.executable, "-m", "gateway.edges.worker", str(1 << 30)]
    request = pickle.dumps(("builtins", "len", ("abc",), {}))
    head = len(request).to_bytes(8, "big")
    done = subprocess.run(command, input=head + request, capture_output=True, check=True, cwd=Path(__file__).parents[2])
    assert pickle.loads(done.stdout[8:]) == ("done", 3)
