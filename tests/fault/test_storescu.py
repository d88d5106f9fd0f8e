"""The Storage SCU against peers that lie, stall and break off: each mood, and what is said of it (R12)."""

from __future__ import annotations

import hashlib
import os
import shlex
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_scp import Answer, Greeting, ScriptedScp

from gateway import model
from gateway.core import contexts
from gateway.edges.storescu import Association, Peer, echo
from gateway.errors import AssociationRejectedError, PeerUnreachableError

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
JPEG = "1.2.840.10008.1.2.4.50"
CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.pem -days 2"
    " -subj /CN=pacs -addext subjectAltName=IP:127.0.0.1"
)
LONG = 30.0
SHORT = 0.3

Make = Callable[..., list[model.Queued]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write files of random bytes, each behind 100 bytes that stand for the file header, and queue them."""

    def make(count: int = 3, size: int = 40_000, **pair: str) -> list[model.Queued]:
        queued = []
        for key in range(count):
            path = tmp_path / f"{key}-{size}.dcm"
            path.write_bytes(os.urandom(100 + size + 10))
            span = model.Span(path, 100, 100 + size)
            sop_class, syntax = pair.get("sop_class", CT), pair.get("syntax", EXPLICIT)
            queued.append(model.Queued(key, sop_class, f"1.2.3.{key}", syntax, span))
        return queued

    return make


def peer(scp: ScriptedScp, timeout: float = LONG, tls: ssl.SSLContext | None = None) -> Peer:
    return Peer("SCRIPTED", "127.0.0.1", scp.port, "GATEWAY", timeout, tls=tls)


def send(scp: ScriptedScp, queued: list[model.Queued], deadline: float = LONG) -> tuple[Association, list[model.Sent]]:
    association = Association.open(peer(scp), contexts.plan(queued)[0].contexts)
    return association, association.send(queued, deadline)


def content(queued: model.Queued) -> str:
    span = queued.data_set
    return hashlib.sha256(span.path.read_bytes()[span.start : span.end]).hexdigest()


STATUSES = [0x0000, 0xB000, 0xB006, 0xB007, 0xA700, 0xA900, 0xC000, 0x0110, 0x0111, 0x0122, 0x0124, 0x0214, 0xFFFF]


@pytest.mark.parametrize("status", STATUSES, ids=hex)
def test_every_status_is_handed_on_as_it_came_and_the_window_goes_on(make: Make, status: int) -> None:
    """R12, R14: a status is a definite answer for one instance; the others are sent, and none twice."""
    queued = make(3)
    with ScriptedScp(0, status, 0) as scp:
        association, outcomes = send(scp, queued)
        association.release()
        scp.settle()
    assert outcomes == [model.Sent(0, 0), model.Sent(1, status), model.Sent(2, 0)]
    assert [seen.sha256 for seen in scp.seen] == [content(each) for each in queued]
    assert [seen.sop_instance for seen in scp.seen] == ["1.2.3.0", "1.2.3.1", "1.2.3.2"]
    assert (scp.ends, scp.faults) == (["release"], [])


HARMLESS = ["split", "no-instance", "empty-instance", "empty-pdu"]


@pytest.mark.parametrize("act", HARMLESS)
def test_responses_that_are_only_unusual_count(make: Make, act: str) -> None:
    """R12: a response may be cut anywhere, and need not repeat the instance (PS3.7 Table 9.3-2)."""
    with ScriptedScp(Answer(act=act)) as scp:
        association, outcomes = send(scp, make(3))
        association.release()
        scp.settle()
    assert [sent.status for sent in outcomes] == [0, 0, 0]
    assert scp.ends == ["release"]


WRONG = {
    "wrong-id": "response with another message id",
    "wrong-command": "response to another command",
    "wrong-instance": "response about another instance",
    "no-status": "invalid command set",
    "long-status": "invalid command set",
    "cut-element": "invalid command set",
    "cut-tag": "invalid command set",
    "other-group": "invalid command set",
    "only-data-set": "unexpected data set",
    "behind-command": "unexpected data set",
    "endless-command": "command set too long",
    "abort": "A-ABORT",
    "p-abort": "A-P-ABORT",
    "close": "closed",
    "reset": "closed",
    "release": "A-RELEASE-RQ",
    "garbage": "unrecognised PDU",
    "long-pdu": "PDU too long",
    "bad-pdv": "invalid PDV",
    "tiny-pdv": "invalid PDV",
    "short-pdv": "invalid PDV",
}


@pytest.mark.parametrize("act", WRONG)
def test_anything_but_the_response_is_an_unknown_outcome_and_ends_the_association(make: Make, act: str) -> None:
    """R12, R13: no fault is ever a success, and what is behind it is never put on the wire."""
    with ScriptedScp(0, Answer(act=act)) as scp:
        association, outcomes = send(scp, make(4))
        assert not association.alive
        assert association.send(make(1), LONG) == []
        scp.settle()
    assert outcomes == [model.Sent(0, 0), model.Sent(1, None, comment=WRONG[act])]
    assert len(scp.seen) == 2
    assert scp.faults == []


@pytest.mark.parametrize("act", ["silence", "half-pdu", "half-command", "drip"])
def test_a_response_that_is_late_is_an_unknown_outcome_and_ends_the_association(make: Make, act: str) -> None:
    """R13: after a time-out the association is dropped with an A-ABORT, so that a late response meets nobody."""
    with ScriptedScp(0, Answer(act=act)) as scp:
        association, outcomes = send(scp, make(3), SHORT)
        assert not association.alive
        scp.stop.set()
        scp.settle()
    assert outcomes == [model.Sent(0, 0), model.Sent(1, None, comment="timeout")]
    assert scp.ends[0] in {"abort", "reset"}


@pytest.mark.parametrize("act", ["abort", "p-abort", "close", "reset", "garbage", "release"])
@pytest.mark.parametrize("size", [3_000_000, 30_000_000])
def test_an_association_that_ends_within_a_data_set_leaves_it_unknown(make: Make, act: str, size: int) -> None:
    """R12: whatever the peer does in the middle of a PDU, the instance is unknown and the next one not sent."""
    with ScriptedScp(0, Answer(act=act, after=100_000)) as scp:
        _, outcomes = send(scp, [*make(1), *make(2, size)])
        scp.settle()
    assert [sent.status for sent in outcomes] == [0, None]
    assert outcomes[1].comment in {WRONG[act], "closed"}
    assert len(scp.seen) == 1


@pytest.mark.parametrize("act", ["abort", "abort-close"])
def test_an_abort_within_a_data_set_is_noticed_while_sending(make: Make, act: str) -> None:
    """R12: a peer that aborts does not get the rest of 30 MB, and its last word is heard though it hung up."""
    with ScriptedScp(Answer(act=act, after=100_000)) as scp:
        _, outcomes = send(scp, make(1, 30_000_000))
    assert outcomes == [model.Sent(0, None, comment="A-ABORT")]


def test_the_last_word_of_a_peer_is_heard_after_it_hung_up(make: Make) -> None:
    """R12: writing fails first; the A-ABORT that says why has come before that."""
    with ScriptedScp(Answer(act="abort-close", after=10_000), receive_buffer=4096) as scp:
        _, outcomes = send(scp, make(1, 1_000_000))
    assert outcomes == [model.Sent(0, None, comment="A-ABORT")]


def test_a_peer_that_stops_reading_is_given_up(make: Make) -> None:
    """R4, R13: a total stall while sending ends by the deadline."""
    with ScriptedScp(Answer(act="deaf", after=10_000), receive_buffer=4096) as scp:
        association, outcomes = send(scp, make(2, 20_000_000), SHORT)
        assert not association.alive
    assert outcomes == [model.Sent(0, None, comment="timeout")]


def test_a_peer_that_drips_is_given_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """R4: progress alone is not enough; below the slowest rate a transfer is over."""
    monkeypatch.setattr("gateway.edges.storescu.association.SLOWEST", 10**12)
    with ScriptedScp(Answer(act="deaf", after=10_000), receive_buffer=4096) as scp:
        _, outcomes = send(scp, make(1, 20_000_000), SHORT)
    assert outcomes == [model.Sent(0, None, comment="timeout")]


def test_success_before_the_data_set_was_sent_is_a_lie(make: Make) -> None:
    """R12: nobody has stored what has not come."""
    with ScriptedScp(Answer(after=100_000)) as scp:
        _, outcomes = send(scp, make(2, 30_000_000))
    assert outcomes == [model.Sent(0, None, comment="success before the data set was sent")]


def test_a_failure_before_the_data_set_was_sent_is_an_answer(make: Make) -> None:
    """R12: a peer may find its disk full half-way, say so, and read the rest away."""
    queued = make(2, 30_000_000)
    with ScriptedScp(Answer(0xA700, after=100_000), 0) as scp:
        association, outcomes = send(scp, queued)
        association.release()
        scp.settle()
    assert [sent.status for sent in outcomes] == [0xA700, 0]
    assert scp.ends == ["release"]


END = {
    "response-release": "released",
    "response-abort": "closed",
    "response-p-abort": "closed",
    "response-close": "close",
    "twice": "abort",
}


@pytest.mark.parametrize("act", END)
def test_an_association_that_ends_after_a_response_leaves_the_next_instance_unsent(make: Make, act: str) -> None:
    """R12, R14: the answer counts; the next instance was never on the wire and is not reported."""
    with ScriptedScp(0, Answer(0xB000, act)) as scp:
        association = Association.open(peer(scp), contexts.plan(make(1))[0].contexts)
        outcomes = association.send(make(2), LONG)
        if act == "response-close":
            scp.settle()
        else:
            wait_for_words(association)
        outcomes += association.send(make(3)[2:], LONG)
        assert not association.alive
        association.release()
        scp.settle()
    assert outcomes == [model.Sent(0, 0), model.Sent(1, 0xB000)]
    assert len(scp.seen) == 2
    assert scp.ends == [END[act]]


def wait_for_words(association: Association) -> None:
    while association._wire.spoken() is None:
        time.sleep(0.01)


def test_a_response_to_an_earlier_message_is_never_taken_for_this_one(make: Make) -> None:
    """R12: two responses to one message drop the association instead of answering the next."""
    with ScriptedScp(Answer(act="twice")) as scp:
        _, outcomes = send(scp, make(3))
    assert outcomes[0] == model.Sent(0, 0)
    assert all(sent.status is None for sent in outcomes[1:])
    assert len(outcomes) <= 2


REJECTIONS = [
    ((1, 1, 3), True, "calling AE title not recognised"),
    ((1, 1, 7), True, "called AE title not recognised"),
    ((1, 1, 2), True, "application context name not supported"),
    ((1, 2, 2), True, "protocol version not supported"),
    ((2, 3, 1), False, "temporary congestion"),
    ((2, 3, 2), False, "local limit exceeded"),
    ((2, 1, 1), False, "no reason given"),
    ((2, 9, 9), False, "source 9, reason 9"),
]


@pytest.mark.parametrize(("reject", "permanent", "reason"), REJECTIONS)
def test_a_rejected_association_tells_whether_it_is_for_good(
    make: Make, reject: tuple[int, int, int], permanent: bool, reason: str
) -> None:
    """NET-5: result 1 opens the breaker, result 2 is tried again."""
    with (
        ScriptedScp(greetings=[Greeting("reject", reject=reject)]) as scp,
        pytest.raises(AssociationRejectedError) as caught,
    ):
        send(scp, make(1))
    assert (caught.value.permanent, caught.value.reason) == (permanent, reason)


GREETINGS = {
    "silence": "timeout",
    "half": "timeout",
    "half-pdu": "timeout",
    "abort": "A-ABORT",
    "p-abort": "A-P-ABORT",
    "close": "closed",
    "reset": "closed",
    "release": "A-RELEASE-RQ",
    "garbage": "unrecognised PDU",
    "long-pdu": "PDU too long",
    "nonsense": "invalid A-ASSOCIATE-AC",
    "short-reject": "invalid A-ASSOCIATE-RJ",
}


@pytest.mark.parametrize("act", GREETINGS)
def test_a_peer_that_does_not_answer_an_association_request_is_unreachable(make: Make, act: str) -> None:
    """R4, NET-5: no answer is no rejection; every wait ends, also in the middle of a PDU."""
    patience = SHORT if GREETINGS[act] == "timeout" else LONG
    with ScriptedScp(greetings=[Greeting(act)]) as scp, pytest.raises(PeerUnreachableError, match=GREETINGS[act]):
        Association.open(peer(scp, patience), contexts.plan(make(1))[0].contexts)


def test_a_port_where_nobody_listens_is_unreachable(make: Make) -> None:
    """R4: and says so at once."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = Peer("NOBODY", "127.0.0.1", taken.getsockname()[1], "GATEWAY", LONG)
        with pytest.raises(PeerUnreachableError, match="Connection refused"):
            Association.open(target, contexts.plan(make(1))[0].contexts)


def test_a_name_that_means_nothing_is_unreachable(make: Make) -> None:
    """R4: a wrong host name is the peer's trouble, not a crash."""
    target = Peer("NOBODY", "pacs.invalid", 104, "GATEWAY", LONG)
    with pytest.raises(PeerUnreachableError, match=r"pacs\.invalid:104"):
        Association.open(target, contexts.plan(make(1))[0].contexts)


def test_a_listener_that_accepts_no_connection_is_unreachable(make: Make) -> None:
    """R4: a black hole ends the attempt by the deadline."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for caller in (first, second):
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        target = Peer("FULL", "127.0.0.1", full.getsockname()[1], "GATEWAY", SHORT)
        with pytest.raises(PeerUnreachableError, match="no answer in time"):
            Association.open(target, contexts.plan(make(1))[0].contexts)


@pytest.mark.parametrize(
    ("result", "code"),
    [(1, "context-unavailable"), (2, "context-unavailable"), (3, "context-refused"), (4, "context-refused")],
)
def test_a_refused_context_costs_its_own_instances_alone(make: Make, result: int, code: str) -> None:
    """NET-5, R14: nothing is sent for it, and the others go over the same association."""
    queued = [*make(1, 1000, sop_class=MR), *make(2, 2000)]
    with ScriptedScp(greetings=[Greeting(results=[result])]) as scp:
        association, outcomes = send(scp, queued)
        association.release()
    assert association.refused == {(MR, EXPLICIT): code}
    assert outcomes == [model.Sent(0, None, refused=code), model.Sent(0, 0), model.Sent(1, 0)]
    assert [seen.sop_class for seen in scp.seen] == [CT, CT]


def test_a_context_left_out_of_the_answer_is_unavailable(make: Make) -> None:
    """NET-5: a peer that does not mention a context has not accepted it."""
    with ScriptedScp(greetings=[Greeting(results=[None])]) as scp:
        association, outcomes = send(scp, make(1))
        association.release()
    assert outcomes == [model.Sent(0, None, refused="context-unavailable")]


def test_a_context_accepted_with_another_syntax_is_refused(make: Make) -> None:
    """NET-4: bytes in one syntax are never sent as another."""
    with ScriptedScp(greetings=[Greeting(syntax="1.2.840.10008.1.2")]) as scp:
        association, outcomes = send(scp, make(1))
        association.release()
    assert outcomes == [model.Sent(0, None, refused="context-refused")]
    assert scp.seen == []


def test_an_instance_the_association_was_not_opened_for_is_not_sent(make: Make) -> None:
    """NET-4: it needs an association of its own; this one stays open."""
    stranger = make(1, syntax=JPEG)
    with ScriptedScp() as scp:
        association = Association.open(peer(scp), contexts.plan(make(1))[0].contexts)
        outcomes = association.send([*stranger, *make(1)], LONG)
        association.release()
    assert outcomes == [model.Sent(0, None, refused="context-not-proposed"), model.Sent(0, 0)]


def test_bytes_that_are_gone_cost_their_own_instance_alone(make: Make) -> None:
    """R9, R14: a file that is missing or too short is never sent in part."""
    queued = make(3)
    queued[0].data_set.path.unlink()
    os.truncate(queued[1].data_set.path, 200)
    with ScriptedScp() as scp:
        association, outcomes = send(scp, queued)
        association.release()
    assert [(sent.status, sent.refused) for sent in outcomes] == [
        (None, "content-missing"),
        (None, "content-missing"),
        (0, None),
    ]
    assert len(scp.seen) == 1


def test_a_file_that_shrinks_under_way_is_never_completed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """R8: what was not read is not made up; the message stays without its end."""
    queued = make(1, 5_000_000)
    real = os.preadv

    def shrinking(file: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(queued[0].data_set.path, 1_500_000)
        return real(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", shrinking)
    with ScriptedScp() as scp:
        _, outcomes = send(scp, queued)
        scp.settle()
    assert outcomes == [model.Sent(0, None, comment="the file became shorter")]
    assert scp.seen == []


def test_a_disk_that_fails_under_way_is_an_unknown_outcome(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """R8, R12: as before, with an error of the disk."""

    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    with ScriptedScp() as scp:
        _, outcomes = send(scp, make(2))
    assert outcomes == [model.Sent(0, None, comment="OSError")]
    assert scp.seen == []


@pytest.mark.parametrize("max_pdu", [8, 21, 128, 4096, 16384, 16385, 131072, 4 << 20, 0])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4077, 32756, 32757, 50_000])
def test_every_length_goes_through_every_pdu_length(make: Make, max_pdu: int, size: int) -> None:
    """R8: fragments keep to the peer's maximum length, and are even but for the last (PS3.8 Annex E)."""
    queued = make(2, size)
    with ScriptedScp(greetings=[Greeting(max_pdu=max_pdu)]) as scp:
        association, outcomes = send(scp, queued)
        association.release()
    assert [sent.status for sent in outcomes] == [0, 0]
    assert [seen.sha256 for seen in scp.seen] == [content(each) for each in queued]
    assert scp.faults == []


@pytest.mark.parametrize("max_pdu", [4096, 16384, 0])
def test_more_than_a_batch_arrives_unaltered(make: Make, max_pdu: int) -> None:
    """R8: several batches, an odd length, and PDUs as long as they may be."""
    queued = make(1, 5_000_001)
    with ScriptedScp(greetings=[Greeting(max_pdu=max_pdu)]) as scp:
        association, _ = send(scp, queued)
        association.release()
    assert [seen.sha256 for seen in scp.seen] == [content(queued[0])]
    assert scp.seen[0].fragments[-1] % 2 == 1
    assert max(scp.seen[0].fragments) == ((max_pdu or 1 << 20) - 6) & ~1
    assert scp.faults == []


def test_a_maximum_length_in_which_nothing_fits_is_no_association(make: Make) -> None:
    """NET-11: a peer that takes PDUs of 7 bytes takes no data set."""
    with (
        ScriptedScp(greetings=[Greeting(max_pdu=7)]) as scp,
        pytest.raises(PeerUnreachableError, match="maximum length too small"),
    ):
        send(scp, make(1))


def test_message_ids_grow_and_start_again(make: Make) -> None:
    """R12: each message has its own ID, from 1 to 65535 (PS3.7 §9.3.1.1)."""
    with ScriptedScp() as scp:
        association = Association.open(peer(scp), contexts.plan(make(1))[0].contexts)
        association.send(make(2, 10), LONG)
        association._message = 0xFFFE
        outcomes = association.send(make(3, 10), LONG)
        association.release()
    assert [seen.message for seen in scp.seen] == [1, 2, 0xFFFF, 1, 2]
    assert [sent.status for sent in outcomes] == [0, 0, 0]


def test_the_request_proposes_exactly_the_plan(make: Make) -> None:
    """NET-4: one class and one syntax in each context, odd IDs, private classes among them."""
    private = "1.2.276.0.99.1"
    queued = [*make(1), *make(1, sop_class=private), *make(1, syntax=JPEG), *make(1)]
    with ScriptedScp() as scp:
        association, _ = send(scp, queued)
        association.release()
    assert scp.requests == [[(1, CT, (EXPLICIT,)), (3, private, (EXPLICIT,)), (5, CT, (JPEG,))]]


def test_a_hundred_and_forty_classes_take_two_associations(make: Make) -> None:
    """R19: at most 128 contexts in one association, and none is forgotten."""
    (one,) = make(1, 10)
    queued = [model.Queued(key, f"1.2.3.{key}", f"1.2.4.{key}", EXPLICIT, one.data_set) for key in range(140)]
    with ScriptedScp() as scp:
        for plan in contexts.plan(queued):
            association = Association.open(peer(scp), plan.contexts)
            assert [sent.status for sent in association.send(plan.queued, LONG)] == [0] * len(plan.queued)
            association.release()
    assert [len(request) for request in scp.requests] == [128, 12]
    assert [seen.sop_class for seen in scp.seen] == [f"1.2.3.{key}" for key in range(140)]


def test_nothing_to_propose_is_an_error_of_the_caller() -> None:
    """R19: an empty plan opens no association."""
    with pytest.raises(ValueError, match="nothing to propose"):
        Association.open(Peer("X", "127.0.0.1", 1, "GATEWAY", SHORT), ())


@pytest.mark.parametrize("act", ["silence", "close", "abort", "garbage"])
def test_release_always_ends(make: Make, act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R4: a peer that does not answer A-RELEASE-RQ is not waited for, whatever it does."""
    monkeypatch.setattr("gateway.edges.storescu.association.RELEASE_PATIENCE", SHORT)
    with ScriptedScp(Answer(act=f"response-{act}")) as scp:
        association, outcomes = send(scp, make(1))
        association.release()
        association.release()
        assert not association.alive
    assert outcomes == [model.Sent(0, 0)]


def test_two_releases_at_once_are_both_answered(make: Make) -> None:
    """PS3.8 §7.2.2.7: of two that release at once the requestor answers first."""
    with ScriptedScp(Answer(act="response-collide")) as scp:
        association, _ = send(scp, make(1))
        association.release()
        scp.settle()
    assert scp.ends == ["collided"]


def test_data_that_crosses_a_release_is_ignored(make: Make) -> None:
    """PS3.8 §7.2.2.4: until the release is answered, data may still come."""
    with ScriptedScp(Answer(act="twice")) as scp:
        association, outcomes = send(scp, make(1))
        association.release()
        scp.settle()
    assert (outcomes, scp.ends) == ([model.Sent(0, 0)], ["release"])


def test_abort_tells_the_peer(make: Make) -> None:
    """PS3.8 §9.3.8: between messages an A-ABORT is sent; twice is as good as once."""
    with ScriptedScp() as scp:
        association, _ = send(scp, make(1))
        association.abort()
        association.abort()
        scp.settle()
    assert scp.ends == ["abort"]
    assert not association.alive


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_abort_from_another_thread_ends_a_send_that_waits(
    make: Make, secure: bool, certificates: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """R31: stopping does not wait for a peer's silence."""
    server, client = certificates if secure else (None, None)
    with ScriptedScp(Answer(act="silence"), tls=server) as scp:
        association = Association.open(peer(scp, tls=client), contexts.plan(make(1))[0].contexts)
        outcomes: list[model.Sent] = []
        sender = threading.Thread(target=lambda: outcomes.extend(association.send(make(2), 600)))
        sender.start()
        while not scp.seen:
            time.sleep(0.01)
        association.abort()
        sender.join(LONG)
        assert not sender.is_alive()
    assert [(sent.key, sent.status) for sent in outcomes] == [(0, None)]
    assert not association.alive


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's context that trust each other."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        shlex.split(CERTIFICATE),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    client = ssl.create_default_context(cafile=folder / "cert.pem")
    return server, client


def test_tls_carries_every_byte(make: Make, certificates: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """TLS-1, R8: several batches over TLS 1.3, session tickets included."""
    server, client = certificates
    queued = [*make(20, 30_000), *make(1, 3_000_001)]
    with ScriptedScp(tls=server) as scp:
        association = Association.open(peer(scp, tls=client), contexts.plan(queued)[0].contexts)
        outcomes = association.send(queued, LONG)
        association.release()
        scp.settle()
    assert {sent.status for sent in outcomes} == {0}
    assert [seen.sha256 for seen in scp.seen] == [content(each) for each in queued]
    assert (scp.ends, scp.faults) == (["release"], [])


@pytest.mark.parametrize("act", ["abort", "close", "wrong-id", "release", "response-abort"])
def test_tls_changes_no_outcome(make: Make, act: str, certificates: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """R12: the same faults over TLS."""
    server, client = certificates
    with ScriptedScp(0, Answer(act=act), tls=server) as scp:
        association = Association.open(peer(scp, tls=client), contexts.plan(make(1))[0].contexts)
        outcomes = association.send(make(2), LONG)
        association.abort()
    expected = model.Sent(1, 0) if act == "response-abort" else model.Sent(1, None, comment=WRONG[act])
    assert outcomes == [model.Sent(0, 0), expected]


def test_a_peer_without_tls_is_unreachable_by_tls(
    make: Make, certificates: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """TLS-3: never downgraded."""
    _, client = certificates
    with ScriptedScp() as scp, pytest.raises(PeerUnreachableError, match="TLS"):
        Association.open(peer(scp, SHORT, client), contexts.plan(make(1))[0].contexts)


def test_a_peer_that_answers_tls_in_plain_words_is_unreachable(
    make: Make, certificates: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """TLS-3: the library's reason is handed on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def greet() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(b"220 smtp.example\r\n")

        server = threading.Thread(target=greet)
        server.start()
        target = Peer("SMTP", "127.0.0.1", listener.getsockname()[1], "GATEWAY", LONG, tls=certificates[1])
        with pytest.raises(PeerUnreachableError, match="cannot be reached by TLS"):
            Association.open(target, contexts.plan(make(1))[0].contexts)
        server.join()


def test_a_certificate_nobody_trusts_is_named(make: Make, certificates: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """TLS-4: a peer that cannot prove who it is gets nothing."""
    server, _ = certificates
    with (
        ScriptedScp(tls=server) as scp,
        pytest.raises(PeerUnreachableError, match="signed by itself and not among"),
    ):
        Association.open(peer(scp, tls=ssl.create_default_context()), contexts.plan(make(1))[0].contexts)


def test_echo_finds_a_peer_that_answers() -> None:
    """NET-20: the association is opened for it alone, and released."""
    with ScriptedScp() as scp:
        found = echo(peer(scp))
        scp.settle()
    assert (found.ok, found.reason, found.reachable) == (True, "", True)
    assert scp.requests == [[(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2",))]]
    assert scp.ends == ["release"]


ECHOES = [
    (ScriptedScp(Answer(0x0110)), True, "status 0x0110"),
    (ScriptedScp(Answer(act="abort")), True, "A-ABORT"),
    (ScriptedScp(Answer(act="wrong-id")), True, "another message id"),
    (ScriptedScp(Answer(act="silence")), True, "timeout"),
    (ScriptedScp(greetings=[Greeting(results=[3])]), True, "Verification"),
    (ScriptedScp(greetings=[Greeting("reject", reject=(1, 1, 7))]), True, "called AE title not recognised"),
    (ScriptedScp(greetings=[Greeting("close")]), False, "closed"),
    (ScriptedScp(greetings=[Greeting("silence")]), False, "timeout"),
]


@pytest.mark.parametrize(("scp", "reachable", "reason"), ECHOES, ids=lambda each: str(each)[:20])
def test_echo_tells_what_is_wrong_and_never_raises(scp: ScriptedScp, reachable: bool, reason: str) -> None:
    """NET-20: only a success opens the way again."""
    with scp:
        found = echo(peer(scp, SHORT if reason == "timeout" else LONG))
    assert not found.ok
    assert found.reachable is reachable
    assert reason in found.reason


@pytest.fixture
def quiet_process() -> Callable[[], tuple[int, int]]:
    """Count our threads and descriptors, without those of the scripted peer."""

    def count() -> tuple[int, int]:
        threads = [thread for thread in threading.enumerate() if thread.name != "scripted-scp"]
        return len(threads), len(list(Path("/proc/self/fd").iterdir()))

    return count


def test_no_thread_and_no_descriptor_is_left_behind(make: Make, quiet_process: Callable[[], tuple[int, int]]) -> None:
    """R7: a hundred associations of every kind, and nothing remains of them."""
    acts = [
        "respond",
        "abort",
        "close",
        "reset",
        "garbage",
        "wrong-id",
        "release",
        "response-close",
        "p-abort",
        "twice",
    ]
    greetings = ["accept", "abort", "close", "reset", "garbage", "nonsense", "reject", "accept", "accept", "long-pdu"]
    queued = make(2, 5000)
    proposed = contexts.plan(queued)[0].contexts
    before = quiet_process()
    for round_ in range(10):
        for act, greeting in zip(acts, greetings[round_:] + greetings[:round_], strict=True):
            with ScriptedScp(Answer(act=act), greetings=[Greeting(greeting)]) as scp:
                try:
                    association = Association.open(peer(scp), proposed)
                except (PeerUnreachableError, AssociationRejectedError):
                    continue
                association.send(queued, LONG)
                association.release()
    assert quiet_process() == before


SENDER = """
import sys
from pathlib import Path
from gateway import model
from gateway.core import contexts
from gateway.edges.storescu import Association, Peer

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

path, size = Path(sys.argv[1]), int(sys.argv[2])
queued = [model.Queued(0, "1.2.3", "1.2.3.4", "1.2.840.10008.1.2.1", model.Span(path, 0, size))]
peer = Peer("SCRIPTED", "127.0.0.1", int(sys.argv[3]), "GATEWAY", 30)
association = Association.open(peer, contexts.plan(queued)[0].contexts)
before = peak()
(sent,) = association.send(queued, 30)
association.release()
print(sent.status, peak() - before)
"""


def test_memory_stays_flat_for_an_instance_of_700_mb(tmp_path: Path) -> None:
    """R7: an instance is never in memory, only a batch of it."""
    path = tmp_path / "large.dcm"
    path.touch()
    os.truncate(path, 700_000_000)  # a sparse file: no disk is written
    with ScriptedScp() as scp:
        arguments = [sys.executable, "-c", SENDER, str(path), "700000000", str(scp.port)]
        ended = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    status, kilobytes = ended.stdout.split()
    assert (status, scp.seen[0].size) == ("0", 700_000_000)
    assert int(kilobytes) < 10_000


def test_no_thread_is_used_at_all(make: Make, quiet_process: Callable[[], tuple[int, int]]) -> None:
    """R7: an open association is a socket, and costs nothing while it waits."""
    before, _ = quiet_process()
    with ScriptedScp() as scp:
        associations = [Association.open(peer(scp), contexts.plan(make(1))[0].contexts) for _ in range(20)]
        after, _ = quiet_process()
        for association in associations:
            association.release()
    assert after == before


def test_nothing_is_logged_or_printed(
    make: Make, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """R35: neither the library nor we say anything about what is sent."""
    with ScriptedScp(0, Answer(act="garbage"), greetings=[Greeting(), Greeting("nonsense")]) as scp:
        send(scp, make(3))
        with pytest.raises(PeerUnreachableError):
            send(scp, make(3))
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
