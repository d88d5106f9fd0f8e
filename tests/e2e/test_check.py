"""``dicom-mail check`` and ``echo`` as they are typed, against real peers and a running gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from orthanc import Orthanc
from peer import Start, answers, free_port, wait_until
from postfix import Postfix

ROOT = Path(__file__).parents[2]


class Installation:
    """A configuration in a folder, and the command line beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.smtp = free_port()
        self.path = folder / "gateway.toml"

    def write(self, *destinations: tuple[str, str, int]) -> None:
        """Write the configuration with destinations by name, title and port."""
        sections = [
            f'[ae.{name}]\ntitle = "{title}"\nhost = "127.0.0.1"\nport = {port}\ntimeout = "5s"'
            for name, title, port in destinations
        ]
        self.path.write_text(
            "\n".join(
                [
                    '[gateway]\nname = "gateway.test"\npostmaster = "it@hospital.test"\ndata = "data"',
                    f'[smtp]\nlisten = "127.0.0.1:{self.smtp}"',
                    '[limits]\nfree_space = "1 MB"',
                    '[partner.a]\naddress = "a@clinic.test"\naccept = "any"\npeers = ["127.0.0.1"]',
                    f'[[route]]\nname = "in"\nfrom = "a"\nstore = ["{destinations[0][0]}"]',
                    *sections,
                ]
            )
        )

    def type(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a verb."""
        command = [sys.executable, "-m", "gateway", "--config", str(self.path), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    def found(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Exit code, and what was found by subject; the last of a subject counts."""
        done = self.type(*arguments, "--json")
        assert done.stderr == ""
        return done.returncode, {one["subject"]: one for one in json.loads(done.stdout)["checks"]}


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """Not running."""
    return Installation(tmp_path)


@pytest.fixture
def running(installation: Installation) -> Iterator[Installation]:
    """With a gateway that runs."""
    installation.write(("pacs", "PACS", free_port()))
    with (installation.folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "--config", str(installation.path), "run"],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until(lambda: answers(installation.smtp) or process.poll() is not None, "the gateway listens")
        assert process.poll() is None, (installation.folder / "log").read_text()
        yield installation
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.peer
def test_echo_asks_a_real_pacs(installation: Installation, orthanc: Orthanc) -> None:
    """0 when it is there; 1 when it rejects our idea of its title, and what to do; 3 when it is not there."""
    port = orthanc.port
    installation.write(("pacs", orthanc.title, port), ("wrong", "NOBODY", port), ("gone", "PACS", free_port()))
    done = installation.type("echo", "pacs")
    assert (done.returncode, done.stdout.startswith("ok ")) == (0, True)
    done = installation.type("echo", "wrong")
    assert done.returncode == 1
    assert "called AE title not recognised -> its title is not NOBODY" in done.stdout
    done = installation.type("echo", "gone")
    assert done.returncode == 3
    assert done.stdout.startswith("no answer")
    code, found = installation.found("echo", "--all")
    assert (code, [one["mark"] for one in found.values()]) == (1, ["ok", "problem", "no answer"])


def test_echo_of_a_name_nobody_has_is_wrong_usage(installation: Installation) -> None:
    """Exit code 2, with the names there are."""
    installation.write(("pacs", "PACS", free_port()))
    done = installation.type("echo", "pcas")
    assert done.returncode == 2
    assert done.stderr == "dicom-mail: there is no [ae.pcas] (known: pacs)\n"


@pytest.mark.peer
def test_check_before_the_first_start(installation: Installation, orthanc: Orthanc) -> None:
    """All good but advice; nothing is made."""
    installation.write(("pacs", orthanc.title, orthanc.port))
    code, found = installation.found("check")
    assert code == 0
    assert {"configuration", "gateway", "gateway.data", "ledger", "smtp.listen", "ae.pacs"} <= found.keys()
    assert sorted(os.listdir(installation.folder)) == ["gateway.toml"]  # noqa: PTH208  names alone


def test_check_of_a_running_gateway(running: Installation) -> None:
    """It is seen, its port is its own, its ledger is read, and only the PACS gives no answer: 3."""
    code, found = running.found("check")
    assert code == 3
    assert found["gateway"]["text"].startswith("runs as process ")
    assert found["smtp.listen"]["text"].endswith("is open: the gateway listens there")
    assert found["ledger"]["mark"] == "ok"
    assert found["queue"]["text"] == "0 waiting, 0 held, 0 failed"
    assert found["ae.pacs"]["mark"] == "no answer"


def test_check_finds_what_would_keep_it_from_running(running: Installation) -> None:
    """A port that the gateway of this folder does not hold itself is a problem: 1."""
    other = running.folder / "other"
    other.mkdir()
    second = Installation(other)
    second.smtp = running.smtp
    second.write(("pacs", "PACS", free_port()))
    code, found = second.found("check")
    assert code == 1
    assert found["smtp.listen"]["mark"] == "problem"
    assert "ss -ltnp" in found["smtp.listen"]["do"]


def test_check_offline_calls_nobody(installation: Installation) -> None:
    """The configuration alone."""
    installation.write(("pacs", "PACS", free_port()))
    code, found = installation.found("check", "--offline")
    assert code == 0
    assert "ae.pacs" not in found
    assert found["configuration"]["mark"] == "ok"


def with_relay(folder: Path, port: int, more: str = "") -> Installation:
    """An installation that calls nobody but a relay."""
    made = Installation(folder)
    made.write(("pacs", "PACS", 104))
    text = made.path.read_text("utf-8").partition("[ae.")[0].replace('store = ["pacs"]', 'mail = ["a"]\ncalled = "OUT"')
    text = text.replace('from = "a"\n', "").replace('peers = ["127.0.0.1"]', 'peers = ["127.0.0.1"]\nsend = "plain"')
    scp = f'[storescp]\ntitle = "GATEWAY"\nlisten = "127.0.0.1:{free_port()}"\n'
    relay = f'[relay]\nhost = "127.0.0.1"\nport = {port}\nsender = "dicom@gateway.test"\n{more}\n'
    made.path.write_text(f"{text}\n{scp}{relay}", "utf-8")
    return made


def asked(made: Installation) -> tuple[int, list[tuple[str, str, str]]]:
    """What echo says: its exit code, and mark, subject and text of each check."""
    done = made.type("echo", "--json")
    return done.returncode, [(one["mark"], one["subject"], one["text"]) for one in json.loads(done.stdout)["checks"]]


def test_the_relay_is_asked_as_far_as_mail_could_begin(start: Start, tmp_path: Path) -> None:
    """EHLO to a real Postfix, and the size it announces beside the one that is configured (SMTP-14)."""
    postfix = start(Postfix({}, message_size_limit="30000000"))
    code, [relay, size] = asked(with_relay(tmp_path, postfix.port, 'tls = "none"'))
    assert (code, relay[:2], size[:2]) == (0, ("ok", "relay"), ("warning", "relay.max_message"))
    assert "35 MB, and the relay takes 30 MB" in size[2]
    code, [relay, size] = asked(with_relay(tmp_path, postfix.port, 'tls = "none"\nmax_message = "20 MB"'))
    assert (code, size[:2]) == (0, ("ok", "relay.max_message"))


def test_a_relay_without_what_was_asked_for_is_a_problem(start: Start, tmp_path: Path) -> None:
    """No STARTTLS, or no AUTH: a person has to change something (SMTP-9)."""
    postfix = start(Postfix({}))
    code, [relay] = asked(with_relay(tmp_path, postfix.port))
    assert (code, relay) == (1, ("problem", "relay", "the relay offers no STARTTLS"))
    secret = tmp_path / "password"
    secret.write_text("x", "utf-8")
    secret.chmod(0o600)
    login = f'tls = "none"\nuser = "gw"\npassword_file = "{secret}"'
    code, [relay] = asked(with_relay(tmp_path, postfix.port, login))
    assert (code, relay) == (1, ("problem", "relay", "the relay offers neither AUTH PLAIN nor LOGIN"))


def test_a_relay_that_is_away_gives_no_answer(tmp_path: Path) -> None:
    """The exit code of a peer that is away, from echo and from check."""
    made = with_relay(tmp_path, free_port(), 'tls = "none"')
    code, [relay] = asked(made)
    assert (code, relay[:2]) == (3, ("no answer", "relay"))
    assert made.type("check").returncode == 3
