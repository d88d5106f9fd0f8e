"""``dicom-mail read`` as it is typed: what it prints, what it ends with, what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from messages import compose
from peer import absent
from samples import Samples

ROOT = Path(__file__).parents[2]
CORPUS = ROOT.parent / "shared" / "corpus" / "composed"

CONFIGURATION = """
[gateway]
name = "gateway.test"
postmaster = "it@hospital.test"
data = "data"

[smtp]
listen = "127.0.0.1:0"

[ae.pacs]
title = "PACS"
host = "127.0.0.1"
port = 11112

[partner.clinic-a]
address = "dicom@clinic-a.test"

[[route]]
name = "teleradiology in"
from = "clinic-a"
store = ["pacs"]
"""


def read(*arguments: object, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Type the command."""
    command = [sys.executable, "-m", "gateway", "read", *map(str, arguments)]
    environment = {**os.environ, "DICOM_MAIL_CONFIG": "", **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, input=stdin, capture_output=True, timeout=60, check=False)


def document(done: subprocess.CompletedProcess[bytes]) -> Any:
    """The one JSON document that it printed."""
    assert done.stderr == b""
    return json.loads(done.stdout)


@pytest.fixture
def mail(tmp_path: Path, samples: Samples) -> Path:
    """A good mail of one instance."""
    path = tmp_path / "good.eml"
    path.write_bytes(compose([samples.fresh("CT_small.dcm").file]))
    return path


@pytest.fixture
def damaged(tmp_path: Path, samples: Samples) -> Path:
    """A mail whose image was cut off."""
    path = tmp_path / "damaged.eml"
    path.write_bytes(compose([samples.path("MR_truncated.dcm").read_bytes()]))
    return path


def test_a_good_mail_ends_with_0(mail: Path) -> None:
    """By name, and from standard input with the same result."""
    done = read(mail, "--json")
    assert done.returncode == 0
    found = document(done)
    assert (found["kind"], found["outcome"], len(found["instances"])) == ("dicom", "delivered", 1)
    assert document(read("-", "--json", stdin=mail.read_bytes())) == found


def test_a_mail_that_would_be_held_ends_with_1(mail: Path, damaged: Path) -> None:
    """Alone, or one among others in a folder."""
    assert read(damaged).returncode == 1
    done = read(mail.parent, "--json")
    assert done.returncode == 1
    found = document(done)["messages"]
    assert [(one["file"], one["outcome"]) for one in found] == [("damaged.eml", "held"), ("good.eml", "delivered")]


def test_a_person_reads_words(mail: Path, damaged: Path) -> None:
    """The outcome first, and findings with their codes."""
    assert "This would be delivered" in read(mail).stdout.decode()
    said = read(damaged).stdout.decode()
    assert "This would be held" in said
    assert "Why: truncated-data-set" in said


def test_the_configuration_decides(mail: Path, tmp_path: Path) -> None:
    """Its partners and routes; and nothing of it is touched: no data folder appears."""
    path = tmp_path / "gateway.toml"
    path.write_text(CONFIGURATION)
    done = read(mail, "--json", "--config", path)
    found = document(done)
    assert (found["partner"], found["route"], found["destinations"]) == ("clinic-a", "teleradiology in", ["pacs"])
    assert (found["outcome"], found["code"]) == ("held", "not-signed")
    assert done.returncode == 1
    assert document(read(mail, "--json", DICOM_MAIL_CONFIG=str(path))) == found
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("arguments", [["/nowhere/mail.eml"], ["mail.eml", "--config", "/nowhere/gateway.toml"], []])
def test_wrong_usage_ends_with_2_and_one_line(arguments: list[str]) -> None:
    """A file that is not there, a configuration that is not there, no source at all."""
    done = read(*arguments)
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.startswith(b"dicom-mail: ")
    assert done.stderr.count(b"\n") == 1


def test_nothing_is_left_behind(mail: Path, damaged: Path, tmp_path: Path) -> None:
    """Nor is anything in the temporary folder when it is killed at its busiest: its files have no names."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for source in (mail, damaged):
        read(source, TMPDIR=str(scratch))
        assert not any(scratch.iterdir())
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "read", "-"],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(scratch)}, stdin=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(mail.read_bytes() * 20)
        process.stdin.flush()
        process.kill()
    assert not any(scratch.iterdir())


def test_no_patient_is_shown(tmp_path: Path, samples: Samples) -> None:
    """Names and numbers of patients come out neither as JSON nor in words (R35)."""
    canary = {"PatientName": "CANARY^NAME", "PatientID": "CANARYID", "AccessionNumber": "CANARYACC"}
    path = tmp_path / "mail.eml"
    path.write_bytes(compose([samples.fresh("CT_small.dcm", **canary).file], subject="CANARY^SUBJECT"))
    for arguments in ([path], [path, "--json"]):
        done = read(*arguments)
        assert b"CANARY" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["o1-outlook-octet-stream", "o2-mutt-rfc2231-name", "o4-rfc3240-dicomdir"])
def test_mail_of_real_programs_is_read_to_the_bit(name: str) -> None:
    """What mail programs sent through Postfix: every object with its hash, the directory apart."""
    if not CORPUS.is_dir():
        absent(f"no corpus at {CORPUS}")
    expected = [
        one for one in json.loads((CORPUS / f"{name}.expect.json").read_text())["objects"] if not one["is_dicomdir"]
    ]
    found = document(read(CORPUS / f"{name}.eml", "--json"))
    keys = ("sop_class", "sop_instance", "study", "transfer_syntax", "size")
    assert [[one[key] for key in keys] + [one["sha256"]] for one in found["instances"]] == [
        [one[key] for key in keys] + [one["sha256_file"]] for one in expected
    ]
    assert (found["dicomdir"] is not None) == ("dicomdir" in name)


MEASURE = """
import resource, sys
from gateway import preview
preview.read("README.md", None)
idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = preview.read("-", None)
assert [one["size"] for one in found["instances"]] == [60_000_144], found["findings"]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle)
"""


def test_a_big_message_is_read_in_little_memory(samples: Samples) -> None:
    """Sixty megabytes on standard input: the process stays small (R7)."""
    fresh = samples.fresh("CT_small.dcm", PixelData=bytes(60_000_000), Rows=7500, Columns=4000)
    size = len(fresh.file)
    program = MEASURE.replace("60_000_144", str(size))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        input=compose([fresh.file]),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) < 20 << 10, f"{int(done.stdout) >> 10} MiB beyond an idle one"


def test_hashes_are_of_the_file_as_attached(tmp_path: Path, samples: Samples) -> None:
    """Decoded from its transfer encoding and nothing else."""
    one = samples.fresh("rtplan.dcm")
    path = tmp_path / "mail.eml"
    path.write_bytes(compose([one.file]))
    (found,) = document(read(path, "--json"))["instances"]
    assert found["sha256"] == hashlib.sha256(one.file).hexdigest()
