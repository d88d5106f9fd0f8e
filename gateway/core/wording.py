"""How values are written for people, on the terminal and on a page: on one line, and as short as people say them."""

from __future__ import annotations


def plain(value: object) -> str:
    """Write a value on one line, without anything that a terminal would obey or that turns the direction of writing."""
    if value is None:
        return ""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(value))


def span(seconds: float) -> str:
    """Write how long something is. Less than nothing is nothing: clocks differ."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s" if seconds >= 10 else f"{max(seconds, 0):.3g} s"
