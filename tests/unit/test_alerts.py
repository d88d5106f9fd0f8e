"""What deploy/ gives to Prometheus and Grafana loads as it is, and speaks of metrics and pages that exist (R33)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from peer import absent

from gateway import metrics
from gateway.edges import storescp
from gateway.edges.smtp import Counters
from gateway.ledger.inventory import Census

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/dicom-mail.rules.yml"
BOARD = ROOT / "deploy/grafana/dicom-mail.json"


def metric_names() -> set[str]:
    """Every name that a query may use."""
    readings = metrics.Readings(census=Census(*({} for _ in fields(Census))), unaccounted=0)
    names = set()
    for metric in metrics.registry(readings, Counters, storescp.Counters).collect():
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(metric.type, ("",))
        names |= {metric.name + ending for ending in endings}
    return names


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def queries() -> Iterator[str]:
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (one["query"]["query"] for one in board["templating"]["list"] if one["type"] == "query")


def used(query: str) -> set[str]:
    return set(re.findall(r"dicom_mail_\w+", query))


def test_alerts_and_board_use_metrics_that_exist() -> None:
    """An alert on a name that nobody exports would be silent for ever."""
    asked = {name for query in [*(rule["expr"] for rule in rules()), *queries()] for name in used(query)}
    assert len(asked) > 30
    assert asked - metric_names() == set()


def test_every_alert_has_a_heading_that_says_what_to_do() -> None:
    """Who is paged finds the page by the name of the alert."""
    page = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^### (\w+)$", page, re.MULTILINE))
    assert {rule["alert"] for rule in rules()} == headings


def test_every_alert_says_how_bad_it_is_and_what_is_the_matter() -> None:
    """In one sentence, without patient data: labels are names of the configuration."""
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"].endswith(".")


def test_panels_lie_side_by_side_and_have_numbers_of_their_own() -> None:
    """As Grafana wants them."""
    panels = json.loads(BOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


@pytest.mark.peer
def test_prometheus_takes_the_rules() -> None:
    """By its own tool, expressions and templates included."""
    if shutil.which("promtool") is None:
        absent("prometheus is not installed: tests/peers/install")
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


SWAYING = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'dicom_mail_mailbox_up{{mailbox="imap.a",state="unreachable"}}'
        values: '0x4 stale _x4 0x4 stale _x4 0x4 stale _x4'
      - series: 'dicom_mail_mailbox_up{{mailbox="imap.a",state="silent"}}'
        values: '_x5 0x4 stale _x4 0x4 stale _x4 0x4 stale'
    alert_rule_test:
      - eval_time: 20m
        alertname: MailboxDown
        exp_alerts:
          - exp_labels: {{mailbox: imap.a, severity: critical}}
            exp_annotations: {{summary: The mailbox imap.a cannot be used.}}
"""


@pytest.mark.peer
def test_a_mailbox_that_fails_in_two_ways_by_turns_is_down(tmp_path: Path) -> None:
    """Each way alone lasts less than the alarm waits."""
    if shutil.which("promtool") is None:
        absent("prometheus is not installed: tests/peers/install")
    (tmp_path / "test.yml").write_text(SWAYING.format(rules=RULES), "utf-8")
    command = ["promtool", "test", "rules", str(tmp_path / "test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
