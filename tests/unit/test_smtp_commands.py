"""Arguments of SMTP commands: paths and parameters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.commands import PATH_LIMIT, parse_parameters, parse_path


@pytest.mark.parametrize(
    ("argument", "mailbox", "rest"),
    [
        ("FROM:<a@b>", "a@b", ""),
        ("from:<a@b.example> SIZE=1 BODY=8BITMIME", "a@b.example", "SIZE=1 BODY=8BITMIME"),
        ("FROM:<>", "", ""),
        ("FROM:<> SIZE=1", "", "SIZE=1"),
        ("FROM: <a@b>", "a@b", ""),
        ("FROM:a@b SIZE=1", "a@b", "SIZE=1"),
        ("FROM:<postmaster>", "postmaster", ""),
        ("FROM:<@x.example,@y.example:a@b>", "a@b", ""),
        ('FROM:<"a \\" b"@c>', '"a \\" b"@c', ""),
        ("FROM:<a@[192.0.2.1]>", "a@[192.0.2.1]", ""),
        ("FROM:<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]", ""),
        ("FROM:<ä@ö.example>", "ä@ö.example", ""),
        ("FROM:<a@b_c.example.>", "a@b_c.example.", ""),
        ("FROM:<" + "a" * (PATH_LIMIT - 4) + "@b>", "a" * (PATH_LIMIT - 4) + "@b", ""),
    ],
)
def test_a_path_is_read(argument: str, mailbox: str, rest: str) -> None:
    """RFC 5321 §4.1.2, and the liberties that are taken with it."""
    assert parse_path("FROM", argument) == (mailbox, rest)


@pytest.mark.parametrize(
    "argument",
    [
        "",
        "FROM",
        "FROM:",
        "TO:<a@b>",
        "FROM <a@b>",
        "FROM:<a@b",
        "FROM:a@b>",
        "FROM:<<a@b>>",
        "FROM:<a b@c>",
        "FROM:<a@b>SIZE=1",
        "FROM:<a@>",
        "FROM:<@b>",
        "FROM:<.a@b>",
        "FROM:<a..b@c>",
        "FROM:<a@-b>",
        "FROM:<a@b@c>",
        'FROM:<"a@b>',
        "FROM:<" + "a" * (PATH_LIMIT - 3) + "@b>",
        "FROM:<" + "ä" * 126 + "@bc>",
    ],
)
def test_what_is_no_path_is_not_read(argument: str) -> None:
    """Octets count, not characters."""
    assert parse_path("FROM", argument) is None


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("", {}),
        ("SIZE=1", {"SIZE": "1"}),
        ("size=1  Body=8bitmime SMTPUTF8", {"SIZE": "1", "BODY": "8bitmime", "SMTPUTF8": ""}),
        ("X-Y=<a>", {"X-Y": "<a>"}),
        ("=", None),
        ("SIZE=", None),
        ("A=b=c", None),
        ("SIZE=1 size=2", None),
        ("-A=1", None),
    ],
)
def test_parameters_are_read(text: str, parameters: dict[str, str] | None) -> None:
    """RFC 5321 §4.1.1.11: a keyword, perhaps a value, and none of them twice."""
    assert parse_parameters(text) == parameters


@given(st.text(alphabet='<>@:,."\\ [].abä-_', max_size=300))
def test_any_argument_is_read_or_not_and_never_raises(argument: str) -> None:
    """A mailbox that is read holds no bracket outside quotes, and reads again as itself."""
    found = parse_path("TO", f"TO:{argument}")
    if found is not None and found[0]:
        assert parse_path("TO", f"TO:<{found[0]}>") == (found[0], "")
