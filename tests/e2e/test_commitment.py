"""Storage commitment with Orthanc: nothing is delivered before the report, and no restart makes it forget to wait."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from daemon import Daemon
from messages import compose
from orthanc import Orthanc
from peer import Start, free_port, wait_until
from samples import Samples

pytestmark = pytest.mark.peer


class Postman:
    """Takes the connections on which a PACS reports, and brings them to the gateway only once it may.

    Attributes:
        door: Where the gateway listens.
        port: Where it listens itself.
        may: Set when reports are let through.
        waiting: How many connections came.
    """

    def __init__(self) -> None:
        self.may = threading.Event()
        self.waiting = 0
        self.door = free_port()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self.may.set()
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            self.waiting += 1
            threading.Thread(target=self._bring, args=(caller,), daemon=True).start()

    def _bring(self, caller: socket.socket) -> None:
        self.may.wait()
        try:
            with caller, socket.create_connection(("127.0.0.1", self.door)) as called:
                back = threading.Thread(target=_copy, args=(called, caller), daemon=True)
                back.start()
                _copy(caller, called)
                back.join(10)
        except OSError:
            return  # the gateway is not there: the PACS sees a closed connection


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while block := source.recv(1 << 16):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


@pytest.fixture
def postman() -> Iterator[Postman]:
    """Before a port where the gateway will listen."""
    made = Postman()
    yield made
    made.close()


def settings(port: int, door: int) -> str:
    """One destination that has to answer for what it stored, and the door for its reports."""
    return (
        f'[ae.pacs]\ntitle = "ORTHANC"\nhost = "127.0.0.1"\nport = {port}\ntimeout = "10s"\n'
        'calling = "GATEWAY"\nconfirm = "commitment"\nconfirm_within = "1h"\n'
        f'[storescp]\ntitle = "GATEWAY"\nlisten = "127.0.0.1:{door}"\n'
    )


@pytest.mark.parametrize("killed", [False, True])
def test_orthanc_answers_for_what_it_stored(start: Start, samples: Samples, postman: Postman, killed: bool) -> None:
    """SC-1 to SC-3, R18: waiting until the report; the gateway may be killed between the N-ACTION and that."""
    pacs = start(Orthanc(DicomModalities={"gateway": ["GATEWAY", "127.0.0.1", postman.port]}, DicomScuTimeout=60))
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port)}, settings(pacs.port, postman.door)))
    images = [samples.fresh() for _ in range(3)]
    key = gateway.mail(compose(one.file for one in images))
    wait_until(lambda: postman.waiting, "Orthanc wants to report")
    detail = gateway.item(key)["instances_detail"]
    assert {(one["outcome"], one["code"]) for one in detail} == {("waiting", "awaiting-confirmation")}
    if killed:
        gateway.kill()
        gateway.start()
        assert gateway.item(key)["outcome"] == "waiting"
    postman.may.set()
    item = gateway.await_item(key, "delivered", 30)
    assert all(one["outcome"] == "delivered" and one["sends"] == 1 for one in item["instances_detail"])
    assert {one.sop_instance for one in images} == set(pacs.instances())
    assert gateway.proven()["doubtful"] == 0
    assert postman.waiting == 1
