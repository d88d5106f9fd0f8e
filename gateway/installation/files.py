"""Writes what an installation begins with. Nothing that is there already is ever changed."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined

from gateway import config
from gateway.errors import ConfigurationError, GatewayError
from gateway.installation import identity
from gateway.installation.answers import Answers, Proof

KEY: Final = "gateway.key"
CERTIFICATE: Final = "gateway.pem"
REQUEST: Final = "gateway.csr"


@dataclass(frozen=True, slots=True)
class Installation:
    """What was made.

    Attributes:
        written: The files and folders.
        todo: What a person does next, in the order to do it.
    """

    written: tuple[Path, ...]
    todo: tuple[str, ...]


def install(path: Path, answers: Answers, now: datetime) -> Installation:
    """Write a configuration, and an identity when one is wanted.

    Args:
        path: Where the configuration goes; all else lies beside it.
        answers: What it is made from.
        now: When, for the identity and the head of the file.

    Raises:
        ConfigurationError: An answer is not possible; the text has a line for each. Nothing was written.
        GatewayError: A file is there already or cannot be written.
    """
    text = _text(answers, now)
    _try(text, answers)
    content: list[tuple[str, bytes, int]] = []
    if answers.identity is not Proof.NONE:
        made = identity.make(answers.sender, answers.name, now)
        content += [(KEY, made.key, 0o600), (CERTIFICATE, made.certificate, 0o644)]
        if answers.identity is Proof.CSR:
            content.append((REQUEST, made.request, 0o644))
    # The configuration last: when it is there, all that it names is there.
    content.append((path.name, text.encode(), 0o644))
    folder = path.absolute().parent
    written = [folder / name for name, _, _ in content]
    there = [str(one) for one in written if one.exists()]
    if there:
        raise GatewayError(f"{', '.join(there)}: there already; nothing was changed", hint="name another --config")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data, mode in content:
            _write(folder / name, data, mode)
        if answers.identity is not Proof.NONE:
            (folder / "trust").mkdir(exist_ok=True)
    except OSError as error:
        raise GatewayError(f"{error.filename or folder} cannot be written: {error.strerror}") from None
    return Installation(tuple(written), tuple(_todo(path, answers)))


def _text(answers: Answers, now: datetime) -> str:
    # autoescape is for HTML: here every value goes through the filter that writes a TOML string.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, autoescape=False)  # noqa: S701
    environment.filters["toml"] = json.dumps  # a basic string of TOML with \u escapes
    template = environment.from_string(files("gateway.installation").joinpath("gateway.toml").read_text("utf-8"))
    return template.render(day=now.date().isoformat(), **asdict(answers)) + "\n"


def _try(text: str, answers: Answers) -> None:
    """Load the configuration where everything it names exists, so that only a wrong answer can make it fail."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for one in (*answers.secrets, KEY, CERTIFICATE):
            (folder / one).touch(0o600)
        (folder / "trust").mkdir()
        path = folder / "gateway.toml"
        path.write_text(text, encoding="utf-8")
        try:
            config.load(path)
        except ConfigurationError as error:
            raise ConfigurationError(str(error).replace(f"{path}: ", "the answers: ")) from None


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that nobody else made meanwhile, never readable by more people than it shall be."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _todo(path: Path, answers: Answers) -> list[str]:
    folder = path.absolute().parent
    todo = [f"Write the password, one line, to {folder / name} (mode 0600)." for name in answers.secrets]
    if answers.identity is Proof.CSR:
        todo.append(
            f"Have {folder / REQUEST} signed by your authority, and put what you get over {folder / CERTIFICATE}."
        )
    if answers.identity is not Proof.NONE:
        todo += [
            f"Send {folder / CERTIFICATE} to {answers.partner}, and ask for theirs on another way than mail.",
            f"Import theirs: dicom-mail partner import {answers.partner} FILE --config {path}",
            f"Put the certificate of their authority into {folder / 'trust'}, if they have one.",
        ]
    if answers.pacs is not None:
        todo.append("Have the PACS take images from AE title DICOMMAIL of this host.")
    if answers.title:
        todo.append(f"Have the modalities send to AE title {answers.title}, port 11112 of this host.")
    return [
        *todo,
        f"Ask what is still wrong: dicom-mail check --config {path}",
        f"Serve: dicom-mail run --config {path}",
    ]
