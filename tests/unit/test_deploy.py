"""What a hospital installs: the unit, the image, the folder to play with, the wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "dicom-mail.service"
COMPOSE = DEPLOY / "compose.yaml"


def program(name: str) -> str:
    """A program of the system; without it the test is skipped, and fails where all must be there."""
    found = shutil.which(name)
    if found is None and os.environ.get("CI") != "true":
        pytest.skip(f"{name} is not installed")
    assert found is not None, f"{name} is not installed"
    return found


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    """Every setting in it is known, and none contradicts another."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/dicom-mail/bin/dicom-mail", "/bin/true"))
    found = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", copy], check=False, capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_the_unit_leaves_the_service_little_to_do_harm_with() -> None:
    """`systemd-analyze security` says less than 2.0, where 10 is the worst."""
    said = subprocess.run(
        [program("systemd-analyze"), "security", "--offline=true", "--no-pager", UNIT],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert exposure is not None
    assert float(exposure[1]) < 2.0


def composition() -> dict[str, Any]:
    """The services to play with."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def test_the_composition_follows_its_schema() -> None:
    """That of the Compose specification."""
    subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE],
        check=True,
        capture_output=True,
    )


def test_whatever_the_composition_mounts_is_there() -> None:
    """Docker would make an empty folder of what is missing."""
    named = set(composition()["volumes"])
    missing = []
    for service in composition()["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source not in named and not (DEPLOY / source).exists():
                missing.append(source)
    assert missing == []


def test_the_composition_is_open_to_this_machine_alone() -> None:
    """Its passwords are known to everybody; and an image is of a release."""
    for service in composition()["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert ":" in service["image"] or "build" in service


def test_the_gateway_of_the_composition_finds_the_other_services() -> None:
    """Its configuration can be loaded, and calls them by their names."""
    services = set(composition()["services"])
    found = config.load(DEPLOY / "play/gateway/gateway.toml")
    assert found.relay is not None
    assert {found.imap["play"].host, found.ae["pacs"].host, found.relay.host} <= services
    ports = {port.rpartition(":")[2] for port in composition()["services"]["gateway"]["ports"]}
    assert found.smtp is not None
    assert found.storescp is not None
    assert found.metrics is not None
    assert {str(each.port) for each in (found.smtp.listen, found.storescp.listen, found.metrics.listen)} == ports
    assert yaml.safe_load((DEPLOY / "play/prometheus.yml").read_text())["scrape_configs"][0]["static_configs"] == [
        {"targets": [f"gateway:{found.metrics.listen.port}"]}
    ]


def test_the_image_is_built_from_files_that_are_there() -> None:
    """What it copies exists and is not kept from it, and it runs as nobody in particular."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"gateway", "requirements.lock", "pyproject.toml"} <= set(copied) <= set(allowed)
    assert all((ROOT / source).exists() for source in copied)
    assert re.search(r"^USER [1-9][0-9]*:[1-9][0-9]*$", dockerfile, re.MULTILINE)


def test_the_wheel_holds_every_file_that_the_program_reads(tmp_path: Path) -> None:
    """Templates, statements, migrations: what an editable installation has by itself. The step of the Dockerfile."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "gateway", source / "gateway", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("gateway/")}
    files = {str(path.relative_to(source)) for path in (source / "gateway").rglob("*") if path.is_file()}
    assert packed == files
