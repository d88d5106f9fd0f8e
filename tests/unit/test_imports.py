"""The direction of imports, and the names no module may have: law, because a picture alone drifts."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "gateway"

DRAWERS = frozenset({"utils", "util", "helper", "helpers", "manager", "common", "base"})
"""Names under which everything and nothing can be put."""

WORDS = frozenset({"gateway", "gateway.errors", "gateway.model"})
"""What everybody may import: the words themselves."""

BEYOND_CORE = frozenset(
    {
        *("asyncio", "logging", "multiprocessing", "random", "secrets", "select", "selectors", "signal", "socket"),
        *("sqlalchemy", "sqlite3", "ssl", "structlog", "subprocess", "threading", "time", "uuid"),
    }
)
"""What core may not import: no socket, clock, dice, database, log, thread or loop."""

MAY_IMPORT = {
    "errors": frozenset[str](),
    "model": frozenset({"errors"}),
    "core": frozenset({"core"}),
    "config": frozenset({"config", "core"}),
    "logs": frozenset({"config"}),
    "watchdog": frozenset({"logs"}),
    "ledger": frozenset({"ledger", "core", "config", "logs"}),
    "edges": frozenset({"core", "ledger", "config", "logs"}),
    "stages": frozenset({"core", "ledger", "config", "logs", "stages"}),
}
"""Layer by layer, which others it may import beside the words. A layer that is not named here is wiring
(`cli`, `service`, `demo` ...): it may import everything except what imports it."""

NOT_NAMED = frozenset({"annotated-types"})
"""Parts of a declared dependency's own interface that come as packages of their own."""

WIRING_DOWN = ("cli", "__main__")
"""The top: only these may import cli."""


def layer(module: str) -> str:
    """The first name below the package: ``gateway.core.mime`` lies in ``core``."""
    return module.split(".")[1] if "." in module else ""


def imports(source: str, module: str, *, package: bool) -> Iterator[tuple[int, str]]:
    """Every module a source imports, wherever in it the statement stands, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = module.split(".")
                above = above[: len(above) - node.level + package]
                origin = ".".join([*above, origin] if origin else above)
            yield from ((node.lineno, f"{origin}.{name.name}") for name in node.names)


def offence(module: str, imported: str) -> str | None:
    """Why a module may not import another; None when it may."""
    here, root = layer(module), imported.partition(".")[0]
    if root != "gateway":
        return "core is pure" if here == "core" and root in BEYOND_CORE else None
    there = layer(imported)
    if imported in WORDS or there in {"errors", "model"} or there.startswith("__"):
        return None
    if here == "edges":
        own = ".".join(module.split(".")[:3])
        if there == "edges":
            return None if (imported + ".").startswith(own + ".") else "edges never import each other"
    if here in MAY_IMPORT:
        return None if there in MAY_IMPORT[here] else f"{here} may not import {there}"
    return "only the top imports cli" if there == "cli" and here not in WIRING_DOWN else None


def offences(package: Path) -> list[str]:
    """Every broken rule below a package folder, one line each."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        found += [f"{module}: no module is called {name}" for name in parts if name in DRAWERS]
        for line, imported in imports(path.read_text(encoding="utf-8"), module, package=is_package):
            if why := offence(module, imported):
                found.append(f"{module}:{line}: imports {imported}: {why}")
    return found


def test_imports_run_in_one_direction() -> None:
    """From cli to service to stages to core to model; edges never meet stages or each other."""
    assert offences(PACKAGE) == []


def test_every_foreign_package_is_a_declared_dependency() -> None:
    """What the gateway imports is installed without the test extra."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[^\w.-]", one)[0].lower() for one in project["dependencies"]}
    distributions = packages_distributions()
    used = set()
    for path in PACKAGE.rglob("*.py"):
        for _, imported in imports(path.read_text(encoding="utf-8"), "gateway", package=True):
            used |= {name.lower().replace("_", "-") for name in distributions.get(imported.partition(".")[0], [])}
    assert used - declared <= {"dicom-mail-gateway", *NOT_NAMED}


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("core/mime.py", "import socket", "core is pure"),
        ("core/mime.py", "from time import monotonic", "core is pure"),
        ("core/mime.py", "def f():\n    import sqlalchemy.engine", "core is pure"),
        ("core/mime.py", "from gateway.config import Config", "core may not import config"),
        ("core/mime.py", "from gateway import logs", "core may not import logs"),
        ("core/cms/seal.py", "from ...ledger import spool", "core may not import ledger"),
        ("model.py", "from gateway.core import mime", "model may not import core"),
        ("edges/smtp.py", "from gateway.edges import imap", "edges never import each other"),
        ("edges/smtp.py", "from . import imap", "edges never import each other"),
        ("edges/smtp.py", "import gateway.edges.smtpd", "edges never import each other"),
        ("edges/smtp.py", "from gateway.stages.receive import receive", "edges may not import stages"),
        ("edges/smtp.py", "from gateway.service import serve", "edges may not import service"),
        ("stages/store.py", "from gateway.edges import storescu", "stages may not import edges"),
        ("stages/store.py", "import gateway.cli", "stages may not import cli"),
        ("ledger/spool.py", "from gateway.stages import store", "ledger may not import stages"),
        ("service.py", "from gateway.cli import main", "only the top imports cli"),
        ("stages/utils.py", "", "no module is called utils"),
        ("common/__init__.py", "", "no module is called common"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    """The checker itself can fail: each rule is broken once in a tree made for it."""
    path = tmp_path / "gateway" / file
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    assert len(found := offences(tmp_path / "gateway")) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/mime.py", "import hashlib\nfrom gateway.core import partial\nfrom gateway.model import Span"),
        ("core/mime.py", "from gateway import errors, model\nfrom datetime import UTC, datetime"),
        ("edges/smtp/dot.py", "from gateway.edges.smtp import dialog\nfrom . import reply"),
        ("edges/smtp.py", "from gateway.ledger.spool import Spool\nfrom gateway import config, logs\nimport socket"),
        ("stages/store.py", "from gateway.core.retry import delay\nfrom gateway.ledger import queries"),
        ("service.py", "from gateway.edges import smtp\nfrom gateway.stages import store"),
        ("cli/queue.py", "from gateway import __version__\nfrom gateway.service import serve\nfrom gateway import cli"),
        ("__main__.py", "from gateway.cli import main"),
    ],
)
def test_an_allowed_import_is_left_alone(tmp_path: Path, file: str, source: str) -> None:
    """The checker does not cry wolf."""
    path = tmp_path / "gateway" / file
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    assert offences(tmp_path / "gateway") == []
