"""The end and the hindrances of a life: SIGTERM at bad moments, a frozen process, and everything a start can meet."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import ROOT, Daemon
from messages import compose
from peer import Start, answers, free_port, need_root, program, wait_until
from samples import Samples
from scripted_scp import Answer, ScriptedScp
from storescp import Storescp

STOP = '[limits]\nstop = "2s"\nfree_space = "50 MB"\n'


@pytest.fixture
def mute() -> Iterator[socket.socket]:
    """Something that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener


def test_a_stop_with_a_queue_and_a_mute_pacs_is_quick_and_leaves_no_doubt(
    start: Start, samples: Samples, mute: socket.socket
) -> None:
    """R31: while it waits for a PACS that says nothing, with mail waiting: out at once, and nothing is in doubt."""
    gateway = start(Daemon({"pacs": ("MUTE", mute.getsockname()[1])}))
    keys = [gateway.mail(compose(one.file for one in samples.many(5))) for _ in range(10)]
    wait_until(lambda: sum(gateway.item(key)["instances"] for key in keys) == 50, "everything is read")
    gateway.signal(signal.SIGTERM)
    assert gateway.wait(10) == 0
    assert not answers(gateway.port)
    for key in keys:
        assert {(one["sends"], one["sends_unknown"]) for one in gateway.item(key)["instances_detail"]} == {(0, 0)}
    proof = gateway.proven()
    assert (proof["waiting"], proof["doubtful"]) == (10, 0)


def test_a_stop_in_the_middle_of_a_send_leaves_one_doubt_and_no_more(start: Start, samples: Samples) -> None:
    """R31: the PACS has the image and is silent. What was on the wire is in doubt, and says so; the rest is not."""
    with ScriptedScp(Answer(act="silence")) as pacs:
        gateway = start(Daemon({"pacs": ("SILENT", pacs.port)}, STOP))
        key = gateway.mail(compose(samples.fresh("CT_small.dcm").file for _ in range(4)))
        wait_until(lambda: pacs.seen, "one image is on the wire")
        gateway.signal(signal.SIGTERM)
        assert gateway.wait(10) == 0
    item = gateway.item(key)
    assert sorted(one["sends_unknown"] for one in item["instances_detail"]) == [0, 0, 0, 1]
    assert sum(one["sends"] for one in item["instances_detail"]) == 1
    assert item["outcome"] == "waiting"
    assert gateway.proven()["doubtful"] == 1
    gateway.start()
    assert gateway.logged("recovered") == []  # that was a clean stop


def test_a_stop_tells_a_sender_in_the_middle_of_its_data_to_come_again(start: Start) -> None:
    """R1, SMTP-13: no 250, nothing kept, and the session does not hold the stop up."""
    gateway = start(Daemon({"pacs": ("PACS", free_port())}))
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as wire, wire.makefile("rb") as said:
        said.readline()
        for line in (b"EHLO a.test", b"MAIL FROM:<dicom@clinic-a.test>", b"RCPT TO:<pacs@gateway.test>", b"DATA"):
            wire.sendall(line + b"\r\n")
            while said.readline()[3:4] == b"-":
                pass
        wire.sendall(b"From: dicom@clinic-a.test\r\n\r\nhalf of")
        gateway.signal(signal.SIGTERM)
        assert said.readline().startswith(b"421 4.3.2")
        assert gateway.wait(10) == 0
    assert gateway.proven()["in"] == 0


@pytest.mark.peer
def test_a_frozen_gateway_goes_on_where_it_was(start: Start, samples: Samples) -> None:
    """R29, R30: SIGSTOP for a while, and a second one meanwhile: it is refused, and the first one goes on."""
    pacs = start(Storescp())
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port)}))
    first = samples.fresh()
    gateway.await_item(gateway.mail(compose([first.file])), "delivered")
    gateway.signal(signal.SIGSTOP)
    second = gateway.say("run")
    assert second.returncode == 1
    assert f"in use by process {gateway.pid()}" in second.stderr
    time.sleep(1)
    gateway.signal(signal.SIGCONT)
    one = samples.fresh()
    gateway.await_item(gateway.mail(compose([one.file])), "delivered")
    assert pacs.instances()[one.sop_instance] == one.data_set
    assert gateway.proven()["doubtful"] == 0


def demand_one_line(said: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """A person must see at once what is wrong: one line, the right exit code, no traceback."""
    assert said.returncode == code, said.stderr
    assert said.stdout == ""
    assert said.stderr.startswith("dicom-mail: ")
    assert said.stderr.count("\n") == 1, said.stderr
    for word in words:
        assert word in said.stderr


@pytest.fixture
def idle() -> Iterator[Daemon]:
    """A gateway that is not started."""
    made = Daemon({"pacs": ("PACS", free_port())})
    yield made
    made.remove()


def test_an_empty_configuration_is_one_line(idle: Daemon) -> None:
    """Exit code 2, and what is missing is named (R32)."""
    idle.config.write_text("", "utf-8")
    demand_one_line(idle.say("run"), 2, "gateway.toml", "gateway")


def test_a_wrong_key_is_one_line_that_names_the_nearest(idle: Daemon) -> None:
    """Exit code 2, the key, and what was probably meant (R32)."""
    idle.config.write_text(idle.config.read_text("utf-8").replace("postmaster", "postmistress"), "utf-8")
    said = idle.say("run")
    assert said.returncode == 2
    assert "gateway.postmistress" in said.stderr
    assert "postmaster" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_missing_configuration_is_one_line(idle: Daemon) -> None:
    """Exit code 2: the file that was looked for is named."""
    idle.config.unlink()
    demand_one_line(idle.say("run"), 2, str(idle.config))


def test_a_used_port_is_one_line(idle: Daemon) -> None:
    """Exit code 1: the address is named, and the data folder is free again afterwards."""
    with socket.create_server(("127.0.0.1", idle.port)):
        demand_one_line(idle.say("run"), 1, f"127.0.0.1:{idle.port}")
    with socket.create_server(("127.0.0.1", idle.metrics)):
        demand_one_line(idle.say("run"), 1, f"127.0.0.1:{idle.metrics}")
    idle.start()
    assert idle.logged("recovered") == []  # a start that failed is no crash


def test_a_second_process_on_the_same_data_is_one_line(idle: Daemon) -> None:
    """R30: exit code 1, and who has it is named; the first does not notice."""
    idle.start()
    demand_one_line(idle.say("run"), 1, "in use by process", str(idle.pid()))
    assert answers(idle.port)


def test_a_data_folder_that_cannot_be_made_is_one_line(idle: Daemon) -> None:
    """Exit code 1: a file lies where the folder should be."""
    idle.data.write_bytes(b"")
    demand_one_line(idle.say("run"), 1, str(idle.data))


@pytest.mark.root
def test_a_read_only_data_folder_is_one_line(idle: Daemon) -> None:
    """Exit code 1, although root may write everywhere else."""
    need_root("mount")
    idle.data.mkdir()
    subprocess.run([program("mount"), "-t", "tmpfs", "-o", "ro", "tmpfs", str(idle.data)], check=True)
    try:
        demand_one_line(idle.say("run"), 1, str(idle.data), "Read-only file system")
    finally:
        subprocess.run([program("umount"), str(idle.data)], check=True)


@pytest.mark.root
def test_an_unwritable_data_folder_is_one_line(idle: Daemon) -> None:
    """Exit code 1 for a user who may not write there, as after a start by root."""
    need_root("become another user")
    idle.data.mkdir()
    Path(idle.folder).chmod(0o755)
    idle.data.chmod(0o755)
    user = [program("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups"]
    # Nor may that user write down what was covered: it would say so on standard error.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    if subprocess.run([*user, sys.executable, "-c", "import gateway"], cwd=ROOT, env=env, check=False).returncode:
        pytest.skip("another user cannot read this Python")
    said = subprocess.run(
        [*user, sys.executable, "-m", "gateway", "run", "--config", str(idle.config)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    demand_one_line(said, 1, str(idle.data), "Permission denied")


def test_a_damaged_ledger_is_one_line(idle: Daemon) -> None:
    """Exit code 1: what is no ledger is not touched."""
    idle.data.mkdir(mode=0o700)
    (idle.data / "ledger.sqlite").write_bytes(b"this is no database" * 300)
    demand_one_line(idle.say("run"), 1, "ledger")
    assert (idle.data / "ledger.sqlite").read_bytes() == b"this is no database" * 300


def test_a_data_folder_can_be_moved(idle: Daemon, samples: Samples) -> None:
    """Nothing in ledger and spool names the folder it lies in: restored elsewhere, it goes on."""
    idle.start()
    key = idle.mail(compose([samples.fresh().file]))
    idle.stop()
    moved = idle.folder / "elsewhere"
    shutil.move(idle.data, moved)
    idle.config.write_text(idle.config.read_text("utf-8").replace('data = "data"', 'data = "elsewhere"'), "utf-8")
    idle.start()
    wait_until(lambda: idle.item(key)["instances"] == 1, "it was read")
    idle.proven()
