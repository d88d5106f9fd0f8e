"""The tables of the configuration file, one frozen model each. Their defaults are the contract's."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from gateway.config.values import (
    AddressPattern,
    AeNames,
    BlobsUrl,
    CallingPattern,
    Command,
    Count,
    DatabaseUrl,
    Door,
    Downtimes,
    Duration,
    DurationOrZero,
    File,
    Folder,
    Headers,
    HeloName,
    Host,
    Issuer,
    Listen,
    MailAddress,
    MailboxName,
    Networks,
    PartnerNames,
    PatientIdRule,
    PduSize,
    Port,
    RecipientPattern,
    Secret,
    Sender,
    Size,
    Switch,
    Text,
    Title,
    UsersFile,
    WebUrl,
)

DEFAULT_PATH: Final = Path("/etc/dicom-mail/gateway.toml")
"""Where the configuration lies when nobody says otherwise."""


class Section(BaseModel):
    """A table of the TOML: frozen, and every key is known."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True)


def _demand_pair(certificate: Path | None, key_file: Path | None) -> None:
    if (certificate is None) != (key_file is None):
        raise ValueError("expected certificate and key_file together, or neither")


class Gateway(Section):
    """Who this gateway is and where it keeps what it has.

    Attributes:
        name: HELO name and right side of Message-IDs.
        postmaster: Where notices for IT go.
        data: Folder of the spool, the SQLite ledger, the control socket and scratch.
        database: URL of a PostgreSQL ledger that several nodes share. May hold a password: never shown.
        blobs: URL of the store in which several nodes share their bytes.
    """

    name: HeloName
    postmaster: MailAddress
    data: Folder = Path("/var/lib/dicom-mail")
    database: DatabaseUrl | None = None
    blobs: BlobsUrl | None = None

    @model_validator(mode="after")
    def _check(self) -> Gateway:
        if (self.database is None) != (self.blobs is None):
            raise ValueError("expected database and blobs together, or neither")
        if self.database is None and "data" not in self.model_fields_set:
            raise ValueError("data is missing; expected data, or database and blobs")
        return self


class Limits(Section):
    """What is too much, too old or too long.

    Attributes:
        message: Bytes of one mail.
        instance: Bytes of one instance.
        parts: MIME parts of one mail.
        depth: How deep parts may nest.
        header: Bytes of one header.
        unpacked: Bytes that all of one message may inflate to.
        ratio: How many times its size one compressed member may inflate to.
        free_space: Free bytes below which new work is refused; None: the smaller of 5 GiB and 10 % of the disk.
        fragment_age: After this an incomplete message/partial set is held, with a notice.
        remember: How long a mail or an instance is known again.
        give_up: How long delivery is tried.
        retention: How long originals of what was delivered are kept.
        stop: How long running sends may finish at SIGTERM.
        worker_memory: Bytes that one worker process may use.
        worker_time: How long a worker process may take for one piece of work.
    """

    message: Size = 2 << 30
    instance: Size = 2 << 30
    parts: Count = 5000
    depth: Count = 8
    header: Size = 1 << 20
    unpacked: Size = 8 << 30
    ratio: Count = 200
    free_space: Size | None = None
    fragment_age: Duration = timedelta(hours=72)
    remember: Duration = timedelta(days=30)
    give_up: Duration = timedelta(days=5)
    retention: DurationOrZero = timedelta(days=7)
    stop: DurationOrZero = timedelta(seconds=30)
    worker_memory: Size = 2 << 30
    worker_time: Duration = timedelta(minutes=5)

    def free_space_floor(self, disk_size: int) -> int:
        """Free bytes below which new work is refused (R5): as configured, else the smaller of 5 GiB and 10 %."""
        return self.free_space if self.free_space is not None else min(5 << 30, disk_size // 10)


class Smtp(Section):
    """The SMTP door.

    Attributes:
        listen: Where it listens.
        implicit_tls_listen: Where it listens with TLS from the first byte (RFC 8314); None: not opened.
        certificate: PEM chain for TLS, key in ``key_file``; None: no STARTTLS.
        key_file: PEM key.
        require_tls: No mail without TLS.
        users_file: Who may AUTH, over TLS only; None: no AUTH.
        allow: Peers that may connect; None: all.
        connections: How many at once.
    """

    listen: Door = Listen("0.0.0.0", 25)  # noqa: S104 - the contract's default; the section itself opens the door
    implicit_tls_listen: Door | None = None
    certificate: File | None = None
    key_file: Secret | None = None
    require_tls: Switch = False
    users_file: UsersFile | None = None
    allow: Networks | None = None
    connections: Count = 100

    @model_validator(mode="after")
    def _check(self) -> Smtp:
        _demand_pair(self.certificate, self.key_file)
        if self.certificate is None:
            for key in ("implicit_tls_listen", "require_tls", "users_file"):
                if getattr(self, key):
                    raise ValueError(f"{key} needs TLS; expected certificate and key_file too")
        return self


class OAuth(Section):
    """How a token is got in place of a password (RFC 6749).

    Attributes:
        token_url: The token endpoint.
        client_id: As the provider gave it.
        client_secret_file: Holds the client secret.
        scope: As the provider wants it.
        refresh_token_file: Holds a refresh token; None: client credentials grant.
    """

    token_url: WebUrl
    client_id: Text
    client_secret_file: Secret
    scope: Text
    refresh_token_file: Secret | None = None


class PopMailbox(Section):
    """A mailbox that is polled by POP3.

    Attributes:
        host: The mail server.
        port: Its port; when absent 995, or 110 without implicit TLS.
        tls: ``implicit``, ``starttls`` or ``none``.
        user: Who logs in.
        password_file: Holds the password.
        address: What routes' ``to`` is matched with; the user when absent.
        other: Mail without DICOM stays; ``move`` is known and warned of, since POP3 has no folders.
        poll: How often it is looked at.
    """

    host: Host
    tls: Literal["implicit", "starttls", "none"] = "implicit"
    port: Port = Field(default_factory=lambda values: 995 if values.get("tls") == "implicit" else 110)
    user: Text
    password_file: Secret
    address: MailAddress = Field(default_factory=lambda values: values.get("user", ""))
    other: Literal["leave", "move"] = "leave"
    poll: Duration = timedelta(seconds=60)


class Mailbox(Section):
    """A mailbox that is polled by IMAP.

    Attributes:
        host: The mail server.
        port: Its port; when absent 993, or 143 without implicit TLS.
        tls: ``implicit``, ``starttls`` or ``none``.
        user: Who logs in.
        password_file: Holds the password; this or ``oauth``.
        oauth: How a token is got; this or ``password_file``.
        address: What routes' ``to`` is matched with; the user when absent.
        folder: Where new mail lies.
        done: Where mail is moved once its bytes are ours.
        failed: Where mail is moved that cannot be taken.
        other: Mail without DICOM: ``leave`` it, or ``move`` it to ``done``.
        poll: How often it is looked at, beside IDLE.
    """

    host: Host
    tls: Literal["implicit", "starttls", "none"] = "implicit"
    port: Port = Field(default_factory=lambda values: 993 if values.get("tls") == "implicit" else 143)
    user: Text
    password_file: Secret | None = None
    oauth: OAuth | None = None
    address: MailAddress = Field(default_factory=lambda values: values.get("user", ""))
    folder: Text = "INBOX"
    done: Text = "Processed"
    failed: Text = "Failed"
    other: Literal["leave", "move"] = "leave"
    poll: Duration = timedelta(seconds=60)

    @model_validator(mode="after")
    def _check(self) -> Mailbox:
        if (self.password_file is None) == (self.oauth is None):
            raise ValueError("expected exactly one of password_file and oauth")
        return self


class ClientTls(Section):
    """TLS where we call.

    Attributes:
        ca: PEM anchors that the peer is checked with; None: the system's.
        certificate: What we show ourselves; None: nothing.
        key_file: Its key.
    """

    ca: File | None = None
    certificate: File | None = None
    key_file: Secret | None = None

    @model_validator(mode="after")
    def _check(self) -> ClientTls:
        _demand_pair(self.certificate, self.key_file)
        return self


class ServerTls(Section):
    """TLS where we are called.

    Attributes:
        certificate: PEM chain that we show.
        key_file: Its key.
        ca: PEM anchors that callers must have a certificate of; None: callers show none.
    """

    certificate: File
    key_file: Secret
    ca: File | None = None


class ApplicationEntity(Section):
    """A Storage SCP that we send to.

    Attributes:
        title: Its AE title.
        host: Where it is.
        port: Its port.
        calling: What we call ourselves.
        associations: How many in parallel.
        transcode: When it refuses the transfer syntax: ``lossless`` (decode) or ``never``.
        confirm: What counts as delivered: ``store``, ``find`` or ``commitment``.
        confirm_within: How long a confirmation may take.
        unknown_sends: After so many sends without a valid response the instance is held.
        timeout: For one DIMSE message.
        max_pdu: Bytes of the longest PDU that we take.
        sender: Who writes C-STORE messages: ``own``, or ``library`` (pynetdicom), which is slower.
        downtime: When it is known to be away.
        tls: TLS towards it; None: in the clear.
    """

    title: Title
    host: Host
    port: Port
    calling: Title = "DICOMMAIL"
    associations: Count = 2
    transcode: Literal["lossless", "never"] = "lossless"
    confirm: Literal["store", "find", "commitment"] = "store"
    confirm_within: Duration = timedelta(hours=6)
    unknown_sends: Count = 4
    timeout: Duration = timedelta(seconds=60)
    max_pdu: PduSize = 131072
    sender: Literal["own", "library"] = "own"
    downtime: Downtimes = ()
    tls: ClientTls | None = None


class StorageSCP(Section):
    """The DICOM door: we as a Storage SCP.

    Attributes:
        title: AE title that is always answered; routes' ``called`` add further ones.
        listen: Where it listens.
        callers: Calling AE titles that may; None: any.
        addresses: Peers that may; None: any.
        associations: How many at once.
        max_pdu: Bytes of the longest PDU that we take.
        unknown_classes: Private and unknown SOP classes: ``accept`` or ``refuse``.
        tls: TLS of the door; None: in the clear.
    """

    title: Title
    listen: Door
    callers: Annotated[tuple[Title, ...], MinLen(1)] | None = None
    addresses: Networks | None = None
    associations: Count = 25
    max_pdu: PduSize = 131072
    unknown_classes: Literal["accept", "refuse"] = "accept"
    tls: ServerTls | None = None


class Relay(Section):
    """The mail server that outbound mail is submitted to.

    Attributes:
        host: Where it is.
        port: Its port.
        tls: ``implicit``, ``starttls`` or ``none``; never downgraded by itself.
        ca: PEM anchors that it is checked with; None: the system's.
        user: Who logs in; None: no AUTH.
        password_file: Holds the password; this or ``oauth``, with ``user``.
        oauth: How a token is got; this or ``password_file``, with ``user``.
        sender: From and envelope sender of what we mail; our own doors accept reports to it.
        max_message: Bytes of one mail, after encryption and transfer encoding.
    """

    host: Host
    port: Port = 587
    tls: Literal["implicit", "starttls", "none"] = "starttls"
    ca: File | None = None
    user: Text | None = None
    password_file: Secret | None = None
    oauth: OAuth | None = None
    sender: MailAddress
    max_message: Size = 35_000_000

    @model_validator(mode="after")
    def _check(self) -> Relay:
        proofs = sum(proof is not None for proof in (self.password_file, self.oauth))
        if self.user is None and proofs:
            raise ValueError("user is missing; expected it beside password_file or oauth")
        if self.user is not None and proofs != 1:
            raise ValueError("expected exactly one of password_file and oauth beside user")
        return self


class Identity(Section):
    """A certificate of our own with its key.

    Attributes:
        certificate: PEM.
        key_file: PEM key.
    """

    certificate: File
    key_file: Secret


class SMime(Section):
    """S/MIME: who we are and whom we trust.

    Attributes:
        identities: The newest valid one signs, all of them decrypt.
        trust: Folder of PEM anchors.
        crls: Folder of CRLs, re-read when it changes; need not exist.
        crl_hosts: Hosts that may be asked for CRLs.
        revocation: ``soft``: unknown is a finding; ``hard``: unknown is retried, then held; ``off``.
        crl_grace: How long past its nextUpdate a CRL still counts.
    """

    identities: tuple[Identity, ...] = ()
    trust: Folder = Field(default=Path("trust"), validate_default=True)
    crls: Folder = Field(default=Path("crls"), validate_default=True)
    crl_hosts: tuple[Host, ...] = ()
    revocation: Literal["soft", "hard", "off"] = "soft"
    crl_grace: DurationOrZero = timedelta(days=7)


class Partner(Section):
    """Somebody who mails to us or whom we mail to.

    Attributes:
        address: Its mail address, or a pattern as ``*@clinic.example``.
        certificate: PEM certificate to encrypt to; wins over an imported one.
        pin: Only this certificate may have signed.
        peers: SMTP peers that may speak for this partner. With ``smtp_user`` too, one of them suffices.
        smtp_user: Who may speak for this partner after AUTH. Neither this nor ``peers``: anybody may.
        phone: Shown in notices.
        accept: Protection that its mail must have: ``any``, ``signed``, ``encrypted`` or ``signed+encrypted``.
        send: Protection of mail to it: ``plain``, ``signed`` or ``signed+encrypted``.
        cipher: ``gcm`` or ``cbc``.
        format: ``mime`` (STD-GEN-MIME) or ``zip`` (STD-GEN-ZIP-MAIL).
        multipart: ``mixed`` or ``related``.
        partial: Whether one instance that is too big may go as message/partial.
        max_message: Bytes of one mail; None: the relay's.
        max_parts: MIME parts of one mail.
        text: Template of the body; None: ours.
        headers: Further constant header fields.
        receipt: Ask for a receipt, overdue after this; None: do not ask.
    """

    address: AddressPattern
    certificate: File | None = None
    pin: Switch = False
    peers: Networks | None = None
    smtp_user: Text | None = None
    phone: Text | None = None
    accept: Literal["any", "signed", "encrypted", "signed+encrypted"] = "signed"
    send: Literal["plain", "signed", "signed+encrypted"] = "signed+encrypted"
    cipher: Literal["gcm", "cbc"] = "gcm"
    format: Literal["mime", "zip"] = "mime"
    multipart: Literal["mixed", "related"] = "mixed"
    partial: Switch = False
    max_message: Size | None = None
    max_parts: Count = 200
    text: File | None = None
    headers: Headers = Field(default_factory=dict)
    receipt: Duration | None = None

    @model_validator(mode="after")
    def _check(self) -> Partner:
        if self.pin and self.certificate is None:
            raise ValueError("pin needs a certificate to pin")
        return self


def _late(values: dict[str, Any]) -> timedelta:
    if values.get("urgent"):
        return timedelta(minutes=5)
    return timedelta(minutes=30 if values.get("mail") else 15)


class Route(Section):
    """Where what goes; the first match wins, separately for the two directions.

    A route with ``store`` takes mail to the PACS, one with ``mail`` takes images to partners. Keys of the other
    direction have no meaning.

    Attributes:
        name: Distinct, shown to people.
        store: Names of the ``[ae]`` sections that get every instance.
        mail: Names of the partners that get every collection.
        from_: ``from`` in TOML: a partner's name, an address pattern, or ``*`` for strangers too; None: any partner.
        to: Recipient or mailbox address, or a pattern; None: any.
        mailbox: Only mail of this ``[imap]`` or ``[pop3]`` section; None: any door.
        patient_mismatch: One Patient ID with two birth dates or two different names: ``hold`` or ``accept``.
        issuer: Written to Issuer of Patient ID (0010,0021); None: unchanged.
        patient_id: ``keep``, or ``prefix:`` and what is put before Patient ID (0010,0020).
        accession: ``keep`` or ``clear`` Accession Number (0008,0050).
        bare_dicom: Take data sets without preamble and File Meta Information.
        uuencode: Take uuencoded attachments.
        called: The AE title that the modality called.
        calling: Calling AE title, or a pattern.
        quiet: The collection is complete after this silence (NET-10).
        max_age: A collection gets no older.
        max_size: A collection gets no bigger, in bytes.
        urgent: Goes first.
        late: A notice when it is not delivered by then.
    """

    name: Text
    store: AeNames = ()
    mail: PartnerNames = ()
    from_: Sender | None = Field(default=None, alias="from")
    to: RecipientPattern | None = None
    mailbox: MailboxName | None = None
    patient_mismatch: Literal["hold", "accept"] = "hold"
    issuer: Issuer | None = None
    patient_id: PatientIdRule = "keep"
    accession: Literal["keep", "clear"] = "keep"
    bare_dicom: Switch = False
    uuencode: Switch = False
    called: Title | None = None
    calling: CallingPattern = "*"
    quiet: DurationOrZero = timedelta(seconds=60)
    max_age: Duration = timedelta(minutes=30)
    max_size: Size = 2 << 30
    urgent: Switch = False
    late: Duration = Field(default_factory=_late)

    @property
    def prefix(self) -> str:
        """What is put before Patient ID; empty: nothing."""
        return "" if self.patient_id == "keep" else self.patient_id.removeprefix("prefix:")

    @model_validator(mode="after")
    def _check(self) -> Route:
        if bool(self.store) == bool(self.mail):
            raise ValueError("expected exactly one of store and mail")
        if self.mail and self.called is None:
            raise ValueError("called is missing; a mail route needs the AE title that the modality called")
        return self


class Console(Section):
    """The web console, /metrics and /health.

    Attributes:
        listen: Where it listens.
        users_file: Who may log in; None: health and metrics only.
        certificate: PEM chain for TLS; required when not loopback, or ``behind_proxy``.
        key_file: PEM key.
        behind_proxy: Somebody in front of it does the TLS.
    """

    listen: Door = Listen("127.0.0.1", 8080)
    users_file: UsersFile | None = None
    certificate: File | None = None
    key_file: Secret | None = None
    behind_proxy: Switch = False

    @model_validator(mode="after")
    def _check(self) -> Console:
        _demand_pair(self.certificate, self.key_file)
        if not (self.listen.loopback or self.certificate or self.behind_proxy):
            raise ValueError(f"listens on {self.listen}; beyond loopback expected certificate, or behind_proxy = true")
        return self


class Metrics(Section):
    """/metrics and /health alone, for probes.

    Attributes:
        listen: Where it listens.
    """

    listen: Door = Listen("0.0.0.0", 9102)  # noqa: S104 - the contract's default; the section itself opens the door


class Notice(Section):
    """Where notices go beside the mail to the postmaster.

    Attributes:
        webhook: URL that gets the notice as JSON. Often holds a token: never shown.
        command: Program that gets the notice as JSON on standard input.
    """

    webhook: WebUrl | None = None
    command: Command | None = None


class Log(Section):
    """What is logged.

    Attributes:
        level: ``debug``, ``info``, ``warning`` or ``error``.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"


class Configuration(Section):
    """The whole file. A section that is absent is None or empty: that door is shut.

    Attributes:
        gateway: Who this gateway is.
        limits: What is too much.
        smtp: The SMTP door.
        imap: Mailboxes polled by IMAP, by name.
        pop3: Mailboxes polled by POP3, by name.
        ae: Storage SCPs that we send to, by name.
        storescp: The DICOM door.
        relay: Where outbound mail is submitted.
        smime: Who we are and whom we trust.
        partner: Who mails to us or whom we mail to, by name.
        route: Where what goes, in order.
        console: The web console.
        metrics: A door for probes alone.
        notice: Where notices go beside the mail.
        log: What is logged.
    """

    gateway: Gateway
    limits: Limits = Limits()
    smtp: Smtp | None = None
    imap: dict[str, Mailbox] = Field(default_factory=dict)
    pop3: dict[str, PopMailbox] = Field(default_factory=dict)
    ae: dict[str, ApplicationEntity] = Field(default_factory=dict)
    storescp: StorageSCP | None = None
    relay: Relay | None = None
    smime: SMime | None = None
    partner: dict[str, Partner] = Field(default_factory=dict)
    route: tuple[Route, ...] = ()
    console: Console | None = None
    metrics: Metrics | None = None
    notice: Notice | None = None
    log: Log = Log()
    _source: Path = PrivateAttr(default=DEFAULT_PATH)

    @property
    def source(self) -> Path:
        """The file it was read from, absolute."""
        return self._source

    def remember(self, source: Path) -> None:
        """Note which file it was read from."""
        self._source = source


SECTIONS: Final[dict[str, type[Section]]] = {
    "gateway": Gateway,
    "limits": Limits,
    "smtp": Smtp,
    "imap.NAME": Mailbox,
    "imap.NAME.oauth": OAuth,
    "pop3.NAME": PopMailbox,
    "ae.NAME": ApplicationEntity,
    "ae.NAME.tls": ClientTls,
    "storescp": StorageSCP,
    "storescp.tls": ServerTls,
    "relay": Relay,
    "relay.oauth": OAuth,
    "smime": SMime,
    "smime.identities": Identity,
    "partner.NAME": Partner,
    "route": Route,
    "console": Console,
    "metrics": Metrics,
    "notice": Notice,
    "log": Log,
}
"""Every table of the file with its model; NAME stands where the user chooses a name."""

NAMED: Final = frozenset({"imap", "pop3", "ae", "partner"})
"""Kinds of section of which there are any number, by name."""


def keys(section: type[BaseModel]) -> tuple[str, ...]:
    """The keys of a table as TOML spells them."""
    return tuple(field.alias or name for name, field in section.model_fields.items())


def section_at(location: tuple[str | int, ...]) -> type[BaseModel]:
    """The model of the table at a place in the document, as ``("ae", "pacs", "tls")``."""
    parts = [str(part) for part in location if not isinstance(part, int)]
    if len(parts) > 1 and parts[0] in NAMED:
        parts[1] = "NAME"
    return SECTIONS[".".join(parts)] if parts else Configuration
