"""Batches: many callers, one thread, and nobody is forgotten."""

from __future__ import annotations

import threading

from gateway.ledger.batches import Batches


def taken(batches: Batches[int]) -> list[list[int]]:
    """Everything, as it is taken by a thread that meets it all at once."""
    batches.close()
    return list(batches)


def test_what_is_there_is_taken_together() -> None:
    """In its order, and the end comes after it."""
    batches: Batches[int] = Batches(10)
    for number in range(5):
        batches.put(number)
    assert taken(batches) == [[0, 1, 2, 3, 4]]


def test_a_batch_has_its_measure() -> None:
    """What is too much for one is the next."""
    batches: Batches[int] = Batches(2)
    for number in range(5):
        batches.put(number)
    assert taken(batches) == [[0, 1], [2, 3], [4]]


def test_nothing_is_an_end_at_once() -> None:
    """Closing an empty queue ends the thread."""
    assert taken(Batches(2)) == []


def test_what_comes_after_the_end_is_nobodys() -> None:
    """The end is the end, also in the middle of a batch."""
    batches: Batches[int] = Batches(10)
    batches.put(1)
    batches.close()
    batches.put(2)
    assert list(batches) == [[1]]


def test_every_item_of_many_callers_is_taken_once_and_in_its_callers_order() -> None:
    """Whatever the batches are."""
    batches: Batches[tuple[int, int]] = Batches(7)
    seen: list[tuple[int, int]] = []
    taker = threading.Thread(target=lambda: [seen.extend(batch) for batch in batches])
    taker.start()
    callers = [
        threading.Thread(target=lambda me=me: [batches.put((me, number)) for number in range(200)]) for me in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    batches.close()
    taker.join()
    assert len(seen) == 1600
    for me in range(8):
        assert [number for who, number in seen if who == me] == list(range(200))


def test_a_small_batch_after_a_large_one_comes_all_the_same() -> None:
    """Waiting for as many as last time has an end."""
    batches: Batches[int] = Batches(10)
    for number in range(5):
        batches.put(number)
    taking = iter(batches)
    assert next(taking) == [0, 1, 2, 3, 4]
    batches.put(5)
    assert next(taking) == [5]
    batches.close()
    assert list(taking) == []
