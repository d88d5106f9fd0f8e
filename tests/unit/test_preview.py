"""The dry run: what the stage would decide, without a gateway, as the JSON of the outer contract."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from messages import compose
from samples import Samples

from gateway import preview
from gateway.config import Configuration, load
from gateway.core.reader import Rules
from gateway.errors import GatewayError, UsageError
from gateway.model import Reading, Span
from tests.samples import mail, part

KEYS = {
    *("kind", "instances", "dicomdir", "partial", "protection", "other_parts", "findings", "partner", "route"),
    *("destinations", "outcome"),
}
"""What the outer contract lists; more may come, none may go."""

CONFIGURATION = """
[gateway]
name = "gateway.test"
postmaster = "it@hospital.test"
data = "data"

[limits]
message = "1 MB"

[smtp]
listen = "127.0.0.1:0"

[ae.pacs]
title = "PACS"
host = "127.0.0.1"
port = 11112

[ae.archive]
title = "ARCHIVE"
host = "127.0.0.1"
port = 11113

[partner.clinic-a]
address = "dicom@clinic-a.test"
accept = "any"
peers = ["203.0.113.0/24"]

[partner.strict]
address = "dicom@strict.test"

[[route]]
name = "in"
from = "clinic-a"
to = "pacs@gateway.test"
store = ["pacs", "archive"]

[[route]]
name = "strict"
from = "strict"
store = ["pacs"]

[[route]]
name = "anybody"
from = "*"
to = "open@gateway.test"
store = ["pacs"]
"""


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    """Partners and routes."""
    path = tmp_path / "gateway.toml"
    path.write_text(CONFIGURATION, "utf-8")
    return load(path)


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Reads a mail that is given as bytes."""

    def read(mail: bytes, configuration: Configuration | None = None) -> dict[str, Any]:
        path = tmp_path / "mail.eml"
        path.write_bytes(mail)
        document = preview.read(str(path), configuration)
        assert document.keys() >= KEYS
        assert json.loads(json.dumps(document)) == document  # nothing but what JSON has
        return document

    return read


def plain(*fields: str, body: str = "hello") -> bytes:
    """A mail without images."""
    return "\r\n".join([*fields, "", body, ""]).encode()


# Without a configuration


def zipped(file: bytes) -> bytes:
    """A ZIP with one file in it."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("image.dcm", file)
    return archive.getvalue()


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        ("application/zip", zipped),
        ("application/gzip", gzip.compress),
        ("message/rfc822", lambda file: mail(part(file), boundary="inner")),
    ],
)
def test_what_lies_in_something_else_is_read_as_well(
    read: Any, samples: Samples, kind: str, wrap: Callable[[bytes], bytes]
) -> None:
    """An archive, or a message in a transfer encoding: what is unpacked lies beside files without a name (ZIP-8)."""
    one = samples.fresh()
    document = read(mail(part(wrap(one.file), kind)))
    assert [found["sop_instance"] for found in document["instances"]] == [one.sop_instance]
    assert document["outcome"] == "delivered"


def test_every_instance_is_listed_as_it_was_attached(read: Any, samples: Samples) -> None:
    """UIDs, syntax, size and the sha256 of the file, with its part and File ID."""
    first, second = samples.fresh("CT_small.dcm"), samples.fresh("rtplan.dcm")
    document = read(compose([first.file, second.file]))
    assert document["kind"] == "dicom"
    assert [one["sop_instance"] for one in document["instances"]] == [first.sop_instance, second.sop_instance]
    one = document["instances"][0]
    assert one.keys() == {
        *("sop_class", "sop_instance", "study", "series", "transfer_syntax", "sha256", "size", "file_id", "part")
    }
    assert (one["size"], one["part"], one["file_id"]) == (len(first.file), "2", "IM000001")
    assert [(part["part"], part["type"]) for part in document["other_parts"]] == [("1", "text/plain")]
    assert (document["partner"], document["route"], document["destinations"]) == (None, None, [])
    assert document["outcome"] == "delivered"
    assert not preview.needs_a_person(document)


def test_a_damaged_image_needs_a_person(read: Any, samples: Samples) -> None:
    """The finding says which part and why; the code is the outcome's."""
    document = read(compose([samples.path("MR_truncated.dcm").read_bytes(), samples.fresh("rtplan.dcm").file]))
    assert (document["outcome"], document["code"]) == ("held", "truncated-data-set")
    finding = next(one for one in document["findings"] if one["severity"] == "error")
    assert (finding["code"], finding["where"]) == ("truncated-data-set", "2")
    assert preview.needs_a_person(document)


def test_one_uid_with_two_contents_is_held(read: Any, samples: Samples) -> None:
    """Within one mail too (R11)."""
    files = [samples.path("MR_small.dcm").read_bytes(), samples.path("MR_small_RLE.dcm").read_bytes()]
    document = read(compose(files))
    assert (document["outcome"], document["code"]) == ("held", "reused-uid")


def test_the_same_instance_twice_is_listed_once(read: Any, samples: Samples) -> None:
    """As the stage stores it once."""
    file = samples.fresh("CT_small.dcm").file
    document = read(compose([file, file]))
    assert len(document["instances"]) == 1
    assert document["outcome"] == "delivered"


@pytest.mark.parametrize(
    ("mail", "kind", "outcome", "code"),
    [
        (plain("From: a@b.test"), "other", "refused", "not-dicom"),
        (plain("Content-Type: multipart/report; boundary=x"), "report", "refused", "not-dicom"),
        (plain('Content-Type: message/partial; id="a"; number=1; total=2'), "partial", "waiting", "fragment-waiting"),
        (plain("Content-Type: message/partial; number=1"), "partial", "held", "invalid-fragment"),
        (plain("Content-Type: application/dicom"), "dicom", "held", "no-dicom"),
        (b"", "other", "refused", "not-dicom"),
    ],
)
def test_other_mail_is_told_apart(read: Any, mail: bytes, kind: str, outcome: str, code: str) -> None:
    """A report, a fragment, something labelled DICOM that is none, and nothing at all."""
    document = read(mail)
    assert (document["kind"], document["outcome"], document["code"]) == (kind, outcome, code)


def test_a_fragment_is_named(read: Any) -> None:
    """Which piece of what; the total may be unknown."""
    document = read(plain('Content-Type: message/partial; id="a@b"; number=2'))
    assert document["partial"] == {"id": "a@b", "number": 2, "total": None}


@pytest.mark.parametrize(
    ("content_type", "encrypted", "signed", "code"),
    [
        ("application/pkcs7-mime; smime-type=enveloped-data", True, False, "malformed"),
        ("application/x-pkcs7-mime", True, False, "malformed"),
        ("application/pkcs7-mime; smime-type=signed-data", False, True, "malformed"),
        ("application/pkcs7-mime; smime-type=certs-only", False, False, "malformed"),
        ("multipart/signed; boundary=y", False, True, "signed-part-not-root"),
        ("multipart/signed; protocol=x; boundary=y", False, True, "unsupported-algorithm"),
        ("multipart/encrypted; boundary=y", True, False, "unsupported-algorithm"),
        ("text/plain", False, False, None),
    ],
)
def test_protection_is_seen_and_never_called_verified(
    read: Any, content_type: str, encrypted: bool, signed: bool, code: str | None
) -> None:
    """What it claims to be is told, and why that does not count."""
    guard = read(plain(f"Content-Type: {content_type}"))["protection"]
    assert guard == {"encrypted": encrypted, "signed": signed, "verified": False, "signer": None, "code": code}


def test_what_nobody_can_look_into_needs_a_person(read: Any) -> None:
    """An encrypted mail is not refused as if there were no images in it."""
    assert read(plain("Content-Type: application/pkcs7-mime; smime-type=enveloped-data"))["outcome"] == "held"


def test_a_directory_is_held_against_the_parts(read: Any, samples: Samples) -> None:
    """And is not among the instances."""
    directory = (samples.paths()[0].parent / "dicomdirtests" / "TINY_ALPHA" / "DICOMDIR").read_bytes()
    document = read(compose([directory, samples.fresh("CT_small.dcm").file]))
    assert len(document["instances"]) == 1
    assert document["dicomdir"]["complete"] is False
    assert "PT000000/ST000000/SE000000/IM00000A" in document["dicomdir"]["missing"]


# With a configuration


def test_partner_route_and_destinations_are_found(read: Any, samples: Samples, configuration: Configuration) -> None:
    """The peer is not known, so it is taken to be one that may speak for the partner."""
    document = read(compose([samples.fresh().file]), configuration)
    assert (document["partner"], document["route"], document["outcome"]) == ("clinic-a", "in", "delivered")
    assert document["destinations"] == ["pacs", "archive"]


def test_the_rules_of_the_route_are_tried_too(tmp_path: Path, read: Any, samples: Samples) -> None:
    """A dry run changes what RECEIVE would change, says so, and gives the hash of what was attached."""
    path = tmp_path / "rules.toml"
    text = CONFIGURATION.replace('from = "clinic-a"\n', 'from = "clinic-a"\npatient_id = "prefix:A-"\n')
    path.write_text(text, "utf-8")
    one = samples.fresh("CT_small.dcm")
    document = read(compose([one.file]), load(path))
    assert "patient-rewritten" in [found["code"] for found in document["findings"]]
    assert document["instances"][0]["sha256"] == hashlib.sha256(one.file).hexdigest()
    assert document["instances"][0]["size"] == len(one.file)
    assert document["outcome"] == "delivered"


def test_a_partner_that_must_protect_its_mail_is_held(
    read: Any, samples: Samples, configuration: Configuration
) -> None:
    """Never stored without the protection that was asked for."""
    document = read(compose([samples.fresh().file], sender="dicom@strict.test"), configuration)
    assert (document["outcome"], document["code"]) == ("held", "not-signed")
    assert document["partner"] == "strict"
    assert "strict" in document["reason"]
    assert len(document["instances"]) == 1


def test_what_a_stranger_has_sealed_so_that_nobody_can_open_it_is_held(read: Any, configuration: Configuration) -> None:
    """As the stage does where a route takes strangers: nobody knows what is in it (R9)."""
    fields = ("From: nobody@elsewhere.test", "To: open@gateway.test")
    sealed = plain(*fields, "Content-Type: application/pkcs7-mime; smime-type=enveloped-data")
    document = read(sealed, configuration)
    assert (document["outcome"], document["code"], document["reason"]) == ("held", "malformed", None)
    assert (document["partner"], document["route"]) == (None, "anybody")


@pytest.mark.parametrize(
    ("sender", "to", "reason"),
    [
        ("nobody@elsewhere.test", "pacs@gateway.test", "550 5.7.1 "),
        ("dicom@clinic-a.test", "unknown@gateway.test", "550 5.7.1 "),
    ],
)
def test_who_is_refused_at_the_door_is_refused_here(
    read: Any, samples: Samples, configuration: Configuration, sender: str, to: str, reason: str
) -> None:
    """With the reply the peer would get; what is in the mail is shown all the same."""
    document = read(compose([samples.fresh().file], sender=sender, to=to), configuration)
    assert document["outcome"] == "refused"
    assert document["reason"].startswith(reason)
    assert (document["partner"], document["route"], document["destinations"]) == (None, None, [])
    assert len(document["instances"]) == 1


def test_an_address_that_no_route_knows_is_refused(read: Any, tmp_path: Path, configuration: Configuration) -> None:
    """As at RCPT: 550 5.1.1."""
    path = tmp_path / "gateway.toml"
    path.write_text(path.read_text().replace('name = "strict"', 'name = "strict"\nto = "strict@gateway.test"'))
    document = read(plain("From: dicom@clinic-a.test", "To: other@gateway.test"), load(path))
    assert document["reason"].startswith("550 5.1.1 ")
    assert read(plain("From: dicom@clinic-a.test", "To: it@hospital.test"), configuration)["reason"] is None


def test_strangers_come_by_a_route_for_anybody(read: Any, samples: Samples, configuration: Configuration) -> None:
    """Their images are stored, their other mail is nobody's."""
    mail = compose([samples.fresh().file], sender="nobody@elsewhere.test", to="open@gateway.test")
    document = read(mail, configuration)
    assert (document["partner"], document["route"], document["outcome"]) == (None, "anybody", "delivered")
    assert read(plain("From: nobody@elsewhere.test", "To: open@gateway.test"), configuration)["code"] == "not-dicom"


def test_what_the_mail_server_wrote_counts_more_than_the_header(
    read: Any, samples: Samples, configuration: Configuration
) -> None:
    """Delivered-To names the real recipient, whatever To says; a blind copy names none."""
    mail = compose([samples.fresh().file], sender="nobody@elsewhere.test", to="friends@elsewhere.test")
    assert read(b"Delivered-To: <open@gateway.test>\r\n" + mail, configuration)["route"] == "anybody"
    blind = compose([samples.fresh().file], sender="dicom@strict.test").replace(b"To: pacs@gateway.test\r\n", b"", 1)
    assert read(blind, configuration)["route"] == "strict"


def test_the_limit_of_a_message_holds(read: Any, configuration: Configuration) -> None:
    """As the door answers it."""
    document = read(plain("From: dicom@clinic-a.test", body="x" * 2_000_000), configuration)
    assert document["outcome"] == "refused"
    assert document["reason"].startswith("552 5.3.4 ")


# Sources


def test_a_folder_gives_every_message(tmp_path: Path, samples: Samples) -> None:
    """By its path inside the folder, and one that is held is enough for a person."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "b.eml").write_bytes(compose([samples.fresh().file]))
    (tmp_path / "in" / "sub" / "a.eml").write_bytes(plain("From: a@b.test"))
    document = preview.read(str(tmp_path / "in"), None)
    assert [(one["file"], one["outcome"]) for one in document["messages"]] == [
        ("b.eml", "delivered"),
        ("sub/a.eml", "refused"),
    ]
    assert not preview.needs_a_person(document)
    (tmp_path / "in" / "c").write_bytes(compose([samples.path("MR_truncated.dcm").read_bytes()]))
    assert preview.needs_a_person(preview.read(str(tmp_path / "in"), None))
    assert preview.read(str(tmp_path / "in" / "sub"), None).keys() == {"messages"}


def test_a_maildir_gives_its_messages_and_not_the_servers_files(tmp_path: Path) -> None:
    """cur, new and tmp; not the index beside them."""
    for name in ("cur", "new", "tmp", ".Sent/cur"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.M1:2,S").write_bytes(plain("From: a@b.test"))
    (tmp_path / "dovecot.index").write_bytes(b"\0")
    found = [one["file"] for one in preview.read(str(tmp_path), None)["messages"]]
    assert found == [".Sent/cur/1.M1:2,S", "cur/1.M1:2,S", "new/1.M1:2,S", "tmp/1.M1:2,S"]


def test_standard_input_is_not_kept_in_memory_and_leaves_nothing(
    tmp_path: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is spooled to a file without a name; nothing appears in the temporary folder, not even on the way."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stream = io.BytesIO(compose([samples.fresh().file]))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stream))
    seen: list[list[Path]] = []
    inner = preview.reader.read_to

    def look(message: Span, rules: Rules, out: Path) -> Reading:
        seen.append(list(tmp_path.iterdir()))
        return inner(message, rules, out)

    monkeypatch.setattr(preview.reader, "read_to", look)
    assert preview.read("-", None)["outcome"] == "delivered"
    assert seen == [[]]
    assert not any(tmp_path.iterdir())


def test_a_pipe_is_read_like_a_file(samples: Samples) -> None:
    """As shells make them of ``<(command)``."""
    ours, theirs = os.pipe()
    mail = compose([samples.path("SC_rgb_small_odd_jpeg.dcm").read_bytes()])
    assert os.write(theirs, mail) == len(mail) < 65536
    os.close(theirs)
    try:
        assert preview.read(f"/proc/self/fd/{ours}", None)["kind"] == "dicom"
    finally:
        os.close(ours)


def test_a_source_that_is_not_there_is_a_mistake_of_usage(tmp_path: Path) -> None:
    """Exit code 2; one that cannot be read is 1."""
    with pytest.raises(UsageError, match="there is no file or folder"):
        preview.read(str(tmp_path / "nothing"), None)


def test_a_file_that_cannot_be_read_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the words of the operating system."""
    path = tmp_path / "mail.eml"
    path.write_bytes(b"")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(preview.reader, "read_to", refuse)
    with pytest.raises(GatewayError, match="cannot be read: Permission denied"):
        preview.read(str(path), None)
