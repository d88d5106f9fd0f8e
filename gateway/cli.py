"""The command ``dicom-mail``: every verb, what it prints, and what it ends with.

Exit codes: 0 good; 1 the work failed; 2 usage or configuration; 3 only a peer is unreachable. Errors are one clear
line each on standard error. What a verb needs is imported inside it, so that ``--help`` and ``version`` are quick.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, cast

import typer

from gateway import __version__
from gateway.errors import ConfigurationError, GatewayError, UsageError
from gateway.model import Outcome, Stage

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gateway.checks import Check
    from gateway.config import ApplicationEntity, Configuration
    from gateway.installation import Question
    from gateway.users import Users

INTERRUPTED: Final = 130
"""128 and SIGINT: what shells expect after Ctrl-C."""

# Typer's releases have click inside or beside them; its root of all usage errors is found either way.
_ClickError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}

app = typer.Typer(
    name="dicom-mail",
    help="A gateway between e-mail and a PACS.",
    epilog="Begin with: dicom-mail demo. Then: dicom-mail check, dicom-mail run. Where is it: dicom-mail queue list.",
    add_completion=False,
    context_settings=_SETTINGS,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
queue = typer.Typer(help="Look at what is in the gateway, and decide about it.", context_settings=_SETTINGS)
user = typer.Typer(help="Say who may log in at the SMTP door and at the console.", context_settings=_SETTINGS)
partner = typer.Typer(help="Look at partners, and decide about their certificates.", context_settings=_SETTINGS)
app.add_typer(queue, name="queue")
app.add_typer(partner, name="partner")
app.add_typer(user, name="user")

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration; else $DICOM_MAIL_CONFIG, else /etc/dicom-mail/gateway.toml.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ItemId = Annotated[str, typer.Argument(metavar="ID", help="As queue list shows it: in-… or out-….")]


class Door(StrEnum):
    """Doors at which people and partners log in."""

    SMTP = "smtp"
    CONSOLE = "console"


class Verdict(StrEnum):
    """What a person decides about instances in doubt."""

    DELIVERED = "delivered"
    RESEND = "resend"
    DROPPED = "dropped"


# ---------------------------------------------------------------------------------------------------------------
# The way in and out


def main() -> NoReturn:
    """Run one command and end the process with its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an old terminal shows a question mark, not an exception
    sys.exit(perform(sys.argv[1:]))


def perform(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every error becomes clear lines on standard error."""
    try:
        code = app(list(arguments), prog_name="dicom-mail", standalone_mode=False) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough. What is still buffered must not be an error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except GatewayError as error:
        return _complain(str(error), error.exit_code)
    except _ClickError as error:
        command = error.ctx.command_path if error.ctx else "dicom-mail"
        return _complain(f"{error.format_message()} ({command} --help)", UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last net: people get a line, not a traceback that may show data
        if os.environ.get("DICOM_MAIL_DEBUG") == "1":
            traceback.print_exc()
        advice = "this is a defect; DICOM_MAIL_DEBUG=1 shows where"
        return _complain(f"unexpected {type(error).__name__} ({advice})", GatewayError.exit_code)
    return int(code)


def _complain(text: str, code: int) -> int:
    for line in text.splitlines():
        sys.stderr.write(f"dicom-mail: {line}\n")
    return code


def _show(*parts: RenderableType) -> None:
    """Print for a person; wide when nobody's terminal sets the width, so that no column is folded."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)
    for part in parts:
        console.print(part)


def _print_json(document: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


@app.callback(invoke_without_command=True)
def _begin(context: typer.Context, config: Config = None) -> None:
    context.obj = config
    _demand_verb(context)


@queue.callback(invoke_without_command=True)
def _begin_queue(context: typer.Context, config: Config = None) -> None:
    context.obj = config or context.obj
    _demand_verb(context)


@partner.callback(invoke_without_command=True)
def _begin_partner(context: typer.Context, config: Config = None) -> None:
    context.obj = config or context.obj
    _demand_verb(context)


@user.callback(invoke_without_command=True)
def _begin_user(context: typer.Context, config: Config = None) -> None:
    context.obj = config or context.obj
    _demand_verb(context)


def _demand_verb(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(UsageError.exit_code)


def _configuration(context: typer.Context, config: Path | None) -> Configuration:
    from gateway.config import find, load

    return load(find(config or context.obj, os.environ))


def _configuration_if_any(context: typer.Context, config: Path | None) -> Configuration | None:
    """The configuration that was named, or the one in /etc where there is one."""
    from gateway.config import find, load

    path = find(config or context.obj, os.environ)
    named = config or context.obj or os.environ.get("DICOM_MAIL_CONFIG")
    return load(path) if named or path.exists() else None


# ---------------------------------------------------------------------------------------------------------------
# The first hour


@app.command(epilog="Example: dicom-mail init --config gateway.toml")
def init(
    context: typer.Context,
    name: Annotated[str | None, typer.Option(help="Name of this host, as mail servers see it.")] = None,
    postmaster: Annotated[str | None, typer.Option(help="Mail address of the people who look after it.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder for the data.")] = None,
    partner: Annotated[str | None, typer.Option(help="Short name of the clinic you exchange images with.")] = None,
    address: Annotated[str | None, typer.Option(help="Its mail address.")] = None,
    pacs: Annotated[str | None, typer.Option(metavar="HOST:PORT:AET", help="PACS that gets images from mail.")] = None,
    door: Annotated[str | None, typer.Option(metavar="smtp|imap", help="How mail comes in.")] = None,
    mailbox: Annotated[str | None, typer.Option(metavar="USER@HOST", help="The mailbox, with --door imap.")] = None,
    peers: Annotated[str | None, typer.Option(metavar="NETWORK", help="Where the partner's mail comes from.")] = None,
    relay: Annotated[str | None, typer.Option(metavar="HOST[:PORT]", help="Mail relay that takes our mail.")] = None,
    sender: Annotated[str | None, typer.Option(help="Our mail address.")] = None,
    relay_user: Annotated[str | None, typer.Option(help="User at the relay.")] = None,
    title: Annotated[str | None, typer.Option(metavar="AET", help="AE title that modalities call to mail.")] = None,
    modalities: Annotated[str | None, typer.Option(metavar="NETWORK", help="Where the modalities are.")] = None,
    identity: Annotated[
        str | None, typer.Option(metavar="self-signed|csr|none", help="Certificate to sign and decrypt with.")
    ] = None,
    config: Config = None,
) -> None:
    """Write a first configuration from a few questions, and make an identity.

    What no option answers is asked; without a terminal, options that have a default may be left out. Nothing that
    exists is changed.
    """
    from datetime import UTC, datetime

    from gateway import installation
    from gateway.config import find

    given = {
        "name": name,
        "postmaster": postmaster,
        "data": data,
        "partner": partner,
        "address": address,
        "pacs": pacs,
        "door": door,
        "mailbox": mailbox,
        "peers": peers,
        "relay": relay,
        "sender": sender,
        "relay-user": relay_user,
        "title": title,
        "modalities": modalities,
        "identity": identity,
    }
    answers = installation.parse(_ask(given, installation.QUESTIONS))
    made = installation.install(find(config or context.obj, os.environ), answers, datetime.now(UTC))
    for path in made.written:
        typer.echo(f"wrote {path}")
    for number, step in enumerate(made.todo, 1):
        typer.echo(f"{number}. {step}")


def _ask(given: Mapping[str, str | None], questions: Sequence[Question]) -> dict[str, str]:
    """Complete what was given by asking at the terminal, or with defaults where there is none."""
    terminal = sys.stdin.isatty()
    answers: dict[str, str] = {}
    for question in questions:
        answer = given[question.name]
        if not question.asked(answers):
            if answer:
                raise UsageError(f"--{question.name} has no meaning with the other answers")
            answer = ""
        elif answer is None and terminal:
            shown = f"{question.text} ({', '.join(question.choices)})" if question.choices else question.text
            answer = typer.prompt(shown, default=question.default, show_default=bool(question.default))
        elif answer is None:
            if question.default is None:
                raise UsageError(f"--{question.name} is missing", hint=question.text)
            answer = question.default
        if answer and question.choices and answer not in question.choices:
            raise UsageError(f"--{question.name}: expected {' or '.join(question.choices)}")
        answers[question.name] = answer
    return answers


# ---------------------------------------------------------------------------------------------------------------
# Serving


@app.command(epilog="Example: dicom-mail run --config /etc/dicom-mail/gateway.toml")
def run(context: typer.Context, config: Config = None) -> int:
    """Serve until SIGTERM.

    SIGHUP takes over routes, partners, AEs, certificates and users; a bad file changes nothing. It does not start on
    a configuration that stands open or depends on what is not built yet: dicom-mail check says why.
    """
    configuration = _configuration(context, config)
    from gateway import service

    return service.run(configuration)


@app.command(epilog="Example: dicom-mail demo --pacs 127.0.0.1:4242:ORTHANC")
def demo(
    serve: Annotated[bool, typer.Option("--serve", help="Stay up afterwards, until Ctrl-C.")] = False,
    pacs: Annotated[
        str | None, typer.Option(metavar="HOST:PORT:AET", help="Send to this PACS and not to one of our own.")
    ] = None,
) -> int:
    """Show the gateway at work: everything on loopback, then a story of what happened.

    Use it first. It needs no configuration, no root and no network, mails real sample files to itself and shows how
    they become instances in a PACS.
    """
    entity = _entity(pacs) if pacs else None
    from gateway import demo as show

    return show.run(serve, entity)


def _entity(text: str) -> ApplicationEntity:
    from pydantic import ValidationError

    from gateway.config import ApplicationEntity

    host, _, rest = text.rpartition("]:") if text.startswith("[") else text.partition(":")
    port, _, title = rest.partition(":")
    try:
        return ApplicationEntity(title=title, host=host.removeprefix("["), port=int(port))
    except (ValidationError, ValueError):
        raise UsageError("--pacs: expected HOST:PORT:AET", hint="as 127.0.0.1:4242:ORTHANC") from None


@app.command(epilog="Example: dicom-mail check --offline --config gateway.toml")
def check(
    context: typer.Context,
    offline: Annotated[bool, typer.Option("--offline", help="The configuration alone; call nobody.")] = False,
    make_folders: Annotated[bool, typer.Option("--make-folders", help="Make folders that a mailbox lacks.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Check the configuration, then test everything live: doors, PACS, relay, disk.

    Use it before each start and after each change. Each line is ok, a warning or a problem, and says what to do. The
    exit code is 1 with a problem, 2 when the configuration cannot be used, 3 when only a peer gives no answer.
    """
    from gateway import checks

    configuration = _configuration(context, config)
    if offline:
        return _report(checks.review(configuration), as_json)
    return _report(checks.check(configuration, make_folders=make_folders), as_json)


@app.command(epilog="Example: dicom-mail echo pacs")
def echo(
    context: typer.Context,
    ae: Annotated[str | None, typer.Argument(metavar="[AE]", help="The NAME of its section [ae.NAME].")] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Every destination; so it is without AE.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Ask who is there: C-ECHO to destinations, EHLO to the relay, login to mailboxes.

    Use it when something waits and you want to know for whom. The exit code is 3 when somebody gives no answer.
    """
    configuration = _configuration(context, config)
    if ae is not None and everybody:
        raise UsageError("expected either AE or --all")
    if ae is not None and ae not in configuration.ae:
        raise UsageError(f"there is no [ae.{ae}]", hint=f"known: {', '.join(configuration.ae) or 'none'}")
    from gateway import checks

    return _report(checks.echo(configuration, ae), as_json)


def _report(found: Iterator[Check], as_json: bool) -> int:
    """Print checks as they come, or all of them as JSON; return the exit code."""
    from gateway import checks, story

    seen = []
    for one in found:
        seen.append(one)
        if not as_json:
            _show(story.verdict(*one))
    if as_json:
        _print_json(checks.document(seen))
    return checks.exit_code(one.mark for one in seen)


@app.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"dicom-mail {__version__}\n")


class Form(StrEnum):
    """What a document is printed in."""

    MARKDOWN = "md"
    HTML = "html"


@app.command(epilog="Example: dicom-mail conformance --format html > conformance.html")
def conformance(
    context: typer.Context,
    form: Annotated[Form, typer.Option("--format", help="What it is written in.")] = Form.MARKDOWN,
    config: Config = None,
) -> None:
    """Print the DICOM conformance statement (PS3.2).

    Use it when whoever runs the PACS or a modality asks for one. It is about this installation; without a
    configuration it is about the product.
    """
    configuration = _configuration_if_any(context, config)
    from gateway import conformance as statement

    sys.stdout.write(statement.write(configuration, statement.Form(form)))


# ---------------------------------------------------------------------------------------------------------------
# Looking at mail


@app.command(epilog="Example: dicom-mail read mail.eml; or: dicom-mail read - --json < mail.eml")
def read(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="FILE|FOLDER|-", help="A message, a folder of messages, or - for standard input.")
    ],
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Say what the gateway would make of a message. Stores nothing, sends nothing.

    Use it to find out why a mail was held or refused, or what a partner really sends. It works without a
    configuration; with one it uses its limits, routes and partners. The exit code is 1 when a mail would be held.
    """
    configuration = _configuration_if_any(context, config)
    from gateway import preview, story
    from gateway.core import wording

    document = preview.read(source, configuration)
    if as_json:
        _print_json(document)
    elif "messages" in document:
        for one in document["messages"]:
            _show(wording.plain(one["file"]), story.reading(one))
    else:
        _show(story.reading(document))
    return GatewayError.exit_code if preview.needs_a_person(document) else 0


@app.command(epilog="Example: dicom-mail send --to clinic-a study/")
def send(
    context: typer.Context,
    sources: Annotated[list[Path], typer.Argument(metavar="FILE|FOLDER…", help="DICOM files, or folders of them.")],
    to: Annotated[str, typer.Option("--to", metavar="PARTNER", help="The NAME of its section [partner.NAME].")],
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Mail DICOM files to a partner, as if a modality had sent them.

    Use it for what lies in files: each study becomes an item of the queue, and goes by the relay. A running gateway
    reads the files itself, as its own user; when none runs, they are taken in and go as soon as it does.
    """
    configuration = _configuration(context, config)
    from gateway import sending, story

    document = sending.send(configuration, to, sources)
    if as_json:
        _print_json(document)
    else:
        _show(story.sent(document))
    return 0 if document["taken"] == len(document["files"]) else GatewayError.exit_code


# ---------------------------------------------------------------------------------------------------------------
# The queue


def _call(context: typer.Context, config: Path | None, verb: str, **arguments: object) -> dict[str, Any]:
    configuration = _configuration(context, config)
    from gateway import control

    return control.call(configuration, verb, **arguments)


def _answer(document: dict[str, Any], as_json: bool, render: str) -> None:
    """Print a document as JSON, or as the function of ``story`` of this name shows it."""
    if as_json:
        _print_json(document)
        return
    from gateway import story

    _show(getattr(story, render)(document))


@queue.command("list", epilog="Example: dicom-mail queue list --outcome held")
def list_items(
    context: typer.Context,
    *,
    outcome: Annotated[Outcome | None, typer.Option(help="Only what ended so, or waits.")] = None,
    stage: Annotated[Stage | None, typer.Option(help="Only what is in this stage.")] = None,
    partner: Annotated[str | None, typer.Option(metavar="P", help="Only what this partner sent or gets.")] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """List what came in and goes out, the newest first, with open notices.

    Use it to see whether a person is needed: what is held or failed waits for one.
    """
    _answer(_call(context, config, "list", outcome=outcome, stage=stage, partner=partner), as_json, "queue")


@queue.command(epilog="Example: dicom-mail queue show in-7f3a")
def show(context: typer.Context, item: ItemId, as_json: AsJson = False, config: Config = None) -> None:
    """Tell the story of one item: what happened when, and where each instance is."""
    _answer(_call(context, config, "show", id=item), as_json, "item")


@queue.command(epilog="Example: dicom-mail queue retry in-7f3a")
def retry(
    context: typer.Context,
    item: ItemId,
    force: Annotated[bool, typer.Option("--force", help="Also what is held or delivered already.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Try an item again now, over back-off, circuit breaker and downtime.

    Use it after you have repaired what it waits for, or when it failed.
    """
    _answer(_call(context, config, "retry", id=item, force=force), as_json, "item")


@queue.command(epilog="Example: dicom-mail queue hold in-7f3a")
def hold(context: typer.Context, item: ItemId, as_json: AsJson = False, config: Config = None) -> None:
    """Stop an item that waits, until somebody releases it."""
    _answer(_call(context, config, "hold", id=item), as_json, "item")


@queue.command(epilog="Example: dicom-mail queue release in-7f3a")
def release(context: typer.Context, item: ItemId, as_json: AsJson = False, config: Config = None) -> None:
    """Let a held item go on.

    Use it when you have looked at why it was held (queue show ID) and found it good.
    """
    _answer(_call(context, config, "release", id=item), as_json, "item")


@queue.command(epilog="Example: dicom-mail queue drop in-7f3a --erase")
def drop(
    context: typer.Context,
    item: ItemId,
    erase: Annotated[bool, typer.Option("--erase", help="Wipe its bytes too. There is no way back.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Refuse what is not delivered of an item.

    Use it for what shall never reach the PACS. It stays in the list, with your name.
    """
    _answer(_call(context, config, "drop", id=item, erase=erase), as_json, "item")


@queue.command(epilog="Example: dicom-mail queue resolve in-7f3a delivered")
def resolve(
    context: typer.Context,
    item: ItemId,
    verdict: Annotated[Verdict, typer.Argument(help="What you found in the PACS, or want.")],
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Decide about instances in doubt: sent, but never answered.

    Use it when you have looked into the PACS: they are there (delivered), they are not (resend), or they are not
    wanted (dropped).
    """
    _answer(_call(context, config, "resolve", id=item, verdict=verdict), as_json, "item")


LaneName = Annotated[
    str | None, typer.Argument(metavar="AE", help="The NAME of its section [ae.NAME]; or relay.", show_default=False)
]
Everything = Annotated[bool, typer.Option("--all", help="Every destination, and the relay.")]


def _switch(context: typer.Context, config: Path | None, verb: str, ae: str | None, *, everything: bool) -> Any:
    """Pause or resume one lane, or all; return the document, or the documents of all."""
    if (ae is None) != everything:
        raise UsageError("expected either AE or --all")
    configuration = _configuration(context, config)
    from gateway import control

    if ae is not None:
        return control.call(configuration, verb, ae=ae)
    return [control.call(configuration, verb, ae=name) for name in control.lanes(configuration)]


def _answer_lanes(answer: Any, as_json: bool) -> None:
    if isinstance(answer, dict):
        _answer(answer, as_json, "destination")
    elif as_json:
        _print_json({"destinations": answer})
    else:
        for one in answer:
            _answer(one, as_json, "destination")


@queue.command(epilog="Example: dicom-mail queue pause pacs")
def pause(
    context: typer.Context,
    ae: LaneName = None,
    everything: Everything = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Send nothing to a destination until it is resumed. Mail is still taken in."""
    _answer_lanes(_switch(context, config, "pause", ae, everything=everything), as_json)


@queue.command(epilog="Example: dicom-mail queue resume pacs")
def resume(
    context: typer.Context,
    ae: LaneName = None,
    everything: Everything = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Send to a paused destination again.

    Use it also after a restore: then all lanes start paused, so that nothing is sent a second time.
    """
    _answer_lanes(_switch(context, config, "resume", ae, everything=everything), as_json)


@app.command(epilog="Example: dicom-mail backup /srv/backup/2026-11-23")
def backup(
    context: typer.Context,
    target: Annotated[Path, typer.Argument(metavar="DEST", help="A new folder.")],
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="Also the secrets of the data folder: search.key and tokens.")
    ] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Write a backup of ledger and spool, while the gateway works, and verify it.

    It holds images of patients: treat it like the PACS. A gateway that starts on it sends nothing until a person says
    queue resume. The exit code is 1 when it could not be made or the conservation proof does not hold in it.
    """
    configuration = _configuration(context, config)
    from gateway import backup as backups

    document = backups.make(configuration, target, with_keys=with_keys)
    _answer(document, as_json, "backup")
    return 1 if document["unaccounted"] else 0


Since = Annotated[
    str | None, typer.Option("--since", metavar="T", help="Not before this: 2h, 7d, 2026-11-23 or 2026-11-23T18:00.")
]


@app.command(epilog="Example: dicom-mail explain --patient 4711; or: dicom-mail explain --from clinic-a --since 2h")
def explain(
    context: typer.Context,
    *,
    word: Annotated[
        str | None, typer.Argument(metavar="[WORD]", help="Study or SOP Instance UID, Message-ID, or queue id.")
    ] = None,
    patient: Annotated[str | None, typer.Option(metavar="ID", help="What has this Patient ID.")] = None,
    accession: Annotated[str | None, typer.Option(metavar="N", help="What has this accession number.")] = None,
    sender: Annotated[
        str | None, typer.Option("--from", metavar="PARTNER", help="What this partner, address or AE title sent.")
    ] = None,
    since: Since = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Tell in plain words where a study, a patient's images or a mail are, what comes next, and what you can do.

    Use it when somebody calls. It reads the ledger alone. Patients are found by keyed hashes: what you type is neither
    kept nor shown. The exit code is 1 when nothing is known of it.
    """
    configuration = _configuration(context, config)
    from gateway import searching

    known = {"word": word, "patient": patient, "accession": accession, "sender": sender, "since": since}
    _answer(searching.explain(configuration, **known), as_json, "explanation")


@app.command(epilog="Example: dicom-mail events --since 7d --json")
def events(context: typer.Context, since: Since = None, as_json: AsJson = False, config: Config = None) -> None:
    """List who sent what to whom and when, and who did what here, the oldest first.

    Use it as the list of exports and imports that data protection asks for. It names no patient.
    """
    configuration = _configuration(context, config)
    from gateway import searching, story

    found = searching.events(configuration, since)
    if as_json:
        for piece in searching.as_json(found):
            sys.stdout.write(piece)
        return
    for one in found:
        _show(story.event(one))


@app.command(epilog="Example: dicom-mail reconcile --json")
def reconcile(context: typer.Context, as_json: AsJson = False, config: Config = None) -> int:
    """Prove that everything taken in is accounted for.

    in = delivered + waiting + refused + held + failed, in messages and in instances. Use it when you are asked whether
    something was lost. The exit code is 1 if anything is unaccounted for.
    """
    document = _call(context, config, "reconcile")
    _answer(document, as_json, "proof")
    return 1 if document["unaccounted"] else 0


# ---------------------------------------------------------------------------------------------------------------
# Partners

PartnerName = Annotated[str, typer.Argument(metavar="NAME", help="As in its section [partner.NAME].")]


@partner.command("list", epilog="Example: dicom-mail partner list")
def list_partners(context: typer.Context, as_json: AsJson = False, config: Config = None) -> None:
    """List the partners, with what the certificate of each is worth and until when."""
    configuration = _configuration(context, config)
    from gateway import partners

    _answer(partners.listing(configuration, datetime.now(UTC)), as_json, "partners")


@partner.command("show", epilog="Example: dicom-mail partner show clinic-a")
def show_partner(context: typer.Context, name: PartnerName, as_json: AsJson = False, config: Config = None) -> None:
    """Show one partner: its certificate, whom it leads to, and whether it counts."""
    configuration = _configuration(context, config)
    from gateway import partners

    _answer(partners.description(configuration, name, datetime.now(UTC)), as_json, "partner")


@partner.command("import", epilog="Example: dicom-mail partner import clinic-a clinic-a.pem; or: … in-7f3a")
def import_certificate(
    context: typer.Context,
    *,
    name: PartnerName,
    source: Annotated[str, typer.Argument(metavar="FILE", help="A certificate, a signed mail, or an id in-….")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needs --fingerprint.")] = False,
    expected: Annotated[
        str | None, typer.Option("--fingerprint", metavar="SHA256", help="What it must have; else nothing is imported.")
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Take over a partner's certificate, after you have approved it.

    Ask the partner for the fingerprint by telephone and compare. A running gateway uses the certificate at once.
    """
    if yes and expected is None:
        raise UsageError("--yes needs --fingerprint", hint="ask the partner for it by telephone")
    configuration = _configuration(context, config)
    from gateway import partners, story

    found = partners.offer(configuration, name, source, datetime.now(UTC))
    if not as_json:
        _show(story.offer(found.document))
    found.demand(expected)
    if not yes and not typer.confirm("Is it the partner's?", err=True):
        raise GatewayError("nothing was imported")
    _answer(
        partners.call(configuration, "partner-import", partner=name, pem=found.pem, source=source), as_json, "partner"
    )


@partner.command("trust", epilog="Example: dicom-mail partner trust clinic-a --until 2026-11-30")
def trust_partner(
    context: typer.Context,
    name: PartnerName,
    until: Annotated[str, typer.Option(metavar="T", help="A day or a time within 14 days; now ends it.")],
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Let a partner's certificate count for some days although it runs out.

    Use it for the night on which that happens, until the new one is here. Only the same key counts, mail that comes so
    has a finding, and it ends by itself.
    """
    configuration = _configuration(context, config)
    from gateway import partners

    end = partners.moment(until, datetime.now(UTC))
    document = partners.call(configuration, "partner-trust", partner=name, until=end and end.isoformat())
    _answer(document, as_json, "partner")


@partner.command("test", epilog="Example: dicom-mail partner test clinic-a")
def try_partner(context: typer.Context, name: PartnerName, as_json: AsJson = False, config: Config = None) -> int:
    """Say what would happen to mail to a partner and from it. Sends nothing.

    A trial is sealed as mail to it would be. The exit code is 1 when mail would be held.
    """
    configuration = _configuration(context, config)
    from gateway import partners

    document = partners.trial(configuration, name, datetime.now(UTC))
    _answer(document, as_json, "trial")
    return 0 if document["ok"] else GatewayError.exit_code


# ---------------------------------------------------------------------------------------------------------------
# Users

AtDoor = Annotated[Door, typer.Option("--door", help="Whose users_file: of the section [smtp] or [console].")]
UserName = Annotated[str, typer.Argument(metavar="NAME")]


def _users(context: typer.Context, config: Path | None, door: Door) -> Users:
    from gateway.config.values import is_there
    from gateway.users import Users

    configuration = _configuration(context, config)
    section = configuration.smtp if door is Door.SMTP else configuration.console
    if section is None or section.users_file is None:
        raise ConfigurationError(f"{configuration.source}: {door}.users_file: not set", hint="set it, then add users")
    # In a folder of root's, as /etc is, a new file is for the gateway all the same: as its data, or its configuration.
    data = configuration.gateway.data
    return Users(section.users_file, data if is_there(data) else configuration.source)


@user.command("add", epilog="Example: dicom-mail user add clinic-a")
def add_user(
    context: typer.Context,
    name: UserName,
    door: AtDoor = Door.SMTP,
    role: Annotated[str | None, typer.Option(help="What the user may do there.", show_default="user")] = None,
    config: Config = None,
) -> None:
    """Add a user, or give one a new password.

    The password is asked for, or read as one line from standard input. A running gateway takes it over at SIGHUP.
    """
    users = _users(context, config, door)
    try:
        new = users.add(name, _password(), role)
    except OSError as error:
        raise GatewayError(f"{users.path} cannot be written: {error.strerror}") from None
    typer.echo(f"{'added' if new else 'changed'} {name} in {users.path}; a running gateway takes it over at SIGHUP")


def _password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    from getpass import getpass

    password = getpass("Password: ")
    if getpass("Again: ") != password:
        raise UsageError("the two passwords differ")
    return password


@user.command("remove", epilog="Example: dicom-mail user remove clinic-a")
def remove_user(context: typer.Context, name: UserName, door: AtDoor = Door.SMTP, config: Config = None) -> None:
    """Take a user out."""
    users = _users(context, config, door)
    try:
        users.remove(name)
    except OSError as error:
        raise GatewayError(f"{users.path} cannot be written: {error.strerror}") from None
    typer.echo(f"removed {name} from {users.path}; a running gateway takes it over at SIGHUP")


@user.command("list", epilog="Example: dicom-mail user list --door console")
def list_users(context: typer.Context, door: AtDoor = Door.SMTP, config: Config = None) -> None:
    """List who may log in, with roles."""
    users = _users(context, config, door)
    users.load()
    for one in users.list():
        typer.echo(f"{one.name}  {one.role}")


def _reflow(text: str) -> str:
    """Join the lines of each paragraph of a docstring, so that help is as wide as the terminal."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


for _command in (each for group in (app, queue, partner, user) for each in group.registered_commands):
    if _command.help is None and _command.callback is not None:
        _command.help = _reflow(_command.callback.__doc__ or "")
