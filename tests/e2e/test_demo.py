"""The demo is what a person sees first: it must tell the truth, and must be able to say that something is wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from orthanc import Orthanc
from peer import answers, free_port, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where the demo makes its folder, so that what it leaves behind is seen. Short: sockets have short paths."""
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        yield Path(folder)


def play(scratch: Path, *arguments: str, sabotage: str = "") -> subprocess.CompletedProcess[str]:
    """Run the demo as a person does, or with something sabotaged first."""
    command = [sys.executable, "-m", "gateway", "demo", *arguments]
    if sabotage:
        program = f"import sys\nfrom gateway import demo\n{textwrap.dedent(sabotage)}\nsys.exit(demo.run(serve=False))"
        command = [sys.executable, "-c", program]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def gateway_process(text: str) -> int:
    """The process id of the gateway, from the head of the story."""
    found = re.search(r"process (\d+)", text)
    assert found is not None
    return int(found[1])


def alive(pid: int) -> bool:
    """Whether a process is there."""
    return Path(f"/proc/{pid}").exists()


def test_the_demo_shows_mail_becoming_instances(scratch: Path) -> None:
    """Every mail ends as it must, every image arrives identical, and nothing is left behind (R8, R12, R34)."""
    shown = play(scratch)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stderr == ""
    for number, stored in ((1, "2 of 2"), (2, "2 of 2"), (3, "50 of 50"), (5, "2 of 2")):
        assert f"mail {number}: delivered, {stored} stored\n" in shown.stdout
    assert "mail 4: held, 1 of 2 stored (truncated-data-set)" in shown.stdout
    assert "mail 5: waiting, 0 of 2 stored" in shown.stdout
    assert "cannot be reached: Connection refused" in shown.stdout
    assert "    550 5.7.1 " in shown.stdout
    assert "bytes, 4 files and a DICOMDIR\n" in shown.stdout
    assert "All 4 data sets in it have the sha256 of what the modality sent." in shown.stdout
    assert shown.stdout.count("identical\n") == 7
    assert re.search(r"\nmails +7 +6 +0 +1 +0 +0 +0\s", shown.stdout)
    assert re.search(r"\ninstances +62 +61 +0 +1 +0 +0\s", shown.stdout)
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert not any(scratch.iterdir())
    assert not alive(gateway_process(shown.stdout))
    for patient in ("CompressedSamples", "Last^First", "Test^", "Lestrade", "Doe", "1CT1", "4MR1", "id00001"):
        assert patient not in shown.stdout, "not even the patients of the samples are shown (R35)"


LIES = {
    "other bytes": (
        """
        keep = demo.Pacs.keep
        demo.Pacs.keep = lambda self, uid, received: keep(self, uid, received[:-2] + b"\\0\\1")
        """,
        "DIFFERENT",
    ),
    "one image lost behind a success": (
        """
        keep, lost = demo.Pacs.keep, []
        demo.Pacs.keep = lambda self, uid, received: keep(self, uid, received) if lost else lost.append(uid)
        """,
        "MISSING",
    ),
    "an image that nobody mailed": (
        """
        keep = demo.Pacs.keep
        demo.Pacs.keep = lambda self, uid, received: (keep(self, uid, received), keep(self, "1.2.3", received))
        """,
        "the PACS got 1 that nobody mailed",
    ),
    "a PACS that refuses": (
        "demo.Pacs._store = lambda self, event: 0xA900",
        "mail 1 is failed",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_the_demo_finds_a_pacs_out_that_lies(scratch: Path, lie: str) -> None:
    """What the demo says is checked and not only said: other bytes, lost images, strange images, refusals."""
    sabotage, found = LIES[lie]
    shown = play(scratch, sabotage=sabotage)
    assert shown.returncode == 1, shown.stdout + shown.stderr
    assert found in shown.stdout
    assert "This is not as it must be" in shown.stdout
    assert "Seen in" not in shown.stdout
    assert not any(scratch.iterdir())


def test_a_gateway_that_does_not_start_is_said_in_one_line(scratch: Path) -> None:
    """No traceback, no waiting until the patience ends, nothing left behind."""
    sabotage = """
        from gateway import cli
        demo.CONFIGURATION = demo.CONFIGURATION.replace('data = "data"', 'data = "/dev/null/data"')
        sys.exit(cli.perform(["demo"]))
    """
    shown = play(scratch, sabotage=sabotage)
    assert shown.returncode == 1
    assert shown.stderr.startswith("dicom-mail: the gateway did not start: ")
    assert shown.stderr.count("\n") == 1
    assert not any(scratch.iterdir())


@pytest.mark.peer
def test_the_demo_stores_into_a_pacs_that_is_named(scratch: Path, orthanc: Orthanc) -> None:
    """With --pacs the images go to a real PACS, and a pause stands for the outage."""
    shown = play(scratch, "--pacs", f"127.0.0.1:{orthanc.port}:{orthanc.title}")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "mail 5: delivered, 2 of 2 stored" in shown.stdout
    assert "acknowledged" in shown.stdout
    assert "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322" in orthanc.instances()


def test_a_pacs_that_is_not_there_ends_in_words(scratch: Path) -> None:
    """Nothing arrives: exit 1, and the reason is in the story."""
    shown = play(
        scratch,
        sabotage=f"""
        from gateway.config import ApplicationEntity
        demo.STORY_PATIENCE = 3.0
        sys.exit(demo.run(False, ApplicationEntity(title="X", host="127.0.0.1", port={free_port()})))
        """,
    )
    assert shown.returncode == 1
    assert "not within 3 s: every mail is settled" in shown.stdout
    assert "Connection refused" in shown.stdout


@pytest.fixture
def serving(scratch: Path) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A demo that keeps running, and what it says."""
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with (scratch.parent / f"{scratch.name}.log").open("w+b") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "demo", "--serve"],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        )  # fmt: skip
        yield process, said
        if process.poll() is None:
            process.kill()
            process.wait()
    Path(said.name).unlink()


def _text(said: IO[bytes]) -> str:
    # By its name: a seek here would move the place at which the process writes.
    return Path(said.name).read_text(encoding="utf-8")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_serve_runs_until_it_is_ended_and_leaves_nothing(
    serving: tuple[subprocess.Popen[bytes], IO[bytes]], scratch: Path, how: signal.Signals
) -> None:
    """After the story the gateway takes mail until Ctrl-C, and goes with all it wrote, however it is ended."""
    process, said = serving
    wait_until(lambda: "/metrics" in _text(said) or process.poll() is not None, "the story is told", 60)
    text = _text(said)
    gateway = gateway_process(text)
    port = int(re.search(r"mail on 127\.0\.0\.1:(\d+)", text)[1])  # type: ignore[index]
    assert answers(port)
    curl = re.search(r"curl (smtp://.*)", text)
    assert curl is not None
    sent = subprocess.run(["curl", "--silent", "--show-error", *curl[1].split()], check=False)
    assert sent.returncode == 0
    process.send_signal(how)
    assert process.wait(20) == 0
    assert not alive(gateway)
    assert not answers(port)
    assert not any(scratch.iterdir())


def test_an_interrupted_story_leaves_nothing(scratch: Path) -> None:
    """Ctrl-C in the middle: no gateway, no folder, the exit code shells expect."""
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "demo"], cwd=ROOT, env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        head = b""
        while b"mail 1" not in head:
            part = process.stdout.read1()
            assert part, f"it ended: {head.decode()}"
            head += part
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(20) == 130  # what shells expect
    assert not alive(gateway_process(head.decode()))
    assert not any(scratch.iterdir())
