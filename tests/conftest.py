"""Fixtures every test may use: real files, and real peers that are started, seen and ended."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest
from orthanc import Orthanc
from peer import Start
from postgresql import PostgreSQL
from samples import Samples

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control starts what runs in the background deaf to Ctrl-C, and so are all its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def samples() -> Samples:
    """Real DICOM files."""
    return Samples()


@pytest.fixture
def start() -> Iterator[Start]:
    """A starter of peers that ends them with the test."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture(scope="session")
def orthanc() -> Iterator[Orthanc]:
    """One Orthanc for all tests: what a test stores there has fresh UIDs."""
    with Orthanc() as peer:
        yield peer


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """One PostgreSQL for all tests: each asks it for a database of its own."""
    with PostgreSQL() as peer:
        yield peer
