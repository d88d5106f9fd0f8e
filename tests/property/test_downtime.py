"""Downtimes over changes of the clock."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Downtime
from gateway.core import downtime

BERLIN = ZoneInfo("Europe/Berlin")
TIMES = st.builds(time, st.integers(0, 23), st.sampled_from([0, 15, 30, 45]))
WINDOWS = st.lists(
    st.builds(Downtime, st.frozensets(st.integers(0, 6), min_size=1), TIMES, TIMES), min_size=1, max_size=4
)
MOMENTS = st.timedeltas(timedelta(0), timedelta(days=220)).map(
    lambda later: datetime(2026, 3, 25, tzinfo=UTC) + later
) | (
    st.sampled_from([datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 24, 22, tzinfo=UTC)]).flatmap(
        lambda day: st.timedeltas(timedelta(0), timedelta(hours=6)).map(lambda later: day + later)
    )
)


def away(windows: list[Downtime], moment: datetime) -> bool:
    """Whether the clock on the wall shows a downtime."""
    local = moment.astimezone(BERLIN).replace(tzinfo=None)
    return any(one.until(local) is not None for one in windows)


@given(WINDOWS, MOMENTS)
def test_a_downtime_ends_after_now_and_outside_of_every_window(windows: list[Downtime], now: datetime) -> None:
    """Over both changes of the clock: never an end in the past, never a look in the middle of it (R29)."""
    end = downtime.until(windows, now, BERLIN)
    assert (end is not None) == away(windows, now)
    if end is not None:
        assert end > now
        always = all(away(windows, now + timedelta(hours=n)) for n in range(24 * 3))
        assert always or end - now > timedelta(days=3) or not away(windows, end)


SUNDAY = [Downtime(frozenset({6}), time(2), time(2, 30))]


@pytest.mark.parametrize(
    ("now", "end"),
    [
        ("2026-11-22T01:10+00:00", "2026-11-22T01:30+00:00"),  # winter: 02:10 to 02:30
        ("2026-10-25T00:10+00:00", "2026-10-25T00:30+00:00"),  # the hour is there twice: the first time
        ("2026-10-25T01:10+00:00", "2026-10-25T01:30+00:00"),  # the second time
        ("2026-03-29T00:59+00:00", None),  # 01:59, and then 03:00: the window does not happen
        ("2026-03-29T01:00+00:00", None),
        ("2026-11-22T01:30+00:00", None),
    ],
)
def test_an_hour_that_is_there_twice_or_not_at_all(now: str, end: str | None) -> None:
    """02:00-02:30 on the Sundays when the clock changes."""
    expected = None if end is None else datetime.fromisoformat(end)
    assert downtime.until(SUNDAY, datetime.fromisoformat(now), BERLIN) == expected


def test_windows_that_touch_are_one_and_always_is_bounded() -> None:
    """Nobody is asked in between; a destination that is always away costs no endless search."""
    now = datetime(2026, 11, 22, 1, 10, tzinfo=UTC)
    touching = [*SUNDAY, Downtime(frozenset({6}), time(2, 30), time(4))]
    assert downtime.until(touching, now, BERLIN) == datetime(2026, 11, 22, 3, tzinfo=UTC)
    always = [Downtime(frozenset(range(7)), time(0), time(0))]
    end = downtime.until(always, now, BERLIN)
    assert end is not None
    assert end > now + timedelta(days=20)


def test_the_machines_own_clock_is_meant_without_a_zone() -> None:
    """What the configuration says is local time."""
    now = datetime.now(UTC)
    local = now.astimezone()
    window = Downtime(frozenset({local.weekday()}), time(0), time(0))
    end = downtime.until([window], now)
    assert end is not None
    assert now < end <= now + timedelta(hours=25)
