"""Pausing and resuming by name, and all at once: the relay is a lane as any destination."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rows import CONFIGURATION, configuration

from gateway import cli
from gateway.config import Configuration

RELAY = '\n[relay]\nhost = "127.0.0.1"\ntls = "none"\nsender = "dicom@gw.example"\n'


@pytest.fixture
def settings(tmp_path: Path) -> Configuration:
    """Two destinations and a relay."""
    return configuration(tmp_path, CONFIGURATION + RELAY)


def said(settings: Configuration, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.perform(["queue", *words, "--config", str(settings.source)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_relay_is_paused_and_resumed_by_its_name(
    settings: Configuration, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also before the first start, as after a restore."""
    assert said(settings, capsys, "pause", "relay") == (0, "relay: paused\n", "")
    assert said(settings, capsys, "resume", "relay") == (0, "relay: not paused\n", "")


def test_all_lanes_are_paused_with_one_word(settings: Configuration, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each; one document in JSON."""
    assert said(settings, capsys, "pause", "--all")[1] == "pacs: paused\nother: paused\nrelay: paused\n"
    code, out, _ = said(settings, capsys, "resume", "--all", "--json")
    assert code == 0
    assert [(one["name"], one["paused"]) for one in json.loads(out)["destinations"]] == [
        ("pacs", False),
        ("other", False),
        ("relay", False),
    ]


@pytest.mark.parametrize("words", [(), ("pacs", "--all")])
def test_one_lane_or_all_is_a_usage_error_else(
    settings: Configuration, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """Nothing is guessed where images would not go out."""
    code, _, err = said(settings, capsys, "pause", *words)
    assert (code, err) == (2, "dicom-mail: expected either AE or --all\n")


def test_a_lane_that_is_none_is_named_with_those_there_are(
    settings: Configuration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a relay there is no relay to pause; a destination of that name is the destination."""
    assert "configured: pacs, other, relay" in said(settings, capsys, "pause", "nowhere")[2]
    (tmp_path / "bare").mkdir()
    bare = configuration(tmp_path / "bare")
    assert "there is no destination relay (configured: pacs, other)" in said(bare, capsys, "pause", "relay")[2]
