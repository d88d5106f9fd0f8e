"""The size of a mail against the three limits, one byte at a time, through the whole stage (R22)."""

from __future__ import annotations

from pathlib import Path

import pytest
from outbound import Outbound, Postman

from gateway.config import Configuration
from tests.samples import reading

LIMITS = ("partner", "relay", "announced")
INSTANCES = 4


def limited(folder: Path, name: str, limit: int) -> Outbound:
    """The way out with one of the limits as given and the others far away."""
    folder.mkdir()
    out = Outbound(folder, postman=Postman(announced=limit if name == "announced" else None))
    out.use(_with_limit(out.configuration, name, limit))
    return out


def _with_limit(given: Configuration, name: str, limit: int) -> Configuration:
    partner, relay = given.partner["clinic-a"], given.relay
    assert relay is not None
    if name == "partner":
        return given.model_copy(
            update={"partner": {**given.partner, "clinic-a": partner.model_copy(update={"max_message": limit})}}
        )
    if name == "relay":
        return given.model_copy(update={"relay": relay.model_copy(update={"max_message": limit})})
    return given


async def mails(folder: Path, name: str, limit: int) -> list[bytes]:
    """Mail a study of four images under a limit; return what the relay was given."""
    out = limited(folder, name, limit)
    try:
        await out.send(*range(INSTANCES), size=4500)
        await out.work()
        [item] = await out.items()
        assert (item["outcome"], item["delivered"]) == ("delivered", INSTANCES)
        assert (await out.proof())["unaccounted"] == 0
        return [content for _, content in out.postman.mails]
    finally:
        out.close()


@pytest.mark.parametrize("name", LIMITS)
async def test_one_byte_decides_about_another_mail(name: str, tmp_path: Path) -> None:
    """R22: just the limit is one mail, one byte less is two, and each is a whole file-set that our reader takes."""
    [whole] = await mails(tmp_path / "far", name, 1_000_000)
    size = len(whole)
    for change, count in ((1, 1), (0, 1), (-1, 2)):
        made = await mails(tmp_path / f"{change}", name, size + change)
        assert len(made) == count
        assert all(len(one) <= size + change for one in made)
        results = [reading(tmp_path, one) for one in made]
        assert sum(len(result.instances) for result in results) == INSTANCES
        assert [(one.dicomdir is not None, one.dicomdir and one.dicomdir.complete) for one in results] == [
            (True, True)
        ] * count


@pytest.mark.parametrize("name", LIMITS)
async def test_one_byte_decides_about_an_instance_that_is_too_big(name: str, tmp_path: Path) -> None:
    """R22: held with the reason, never cut off, and the person is told the limit; one byte more and it goes."""
    far = limited(tmp_path / "far", name, 1_000_000)
    await far.send(1, size=9000)
    await far.work()
    [(_, whole)] = far.postman.mails
    far.close()
    for change, outcome in ((0, "delivered"), (-1, "held")):
        out = limited(tmp_path / f"{change}", name, len(whole) + change)
        await out.send(1, size=9000)
        await out.work()
        [item] = await out.items()
        assert (item["outcome"], item["code"]) == (outcome, "too-big" if outcome == "held" else None)
        assert len(out.postman.mails) == (outcome == "delivered")
        if outcome == "held":
            assert f"too big for one mail of {len(whole) - 1} bytes" in str(item["events"])
        out.close()


@pytest.mark.parametrize("change", [0, -1])
async def test_one_byte_decides_about_pieces(change: int, tmp_path: Path) -> None:
    """PRT-1, R22: where the partner takes pieces, no piece is over the limit, whole or cut."""
    far = limited(tmp_path / "far", "announced", 1_000_000)
    await far.send(1, called="SMALL", size=9000)
    await far.work()
    [(_, whole)] = far.postman.mails
    far.close()
    out = limited(tmp_path / "cut", "announced", len(whole) + change)
    await out.send(1, called="SMALL", size=9000)
    await out.work()
    assert len(out.postman.mails) == (1 if change == 0 else 2)
    assert all(len(one) <= len(whole) + change for _, one in out.postman.mails)
    out.close()
