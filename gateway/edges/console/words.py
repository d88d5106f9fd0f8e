"""How values are written on a page: nothing invisible, times in local time, sizes and spans as people say them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from markupsafe import Markup

from gateway.model import utc


def moment(value: datetime | str | float | None) -> Markup:
    """Write a moment in local time, as an element that says it in UTC too."""
    if value is None:
        return Markup("")
    at = _moment(value)
    local = at.astimezone()
    text = f"{local:%H:%M:%S}" if local.date() == datetime.now(UTC).astimezone().date() else f"{local:%Y-%m-%d %H:%M}"
    return Markup('<time datetime="{0}" title="{0}">{1}</time>').format(utc(at), text)


def day(value: datetime | str | float | None) -> str:
    """Write a date in local time."""
    return "" if value is None else f"{_moment(value).astimezone():%Y-%m-%d}"


def _moment(value: datetime | str | float) -> datetime:
    if isinstance(value, datetime):
        return value
    return datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value, UTC)


_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """Write a number of bytes."""
    at = 0
    while count >= 1000 and at < len(_UNITS) - 1:
        count, at = count / 1000, at + 1
    return f"{count:.0f} {_UNITS[at]}" if at < 2 or count >= 100 else f"{count:.1f} {_UNITS[at]}"
