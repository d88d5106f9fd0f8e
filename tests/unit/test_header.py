"""The header fields the gateway acts on, read from bytes that anybody may have written."""

from __future__ import annotations

import pytest

from gateway.core import header


def test_a_proper_header_gives_all_its_facts() -> None:
    """From, Message-ID, Received and our loop field of a folded header with CRLF."""
    block = (
        b"Subject: x\r\nReceived: from a\r\n\tby b; x\r\nReceived: from c by d\r\n"
        b"From: =?utf-8?q?D=C3=B6?= <a@clinic.example>\r\nMessage-ID:\r\n <1@clinic.example>\r\n"
        b"X-DICOM-Mail-Loop: t1\r\nx-dicom-mail-loop: t2\r\n\r\nFrom: body@evil.example\r\n"
    )
    parsed = header.parse(block)
    assert parsed.senders == ("a@clinic.example",)
    assert parsed.from_fields == 1
    assert parsed.message_id == "<1@clinic.example>"
    assert parsed.received == 2
    assert parsed.loop_tokens == ("t1", "t2")


def test_bare_line_feeds_are_read_like_crlf() -> None:
    """A spooled message may have lost its CRs."""
    assert header.parse(b"From: a@b\nReceived: x\n y\n\nFrom: c@d\n").senders == ("a@b",)


def test_several_from_fields_are_counted() -> None:
    """A message with two From fields must not pass for one with one (RFC 5322 §3.6)."""
    parsed = header.parse(b"From: a@b\nFROM : c@d\n\n")
    assert (parsed.from_fields, parsed.senders) == (2, ("a@b", "c@d"))


def test_an_empty_message_id_is_none() -> None:
    """The first one that says anything counts."""
    assert header.parse(b"Message-ID:\n\n").message_id is None
    assert header.parse(b"Message-ID:\nMessage-ID: <1>\nMessage-ID: <2>\n\n").message_id == "<1>"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a@b", ["a@b"]),
        ("A B <a@b>", ["a@b"]),
        ('"x, y" <a@b>, c@d', ["a@b", "c@d"]),
        ("a@b (c@d)", ["a@b"]),
        ("a@b <c@d>", ["c@d"]),
        ('"a@partner" <e@x>', ["e@x"]),
        ("Dr. (x (y) \\) z) <a@b> trailing", ["a@b"]),
        ('"not ( a comment" <a@b> (but this)', ["a@b"]),
        ("friends: a@b, c@d;", ["a@b", "c@d"]),
        ("undisclosed-recipients:;", []),
        ("a@b,", ["a@b"]),
        ("", []),
        ('"a b"@c', ['"a b"@c']),
        ("nobody", [""]),
        ("<>", [""]),
        ("a@b@c", [""]),
        ("@b", [""]),
        ("a b@c", [""]),
        ("<a@b> <c@d>", [""]),
        ("<@a,@b:c@d>", [""]),
        ("c@d, <a@b", ["c@d", ""]),
        ('"a@b', [""]),
        ("(a@b", [""]),
        ("a@b) c", [""]),
    ],
)
def test_addresses_that_can_be_read_in_two_ways_are_none(value: str, found: list[str]) -> None:
    """Who the partner is must not depend on how a parser feels about brackets."""
    assert header.addresses(value) == found


@pytest.mark.parametrize(
    ("value", "head", "parameters"),
    [
        ("", "", {}),
        ("Text/PLAIN", "text/plain", {}),
        ('a/b; Name="x;\\"y\\".dcm" ; id = A/B', "a/b", {"name": 'x;"y".dcm', "id": "A/B"}),
        ('a/b; name="unclosed; id=1', "a/b", {"name": "unclosed; id=1"}),
        ("a/b; name=my file.dcm; name=second", "a/b", {"name": "my file.dcm"}),
        ("a/b; name*=utf-8''Plan%20f%C3%BCr.dcm", "a/b", {"name": "Plan für.dcm"}),
        ("a/b; name*0*=utf-8''Pl%C3%A4; name*1=\"ne.dcm\"; id=X", "a/b", {"name": "Pläne.dcm", "id": "X"}),
        ('a/b; name*0="Pla"; name*1="n.dcm"', "a/b", {"name": "Plan.dcm"}),
        ("a/b; name*=no-such-charset''x", "a/b", {"name": "x"}),
        ("a/b; name=plain; name*=utf-8''better", "a/b", {"name": "plain"}),
        ('a/b; name="=?utf-8?B?w7w=?=.dcm"', "a/b", {"name": "ü.dcm"}),
        ('a/b; name="=?utf-8?q?=C3=BC?= =?utf-8?q?=C3=BC?="', "a/b", {"name": "üü"}),
        ('a/b; name="=?no-such?q?x?="', "a/b", {"name": "=?no-such?q?x?="}),
        ('a/b; name="=?utf-8?b?=====x?="', "a/b", {"name": "=?utf-8?b?=====x?="}),
    ],
)
def test_parameters_in_every_form_of_real_mail(value: str, head: str, parameters: dict[str, str]) -> None:
    """RFC 2045, 2231 and 2047, and what programs make of them (AMB-6)."""
    assert header.parameters(value) == (head, parameters)


@pytest.mark.parametrize(
    "value", ["a/b; x*0*0=1; x*9*=%", "a/b; *=1; *0=2; **=3", "a/b; x*99999999999=1; x*0=2", "a/b; x*=1; x*0*=2"]
)
def test_mad_parameters_raise_nothing(value: str) -> None:
    """Stdlib raises several kinds of errors on these."""
    header.parameters(value)


def test_nothing_comes_out_that_cannot_be_stored() -> None:
    """Neither NUL, which PostgreSQL refuses, nor lone surrogates, which no database takes."""
    parsed = header.parse(b"From: a\0@b, \xff@c, \xc3\xbc@d\nMessage-ID: <\x1b[2J\xff>\nX-DICOM-Mail-Loop: \0\n\n")
    assert parsed.senders == ("", "", "ü@d")
    assert parsed.message_id == "<\N{REPLACEMENT CHARACTER}[2J?>"
    assert parsed.loop_tokens == ("\N{REPLACEMENT CHARACTER}",)


def test_long_values_are_cut() -> None:
    """A line is enough."""
    assert header.parse(b"Message-ID: <" + b"a" * 5000 + b">\n\n").message_id == "<" + "a" * 997


def test_hostile_headers_take_linear_time() -> None:
    """Megabytes of brackets, quotes and words end soon: nothing here backtracks."""
    for piece in (b"(", b"<", b'"\\', b"a@b,", b"=?utf-8?q?", b";a=b", b"a*0*=b;", b"\\"):
        header.parse(b"From: " + piece * (1 << 20) + b"\n\n")
        header.parameters((b"a/b;" + piece * (1 << 14)).decode())
