"""The HTTP door, spoken to over real sockets."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from peer import program, wait_until
from prometheus_client import CollectorRegistry, Counter

from gateway.edges.console import CONNECTIONS, HttpDoor
from gateway.errors import GatewayError

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
def shut() -> list[str]:
    """The doors that are shut: none, until a test shuts one."""
    return []


@pytest.fixture
async def door(shut: list[str]) -> AsyncIterator[HttpDoor]:
    """A door with one metric."""
    registry = CollectorRegistry()
    Counter("dicom_mail_messages", "Messages.", registry=registry).inc(3)
    door = HttpDoor("console", LOOPBACK, registry=registry, ready=lambda: shut)
    await door.open()
    yield door
    await door.close()


async def ask(door: HttpDoor, path: str, method: str = "GET") -> httpx.Response:
    """One request on a connection of its own."""
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.request(method, f"http://127.0.0.1:{door.address[1]}{path}")


async def speak(door: HttpDoor, request: bytes) -> bytes:
    """Send bytes, and read until the door closes the connection."""
    reader, writer = await asyncio.open_connection(*door.address)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


async def test_life_readiness_and_metrics_are_told(door: HttpDoor, shut: list[str]) -> None:
    """200 while all is well, 503 with the names of the doors that are shut, Prometheus text."""
    assert (await ask(door, "/health/live")).text == "alive\n"
    assert (await ask(door, "/health/ready")).text == "ready\n"
    shut += ["smtp", "storescp"]
    unready = await ask(door, "/health/ready")
    assert (unready.status_code, unready.text) == (503, "shut: smtp\nshut: storescp\n")
    metrics = await ask(door, "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "dicom_mail_messages_total 3.0" in metrics.text


async def test_answers_say_nothing_about_us_and_let_nothing_be_kept(door: HttpDoor) -> None:
    """No name of the server, no caching, no embedding, no guessing; on errors too."""
    for path, code in (("/health/live", 200), ("/nothing", 404)):
        answer = await ask(door, path)
        assert answer.status_code == code
        assert "server" not in answer.headers
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_only_reading_is_allowed(door: HttpDoor, method: str) -> None:
    """There is nothing to change here."""
    assert (await ask(door, "/metrics", method)).status_code == 405


async def test_a_collector_that_fails_is_500_without_a_word_of_why(shut: list[str]) -> None:
    """An exception's text stays inside (R35)."""

    class Broken:
        def collect(self) -> list[object]:
            raise RuntimeError("Kanarienvogel^Zyx")

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Broken())  # type: ignore[arg-type]
    door = HttpDoor("console", LOOPBACK, registry=registry, ready=lambda: shut)
    await door.open()
    answer = await ask(door, "/metrics")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    await door.close()


async def test_a_head_that_never_ends_is_refused(door: HttpDoor) -> None:
    """Every input has a limit."""
    answer = await speak(door, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000)
    assert answer.startswith(b"HTTP/1.1 4")


async def test_a_peer_that_drips_is_sent_away(door: HttpDoor) -> None:
    """A connection has a deadline as a whole, whatever it is doing (R4)."""
    door.lifetime, door.grace = 0.05, 900
    assert await speak(door, b"GET /health/live HTTP/1.1\r\nHo") == b""


async def test_a_peer_that_does_not_read_is_cut() -> None:
    """Nor does an answer that nobody takes keep a connection for ever (R4)."""
    registry = CollectorRegistry()
    Counter("dicom_mail_long", "x" * (20 << 20), registry=registry)  # more than the kernel's buffers take
    door = HttpDoor("console", LOOPBACK, registry=registry, ready=list)
    door.lifetime = door.grace = 0.2
    await door.open()
    connections = door._state.connections
    with socket.create_connection(door.address) as peer:
        peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.to_thread(wait_until, lambda: connections, "the door has a peer")
        await asyncio.to_thread(wait_until, lambda: not connections, "the door has none")
    await door.close()


async def _gone(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(1 << 16):
            pass
    except ConnectionResetError:
        pass


async def test_too_many_at_once_get_503(door: HttpDoor) -> None:
    """The limit refuses; it does not queue."""
    others = [await asyncio.open_connection(*door.address) for _ in range(CONNECTIONS)]
    assert (await ask(door, "/health/live")).status_code == 503
    for _, writer in others:
        writer.close()


async def test_a_used_port_is_one_clear_line(door: HttpDoor) -> None:
    """The section, the address and why; exit code 1 of the contract."""
    second = HttpDoor("metrics", door.address, registry=CollectorRegistry(), ready=list)
    with pytest.raises(
        GatewayError, match=r"\[metrics\] cannot listen on 127\.0\.0\.1:\d+: Address already in use"
    ) as said:
        await second.open()
    assert said.value.exit_code == 1
    await second.close()


async def test_closing_ends_what_is_idle_and_frees_the_port(door: HttpDoor) -> None:
    """An idle keep-alive connection holds nothing up."""
    reader, writer = await asyncio.open_connection(*door.address)
    address = door.address
    await door.close()
    assert await reader.read() == b""
    writer.close()
    again = HttpDoor("console", address, registry=CollectorRegistry(), ready=list)
    await again.open()
    await again.close()


async def test_closing_does_not_wait_for_ever_for_an_answer(shut: list[str]) -> None:
    """What is being answered has a moment, not more (R31)."""
    asked, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow:
        def collect(self) -> list[object]:
            loop.call_soon_threadsafe(asked.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            return []

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Slow())  # type: ignore[arg-type]
    door = HttpDoor("console", LOOPBACK, registry=registry, ready=lambda: shut)
    door.grace = 0.05
    await door.open()
    reader, writer = await asyncio.open_connection(*door.address)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    await asked.wait()
    await door.close()
    go_on.set()
    await asyncio.wait_for(_gone(reader), 30)
    writer.close()


async def test_signals_stay_ours(door: HttpDoor) -> None:
    """The server of the library would take SIGTERM; this door does not (R31)."""
    assert (await ask(door, "/health/live")).status_code == 200
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and its key."""
    certificate, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    key_options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key)]
    command = [program("openssl"), "req", "-x509", *key_options, "-out", str(certificate), *subject]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


async def test_tls_is_served_with_the_certificate(certificate: tuple[Path, Path]) -> None:
    """Checked by a client that trusts only that certificate; plain HTTP gets nowhere."""
    public, key = certificate
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(public, key)
    door = HttpDoor("console", LOOPBACK, registry=CollectorRegistry(), ready=list, tls=tls)
    await door.open()
    context = ssl.create_default_context(cafile=public)
    async with httpx.AsyncClient(verify=context, trust_env=False) as client:
        answer = await client.get(f"https://127.0.0.1:{door.address[1]}/health/live")
    assert answer.text == "alive\n"
    with pytest.raises(httpx.TransportError):
        await ask(door, "/health/live")
    await door.close()
