"""The arguments of MAIL and RCPT, as senders write them."""

from __future__ import annotations

import pytest

from gateway.core.commands import PATH_LIMIT, parse_parameters, parse_path


@pytest.mark.parametrize(
    ("argument", "mailbox", "rest"),
    [
        ("FROM:<>", "", ""),
        ("FROM:<> BODY=8BITMIME", "", "BODY=8BITMIME"),
        ("from:<a@b.example>", "a@b.example", ""),
        ("FROM:<a.b+c@d-e.example.> SIZE=1 BODY=7BIT ", "a.b+c@d-e.example.", "SIZE=1 BODY=7BIT"),
        ("FROM:<a@[192.0.2.1]>", "a@[192.0.2.1]", ""),
        ("FROM:<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]", ""),
        (r'FROM:<"a b\"> @c"@d.example>', r'"a b\"> @c"@d.example', ""),
        ("FROM:<postmaster>", "postmaster", ""),
        ("FROM:<@a.example,@[192.0.2.1]:b@c.example>", "b@c.example", ""),
        ("FROM:<jürgen@münchen.example> SMTPUTF8", "jürgen@münchen.example", "SMTPUTF8"),
    ],
)
def test_a_path_is_read_as_the_standard_writes_it(argument: str, mailbox: str, rest: str) -> None:
    """RFC 5321 §4.1.2: the mailbox stays as given, a source route is ignored, parameters are left for later."""
    assert parse_path("FROM", argument) == (mailbox, rest)


@pytest.mark.parametrize(
    ("argument", "mailbox", "rest"),
    [
        ("TO: <a@b.example>", "a@b.example", ""),
        ("TO:a@b.example", "a@b.example", ""),
        ("TO:  a@b.example X=1", "a@b.example", "X=1"),
    ],
)
def test_what_scripts_and_modalities_write_is_understood(argument: str, mailbox: str, rest: str) -> None:
    """R1: a mail is not turned away for a space behind the colon or for missing brackets."""
    assert parse_path("TO", argument) == (mailbox, rest)


@pytest.mark.parametrize(
    "argument",
    [
        "",
        "TO",
        "TO:",
        "TO <a@b.example>",
        "FROM:<a@b.example>",
        "TO :<a@b.example>",
        "TO:<a@b.example",
        "TO:a@b.example>",
        "TO:<<a@b.example>>",
        "TO:<a@b.example>X=1",
        "TO:<a@>",
        "TO:<@b.example>",
        "TO:<a@b@c.example>",
        "TO:<a..b@c.example>",
        "TO:<.a@b.example>",
        "TO:<a@b..example>",
        "TO:<a@-b.example>",
        "TO:<a@b-.example>",
        "TO:<a@[]>",
        "TO:<a b@c.example>",
        "TO:<a\r@b.example>",
        "TO:<a\n@b.example>",
        "TO:<a\0@b.example>",
        "TO:<a@b.example>\n",
        "TO:<a@b.example> X=1\nRCPT TO:<c@d.example>",
        'TO:<"a"b"@c.example>',
        'TO:<"a\r\n"@c.example>',
        'TO:<"a\\"@c.example>',
    ],
)
def test_what_is_no_path_is_refused(argument: str) -> None:
    """SMTP smuggling, R1: no line end, no NUL and no second path ever hides in an address."""
    assert parse_path("TO", argument) is None


@pytest.mark.parametrize(("letter", "octets"), [("a", 1), ("ü", 2)])
@pytest.mark.parametrize("form", ["TO:<{}>", "TO:{}"])
def test_a_path_has_at_most_256_octets(letter: str, octets: int, form: str) -> None:
    """RFC 5321 §4.5.3.1.3: octets with the brackets count, not letters."""
    most = letter * ((PATH_LIMIT - 2) // octets)
    assert parse_path("TO", form.format(most)) == (most, "")
    assert parse_path("TO", form.format(most + letter)) is None


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("", {}),
        ("SIZE=1000", {"SIZE": "1000"}),
        ("size=1  smtputf8", {"SIZE": "1", "SMTPUTF8": ""}),
        ("BODY=8BITMIME AUTH=<>", {"BODY": "8BITMIME", "AUTH": "<>"}),
        ("X-1=a:b", {"X-1": "a:b"}),
    ],
)
def test_parameters_are_values_by_keyword(text: str, parameters: dict[str, str]) -> None:
    """RFC 5321 §4.1.1.11: keywords have no case, values stay as given, a value may be missing."""
    assert parse_parameters(text) == parameters


@pytest.mark.parametrize(
    "text", ["SIZE=", "=1", "SIZE==1", "SIZE=1=2", "-A=1", "A_B=1", "SIZE = 1", "SIZE=1 <a@b.example>"]
)
def test_what_is_no_parameter_is_refused(text: str) -> None:
    """R1: a sender that is misunderstood is told so, before it hands over its mail."""
    assert parse_parameters(text) is None


@pytest.mark.parametrize("text", ["SIZE=1 SIZE=2", "SIZE=1 size=1", "BODY BODY=7BIT"])
def test_a_parameter_that_comes_twice_is_refused(text: str) -> None:
    """RFC 5321 §4.1.1.11: no parameter counts twice, so none of two values is guessed at."""
    assert parse_parameters(text) is None
