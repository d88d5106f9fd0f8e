"""Why a data set of an odd number of bytes is held: what real peers make of one."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from pacs import Pacs, orthanc, storescp

from gateway import model
from gateway.core import contexts
from gateway.edges.storescu import Association, Peer
from tests.samples import CT, EXPLICIT, data_set

pytestmark = pytest.mark.peer

ODD = struct.pack("<HH2sH", 0x0010, 0x4000, b"LT", 3) + b"abc"


def status(pacs: Pacs, path: Path, data: bytes) -> int | None:
    """Send one data set as it is, and return the status; None when there was none."""
    path.write_bytes(data)
    (plan,) = contexts.plan([model.Queued(1, CT, "1.2.3.4", EXPLICIT, model.Span(path, 0, len(data)))])
    association = Association.open(Peer(pacs.title, "127.0.0.1", pacs.port, "GATEWAY", 3.0), plan.contexts)
    (sent,) = association.send(list(plan.queued), 3.0)
    association.release()
    return sent.status


@pytest.mark.parametrize("run", [storescp, orthanc])
def test_a_peer_never_answers_to_an_odd_data_set(
    run: Callable[[Path], AbstractContextManager[Pacs]], tmp_path: Path
) -> None:
    """PS3.5 7.1.1: DCMTK aborts, Orthanc is silent; two odd elements, even as a whole, are taken."""
    folder = tmp_path / "peer"
    folder.mkdir()
    with run(folder) as pacs:
        assert status(pacs, tmp_path / "odd", data_set(more=ODD)) is None
        assert status(pacs, tmp_path / "even", data_set(more=ODD + ODD)) == 0
