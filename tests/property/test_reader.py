"""Whatever wraps an instance, the reader gives it back; whatever is done to a mail, nothing but a reading comes out."""

from __future__ import annotations

import email.policy
import hashlib
import tempfile
from collections.abc import Sequence
from email.message import EmailMessage
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.model import Reading, Severity
from tests.samples import content, data_set, dicom_file, dicomdir, element, mail, meta, part, reading

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def file(number: int, size: int) -> bytes:
    """Make a file of a size whose pixel data is all byte values in no order."""
    pixels = hashlib.shake_256(b"%d" % number).digest(size)
    more = element(0x7FE00010, "OW", pixels)
    return dicom_file(data_set(instance=f"1.2.{number}", more=more), meta(instance=f"1.2.{number}"))


def check(result: Reading, files: Sequence[bytes]) -> None:
    """Every file came out, in order, unchanged."""
    assert [content(instance.file) for instance in result.instances] == list(files)
    assert [instance.sha256 for instance in result.instances] == [hashlib.sha256(one).hexdigest() for one in files]
    assert not [found for found in result.findings if found.severity is Severity.ERROR]


sizes = st.lists(st.integers(0, 4000), min_size=1, max_size=5)


@relaxed
@given(sizes=sizes, encoding=st.sampled_from(["base64", "quoted-printable"]), crlf=st.booleans())
def test_what_email_attaches_comes_out(sizes: list[int], encoding: str, crlf: bool) -> None:
    """EmailMessage.add_attachment, with CRLF and with LF (R8)."""
    files = [file(number, size) for number, size in enumerate(sizes)]
    message = EmailMessage(policy=email.policy.SMTP if crlf else email.policy.default)
    message.set_content("Grüße")
    for number, one in enumerate(files):
        message.add_attachment(one, "application", "dicom", filename=f"Bild {number} ü.dcm", cte=encoding)
    with tempfile.TemporaryDirectory() as folder:
        check(reading(Path(folder), bytes(message)), files)


def nested(draw: st.DrawFn, files: list[bytes], depth: int) -> MIMEMultipart:
    """Spread files over multiparts in each other, in order."""
    kind = draw(st.sampled_from(["mixed", "related", "alternative", "x-strange"]))
    outer = MIMEMultipart(kind)
    outer.preamble = draw(st.sampled_from([None, "text", "--\n--x"]))
    while files:
        take = draw(st.integers(1, len(files)))
        if depth and draw(st.booleans()):
            outer.attach(nested(draw, files[:take], depth - 1))
        else:
            for one in files[:take]:
                outer.attach(MIMEApplication(one, draw(st.sampled_from(["dicom", "octet-stream"]))))
        del files[:take]
    outer.epilogue = draw(st.sampled_from([None, "", "text\n"]))
    return outer


@st.composite
def trees(draw: st.DrawFn) -> tuple[MIMEMultipart, list[bytes]]:
    """Draw a message of nested multiparts, and the files in it."""
    files = [file(number, size) for number, size in enumerate(draw(sizes))]
    return nested(draw, list(files), draw(st.integers(0, 4))), files


@relaxed
@given(tree=trees())
def test_any_nesting_comes_out(tree: tuple[MIMEMultipart, list[bytes]]) -> None:
    """Multiparts in multiparts, with preambles and epilogues that look like delimiters."""
    message, files = tree
    with tempfile.TemporaryDirectory() as folder:
        check(reading(Path(folder), message.as_bytes()), files)


WHOLE = mail(
    part(b"hello", "text/plain", "quoted-printable"),
    part(file(1, 500)),
    mail(part(file(2, 300), "application/octet-stream")).partition(b"\r\n")[2],
    b"Content-Type: message/rfc822\r\n\r\n" + mail(part(file(3, 100), encoding="binary"), boundary="inner"),
    part(dicomdir([("IMG/IM1", "1.2.1")])),
)


def sound(result: Reading) -> None:
    """Whatever it is, it adds up: kinds, places, and no instance that is silently wrong."""
    assert result.kind in ("dicom", "partial", "report", "other")
    texts = [other.type for other in result.other_parts] + [found.where for found in result.findings]
    for instance in result.instances:
        texts += [instance.sop_class, instance.sop_instance, instance.transfer_syntax, instance.part]
        texts += [instance.study, instance.series, instance.file_id or ""]
    for text in texts:
        assert text.isprintable()
        assert len(text) < 1000
        text.encode()
    for instance in result.instances:
        whole = content(instance.file)
        assert hashlib.sha256(whole).hexdigest() == instance.sha256
        assert whole[128:132] == b"DICM"
        if instance.held is None:
            assert instance.sop_class
            assert instance.sop_instance
            assert instance.study
            assert instance.series
        else:
            assert instance.held in [found.code for found in result.findings]


@relaxed
@given(at=st.integers(0, len(WHOLE)))
def test_a_mail_that_is_cut_anywhere_is_read(at: int) -> None:
    """A Reading, and nothing else; what is complete in it is complete."""
    with tempfile.TemporaryDirectory() as folder:
        result = reading(Path(folder), WHOLE[:at])
        sound(result)
        whole = {hashlib.sha256(file(1, 500)).hexdigest(), hashlib.sha256(file(2, 300)).hexdigest()}
        whole.add(hashlib.sha256(file(3, 100)).hexdigest())
        for instance in result.instances:
            assert instance.held or instance.sha256 in whole


edits = st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(max_size=6), st.integers(0, 40)), max_size=6)


@settings(relaxed, max_examples=200)
@given(edits=edits)
def test_a_mail_that_is_damaged_anywhere_is_read(edits: list[tuple[int, bytes, int]]) -> None:
    """Bytes put in, taken out and changed."""
    message = bytearray(WHOLE)
    for at, put, drop in edits:
        message[at : at + drop] = put
    with tempfile.TemporaryDirectory() as folder:
        sound(reading(Path(folder), bytes(message)))


@settings(relaxed, max_examples=200)
@given(
    edits=st.lists(st.tuples(st.integers(132, 700), st.binary(max_size=6), st.integers(0, 12)), max_size=6),
    syntax=st.sampled_from(
        ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"]
    ),
)
def test_a_file_that_is_damaged_anywhere_is_judged(edits: list[tuple[int, bytes, int]], syntax: str) -> None:
    """In each transfer syntax."""
    damaged = bytearray(dicom_file(syntax=syntax))
    for at, put, drop in edits:
        damaged[at : at + drop] = put
    with tempfile.TemporaryDirectory() as folder:
        sound(reading(Path(folder), part(bytes(damaged))))


@settings(relaxed, max_examples=200)
@given(
    message=st.binary(max_size=300)
    | st.text("\n\r-b:; =multipart/mixedCont-TypeboundaryX", max_size=300).map(str.encode)
)
def test_any_bytes_are_a_message(message: bytes) -> None:
    """The invariant of the fuzzer, on a small scale."""
    with tempfile.TemporaryDirectory() as folder:
        sound(reading(Path(folder), message))
