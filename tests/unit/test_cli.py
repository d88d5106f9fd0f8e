"""The command line: what it prints, where, and what it ends with."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway import __version__, checks, cli
from gateway.checks import Check, Mark
from gateway.config import ApplicationEntity, Configuration
from gateway.errors import FolderInUseError, GatewayError

ROOT = Path(__file__).parents[2]
BAD_CONFIGS = ROOT / "tests" / "bad_configs"
LEAST = ROOT / "config" / "gateway.min.toml"

CONFIGURATION = """
[gateway]
name = "gw.hospital.example"
postmaster = "pacs-team@hospital.example"
data = "data"

[smtp]
listen = "127.0.0.1:0"
certificate = "tls.pem"
key_file = "tls.key"
users_file = "smtp-users"

[ae.pacs]
title = "PACS"
host = "127.0.0.1"
port = 11112

[partner.clinic-a]
address = "dicom@clinic-a.example"
accept = "any"
peers = ["127.0.0.1"]

[[route]]
name = "in"
store = ["pacs"]
"""

READING: dict[str, Any] = {
    "kind": "other",
    "instances": [],
    "dicomdir": None,
    "partial": None,
    "protection": {"encrypted": False, "signed": False, "verified": False, "signer": None, "code": None},
    "other_parts": [],
    "findings": [],
    "partner": None,
    "route": None,
    "destinations": [],
    "outcome": "refused",
}


@pytest.fixture(autouse=True)
def _no_configuration_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DICOM_MAIL_CONFIG", "DICOM_MAIL_DEBUG", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration with everything a verb may want."""
    for name in ("tls.pem", "tls.key", "smtp-users"):
        (tmp_path / name).touch(mode=0o600)
    path = tmp_path / "gateway.toml"
    path.write_text(CONFIGURATION, encoding="utf-8")
    return str(path)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for the wiring: tests say what it answers."""
    module = ModuleType("gateway.service")
    monkeypatch.setitem(sys.modules, "gateway.service", module)
    monkeypatch.setattr("gateway.service", module, raising=False)
    return module


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


# The way in and out


def test_version_is_printed() -> None:
    """By the program as it is started."""
    done = run("version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"dicom-mail {__version__}\n", "")


def test_help_and_version_load_none_of_the_heavy_libraries() -> None:
    """They answer at once, on a slow machine too."""
    heavy = ["pydicom", "pynetdicom", "sqlalchemy", "aiosmtpd", "gateway.config", "gateway.service", "argon2"]
    code = (
        "import sys\nfrom gateway import cli\n"
        "assert cli.perform(['version']) == 0 and cli.perform(['--help']) == 0\n"
        f"sys.exit(', '.join(name for name in {heavy} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [[], ["queue"], ["user"]], ids=["nothing", "queue", "user"])
def test_no_verb_shows_help_and_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Who types half a command learns the rest."""
    assert cli.perform(arguments) == 2
    assert "Commands" in capsys.readouterr().out


VERBS = [
    *(["run"], ["check"], ["demo"], ["read"], ["echo"], ["reconcile"], ["version"], ["explain"], ["events"], ["send"]),
    *(["init"], ["backup"], ["conformance"], ["user", "add"], ["user", "remove"], ["user", "list"]),
    *(["queue", verb] for verb in ("list", "show", "retry", "hold", "release", "drop", "resolve", "pause", "resume")),
    *(["partner", verb] for verb in ("list", "show", "import", "trust", "test")),
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The tree of commands is whole, and each verb that works says how it is used."""
    assert cli.perform([*verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"dicom-mail {' '.join(verb)}" in shown
    assert verb == ["version"] or "Example: dicom-mail " in shown or "Not built yet" in shown


@pytest.mark.parametrize("verb", ["run", "check", "reconcile", "echo", "user list", "queue list"])
def test_missing_configuration_is_one_line(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and how to name another one."""
    assert cli.perform([*verb.split(), "--config", str(tmp_path / "no.toml")]) == 2
    assert capsys.readouterr() == (
        "",
        f"dicom-mail: {tmp_path}/no.toml: no such file; name one with --config or $DICOM_MAIL_CONFIG\n",
    )


@pytest.mark.parametrize("case", ["empty", "unknown-key", "nul-byte", "route-to-unknown-ae", "several-problems"])
def test_bad_configuration_ends_check_with_two_and_a_line_for_each_problem(case: str) -> None:
    """By the program as it is started (R32)."""
    path = BAD_CONFIGS / f"{case}.toml"
    done = run("--config", str(path), "check", "--offline")
    expected = path.with_suffix(".expected").read_text(encoding="utf-8").splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [f"dicom-mail: {path}: {line}" for line in expected]


@pytest.mark.parametrize("case", ["empty", "unknown-key"])
def test_bad_configuration_ends_run_with_two_and_one_line(case: str) -> None:
    """Run says the same as check."""
    done = run("run", "--config", str(BAD_CONFIGS / f"{case}.toml"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_error_of_the_gateway_is_one_line_with_its_exit_code(
    config: str, service: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text and hint, no traceback."""

    def refuse(_configuration: Configuration) -> int:
        raise FolderInUseError("the data folder is in use", hint="another gateway runs")

    service.run = refuse  # type: ignore[attr-defined]  # a stand-in has what a test gives it
    assert cli.perform(["run", "--config", config]) == 1
    assert capsys.readouterr() == ("", "dicom-mail: the data folder is in use (another gateway runs)\n")


def test_unexpected_error_shows_its_type_alone(
    config: str, service: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback may show data of a patient (R35); with DICOM_MAIL_DEBUG=1 somebody asked for it."""

    def fail(_configuration: Configuration) -> int:
        raise RuntimeError("CANARY^PATIENT")

    service.run = fail  # type: ignore[attr-defined]  # a stand-in has what a test gives it
    assert cli.perform(["run", "--config", config]) == 1
    said = capsys.readouterr().err
    assert said.startswith("dicom-mail: unexpected RuntimeError (")
    assert said.count("\n") == 1
    assert "CANARY" not in said
    monkeypatch.setenv("DICOM_MAIL_DEBUG", "1")
    assert cli.perform(["run", "--config", config]) == 1
    assert "CANARY" in capsys.readouterr().err


def test_ctrl_c_ends_with_130(config: str, service: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """As shells expect it, and silently."""

    def interrupt(_configuration: Configuration) -> int:
        raise KeyboardInterrupt

    service.run = interrupt  # type: ignore[attr-defined]  # a stand-in has what a test gives it
    assert cli.perform(["run", "--config", config]) == 130
    assert capsys.readouterr() == ("", "")


def test_closed_pipe_is_silent() -> None:
    """`dicom-mail … | true` is no error worth a line."""
    command = f"{sys.executable} -m gateway check --offline --config {LEAST}"
    shell = f"({command}; echo $? >&2) | true"
    with subprocess.Popen(["/bin/sh", "-c", shell], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        _, said = process.communicate(timeout=60)
    assert said == "1\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_old_terminal_shows_question_marks(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No exception because of a letter that it does not have."""
    path = tmp_path / "gateway.toml"
    path.write_text(
        CONFIGURATION.split("[smtp]", maxsplit=1)[0].replace('"data"', '"λ"') + "[smtp]\n", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = run("check", "--offline", "--config", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{tmp_path}/?" in done.stdout


# Which configuration


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "{}", "queue", "list"],
        ["queue", "--config", "{}", "list"],
        ["queue", "list", "--config", "{}"],
        ["--config", "no.toml", "queue", "list", "--config={}"],
        ["--config", "{}", "user", "list"],
        ["user", "--config", "{}", "list"],
    ],
    ids=" ".join,
)
def test_config_is_taken_before_and_after_every_verb(arguments: list[str], config: str) -> None:
    """The one nearest to the verb wins."""
    assert cli.perform([argument.format(config) for argument in arguments]) == 0


def test_config_is_taken_from_the_environment(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """$DICOM_MAIL_CONFIG, as a service has it."""
    monkeypatch.setenv("DICOM_MAIL_CONFIG", config)
    assert cli.perform(["reconcile"]) == 0


# run, demo


def test_run_hands_the_configuration_over(config: str, service: ModuleType) -> None:
    """And ends with the code of the service."""
    seen: list[Configuration] = []
    service.run = lambda configuration: seen.append(configuration) or 1  # type: ignore[attr-defined, func-returns-value]  # a stand-in
    assert cli.perform(["run", "--config", config]) == 1
    assert seen[0].source == Path(config)


@pytest.mark.parametrize(
    ("pacs", "entity"),
    [("127.0.0.1:4242:ORTHANC", ("127.0.0.1", 4242, "ORTHANC")), ("[::1]:104:A B", ("::1", 104, "A B")), (None, None)],
)
def test_demo_takes_a_pacs(
    pacs: str | None, entity: tuple[str, int, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HOST:PORT:AET, IPv6 in brackets, or one of our own."""
    seen: list[tuple[bool, ApplicationEntity | None]] = []
    module = ModuleType("gateway.demo")
    module.run = lambda serve, pacs: seen.append((serve, pacs)) or 0  # type: ignore[attr-defined, func-returns-value]  # a stand-in
    monkeypatch.setitem(sys.modules, "gateway.demo", module)
    monkeypatch.setattr("gateway.demo", module, raising=False)
    assert cli.perform(["demo", "--serve", *(["--pacs", pacs] if pacs else [])]) == 0
    ((serve, given),) = seen
    assert serve
    assert (None if given is None else (given.host, given.port, given.title)) == entity


@pytest.mark.parametrize("pacs", ["ORTHANC", "127.0.0.1:4242", "127.0.0.1:x:ORTHANC", "127.0.0.1:4242:"])
def test_demo_refuses_what_is_no_pacs(pacs: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The form is named."""
    assert cli.perform(["demo", "--pacs", pacs]) == 2
    assert capsys.readouterr().err == "dicom-mail: --pacs: expected HOST:PORT:AET (as 127.0.0.1:4242:ORTHANC)\n"


# check, echo


def test_check_offline_names_what_is_good_and_what_is_not(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line each, with what to do; warnings alone end with 0."""
    assert cli.perform(["check", "--offline", "--config", config]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ok         configuration: {config} is valid"
    assert any(line.startswith('warning    route "in".issuer: ') and " -> " in line for line in lines)


def test_check_ends_with_one_on_a_problem(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Something that will not work, though the file is valid."""
    (tmp_path / "smtp-users").unlink()
    assert cli.perform(["check", "--offline", "--config", config]) == 1
    assert "problem    smtp.users_file: no file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([Check(Mark.OK, "disk", "")], 0),
        ([Check(Mark.OK, "disk", ""), Check(Mark.WARNING, "smtp.certificate", "ends soon", "renew it")], 0),
        ([Check(Mark.OK, "disk", ""), Check(Mark.NO_ANSWER, "ae.pacs", "connection refused", "start it")], 3),
        ([Check(Mark.PROBLEM, "smtp", "port taken", "stop the other"), Check(Mark.NO_ANSWER, "ae.pacs", "refused")], 1),
        ([], 0),
    ],
)
def test_live_checks_decide_the_exit_code(
    config: str, monkeypatch: pytest.MonkeyPatch, found: list[Check], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 good, 1 a problem, 3 only a peer is unreachable."""
    monkeypatch.setattr(checks, "live", lambda _configuration, **_: iter(found))
    assert cli.perform(["check", "--config", config]) == code
    shown = capsys.readouterr().out
    assert all(f"{one.mark:<9}  {one.subject}" in shown for one in found)
    assert cli.perform(["check", "--config", config, "--json"]) == code
    listed = json.loads(capsys.readouterr().out)["checks"]
    assert listed[len(listed) - len(found) :] == [one._asdict() for one in found]


def test_problem_in_the_configuration_outweighs_a_silent_peer(
    config: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """3 means that only a peer is unreachable."""
    (tmp_path / "smtp-users").unlink()
    monkeypatch.setattr(checks, "live", lambda _configuration, **_: iter([Check(Mark.NO_ANSWER, "ae.pacs", "refused")]))
    assert cli.perform(["check", "--config", config]) == 1


@pytest.mark.parametrize(("arguments", "asked"), [(["pacs"], "pacs"), (["--all"], None), ([], None)])
def test_echo_asks_one_or_all(
    arguments: list[str],
    asked: str | None,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One destination by its name, or everybody."""
    seen: list[str | None] = []

    def ask(_configuration: Configuration, name: str | None) -> Iterator[Check]:
        seen.append(name)
        yield Check(Mark.OK, "ae.pacs", "answered")

    monkeypatch.setattr(checks, "echo", ask)
    assert cli.perform(["echo", *arguments, "--config", config]) == 0
    assert seen == [asked]
    assert capsys.readouterr().out == "ok         ae.pacs: answered\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pcas"], "there is no [ae.pcas] (known: pacs)"),
        (["pacs", "--all"], "expected either AE or --all"),
    ],
)
def test_echo_refuses_nobody(arguments: list[str], said: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown destination is no silent success."""
    assert cli.perform(["echo", *arguments, "--config", config]) == 2
    assert said in capsys.readouterr().err


# read


@pytest.fixture
def preview(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Configuration | None]]:
    """A dry run that remembers what it was handed; the name of the source is the outcome it gets."""
    seen: list[tuple[str, Configuration | None]] = []

    def read(source: str, configuration: Configuration | None) -> dict[str, Any]:
        seen.append((source, configuration))
        if source == "folder":
            return {"messages": [{"file": name, **READING, "outcome": name} for name in ("delivered", "held")]}
        return READING | {"outcome": source}

    module = ModuleType("gateway.preview")
    module.read = read  # type: ignore[attr-defined]  # a stand-in has what a test gives it
    module.needs_a_person = lambda document: "held" in str(document)  # type: ignore[attr-defined]  # a stand-in
    monkeypatch.setitem(sys.modules, "gateway.preview", module)
    monkeypatch.setattr("gateway.preview", module, raising=False)
    return seen


def test_read_shows_one_message(
    preview: list[tuple[str, Configuration | None]], config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In words, or as one JSON document."""
    assert cli.perform(["read", "delivered", "--config", config]) == 0
    assert "This would be delivered" in capsys.readouterr().out
    assert cli.perform(["read", "delivered", "--config", config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == READING | {"outcome": "delivered"}
    assert preview[0][1] is not None
    assert preview[0][1].source == Path(config)


def test_read_ends_with_one_when_the_mail_would_be_held(preview: list[tuple[str, Configuration | None]]) -> None:
    """So that a script can tell; refused mail is a decision and no failure."""
    assert cli.perform(["read", "held"]) == 1
    assert cli.perform(["read", "refused"]) == 0
    assert [source for source, _ in preview] == ["held", "refused"]


@pytest.mark.usefixtures("preview")
def test_read_shows_every_message_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its name."""
    assert cli.perform(["read", "folder", "--json"]) == 1
    messages = json.loads(capsys.readouterr().out)["messages"]
    assert [(one["file"], one["outcome"]) for one in messages] == [("delivered", "delivered"), ("held", "held")]
    assert cli.perform(["read", "folder"]) == 1
    assert "held\nThis would be held" in capsys.readouterr().out


def test_read_takes_standard_input(preview: list[tuple[str, Configuration | None]]) -> None:
    """A dash is a source and no option."""
    assert cli.perform(["read", "-"]) == 0
    assert preview[0][0] == "-"


def test_read_works_without_a_configuration_unless_one_is_named(
    preview: list[tuple[str, Configuration | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads nowhere is an error all the same."""
    monkeypatch.setattr("gateway.config.file.DEFAULT_PATH", tmp_path / "no.toml")
    assert cli.perform(["read", "delivered"]) == 0
    assert preview[0][1] is None
    monkeypatch.setenv("DICOM_MAIL_CONFIG", str(tmp_path / "no.toml"))
    assert cli.perform(["read", "delivered"]) == 2


# The queue


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Remembers what was asked of the gateway."""
    asked: list[tuple[str, dict[str, Any]]] = []
    destination = {"name": "pacs", "paused": True, "trouble": None}

    def call(_configuration: Configuration, verb: str, **arguments: Any) -> dict[str, Any]:
        asked.append((verb, arguments))
        return destination if "ae" in arguments else ITEM

    monkeypatch.setattr("gateway.control.call", call)
    return asked


ITEM: dict[str, Any] = {
    "id": "in-7f3a",
    "direction": "in",
    "outcome": "held",
    "stage": "store",
    "partner": "clinic-a",
    "instances": 1,
    "delivered": 0,
    "attempts": 4,
    "next_attempt": None,
    "age_seconds": 12.5,
    "code": "in-doubt",
    "message_id": "<a@b>",
    "events": [],
    "instances_detail": [],
    "timing": {"receive_seconds": None, "read_seconds": None, "store_seconds": None},
}


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["show", "in-7f3a"], ("show", {"id": "in-7f3a"})),
        (["retry", "in-7f3a"], ("retry", {"id": "in-7f3a", "force": False})),
        (["retry", "in-7f3a", "--force"], ("retry", {"id": "in-7f3a", "force": True})),
        (["hold", "in-7f3a"], ("hold", {"id": "in-7f3a"})),
        (["release", "in-7f3a"], ("release", {"id": "in-7f3a"})),
        (["drop", "in-7f3a"], ("drop", {"id": "in-7f3a", "erase": False})),
        (["drop", "--erase", "in-7f3a"], ("drop", {"id": "in-7f3a", "erase": True})),
        (["resolve", "in-7f3a", "resend"], ("resolve", {"id": "in-7f3a", "verdict": "resend"})),
        (["pause", "pacs"], ("pause", {"ae": "pacs"})),
        (["resume", "pacs"], ("resume", {"ae": "pacs"})),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_queue_verbs_ask_the_gateway(
    arguments: list[str],
    asked: tuple[str, dict[str, Any]],
    config: str,
    control: list[tuple[str, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each with its arguments; what comes back is shown, or printed as JSON."""
    assert cli.perform(["queue", *arguments, "--config", config]) == 0
    assert control == [asked]
    shown = capsys.readouterr().out
    assert shown.startswith(("in-7f3a  mail from clinic-a: held (in-doubt)", "pacs: paused"))
    assert cli.perform(["queue", *arguments, "--json", "--config", config]) == 0
    assert json.loads(capsys.readouterr().out) in (ITEM, {"name": "pacs", "paused": True, "trouble": None})


def test_queue_resolve_takes_three_verdicts_only(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else is a usage error."""
    assert cli.perform(["queue", "resolve", "in-7f3a", "maybe", "--config", config]) == 2
    assert "'delivered', 'resend', 'dropped'" in capsys.readouterr().err


def test_queue_of_a_gateway_that_never_ran_is_empty(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing there is no error, with every filter."""
    arguments = ["--outcome", "held", "--stage", "store", "--partner", "clinic-a", "--config", config]
    assert cli.perform(["queue", "list", *arguments]) == 0
    assert capsys.readouterr().out == "0 items\n"
    assert cli.perform(["queue", "list", "--json", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == []


def test_unknown_item_ends_with_one(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and where the known ones are."""
    assert cli.perform(["queue", "show", "in-0", "--config", config]) == 1
    assert capsys.readouterr().err == "dicom-mail: there is no item in-0 (dicom-mail queue list)\n"


@pytest.mark.parametrize(("unaccounted", "code"), [(0, 0), (2, 1)])
def test_reconcile_ends_with_one_when_something_is_unaccounted_for(
    unaccounted: int,
    code: int,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The proof is worth something to a script, too (R34)."""
    counts = {"in": 5, "delivered": 3, "waiting": 0, "refused": 0, "held": 0, "failed": 0}
    document = {**counts, "unaccounted": unaccounted, "doubtful": 0, "instances": counts}
    monkeypatch.setattr("gateway.control.call", lambda _configuration, _verb: document)
    assert cli.perform(["reconcile", "--config", config]) == code
    assert ("does not hold" in capsys.readouterr().out) is bool(code)
    assert cli.perform(["reconcile", "--json", "--config", config]) == code
    assert json.loads(capsys.readouterr().out) == document


# Users


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put something on standard input."""

    def put(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    return put


def test_user_is_added_listed_and_removed(
    config: str, tmp_path: Path, typed: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The password is one line of standard input and is shown nowhere."""
    typed("CANARY horse\nnot this\n")
    assert cli.perform(["user", "add", "clinic-a", "--role", "sender", "--config", config]) == 0
    typed("CANARY ox\n")
    assert cli.perform(["user", "add", "clinic-a", "--config", config]) == 0
    assert cli.perform(["user", "list", "--config", config]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith(f"added clinic-a in {tmp_path}/smtp-users")
    assert lines[1].startswith("changed clinic-a")
    assert lines[2] == "clinic-a  sender"
    assert "CANARY" not in shown.out + shown.err
    assert cli.perform(["user", "remove", "clinic-a", "--config", config]) == 0
    assert (tmp_path / "smtp-users").read_text() == ""


def test_password_is_asked_for_twice_at_a_terminal(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error in a password nobody sees is found at once."""
    typed = iter(["right", "wrong", "right", "right"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda _prompt: next(typed))
    assert cli.perform(["user", "add", "clinic-a", "--config", config]) == 2
    assert cli.perform(["user", "add", "clinic-a", "--config", config]) == 0


def test_user_needs_a_users_file_in_the_configuration(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The key that is missing is named."""
    assert cli.perform(["user", "list", "--door", "console", "--config", config]) == 2
    assert f"{config}: console.users_file: not set" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["add", "bert"], ["remove", "anna"]], ids=" ".join)
def test_users_file_that_cannot_be_written_is_one_line(
    verb: list[str],
    config: str,
    typed: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 1 and the reason of the operating system."""
    typed("x\n")
    assert cli.perform(["user", "add", "anna", "--config", config]) == 0

    def full(*_arguments: object, **_keywords: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    typed("x\n")
    assert cli.perform(["user", *verb, "--config", config]) == 1
    assert capsys.readouterr().err.endswith("smtp-users cannot be written: No space left on device\n")


def test_removing_nobody_is_an_error(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, as for any unknown name."""
    assert cli.perform(["user", "remove", "anna", "--config", config]) == GatewayError.exit_code
    assert "no user of this name" in capsys.readouterr().err
