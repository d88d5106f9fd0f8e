"""The demo from inside: the whole story in this process, and what it makes of trouble."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from peer import answers, free_port

from gateway import demo
from gateway.config import ApplicationEntity
from gateway.errors import GatewayError
from gateway.model import Outcome


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_the_story_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    """0, and everything identical."""
    assert demo.run(serve=False) == 0
    told = capsys.readouterr().out
    assert told.count("identical") == 7
    assert "MISSING" not in told


def test_on_a_terminal_the_rows_change_in_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is drawn over itself, and Ctrl-C ends what keeps running."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(demo.Pacs, "keep", _lie(lambda received: received + b"\0"))
    real = demo.Gateway.__exit__
    seen: list[str] = []

    def leave(gateway: demo.Gateway, *_: object) -> None:
        seen.append(str(gateway.folder))
        real(gateway)

    monkeypatch.setattr(demo.Gateway, "__exit__", leave)
    serve = demo.Demo.serve

    def serve_for_a_moment(told: demo.Demo) -> None:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        serve(told)
        timer.join()

    monkeypatch.setattr(demo.Demo, "serve", serve_for_a_moment)
    assert demo.run(serve=True) == 1
    told = capsys.readouterr().out
    assert "\x1b[1A" in told
    assert "DIFFERENT" in told
    assert "curl smtp://" in told
    assert not Path(seen[0]).exists()


def test_a_clinic_that_gets_something_else_is_found_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1, and in words: a directory that misses a file, and images that are not those of the modality."""
    real = demo.file_set

    def lie(content: bytes) -> dict[str, bytes]:
        files = real(content)
        return {"DICOMDIR": files["DICOMDIR"], "IM000001": files["IM000002"]}

    monkeypatch.setattr(demo, "file_set", lie)
    assert demo.run(serve=False) == 1
    told = capsys.readouterr().out
    assert "the DICOMDIR does not name every file" in told
    assert "the clinic got something else than was sent" in told


def _lie(change: Callable[[bytes], bytes]) -> Callable[[demo.Pacs, str, bytes], None]:
    keep = demo.Pacs.keep
    return lambda self, uid, received: keep(self, uid, change(received))


def test_a_named_pacs_is_asked_for_acknowledgements(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody can look into it, so its answers are what is shown; a pause stands for the outage."""
    with demo.Pacs() as pacs:
        entity = ApplicationEntity(title=demo.TITLE, host="127.0.0.1", port=pacs.port)
        assert demo.run(serve=False, pacs=entity) == 0
    told = capsys.readouterr().out
    assert "paused by a person" in told
    assert told.count("acknowledged\n") == 7


def test_a_pacs_that_is_not_there_ends_the_story(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason, and without the acts that would make no sense."""
    monkeypatch.setattr(demo, "STORY_PATIENCE", 2.0)
    assert demo.run(serve=False, pacs=ApplicationEntity(title="X", host="127.0.0.1", port=free_port())) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"not within 2 s: every mail is settled \(X at [\w.:]+ cannot be reached", told)
    assert "MISSING" in told
    assert "stranger" not in told


def test_a_gateway_that_dies_is_an_error_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its start, with its last words; in the middle as well."""
    entity = ApplicationEntity(title="X", host="127.0.0.1", port=free_port())
    monkeypatch.setattr(demo, "CONFIGURATION", demo.CONFIGURATION.replace('data = "data"', 'data = "/dev/null/x"'))
    with (
        pytest.raises(GatewayError, match=r"the gateway did not start: dicom-mail: .*/dev/null"),
        demo.Gateway(tmp_path, entity, 1),
    ):
        pass
    monkeypatch.undo()

    def kill(told: demo.Demo) -> None:
        told._gateway.process.kill()
        told._watch(lambda: False, "nothing")

    monkeypatch.setattr(demo.Demo, "_clinic_sends", kill)
    with pytest.raises(GatewayError, match="the gateway ended: "):
        demo.run(serve=False, pacs=entity)


def test_a_gateway_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its process id, and no other way."""
    entity = ApplicationEntity(title="X", host="127.0.0.1", port=free_port())
    with demo.Gateway(tmp_path, entity, 1) as gateway:
        monkeypatch.setattr(demo, "STOP_PATIENCE", 0.5)
        os.kill(gateway.process.pid, signal.SIGSTOP)
    assert gateway.process.returncode == -signal.SIGKILL


def test_silence_has_last_words_too(tmp_path: Path) -> None:
    """An empty log is no crash."""
    gateway = demo.Gateway(tmp_path, ApplicationEntity(title="X", host="127.0.0.1", port=1), 1)
    (tmp_path / "log").touch()
    assert gateway.last_words() == "it said nothing"


def test_the_pacs_listens_on_the_same_port_after_an_outage() -> None:
    """And stopping twice is no harm."""
    with demo.Pacs() as pacs:
        port = pacs.port
        assert answers(port)
        pacs.close()
        pacs.close()
        assert not answers(port)
        pacs.open()
        assert pacs.port == port
        assert answers(port)


def test_mails_carry_the_files_as_they_are() -> None:
    """Byte for byte, whatever they are called, and the damaged one is marked as such."""
    for mail in demo.mails():
        parts: list[Any] = [part for part in message_from_bytes(mail.content).walk() if part.get_filename()]
        assert [part.get_payload(decode=True) for part in parts] == [image.path.read_bytes() for image in mail.images]
        assert (mail.expected is Outcome.HELD) == any(not image.usable for image in mail.images)


def test_the_data_set_is_found_without_our_own_reader() -> None:
    """So that the gateway and its judge cannot be wrong together."""
    image = demo.Image.of(demo.SAMPLES / "CT_small.dcm")
    content = image.path.read_bytes()
    assert content.endswith(demo.data_set(content))
    assert hashlib.sha256(demo.data_set(content)).hexdigest() == image.sha256
    with pytest.raises(ValueError, match="no group length"):
        demo.data_set(b"\0" * 200)
