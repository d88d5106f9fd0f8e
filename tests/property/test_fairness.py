"""Whose turn it is: urgent first, studies in order and in turn, nothing lost, nobody starved."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.fairness import TURN, Place, Turns


class Item(NamedTuple):
    """Something that waits."""

    urgent: bool
    partner: str
    study: str
    series: str
    arrival: int


ITEMS = st.lists(
    st.builds(Item, st.booleans(), st.sampled_from("ab"), st.sampled_from("xyz"), st.sampled_from("12"), st.just(0)),
    max_size=80,
).map(lambda items: [one._replace(arrival=at) for at, one in enumerate(items)])


def turns(items: list[Item]) -> Turns[Item]:
    made: Turns[Item] = Turns(lambda one: Place(*one))
    made.add(items)
    return made


def drain(made: Turns[Item], most: int) -> list[Item]:
    taken: list[Item] = []
    while window := made.take("me", most):
        taken += window
        made.give_back(window)
    return taken


@given(ITEMS, st.integers(1, 20))
def test_everything_goes_once_and_what_is_urgent_goes_first(items: list[Item], most: int) -> None:
    """Nothing is lost and nothing is doubled (R34)."""
    made = turns(items)
    assert len(made) == len(list(made)) == len(items)
    taken = drain(made, most)
    assert sorted(taken) == sorted(items)
    assert [one.urgent for one in taken] == sorted((one.urgent for one in items), reverse=True)
    assert len(made) == 0
    assert made._classes[True].partners == {} == made._classes[False].partners


@given(ITEMS, st.integers(1, 20))
def test_a_study_goes_series_by_series_as_it_came(items: list[Item], most: int) -> None:
    """The order within a study is kept, and its series go in the order of their first instance."""
    taken = drain(turns(items), most)
    for key in {(one.urgent, one.partner, one.study) for one in items}:
        came = [one for one in items if one[:3] == key]
        series = list(dict.fromkeys(one.series for one in came))
        assert [one for one in taken if one[:3] == key] == sorted(came, key=lambda one: series.index(one.series))


@given(ITEMS)
def test_two_holders_never_have_the_same_study(items: list[Item]) -> None:
    """While one association has a study, no other gets anything of it."""
    made = turns(items)
    windows = {}
    for holder in ("one", "two", "three"):
        windows[holder] = made.take(holder, 10)
    for first, second in itertools.combinations(windows.values(), 2):
        assert not {one[:3] for one in first} & {one[:3] for one in second}
    for window in windows.values():
        made.give_back(window)
    assert len(made) + sum(map(len, windows.values())) == len(items)


@given(st.integers(1, 300), st.integers(1, 20))
def test_a_small_study_waits_for_one_turn_of_each_other(big: int, most: int) -> None:
    """However big the others are (fairness between studies and between partners)."""
    items = [Item(False, "a", study, "1", n) for study in "xyz" for n in range(big)]
    items += [Item(False, "a", "small", "1", 0), Item(False, "b", "small", "1", 0)]
    taken = drain(turns(items), most)
    assert taken.index(items[-1]) <= TURN
    assert taken.index(items[-2]) <= 5 * TURN


def test_what_is_put_back_goes_first_and_others_keep_their_turn() -> None:
    """Unsent instances are before those behind them; a taker may say that the window is full."""
    items = [Item(False, "a", "x", "1", n) for n in range(4)]
    made = turns(items)
    first = made.take("me", 9, lambda taken, _: len(taken) < 2)
    assert first == items[:2]
    made.add(first[1:])
    made.give_back(first)
    assert drain(made, 9) == items[1:]
