"""The wiring of one gateway in this process: what a reload takes over, and what it leaves alone."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from pki import leaf

from gateway import keys
from gateway.config import Configuration, Listen, load
from gateway.edges.console import HttpDoor
from gateway.service import Service
from gateway.users import Users

TEXT = """
[gateway]
name = "gw.hospital.test"
postmaster = "it@hospital.test"
data = "data"
[limits]
free_space = "1 MB"
[storescp]
title = "GATEWAY"
listen = "127.0.0.1:0"
callers = ["CT1"]
[relay]
host = "127.0.0.1"
port = 9
tls = "none"
sender = "gw@hospital.test"
[partner.clinic-a]
address = "a@clinic-a.test"
send = "plain"
[[route]]
name = "out"
called = "OUT"
mail = ["clinic-a"]
[console]
listen = "127.0.0.1:0"
users_file = "users"
"""


class Gateway:
    """A gateway that runs in this process, and its file."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "gateway.toml"
        self.users = folder / "users"
        self.users.touch()
        self.file.write_text(TEXT, "utf-8")
        self.service = Service(load(self.file))

    def write(self, old: str, new: str) -> None:
        """Change the file."""
        self.file.write_text(self.file.read_text("utf-8").replace(old, new), "utf-8")


@asynccontextmanager
async def alive(made: Gateway) -> AsyncIterator[Gateway]:
    """Let a gateway run until it is ready, and stop it at the end."""
    life = asyncio.create_task(made.service.run())
    waiting = asyncio.create_task(made.service.ready.wait())
    await asyncio.wait({life, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    yield made
    made.service.stopping.set()
    await life


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway that is ready."""
    async with alive(Gateway(tmp_path)) as made:
        yield made


async def test_a_gateway_that_begins_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that comes while one door is open and the next is not hears which ones are shut."""
    made = Gateway(tmp_path)
    heard: list[list[str]] = []
    begin = HttpDoor.open

    async def and_ask(door: HttpDoor) -> None:
        await begin(door)
        heard.append(made.service._shut())

    monkeypatch.setattr(HttpDoor, "open", and_ask)
    async with alive(made):
        assert heard == [["storescp"]]
        assert made.service._shut() == []


async def test_a_reload_that_is_refused_has_changed_nothing(gateway: Gateway) -> None:
    """R32: the last file to be read is bad; what stands before it in the configuration is not in force either."""
    gateway.write('callers = ["CT1"]', 'callers = ["MR1"]')
    gateway.users.write_text("no user\n", "utf-8")
    await gateway.service._reload()
    assert gateway.service.configuration.storescp.callers == ("CT1",)
    assert gateway.service._storescp.settings.callers == ("CT1",)


async def test_a_reload_opens_no_door_that_a_start_would_refuse_to_open(gateway: Gateway) -> None:
    """The file moves it to loopback at a restart and lets anybody call at once: what would be in force counts."""
    before = gateway.service.configuration
    listening = before.storescp.model_copy(update={"listen": Listen("0.0.0.0", 11112)})
    gateway.service.configuration = before.model_copy(update={"storescp": listening})
    gateway.write('callers = ["CT1"]\n', "")
    await gateway.service._reload()
    assert gateway.service._storescp.settings.callers == ("CT1",)
    assert gateway.service.configuration.storescp.callers == ("CT1",)


async def test_of_two_reloads_the_later_file_stays_in_force(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the first one needs to read its certificates: they go one after the other."""
    reading, go_on = threading.Event(), threading.Event()
    read = keys.load

    def slow(configuration: Configuration) -> keys.Keys:
        if configuration.storescp.callers == ("MR1",):
            reading.set()
            assert go_on.wait(30)
        return read(configuration)

    monkeypatch.setattr(keys, "load", slow)
    gateway.write('"CT1"', '"MR1"')
    first = asyncio.create_task(gateway.service._reload())
    await asyncio.to_thread(reading.wait, 30)
    gateway.write('"MR1"', '"US1"')
    second = asyncio.create_task(gateway.service._reload())
    await asyncio.wait({second}, timeout=0.5)
    go_on.set()
    await asyncio.gather(first, second)
    assert gateway.service.configuration.storescp.callers == ("US1",)


async def test_keys_that_are_read_anew_beside_a_reload_are_those_of_its_configuration(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look around began to read anchors and imported certificates by the old file, and ends after the reload."""
    reading, go_on = threading.Event(), threading.Event()
    read = keys.load

    def slow(configuration: Configuration) -> keys.Keys:
        found = read(configuration)
        if "clinic-b" not in configuration.partner:
            reading.set()
            assert go_on.wait(30)
        return found

    leaf(address="b@clinic-b.test").write(gateway.file.parent, "b")
    imported = gateway.service.configuration.gateway.data / "partners" / "clinic-a.pem"
    imported.parent.mkdir()
    monkeypatch.setattr(keys, "load", slow)
    imported.write_bytes((gateway.file.parent / "b.pem").read_bytes())
    renewing = asyncio.create_task(gateway.service._renew_keys())
    await asyncio.to_thread(reading.wait, 30)
    gateway.write("[[route]]", '[partner.clinic-b]\naddress = "b@clinic-b.test"\ncertificate = "b.pem"\n[[route]]')
    reloading = asyncio.create_task(gateway.service._reload())
    await asyncio.wait({reloading}, timeout=0.5)
    go_on.set()
    await asyncio.gather(renewing, reloading)
    assert set(gateway.service.compose.keyring.partners) == {"clinic-a", "clinic-b"}


async def test_a_users_file_of_another_name_is_taken_over(gateway: Gateway, tmp_path: Path) -> None:
    """Who stands in the old file alone is out, who stands in the new one is in."""
    Users(tmp_path / "users").add("old", "secret")
    Users(tmp_path / "others").add("new", "secret")
    gateway.write('"users"', '"others"')
    await gateway.service._reload()
    accounts = gateway.service._accounts
    assert (accounts.mark("old") is None, accounts.mark("new") is None) == (True, False)


async def test_a_renewed_certificate_of_the_console_is_shown_after_a_reload(tmp_path: Path) -> None:
    """As at the other doors: nobody restarts a gateway because a certificate runs out. Of another kind of key, too."""
    made = Gateway(tmp_path)
    first, second = leaf(kind="rsa-2048/first"), leaf(kind="P-256/second")
    first.write(tmp_path, "tls")
    made.file.write_text(made.file.read_text("utf-8") + 'certificate = "tls.pem"\nkey_file = "tls.key"\n', "utf-8")
    made.service = Service(load(made.file))
    async with alive(made) as gateway:
        (door,) = gateway.service.http
        assert await asyncio.to_thread(shown, door.address) == first.certificate.public_bytes(Encoding.DER)
        second.write(tmp_path, "tls")
        await gateway.service._reload()
        assert await asyncio.to_thread(shown, door.address) == second.certificate.public_bytes(Encoding.DER)


def shown(address: tuple[str, int]) -> bytes:
    """The certificate that a door shows to whoever calls."""
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(address))
