"""The documentation is held against the code: what is promised in words exists, and what exists is in words."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from gateway import cli, config, metrics
from gateway.core import codes, findings, status
from gateway.edges import storescp
from gateway.edges.smtp import Counters
from gateway.edges.storescp import answers
from gateway.ledger.inventory import Census
from gateway.stages import compose

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ERRORS = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
MONITORING = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links spell them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Files exist, and so do the headings in them."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configuration_in_a_page_can_be_loaded(page: Path, tmp_path: Path) -> None:
    """A whole example is valid; a piece of one at least has known keys."""
    least = (ROOT / "config/gateway.min.toml").read_text(encoding="utf-8")
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        path = tmp_path / "gateway.toml"
        path.write_text(block if "gateway" in tomllib.loads(block) else block + least, encoding="utf-8")
        config.load(path)


def test_the_configuration_in_the_readme_runs_in_ten_lines() -> None:
    """The promise above the example."""
    [block] = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    assert len([line for line in block.splitlines() if line]) <= 10


def test_what_make_is_told_exists() -> None:
    """Every `make word` in a page is a target."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    said = {word for page in PAGES for word in re.findall(r"^(?:`)?make ([a-z]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test"} <= said <= targets


def described(page: str, section: str) -> dict[str, str]:
    """The entries of one section of a page, by heading."""
    body = page.partition(f"## {section}\n")[2].partition("\n## ")[0]
    parts = re.split(r"^### (.+)\n\n", body, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], (text.strip() for text in parts[1::2]), strict=True))


def test_every_finding_is_described_in_the_words_of_its_table() -> None:
    """Code, severity, meaning and what to do; and none that the code does not know."""
    said = described(ERRORS, "Findings")
    assert set(said) == set(findings.CODES)
    for code, entry in findings.CODES.items():
        assert said[code] == f"*{entry.severity}* — {entry.meaning} {entry.action}"


def test_codes_of_items_and_of_protection_have_the_words_of_their_page() -> None:
    """What `explain` says of a code is what the page says."""
    for section, table in (("Items", codes.ITEMS), ("Protection", codes.PROTECTION)):
        said = {code: text.partition(" — ")[2] for code, text in described(ERRORS, section).items()}
        assert said == table


def test_every_answer_of_a_pacs_is_described() -> None:
    """All codes of the status table."""
    verdicts = [row.verdict for row in status.TABLE] + [status.UNLISTED, *status.REFUSALS.values()]
    assert {verdict.code for verdict in verdicts} == set(described(ERRORS, "Answers of a PACS"))
    assert status.NO_ANSWER.code in described(ERRORS, "Items")


def test_what_failed_at_a_pacs_is_told_the_verb_that_takes_it() -> None:
    """`queue release` lets go on what is held, and refuses what failed."""
    said = described(ERRORS, "Answers of a PACS")
    verdicts = [*(row.verdict for row in status.TABLE), *status.REFUSALS.values()]
    final = {verdict.code for verdict in verdicts if verdict.action in {status.Action.INSTANCE, status.Action.CLASS}}
    assert [code for code in final if "queue release" in said[code] or "Held" in said[code]] == []


def test_every_answer_to_a_sender_is_described() -> None:
    """Statuses and rejections of the DICOM door, in the words of its tables."""
    statuses = {f"0x{status:04X}": f"{one.meaning} {one.action}" for status, one in answers.STATUSES.items()}
    assert described(ERRORS, "Answers to a sender") == statuses
    rejections = {one.reason: f"{one.meaning} {one.action}" for one in answers.REJECTIONS.values()}
    assert described(ERRORS, "Rejected associations") == rejections


def test_the_door_answers_nothing_that_no_table_names() -> None:
    """Every status and every rejection that has a name has a row."""
    names = {name: value for name, value in vars(answers).items() if name.isupper() and not name.startswith("_")}
    assert {value for value in names.values() if isinstance(value, int)} == set(answers.STATUSES)
    assert {value for value in names.values() if isinstance(value, tuple)} == set(answers.REJECTIONS)
    assert {*answers.BY_CODE.values(), compose.NOT_AUTHORIZED} <= set(answers.STATUSES)


def constants(*folders: str) -> Iterator[tuple[str, str]]:
    """Every constant in the code that becomes the code of an item, or the kind of a notice."""
    for path in sorted(path for folder in folders for path in (ROOT / "gateway" / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                yield from (("code", word) for key, value in pairs if _word(key) == "code" for word in [_word(value)])
            elif isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                yield from (("code", _word(k.value)) for k in node.keywords if k.arg in {"code", "held", "refused"})
                if name == "_hold":
                    yield "code", _word(node.args[1])
                if name == "open_notice":
                    yield "notice", _word(node.args[2])


def _word(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_every_code_of_an_item_and_every_notice_is_described() -> None:
    """Whatever the stages and the ledger can write into a row."""
    found = {
        kind: {word for one, word in constants("stages", "ledger") if one == kind and word}
        for kind in ("code", "notice")
    }
    assert {"no-dicom", "in-doubt", "poison"} <= found["code"]
    everywhere = {*described(ERRORS, "Items"), *described(ERRORS, "Answers of a PACS"), *described(ERRORS, "Findings")}
    assert found["code"] - everywhere == set()
    assert {"late", "disk-low"} <= found["notice"]
    assert found["notice"] <= set(described(ERRORS, "Notices"))


def test_every_metric_is_described_in_its_own_words() -> None:
    """Name and help text, and none that is not there."""
    readings = metrics.Readings()
    every = metrics.registry(readings, Counters, storescp.Counters)
    readings.unaccounted = 0
    readings.census = Census(*({} for _ in fields(Census)))
    exist = {}
    for metric in every.collect():
        total = "_total" if metric.type == "counter" else ""
        exist[f"{metric.name.removeprefix('dicom_mail_')}{total}"] = metric.documentation
    table = MONITORING.partition("## Metrics")[2].partition("\n##")[0]
    said = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))
    assert set(said) == set(exist)
    assert [name for name, text in said.items() if not exist[name].startswith(text.rstrip("."))] == []


def test_every_label_of_a_metric_is_described() -> None:
    """By its name, with the metrics that carry it; and none that is not there."""
    readings = metrics.Readings()
    every = metrics.registry(readings, Counters, storescp.Counters)
    readings.census = Census(*({} for _ in fields(Census)))
    exist: dict[str, set[str]] = {}
    for metric in every.collect():
        total = "_total" if metric.type == "counter" else ""
        for label in getattr(metric, "_labelnames", ()):
            exist.setdefault(label, set()).add(f"{metric.name.removeprefix('dicom_mail_')}{total}")
    table = MONITORING.partition("### Labels")[2].partition("\n## ")[0]
    said = re.findall(r"^\| `(\w+)` \| (.+?) \| .* \|$", table, re.MULTILINE)
    assert {label: set(re.findall(r"`(\w+)`", names)) for label, names in said} == exist
    assert {"destination", "class"} <= set(exist)


def test_the_locks_name_no_place_to_install_from() -> None:
    """Whoever installs chooses where from; the hashes say that it is the same."""
    for lock in ROOT.glob("requirements*.lock"):
        text = lock.read_text(encoding="utf-8")
        assert "--hash=sha256:" in text
        assert "://" not in text


def test_every_failure_of_a_protection_is_described_and_no_other() -> None:
    """A code that an operator sees is found in the page."""
    from gateway.core.cms.failure import Failure

    section = ERRORS.partition("## Protection\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (.+)$", section, re.MULTILINE) == [str(one) for one in Failure]


def shown_commands() -> Iterator[tuple[str, str]]:
    """Every `dicom-mail …` in a block of a page, by page."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            for line in re.findall(r"^(?:sudo -u \S+ )?dicom-mail (?!-gateway)(.*)$", block, re.MULTILINE):
                yield page.name, line.partition("#")[0].strip()


@pytest.mark.parametrize(("page", "command"), sorted(set(shown_commands())))
def test_every_command_shown_is_one_the_program_understands(page: str, command: str) -> None:
    """Its verb and its options exist. Nothing is run: what is asked for is its help."""
    assert cli.perform([*shlex.split(command), "--help"]) == 0, page


def test_every_deviation_that_is_let_pass_is_listed() -> None:
    """As many lines for a module as it has marks, and no module without."""
    marked: dict[str, int] = {}
    for path in (ROOT / "gateway").rglob("*.py"):
        if count := path.read_text(encoding="utf-8").count("QUIRK: "):
            marked[str(path.relative_to(ROOT / "gateway"))] = count
    listed: dict[str, int] = {}
    for module in re.findall(
        r"^\| `([\w/.]+)` \|", (ROOT / "docs/quirks.md").read_text(encoding="utf-8"), re.MULTILINE
    ):
        listed[module] = listed.get(module, 0) + 1
    assert listed == marked


def test_every_page_has_its_place_in_the_site() -> None:
    """None is written and never found."""
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    named = {line for block in blocks for line in block.splitlines() if line[:1].isalpha()}
    assert named == {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    readme = re.findall(r"\]\(docs/([\w-]+)\.md\)", README)
    assert named == set(readme)


def test_the_site_can_be_built(tmp_path: Path) -> None:
    """`make docs`; every warning is an error."""
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", ROOT / "docs", tmp_path / "site"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (built.returncode, built.stderr) == (0, "")
    assert (tmp_path / "site/operating.html").exists()
