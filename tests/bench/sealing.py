"""How fast S/MIME is, side by side with `openssl cms`, in one run on one machine.

    python tests/bench/sealing.py [--megabytes 500] [--rounds 3]

One content; DER in and out on both sides, file to file, nothing synced. Each operation of ours runs in a process of its
own, beside `openssl cms` with the same certificate, in turns. Only the ratios mean something; memory is the peak over
that of the same process before it begins.
Bars: what is made, and opaque and CBC read, at least as fast; GCM decrypted and detached verified at least twice as
fast; at most 24 MB over idle.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))

import pki
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway.core.cms import algorithms, ber, enveloped, signed
from gateway.core.cms.ber import Reader
from gateway.core.cms.enveloped import Envelope, Key
from gateway.core.cms.signed import Identity

MEMORY_BAR = 24.0
"""Megabytes over idle."""

BLOCK = 57 << 12
OAEP = ("-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256")


def blocks(path: Path) -> Iterator[bytes]:
    """A file, a block at a time."""
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            yield block


@functools.cache
def ours() -> tuple[Identity, Key]:
    """The certificate that everything is made with, as it lies in the folder."""
    certificate = x509.load_pem_x509_certificate(Path("us.pem").read_bytes())
    secret = load_pem_private_key(Path("us.key").read_bytes(), None)
    return Identity(secret, certificate), Key(secret, certificate)  # type: ignore[arg-type]


def content_of(path: Path, kind: str) -> tuple[Reader, object]:
    """A reader that stands in the content of a ContentInfo, and the file that must stay open."""
    file = path.open("rb", buffering=0)
    reader = Reader(file.read)  # type: ignore[arg-type]  # a raw file gives None only when it would block
    reader.enter(ber.SEQUENCE)
    assert ber.oid(reader.node(ber.OBJECT_IDENTIFIER)) == kind
    reader.enter(ber.context(0))
    return reader, file


def sign() -> None:
    """Detached: hash, sign, write the signature."""
    digest = hashlib.sha256()
    for block in blocks(Path("content")):
        digest.update(block)
    Path("own.p7s").write_bytes(signed.write_detached(digest.digest(), ours()[0], pki.NOW))


def encrypt(*, cbc: bool) -> None:
    """To ourselves."""
    envelope = Envelope([ours()[0].certificate], Path("content").stat().st_size, cbc=cbc, oaep=not cbc)
    with Path("own.der").open("wb", buffering=0) as out:
        out.writelines(envelope.seal(blocks(Path("content"))))


def verify(*, opaque: bool) -> None:
    """What openssl signed; what is inside is written, what is detached is only read."""
    reader, _ = content_of(Path("opaque.der" if opaque else "openssl.p7s"), algorithms.SIGNED_DATA)
    with Path("own.out").open("wb", buffering=0) as out:
        found = signed.read(reader, () if opaque else blocks(Path("content")), out.write)
    signed.verify(found, found.signers[0], ours()[0].certificate, pki.NOW)


def decrypt(*, gcm: bool) -> None:
    """What openssl encrypted."""
    kind = algorithms.AUTH_ENVELOPED_DATA if gcm else algorithms.ENVELOPED_DATA
    with Path("own.out").open("wb", buffering=0) as out:
        name = Path("gcm.der" if gcm else "cbc.der")
        enveloped.read(lambda: content_of(name, kind)[0], [ours()[1]], out.write, authenticated=gcm)


class Contest(NamedTuple):
    """One operation.

    Attributes:
        ours: What we do.
        theirs: Arguments of `openssl cms`.
        bar: Our time over theirs, at most.
    """

    ours: Callable[[], None]
    theirs: tuple[str, ...]
    bar: float


SIGNER = ("-signer", "us.pem", "-inkey", "us.key", "-outform", "DER")
OPENER = ("-recip", "us.pem", "-inkey", "us.key", "-inform", "DER", "-out", "openssl.out")
CHECK = ("-verify", "-binary", "-noverify", "-inform", "DER", "-out", "openssl.out")
SIGN = ("-sign", "-binary", "-in", "content", *SIGNER)
GCM = ("-encrypt", "-binary", "-aes-256-gcm", "-in", "content", "-outform", "DER", "-recip", "us.pem", *OAEP)
CBC = ("-encrypt", "-binary", "-aes-256-cbc", "-in", "content", "-outform", "DER", "-recip", "us.pem")

CONTESTS = {
    "sign detached": Contest(sign, (*SIGN, "-out", "openssl.p7s"), 1.0),
    "encrypt GCM": Contest(lambda: encrypt(cbc=False), (*GCM, "-out", "gcm.der"), 1.0),
    "encrypt CBC": Contest(lambda: encrypt(cbc=True), (*CBC, "-out", "cbc.der"), 1.0),
    "verify detached": Contest(
        lambda: verify(opaque=False), (*CHECK, "-in", "openssl.p7s", "-content", "content"), 0.5
    ),
    "verify opaque": Contest(lambda: verify(opaque=True), (*CHECK, "-in", "opaque.der"), 1.0),
    "decrypt GCM": Contest(lambda: decrypt(gcm=True), ("-decrypt", "-binary", *OPENER, "-in", "gcm.der"), 0.5),
    "decrypt CBC": Contest(lambda: decrypt(gcm=False), ("-decrypt", "-binary", *OPENER, "-in", "cbc.der"), 1.0),
}
"""In this order: what is read was made by openssl before."""

READS = {"verify opaque", "decrypt GCM", "decrypt CBC"}


def prepare(folder: Path, size: int) -> None:
    """Write the content and the certificate; have openssl sign it opaquely."""
    pki.leaf(kind="rsa-2048/us").write(folder, "us")
    block = os.urandom(1 << 20)
    with (folder / "content").open("wb") as file:
        for number in range(size >> 20):
            file.write(number.to_bytes(8, "big") + block[8:])
    openssl(folder, (*SIGN, "-nodetach", "-out", "opaque.der"))


def openssl(folder: Path, arguments: tuple[str, ...]) -> float:
    """Run `openssl cms`; give the seconds it took."""
    begun = time.perf_counter()
    subprocess.run(["openssl", "cms", *arguments], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - begun


def own(folder: Path, name: str) -> tuple[float, float]:
    """Run ours in a process of its own; give seconds, and megabytes over idle."""
    begun = [sys.executable, str(Path(__file__).resolve()), "--only", name]
    said = subprocess.run(begun, cwd=folder, check=True, capture_output=True, text=True).stdout.split()
    return float(said[0]), float(said[1])


def peak_kilobytes() -> int:
    """The most that this process had in memory."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def only(name: str) -> None:
    """Be that process."""
    ours()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    idle = peak_kilobytes()
    begun = time.perf_counter()
    CONTESTS[name].ours()
    seconds = time.perf_counter() - begun
    print(seconds, (peak_kilobytes() - idle) / 1024)


def main() -> int:
    """Measure, print, and say with the exit code whether every bar was held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.only:
        only(chosen.only)
        return 0
    missed = False
    folder = Path(tempfile.mkdtemp(prefix="sealing-"))
    try:
        prepare(folder, chosen.megabytes << 20)
        for name, contest in CONTESTS.items():
            ratios, peaks = [], []
            for _ in range(chosen.rounds):
                theirs = openssl(folder, contest.theirs)
                mine, peak = own(folder, name)
                ratios.append(mine / theirs)
                peaks.append(peak)
                if name in READS:
                    assert (folder / "own.out").stat().st_size == chosen.megabytes << 20
            ratio, peak = statistics.median(ratios), max(peaks)
            bad = ratio > contest.bar or peak > MEMORY_BAR
            missed |= bad
            print(
                f"{name:16} {ratio:5.2f} of openssl's time (at most {contest.bar}), {peak:5.1f} MB over idle"
                f"{'  MISSED' if bad else ''}",
                flush=True,
            )
        same = subprocess.run(["cmp", folder / "own.out", folder / "content"], check=False).returncode == 0
        print("what was decrypted is the content" if same else "what was decrypted is NOT the content")
        missed |= not same
    finally:
        shutil.rmtree(folder)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
