"""Real Storage SCPs on loopback: DCMTK's storescp and Orthanc, each in a folder of its own, on a free port."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest
from peer import free_port, program

NODELAY = {**os.environ, "TCP_NODELAY": "1"}
"""DCMTK and Orthanc leave Nagle's algorithm on without it, and each C-STORE then takes some 40 ms."""


@dataclass(frozen=True)
class Pacs:
    """A running SCP.

    Attributes:
        title: Its AE title.
        port: Where it listens for DICOM.
        folder: Where it keeps what it takes.
        pid: Its process.
        http: Its REST port, else 0.
    """

    title: str
    port: int
    folder: Path
    pid: int
    http: int = 0


@contextlib.contextmanager
def storescp(folder: Path, *flags: str) -> Iterator[Pacs]:
    """Run DCMTK's storescp until the block ends; it writes what it takes to ``folder``, one file for each message."""
    port = free_port()
    command = [program("storescp"), "-q", "-aet", "STORESCP", "-od", str(folder), "+uf", *flags, str(port)]
    with _running(command, folder.parent, port) as pid:
        yield Pacs("STORESCP", port, folder, pid)


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[Pacs]:
    """Run Orthanc until the block ends, with its database in ``folder``."""
    port, http = free_port(), free_port()
    configuration = {
        "Name": "TestPACS",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "RemoteAccessAllowed": False,
        "HttpPort": http,
        "AuthenticationEnabled": False,
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomCheckModalityHost": False,
        "UnknownSopClassAccepted": True,
        "StrictAetComparison": True,
        "OverwriteInstances": True,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(configuration))
    with _running([program("Orthanc"), str(path)], folder, port) as pid:
        yield Pacs("ORTHANC", port, folder, pid, http)


@contextlib.contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[int]:
    with (folder / "peer.log").open("wb") as log:
        process = subprocess.Popen(command, env=NODELAY, stdout=log, stderr=log, cwd=folder)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, f"{command[0]} ended: {(folder / 'peer.log').read_text()[-500:]}"
            time.sleep(0.05)
        else:
            pytest.fail(f"{command[0]} does not listen")
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def held_by_orthanc(pacs: Pacs, sop_instance: str) -> bytes | None:
    """Fetch the file that Orthanc keeps for an instance; None when it has none."""
    base = f"http://127.0.0.1:{pacs.http}"
    with urlopen(f"{base}/tools/lookup", data=sop_instance.encode(), timeout=30) as answer:
        found = [each for each in json.load(answer) if each["Type"] == "Instance"]
    if not found:
        return None
    with urlopen(f"{base}/instances/{found[0]['ID']}/file", timeout=30) as answer:
        content: bytes = answer.read()
        return content


@dataclass(frozen=True)
class Meta:
    """Group 0002 of a file, as far as it matters to a sender, and where the data set begins behind it."""

    sop_class: str
    sop_instance: str
    transfer_syntax: str
    data_set: int


def read_meta(content: bytes) -> Meta | None:
    """Read group 0002 (PS3.10 §7.1); None when the file has none that would do."""
    if content[128:132] != b"DICM":
        return None
    values: dict[int, str] = {}
    place = 132
    while content[place : place + 2] == b"\x02\x00" and len(content) >= place + 12:
        element, vr, length = struct.unpack_from("<H2sH", content, place + 2)
        place += 8
        if vr in {b"OB", b"OW", b"UN", b"SQ", b"UT", b"UC", b"UR"}:
            (length,) = struct.unpack_from("<I", content, place)
            place += 4
        values[element] = content[place : place + length].decode("latin-1").strip("\0 ")
        place += length
    if not all(values.get(element) for element in (2, 3, 0x10)):
        return None
    return Meta(values[2], values[3], values[0x10], place)


def resized(content: bytes, size: int) -> bytes:
    """Give a file with native pixel data (OW, explicit VR) another length, by cutting or repeating its pixels."""
    head, tag, tail = content.partition(b"\xe0\x7f\x10\x00OW\0\0")
    (length,) = struct.unpack_from("<I", tail)
    pixels = tail[4 : 4 + length]
    wanted = (size - len(head) - len(tag) - 4) & ~1
    return head + tag + struct.pack("<I", wanted) + (pixels * (wanted // length + 1))[:wanted]
