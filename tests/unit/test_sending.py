"""`dicom-mail send`: files of a person, the way of a modality's images."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from outbound import CONFIGURATION, Outbound, files
from rows import configuration

from gateway import searching, sending
from gateway.errors import UsageError


def study(folder: Path) -> Path:
    """Two images, a DICOMDIR and a letter."""
    (folder / "study" / "series").mkdir(parents=True)
    for number in (1, 2):
        data = files.data_set(instance=f"1.2.3.{number}", study="1.2.9")
        file = files.dicom_file(data, files.meta(instance=f"1.2.3.{number}"))
        (folder / "study" / "series" / f"{number}").write_bytes(file)
    (folder / "study" / "letter.txt").write_text("Dear colleague")
    return folder / "study"


async def test_files_go_to_a_partner_by_hand(tmp_path: Path) -> None:
    """Custody, one collection for the study, a mail when nothing comes any more."""
    out = Outbound(tmp_path)
    source = study(tmp_path)
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    reasons = await out.compose.take_files("clinic-a", paths, "anna")
    assert sorted(map(str, reasons)) == ["None", "None", "no DICOM file"]
    [item] = await out.items()
    assert (item["outcome"], item["stage"], item["door"], item["instances"]) == ("waiting", "compose", "send", 2)
    assert item["routes"] == ["(by hand)"]
    with out.ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE collection SET opened_at = '2020-01-01', last_at = '2020-01-01'")
    await out.compose.look(item["id"])
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["delivered"]) == ("delivered", 2)
    out.close()


def test_without_a_daemon_the_files_are_taken_in_and_wait(tmp_path: Path) -> None:
    """Under the lock of the folder; what is no DICOM is named."""
    loaded = configuration(tmp_path, CONFIGURATION.replace("MAX", "35 MB"))
    document = sending.send(loaded, "clinic-a", [study(tmp_path)])
    assert (document["taken"], document["running"]) == (2, False)
    assert [one["reason"] for one in document["files"]] == ["no DICOM file", None, None]


def test_whoever_sends_is_named_by_the_system_and_not_by_himself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the daemon does it; the environment may say anything, and says nothing in a container."""
    monkeypatch.setenv("LOGNAME", "somebody-else")
    loaded = configuration(tmp_path, CONFIGURATION.replace("MAX", "35 MB"))
    sending.send(loaded, "clinic-a", [study(tmp_path)])
    [text] = [one["text"] for one in searching.events(loaded, None) if "collecting" in one["kind"]]
    assert pwd.getpwuid(os.getuid()).pw_name in text
    assert "somebody" not in text


@pytest.mark.parametrize(("partner", "source"), [("clinic-x", "."), ("clinic-a", "nowhere")])
def test_what_is_not_there_is_a_wrong_call(tmp_path: Path, partner: str, source: str) -> None:
    """Named, before anything is sent."""
    loaded = configuration(tmp_path, CONFIGURATION.replace("MAX", "35 MB"))
    with pytest.raises(UsageError, match="there is no"):
        sending.send(loaded, partner, [tmp_path / source])
