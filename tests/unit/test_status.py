"""The status table holds what the standard lists, and takes nothing else for a success."""

from __future__ import annotations

import itertools

import pytest

from gateway import model
from gateway.core import status
from gateway.core.status import Action

SUCCESSES = {0x0000, 0xB000, 0xB006, 0xB007}


def test_only_success_and_listed_warnings_are_delivered() -> None:
    """R12: over all codes there are, four mean that the instance is in the PACS."""
    assert {code for code in range(0x10000) if status.classify(code).delivered} == SUCCESSES


def test_ranges_do_not_overlap() -> None:
    """NET-16: each code has one verdict."""
    rows = sorted(status.TABLE, key=lambda row: row.first)
    assert all(row.first <= row.last for row in rows)
    assert all(one.last < other.first for one, other in itertools.pairwise(rows))


@pytest.mark.parametrize("code", sorted(SUCCESSES))
def test_a_warning_is_told_from_a_success(code: int) -> None:
    """NET-16: a coerced or discarded element is on record."""
    assert status.classify(code).warning is (code != 0)


EXPECTED = [
    (0xA700, Action.RETRY, "out-of-resources", True),
    (0xA7FF, Action.RETRY, "out-of-resources", True),
    (0xA900, Action.INSTANCE, "class-mismatch", False),
    (0xA9FF, Action.INSTANCE, "class-mismatch", False),
    (0xC000, Action.RETRY, "not-understood", True),
    (0xCFFF, Action.RETRY, "not-understood", True),
    (0x0110, Action.RETRY, "processing-failure", True),
    (0x0213, Action.RETRY, "resource-limitation", True),
    (0x0111, Action.DUPLICATE, "duplicate", False),
    (0x0117, Action.INSTANCE, "instance-invalid", False),
    (0x0119, Action.INSTANCE, "class-mismatch", False),
    (0x0122, Action.CLASS, "class-refused", False),
    (0x0112, Action.CLASS, "class-refused", False),
    (0x0118, Action.CLASS, "class-refused", False),
    (0x0124, Action.DESTINATION, "not-authorised", False),
    (0x0214, Action.DESTINATION, "not-authorised", False),
    (0x0210, Action.STOP, "protocol-misuse", False),
    (0x0211, Action.STOP, "protocol-misuse", False),
    (0x0212, Action.STOP, "protocol-misuse", False),
]


@pytest.mark.parametrize(("code", "action", "word", "bounded"), EXPECTED)
def test_each_listed_failure_has_its_action(code: int, action: Action, word: str, bounded: bool) -> None:
    """NET-16, NET-17: the whole table, both spellings of 0122 and 0124 among it."""
    verdict = status.classify(code)
    assert (verdict.action, verdict.code, verdict.bounded) == (action, word, bounded)
    assert not verdict.warning
    assert verdict.clause.startswith("PS3.")


@pytest.mark.parametrize(
    "code", [0x0001, 0xA600, 0xA6FF, 0xA800, 0xAA00, 0xB001, 0xBFFF, 0xD000, 0xFE00, 0xFF00, 0xFFFF]
)
def test_a_code_nobody_lists_is_temporary_and_bounded(code: int) -> None:
    """NET-16: unknown codes are neither a success nor for ever."""
    assert status.classify(code) is status.UNLISTED
    assert status.UNLISTED.action is Action.RETRY
    assert status.UNLISTED.bounded


def test_no_status_is_in_doubt() -> None:
    """R12: a send without a valid response is unknown, whatever it was that came."""
    assert status.judge(model.Sent(1, None, comment="A-ABORT")).action is Action.UNKNOWN


def test_a_status_is_judged_by_the_table() -> None:
    """R12: the one way to a delivery."""
    assert status.judge(model.Sent(1, 0x0000)).delivered


@pytest.mark.parametrize(
    ("code", "action"),
    [
        ("context-refused", Action.CLASS),
        ("context-unavailable", Action.RETRY),
        ("context-not-proposed", Action.RETRY),
        ("not-decoded", Action.RETRY),
        ("content-missing", Action.INSTANCE),
        ("invalid-uid", Action.INSTANCE),
    ],
)
def test_what_was_never_sent_is_never_in_doubt(code: str, action: Action) -> None:
    """NET-5: a refused context is a definite answer."""
    verdict = status.judge(model.Sent(1, None, refused=code))
    assert (verdict.action, verdict.code) == (action, code)
