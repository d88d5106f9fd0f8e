"""The calendar of certificates: warnings come in their order, once each, and go when the certificate is replaced."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.expiry import BACK, WARNINGS, Lasting, due, stage, warning

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SUBJECT = "partner.clinic-a"

left = st.timedeltas(timedelta(days=-400), timedelta(days=400))


@pytest.mark.parametrize(
    ("days", "expected"),
    [(61, None), (60, 60), (31, 60), (30, 30), (15, 30), (14, 14), (4, 14), (3, 3), (1, 3), (0, 0), (-1, 0), (-999, 0)],
)
def test_people_are_told_sixty_thirty_fourteen_and_three_days_before_and_at_the_end(
    days: int, expected: int | None
) -> None:
    """The lines of the calendar, to the day."""
    assert stage(NOW + days * DAY, NOW) == expected


@given(left, st.timedeltas(timedelta(0), timedelta(days=100)))
def test_a_warning_only_grows_more_urgent_as_time_goes_by(rest: timedelta, step: timedelta) -> None:
    """For one certificate there are at most four warnings and the end."""
    before, after = stage(NOW + rest, NOW), stage(NOW + rest, NOW + step)
    assert before is None or (after is not None and after <= before)


@given(left, st.timedeltas(timedelta(0), BACK))
def test_a_clock_that_steps_back_repeats_no_warning(rest: timedelta, step: timedelta) -> None:
    """R29: what was said stands."""
    said = stage(NOW + rest, NOW)
    assert stage(NOW + rest, NOW - step, said) == said or said is None


@given(st.lists(st.timedeltas(timedelta(hours=-30), timedelta(days=9)), max_size=60), st.integers(-5, 90))
def test_however_the_clock_wavers_each_warning_is_given_once(steps: list[timedelta], start: int) -> None:
    """R33, with a clock that is set back by up to 30 hours at a time, and never by more than that below its highest."""
    one, now, highest, said = Lasting(SUBJECT, NOW + start * DAY), NOW, NOW, ""
    given_: list[str] = []
    for step in steps:
        now = max(now + step, highest - timedelta(hours=30))
        highest = max(now, highest)
        found = due([one], {SUBJECT: said} if said else {}, now)
        text = found[SUBJECT].text if found else ""
        if text and text != said:
            given_.append(text)
        said = text
    assert len(given_) == len(set(given_))
    assert len(given_) <= len(WARNINGS) + 1


def test_a_clock_that_was_far_ahead_is_forgiven() -> None:
    """Set right, it takes back what it said."""
    ends = NOW + 300 * DAY
    assert stage(ends, NOW + 400 * DAY) == 0
    assert stage(ends, NOW, standing=0) is None


@given(left, left)
def test_a_replaced_certificate_is_judged_by_itself(old: timedelta, new: timedelta) -> None:
    """The warning of the old one says nothing about the new one."""
    said = {name: one.text for name, one in due([Lasting(SUBJECT, NOW + old)], {}, NOW).items()}
    if (NOW + old).date() != (NOW + new).date():
        fresh = due([Lasting(SUBJECT, NOW + new)], {}, NOW)
        assert due([Lasting(SUBJECT, NOW + new)], said, NOW) == fresh


@given(st.lists(left, min_size=1, max_size=5))
def test_of_several_certificates_for_one_purpose_the_first_to_end_counts(some: list[timedelta]) -> None:
    """A chain lasts as long as its shortest."""
    every = [Lasting(SUBJECT, NOW + one) for one in some]
    assert due(every, {}, NOW) == due([min(every, key=lambda one: one.ends)], {}, NOW)


def test_words_name_the_certificate_and_the_day_and_what_to_do() -> None:
    """No number that changes each day: the same text is the same notice."""
    one = Lasting(SUBJECT, NOW + 20 * DAY)
    assert warning(one, 30).text == "the certificate of partner.clinic-a runs out on 2026-12-13, in 30 days or less"
    assert warning(one, 0).text == "the certificate of partner.clinic-a ran out on 2026-12-13"
    assert [warning(one, days).over for days in (0, 3)] == [True, False]
    assert len({warning(one, days).do for days in (0, *WARNINGS)}) == 5
