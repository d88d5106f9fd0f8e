"""Coverage-guided fuzzing of the File-set Reader.

    python tests/fuzz/reader.py -max_total_time=600 [corpus folder…]

Needs atheris. Without a folder of its own it starts from the small mails of the corpus and from samples made here.
"""

# Invariant: any bytes are a message. The reader gives a Reading or raises a GatewayError, never anything else, in
# bounded time and memory; every instance in it has the hash it says, and one that is not held is identified. The same
# bytes joined as a fragment are a message or a GatewayError. The rules of a route change no hash, and hold no more than
# they must: what they changed is as sound as it came.

from __future__ import annotations

import binascii
import contextlib
import gzip
import hashlib
import io
import os
import struct
import sys
import tempfile
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["gateway"]):
    from gateway.core import header, part10, partial
    from gateway.core.coercion import Coercion, Rule
    from gateway.core.dataset import Stored
    from gateway.core.findings import CODES
    from gateway.core.reader import Rules, read
    from gateway.errors import GatewayError
    from gateway.model import Reading, Span

from tests import samples

RULES = Rules(
    parts=50, depth=6, header=4096, instance=1 << 20, unpacked=1 << 22, ratio=50, bare_dicom=True, uuencode=True
)
ORDERS = Coercion(Rule("CLINIC-A", "A-", clear_accession=True), datetime(2026, 11, 23, tzinfo=UTC), "gw.example")
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


def one(data: bytes) -> None:
    """Read one message."""
    message = FOLDER / "message"
    message.write_bytes(data)
    span = Span(message, 0, len(data))
    header.parse(data)
    with (FOLDER / "out").open("w+b") as out, contextlib.suppress(GatewayError):
        check(read(span, RULES, out))
    with (FOLDER / "changed").open("w+b") as out, contextlib.suppress(GatewayError):
        check(read(span, replace(RULES, coercion=ORDERS), out))
    with (FOLDER / "joined").open("w+b") as out, contextlib.suppress(GatewayError):
        partial.join([span, span], RULES.header, out)


def check(reading: Reading) -> None:
    """Hold a reading against the invariant."""
    if unknown := {found.code for found in reading.findings} - set(CODES):
        raise AssertionError(unknown)
    for instance in reading.instances:
        content = samples.content(instance.file)
        if instance.changed:
            file = content
            meta = part10.read_meta(file) if part10.is_marked(file) else part10.bare_meta(file, source(file))
            if meta is None or part10.judge(meta, source(file), len(file), 1 << 22).is_unreadable:
                raise AssertionError("a rule has damaged a data set")
        elif hashlib.sha256(content).hexdigest() != instance.sha256:
            raise AssertionError("another file than was hashed")
        if instance.held is None and not (instance.sop_class and instance.sop_instance and instance.study):
            raise AssertionError("an instance without a name is not held")


def source(file: bytes) -> Stored:
    """Serve a file."""
    return Stored(lambda at, size: file[at : at + size], file, len(file))


def seeds(folder: Path) -> None:
    """Write what to start from."""
    made = {
        "base64": samples.mail(samples.part(samples.dicom_file())),
        "big-endian": samples.mail(samples.part(samples.dicom_file(syntax=samples.BIG_ENDIAN), encoding="binary")),
        "deflated": samples.mail(samples.part(samples.dicom_file(syntax=samples.DEFLATED), encoding="binary")),
        "directory": samples.mail(samples.part(samples.dicomdir([("A/B", "1.2.3.4")]), encoding="binary")),
    }
    for name, data in packed(samples.dicom_file()).items():
        kind = "text/plain" if name == "uuencode" else "application/octet-stream"
        made[name] = samples.mail(samples.part(data, kind, encoding="binary"))
    for name, data in made.items():
        (folder / name).write_bytes(data)
    root = samples.corpus()
    for path in root.rglob("*") if root else ():
        if path.is_file() and path.stat().st_size < 20_000:
            (folder / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]).write_bytes(seed(path))


def packed(file: bytes) -> dict[str, bytes]:
    """Pack a file in each way that is opened."""
    box = io.BytesIO()
    with zipfile.ZipFile(box, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("A/B", file)
    uuencoded = b"".join(binascii.b2a_uu(file[at : at + 45]) for at in range(0, len(file), 45))
    rendering = struct.pack("<BLL14xH", 2, 0x00069002, 14, 0)
    data = struct.pack("<BLL", 2, 0x0006800F, len(file)) + file + b"\0\0"
    return {
        "zip": box.getvalue(),
        "gzip": gzip.compress(file),
        "uuencode": b"begin 644 a.dcm\n" + uuencoded + b"`\nend\n",
        "tnef": b"\x78\x9f\x3e\x22\1\0" + rendering + data,
    }


def seed(path: Path) -> bytes:
    """Return a mail as it is, and any other file wrapped in one."""
    data = path.read_bytes()
    if path.suffix == ".eml":
        return data
    return samples.mail(samples.part(data, "application/octet-stream", encoding="binary"))


def main() -> None:
    """Fuzz until the time given is over."""
    arguments = list(sys.argv)
    if not any(not argument.startswith("-") for argument in arguments[1:]):
        folder = FOLDER / "seeds"
        folder.mkdir()
        seeds(folder)
        arguments.append(str(folder))
    atheris.Setup(arguments, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
