"""The fall-back sender, which has pynetdicom write and read C-STORE messages, against peers that lie and break off."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from scripted_scp import Answer, ScriptedScp

from gateway import model
from gateway.core import contexts
from gateway.edges.storescu import LibraryAssociation, Peer

CT = "1.2.840.10008.5.1.4.1.1.2"


def make(folder: Path, count: int = 3, size: int = 40_000) -> list[model.Queued]:
    queued = []
    for key in range(count):
        path = folder / f"{key}.dcm"
        path.write_bytes(bytes(100) + bytes([key]) * size)
        span = model.Span(path, 100, 100 + size)
        queued.append(model.Queued(key, CT, f"1.2.3.{key}", contexts.EXPLICIT, span))
    return queued


def send(scp: ScriptedScp, queued: list[model.Queued], deadline: float = 10) -> list[model.Sent]:
    peer = Peer("SCRIPTED", "127.0.0.1", scp.port, "GATEWAY", 10)
    association = LibraryAssociation.open(peer, contexts.plan(queued)[0].contexts)
    outcomes = association.send(queued, deadline)
    association.release()
    return outcomes


def test_what_the_library_sends_is_what_we_were_given(tmp_path: Path) -> None:
    """R8, R14: the bytes are the same, and a status is a definite answer for one instance."""
    queued = make(tmp_path)
    with ScriptedScp(0, 0xA700, 0xB000) as scp:
        outcomes = send(scp, queued)
        scp.settle()
    assert [sent.status for sent in outcomes] == [0, 0xA700, 0xB000]
    contents = [one.data_set.path.read_bytes()[100:] for one in queued]
    assert [seen.sha256 for seen in scp.seen] == [hashlib.sha256(content).hexdigest() for content in contents]
    assert (scp.ends, scp.faults) == (["release"], [])


WRONG = ["wrong-id", "wrong-command", "wrong-instance", "no-status", "abort", "p-abort", "close", "garbage", "release"]


@pytest.mark.parametrize("act", WRONG)
def test_anything_but_the_response_is_an_unknown_outcome(tmp_path: Path, act: str) -> None:
    """R12, R13: never a success, and nothing is sent behind it."""
    with ScriptedScp(0, Answer(act=act)) as scp:
        outcomes = send(scp, make(tmp_path))
        scp.settle()
    assert [sent.status for sent in outcomes] == [0, None]
    assert len(scp.seen) == 2


def test_a_silent_peer_is_given_up_in_time(tmp_path: Path) -> None:
    """R13: the deadline is ours, not the library's."""
    with ScriptedScp(Answer(act="silence")) as scp:
        outcomes = send(scp, make(tmp_path), 0.3)
    assert outcomes == [model.Sent(0, None, comment="timeout")]
