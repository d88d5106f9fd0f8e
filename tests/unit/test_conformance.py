"""The conformance statement: what it names is what the code decides by, and the page in docs is what it prints."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gateway import config
from gateway.config.sections import SECTIONS, keys
from gateway.conformance import Form, statement, write
from gateway.core import commitment, negotiation, records, status
from gateway.edges.storescp import answers

ROOT = Path(__file__).parents[2]
PRODUCT = write(None)


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, its head left out."""
    body = text.partition(f" {heading}\n")[2]
    lines = re.findall(r"(?:^\|.*\|\n)+", body, re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_page_in_the_documentation_is_what_the_program_prints() -> None:
    """CS-5: `dicom-mail conformance > docs/conformance.md`, whenever a table of the code changes."""
    assert (ROOT / "docs/conformance.md").read_text(encoding="utf-8") == PRODUCT


def test_every_storage_class_is_named_with_its_directory_record() -> None:
    """CS-5: the list is the one the DICOM door decides by."""
    said = {uid: record for _, uid, record in rows(PRODUCT, "4.1 Storage SOP classes")}
    assert set(said) == negotiation.STORAGE
    assert said["1.2.840.10008.5.1.4.1.1.2"] == records.IMAGE
    assert said["1.2.840.10008.5.1.4.1.1.88.59"] == "KEY OBJECT DOC"


def test_a_transfer_syntax_is_named_when_the_door_takes_it_and_only_then() -> None:
    """CS-6: JPIP is refused, so it is not there."""
    said = {uid: decoded for _, uid, decoded in rows(PRODUCT, "4.2 Transfer syntaxes")}
    assert all(negotiation.choose([uid]) == uid for uid in said)
    assert said["1.2.840.10008.1.2.4.70"] == "yes"
    assert said["1.2.840.10008.1.2.4.50"] == "where allowed"
    assert said["1.2.840.10008.1.2.4.100"] == "no"
    assert "1.2.840.10008.1.2.4.94" not in said


def test_every_row_of_the_status_table_is_stated() -> None:
    """CS-7: by range, and what is not listed, too."""
    said = rows(PRODUCT, "7.3 Status codes")
    assert len(said) == len(status.TABLE) + len(status.REFUSALS) + 2
    assert [
        "0xA700 to 0xA7FF",
        "refused: out of resources",
        "Sent again after a growing pause, 40 times, then failed.",
    ] in said


def test_every_action_of_the_status_table_has_words() -> None:
    """A new one cannot be forgotten."""
    assert set(statement.BEHAVIOUR) == set(status.Action)


def test_what_the_door_answers_is_stated() -> None:
    """CS-7, CS-9: statuses, rejections and the reasons of commitment."""
    for code in answers.STATUSES:
        assert f"| 0x{code:04X} |" in PRODUCT
    assert len(rows(PRODUCT, "7.2 Association acceptance")) == len(answers.REJECTIONS)
    assert len(rows(PRODUCT, "5.3 Storage commitment")) == len(commitment.REASONS)


@pytest.mark.parametrize("table", ["limits", "ae.NAME", "storescp", "route"])
def test_every_parameter_has_its_default_and_a_meaning(table: str) -> None:
    """CS-13: from the models themselves."""
    said = rows(PRODUCT, f"`[{table}]`")
    assert [row[0] for row in said] == list(keys(SECTIONS[table]))
    assert all(default and meaning for _, default, meaning in said)


def test_defaults_are_written_as_the_configuration_would() -> None:
    """Sizes, durations, switches, words, lists and what is absent."""
    limits = {key: default for key, default, _ in rows(PRODUCT, "`[limits]`")}
    entity = {key: default for key, default, _ in rows(PRODUCT, "`[ae.NAME]`")}
    route = {key: default for key, default, _ in rows(PRODUCT, "`[route]`")}
    assert (limits["message"], limits["retention"], limits["stop"]) == ("2 GiB", "7d", "30s")
    assert (entity["title"], entity["transcode"], entity["confirm_within"]) == ("required", "lossless", "6h")
    assert (entity["downtime"], entity["tls"]) == ("none", "absent")
    assert (route["bare_dicom"], route["late"]) == ("false", "depends")


INSTALLATION = """
[gateway]
name = "gw.hospital.example"
postmaster = "it@hospital.example"
data = "data"

[ae.pacs]
title = "ARCHIVE"
host = "10.0.0.5"
port = 11112
calling = "GATEWAY"
confirm = "find"

[storescp]
title = "MAILOUT"
listen = "127.0.0.1:11113"

[relay]
host = "relay.hospital.example"
sender = "dicom@hospital.example"

[partner.clinic]
address = "dicom@clinic.example"

[[route]]
name = "out"
called = "OPINION"
mail = ["clinic"]
"""


def test_an_installation_is_described_by_its_configuration(tmp_path: Path) -> None:
    """CS-13: its AE titles, here and there; no path."""
    path = tmp_path / "gateway.toml"
    path.write_text(INSTALLATION)
    text = write(config.load(path))
    here = {row[0]: row[1] for row in rows(text, "6.1 AE titles here")}
    assert set(here) == {"MAILOUT", "OPINION", "GATEWAY"}
    assert "127.0.0.1:11113" in here["MAILOUT"]
    assert rows(text, "6.2 Remote AE titles") == [["pacs", "ARCHIVE", "10.0.0.5:11112", "no", "find"]]
    assert "the installation `gw.hospital.example`" in text
    assert str(tmp_path) not in text


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.external: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.external += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_the_html_form_has_every_table_and_needs_nothing_else() -> None:
    """One page that can be sent to whoever asks."""
    page = _Page()
    page.feed(write(None, Form.HTML))
    assert page.counts["table"] == len(re.findall(r"^\| --- ", PRODUCT, re.MULTILINE))
    assert page.counts["tr"] > len(negotiation.STORAGE)
    assert page.external == []
