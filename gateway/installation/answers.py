"""What ``dicom-mail init`` asks: what one PACS and one partner need. All else has defaults."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.errors import UsageError


class Door(StrEnum):
    """How mail comes in."""

    SMTP = "smtp"
    IMAP = "imap"
    NONE = "none"


class Proof(StrEnum):
    """What signs and decrypts: a certificate of our own making, a request to an authority as well, or nothing."""

    SELF_SIGNED = "self-signed"
    CSR = "csr"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a port; an AE title where it is a DICOM peer."""

    host: str
    port: int
    title: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the configuration is written from.

    Attributes:
        name: The name of this host as others see it.
        postmaster: Where notices go.
        data: The data folder.
        pacs: Where images from mail go; None: nothing comes in.
        door: How mail comes in.
        mailbox: User and host of the mailbox, for ``Door.IMAP``.
        partner: The name of the partner in the configuration.
        address: Its mail address.
        peers: The network its mail comes from; empty: not known.
        relay: Where mail is submitted; None: no mail goes out, notices neither.
        sender: Our mail address.
        relay_user: Who logs in at the relay; empty: nobody.
        title: Our AE title, which modalities call to mail images to the partner; empty: nothing goes out.
        modalities: The network the modalities are in.
        identity: How we prove who we are.
    """

    name: str
    postmaster: str
    data: str
    pacs: Endpoint | None
    door: Door
    mailbox: tuple[str, str] | None
    partner: str
    address: str
    peers: str
    relay: Endpoint | None
    sender: str
    relay_user: str
    title: str
    modalities: str
    identity: Proof

    @property
    def secrets(self) -> tuple[str, ...]:
        """The password files that the configuration names."""
        wanted = (("imap-password", self.door is Door.IMAP), ("relay-password", bool(self.relay_user)))
        return tuple(name for name, needed in wanted if needed)


Given = Mapping[str, str]
"""Answers as they were typed, by the name of the question; empty: none."""


def _always(_: Given) -> bool:
    return True


def _given(*names: str, **values: str) -> Callable[[Given], bool]:
    return lambda given: all(given[name] for name in names) and all(given[k] == v for k, v in values.items())


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        name: Its option, without the dashes.
        text: What a person is asked.
        default: Taken when nothing is answered; None: an answer is required.
        asked: Whether it has a meaning after the answers before.
        choices: What may be answered; empty: anything.
    """

    name: str
    text: str
    default: str | None = None
    asked: Callable[[Given], bool] = _always
    choices: tuple[str, ...] = ()


QUESTIONS: Final = (
    Question("name", "Name of this host, as mail servers see it", socket.gethostname()),
    Question("postmaster", "Mail address of the people who look after it"),
    Question("data", "Folder for the data (encrypted disk, not a network disk)", "/var/lib/dicom-mail"),
    Question("partner", "Short name of the clinic you exchange images with, as clinic-a"),
    Question("address", "Its mail address", asked=_given("partner")),
    Question("pacs", "PACS that gets images from mail, as HOST:PORT:AETITLE (nothing: none comes in)", ""),
    Question("door", "How does mail come in", "smtp", _given("pacs"), ("smtp", "imap")),
    Question("mailbox", "Mailbox, as USER@HOST of the IMAP server", None, _given("pacs", door="imap")),
    Question(
        "peers", "Network its mail server sends from, as 203.0.113.0/24 (nothing: any)", "", _given("pacs", door="smtp")
    ),
    Question("relay", "Mail relay that takes our mail, as HOST or HOST:PORT (nothing: no mail goes out)", ""),
    Question("sender", "Our mail address", None, _given("relay")),
    Question("relay-user", "User at the relay (nothing: it asks for none)", "", _given("relay")),
    Question("title", "Our AE title, which modalities call to mail images (nothing: none go out)", "", _given("relay")),
    Question("modalities", "Network the modalities are in, as 10.1.0.0/16", None, _given("title")),
    Question("identity", "Certificate to sign and decrypt with", "self-signed", _given("relay"), tuple(Proof)),
)
"""In the order in which they are asked; each may depend on those before."""

_ENDPOINT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\s]+)(?::([0-9]{1,5}))?(?::([^:]{1,16}))?")


def parse(given: Given) -> Answers:
    """Make sense of what was answered.

    Raises:
        UsageError: An answer cannot be read, or nothing would be done.
    """
    pacs = _endpoint("pacs", given["pacs"], "HOST:PORT:AETITLE", titled=True) if given["pacs"] else None
    relay = _endpoint("relay", given["relay"], "HOST or HOST:PORT") if given["relay"] else None
    if pacs is None and not given["title"]:
        raise UsageError("neither --pacs nor --relay with --title: nothing would come in and nothing go out")
    mailbox = None
    if given["mailbox"]:
        user, _, host = given["mailbox"].rpartition("@")
        if not user or not host:
            raise UsageError("--mailbox: expected USER@HOST", hint="as dicom-in@mail.hospital.example")
        mailbox = (user, host)
    return Answers(
        name=given["name"],
        postmaster=given["postmaster"],
        data=given["data"],
        pacs=pacs,
        door=Door(given["door"]) if pacs else Door.NONE,
        mailbox=mailbox,
        partner=given["partner"],
        address=given["address"],
        peers=given["peers"],
        relay=relay,
        sender=given["sender"],
        relay_user=given["relay-user"],
        title=given["title"],
        modalities=given["modalities"],
        identity=Proof(given["identity"]) if relay else Proof.NONE,
    )


def _endpoint(option: str, text: str, expected: str, *, titled: bool = False) -> Endpoint:
    match = _ENDPOINT.fullmatch(text)
    if match is None or bool(match[3]) is not titled:
        raise UsageError(f"--{option}: expected {expected}")
    return Endpoint(match[1].strip("[]"), int(match[2] or 587), match[3] or "")
