"""Any split, order, repetition, interleaving and restart: every message comes out once and byte for byte (R8, R10)."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from fragments import Gateway, cut
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import CONFIGURATION, alarms, configuration

from gateway.model import Outcome
from tests.samples import data_set, dicom_file, element, mail, part

TEXT = CONFIGURATION.replace('accept = "signed"', 'accept = "any"')
SENDERS = ("dicom@clinic-a.example", "dicom@clinic-b.example")
FILES = [
    dicom_file(data_set(instance=f"1.2.3.{n}", more=element(0x7FE00010, "OW", os.urandom(1200)))) for n in range(3)
]
WHOLES = [mail(part(file), fields=f"Message-ID: <whole{n}@x.example>\r\n") for n, file in enumerate(FILES)]
LINES = WHOLES[0].count(b"\n")


@st.composite
def schedules(draw: st.DrawFn) -> list[tuple[int, bytes | str]]:
    """Fragments of three messages from two senders, two of them with one id, shuffled, some twice; and what else is."""
    owners = [("same", SENDERS[0]), ("same", SENDERS[1]), ("other", SENDERS[0])]
    mails: list[tuple[int, bytes | str]] = []
    for number, (whole, (name, sender)) in enumerate(zip(WHOLES, owners, strict=True)):
        at = draw(st.lists(st.integers(1, LINES - 1), max_size=5))
        pieces = cut(whole, at, name=name, sender=sender, total=draw(st.booleans()))
        if draw(st.booleans()):  # one of them is cut again
            again = draw(st.integers(0, len(pieces) - 1))
            size = pieces[again].count(b"\n")
            deeper = draw(st.lists(st.integers(1, size - 1), max_size=3))
            pieces[again : again + 1] = cut(pieces[again], deeper, name=f"{name}-inner", sender=sender)
        mails += [(number, piece) for piece in pieces]
    mails += draw(st.lists(st.sampled_from(mails), max_size=4))
    mails += [(-1, word) for word in draw(st.lists(st.sampled_from(["restart", "work", "days"]), max_size=6))]
    return draw(st.permutations(mails))


@settings(max_examples=200 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 25, deadline=None)
@given(schedule=schedules())
def test_every_message_that_was_cut_comes_out_once(schedule: list[tuple[int, bytes | str]]) -> None:
    """Whatever happens between its pieces, the proof holds after each step, and nobody is told of anything."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_play(Path(folder), schedule))


async def _play(folder: Path, schedule: list[tuple[int, bytes | str]]) -> None:
    gateway = Gateway(folder, configuration(folder, TEXT))
    try:
        accepted = 0
        for _, step in schedule:
            match step:
                case "restart":
                    await gateway.restart()
                case "work":
                    await gateway.work()
                case "days":
                    await gateway.pass_hours(9)
                case bytes():
                    await gateway.accept(step)
                    accepted += 1
            assert (await gateway.proven())["in"] == accepted
        await gateway.work()
        assert sorted(file for _, file in await gateway.files()) == sorted(FILES)
        assert (await gateway.proven())[Outcome.WAITING] == accepted
        assert await gateway.ledger.read(alarms) == set()
        assert gateway.drafts() == []
        assert gateway.readings == len(FILES)
    finally:
        gateway.close()
