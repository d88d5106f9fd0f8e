"""The wiring: one gateway, from its configuration to its last commit.

Everything that knows everything else is here and nowhere else. Read ``Service.run`` from top to bottom: that is the
life of the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import ssl
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import Connection, delete, insert, select

from gateway import control, keys, logs, metrics, partners, watchdog
from gateway.config import (
    Advice,
    ApplicationEntity,
    ClientTls,
    Configuration,
    Console,
    Smtp,
    advice,
    in_force,
    load,
    restart_needed,
)
from gateway.core import commitment, contexts, query, reader, transcode, unsealing
from gateway.core.cms.revocation import Inspection, Source, inspect
from gateway.core.mailbox import State
from gateway.edges import storescu
from gateway.edges.console import HttpDoor, Pages
from gateway.edges.imap import ImapMailbox, Proof
from gateway.edges.oauth import Tokens
from gateway.edges.page import Pager
from gateway.edges.pop3 import PopMailbox
from gateway.edges.smtp import Limits, SmtpDoor
from gateway.edges.storescp import Limits as InstanceLimits
from gateway.edges.storescp import StorageScpDoor
from gateway.edges.submission import Relay
from gateway.edges.worker import Workers
from gateway.errors import ConfigurationError, GatewayError, MailboxError, TokenError
from gateway.freshness import Freshness
from gateway.insight import Insight
from gateway.ledger import (
    inventory,
    janitor,
    mailboxes,
    messages,
    notices,
    pseudonyms,
    restoration,
    submissions,
    tickets,
)
from gateway.ledger.janitor import Janitor
from gateway.ledger.ledger import Ledger, Lock, connect, connect_reader, demand_health
from gateway.ledger.spool import Spool
from gateway.ledger.tables import fact
from gateway.ledger.tickets import Carrier, Kind
from gateway.model import Reading, Span
from gateway.stages.compose import Compose
from gateway.stages.poll import Poll, Rules
from gateway.stages.receive import Receive
from gateway.stages.report import Report
from gateway.stages.store import Store
from gateway.stages.submit import Submit
from gateway.users import Users

log = structlog.get_logger(__name__)

READERS: Final = 1
"""Worker processes that read messages; the door and the lanes need the other core."""

DECODERS: Final = 1
"""Worker processes that transcode instances; started when a destination first refuses a transfer syntax."""

LOOKS: Final = 8
"""Messages in RECEIVE at the same time: one is read while the others are fetched and written down."""

COMPOSITIONS: Final = 2
"""Collections that are composed at the same time: each writes mails of many megabytes."""

REPORT_WAIT: Final = 2.0
"""Seconds to wait for a commitment report on the association that asked; most peers open one of their own."""

LOOK_AROUND: Final = 5.0
"""Seconds between two looks for what is late, full or to be told."""

REISSUE_EVERY: Final = timedelta(minutes=1)
ASK_EVERY: Final = timedelta(minutes=1)
PURGE_EVERY: Final = timedelta(hours=1)
PROVE_EVERY: Final = timedelta(days=1)
SURVEY_EVERY: Final = timedelta(hours=1)
SEAL_EVERY: Final = timedelta(days=1)

GRACE_AFTER_CRASH: Final = timedelta(seconds=3)
"""No send this soon after an unclean stop, so that a crash loop does not use up tries (R27)."""

LAST_WORDS: Final = 5.0
"""Seconds for what was cut off to write down that it was."""

TOKENS: Final = "tokens"
"""The folder under the data folder where refresh tokens are kept that providers have given us."""

_RUNNING: Final = "running since"
"""The fact that is there while the gateway runs: found at a start, the last stop was not clean."""


class Scu:
    """Destinations of the configuration, reached by the Storage SCU. Blocking; any thread may call.

    Args:
        configuration: Its destinations; their certificates are read here.

    Raises:
        ConfigurationError: A certificate, its key or a ``ca`` cannot be used.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._tls: Mapping[ClientTls, ssl.SSLContext] = client_certificates(configuration)

    def reload(self, tls: Mapping[ClientTls, ssl.SSLContext]) -> None:
        """Use other certificates from now on, as ``client_certificates`` has read them."""
        self._tls = tls

    def open(self, entity: ApplicationEntity, proposed: Sequence[contexts.Context]) -> storescu.Association:
        """Negotiate an association."""
        kind = storescu.LibraryAssociation if entity.sender == "library" else storescu.Association
        return kind.open(self._peer(entity), proposed)

    def echo(self, entity: ApplicationEntity) -> str:
        """Ask whether it is there; return what is wrong, empty when nothing is."""
        return storescu.echo(self._peer(entity)).reason

    def find(self, entity: ApplicationEntity, wanted: Sequence[query.Wanted]) -> query.Findings:
        """Ask which instances it has."""
        return storescu.find(self._peer(entity), wanted)

    def commit(
        self,
        entity: ApplicationEntity,
        transaction: str,
        references: Sequence[commitment.Reference],
        record: Callable[[commitment.Report], object] | None = None,
    ) -> commitment.Answer:
        """Request storage commitment; take the report if it comes at once."""
        return storescu.commit(self._peer(entity), transaction, references, wait=REPORT_WAIT, record=record)

    def _peer(self, entity: ApplicationEntity) -> storescu.Peer:
        return peer(entity, self._tls.get(entity.tls) if entity.tls is not None else None)


def client_certificates(configuration: Configuration) -> dict[ClientTls, ssl.SSLContext]:
    """Read the certificates for all destinations.

    Raises:
        ConfigurationError: A certificate, its key or a ``ca`` cannot be used.
    """
    return {each.tls: client_tls(each.tls) for each in configuration.ae.values() if each.tls is not None}


def peer(entity: ApplicationEntity, tls: ssl.SSLContext | None = None) -> storescu.Peer:
    """What the Storage SCU needs to know of a destination.

    Args:
        entity: As configured.
        tls: Its certificates where they were read before; else they are read now.

    Raises:
        ConfigurationError: Its certificates cannot be used.
    """
    if entity.tls is not None and tls is None:
        tls = client_tls(entity.tls)
    timeout = entity.timeout.total_seconds()
    return storescu.Peer(entity.title, entity.host, entity.port, entity.calling, timeout, entity.max_pdu, tls)


def client_tls(settings: ClientTls) -> ssl.SSLContext:
    """Load what a destination is checked with, and what we show it ourselves (TLS-1, TLS-4).

    Raises:
        ConfigurationError: The files cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # BCP 195
        # QUIRK: Python 3.13 sets it, and then refuses the authorities that hospitals make with a few openssl commands.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if settings.certificate is not None and settings.key_file is not None:
            # Without a password OpenSSL would ask the terminal for one; a key with one is refused instead.
            context.load_cert_chain(settings.certificate, settings.key_file, password="")
    except (OSError, ValueError) as error:
        name = type(error).__name__
        files = " or ".join(str(one) for one in (settings.ca, settings.certificate, settings.key_file) if one)
        raise ConfigurationError(f"{files} cannot be used for TLS: {name}") from None
    return context


def server_tls(certificate: Path, key_file: Path, ca: Path | None = None) -> ssl.SSLContext:
    """Load a certificate for a door of ours, and whom its callers must have one of (TLS-1, TLS-4).

    Raises:
        ConfigurationError: Certificate and key cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # BCP 195
    try:
        context.load_cert_chain(certificate, key_file, password="")
    except (OSError, ValueError) as error:
        name = type(error).__name__
        raise ConfigurationError(f"the certificate {certificate} and its key cannot be used: {name}") from None
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{ca} cannot be used for TLS: {type(error).__name__}") from None
        context.verify_mode = ssl.CERT_REQUIRED
        # QUIRK: Python 3.13 sets it, and then refuses the authorities that hospitals make with a few openssl commands.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def mailboxes_of(configuration: Configuration) -> dict[str, ImapMailbox | PopMailbox]:
    """The configured mailboxes, by their section."""
    found: dict[str, ImapMailbox | PopMailbox] = {}
    for name, section in configuration.imap.items():
        tokens = None
        if section.oauth is not None:
            tokens = Tokens(section.oauth, configuration.gateway.data / TOKENS)
        found[f"imap.{name}"] = ImapMailbox(section, partial(_proof, section.password_file, tokens))
    for name, pop in configuration.pop3.items():
        found[f"pop3.{name}"] = PopMailbox(pop, partial(_password, pop.password_file))
    return found


def relay_of(configuration: Configuration) -> Relay | None:
    """The configured relay."""
    section = configuration.relay
    if section is None:
        return None
    tokens = Tokens(section.oauth, configuration.gateway.data / TOKENS) if section.oauth is not None else None
    return Relay(section, configuration.gateway.name, tokens=tokens)


async def _proof(password_file: Path | None, tokens: Tokens | None) -> Proof:
    if tokens is not None:
        try:
            return Proof(await tokens.get(), bearer=True, forget=tokens.forget)
        except TokenError as error:
            state = State.TOKEN_EXPIRED if error.lasting else State.UNREACHABLE
            raise MailboxError(error.text, state) from None
    assert password_file is not None
    return Proof(await _password(password_file))


async def _password(path: Path) -> str:
    """Read a password, anew for each login: a person may have changed it."""
    try:
        return (await asyncio.to_thread(path.read_text, "utf-8")).rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        text = f"password_file cannot be read: {type(error).__name__}"
        raise MailboxError(text, State.LOGIN_REFUSED) from None


def _read_users(path: Path) -> Users:
    users = Users(path)
    users.load()
    return users


def _door_tls(settings: Smtp | Console | None) -> ssl.SSLContext | None:
    """The certificate of a door; None when it has none."""
    if settings is None or settings.certificate is None or settings.key_file is None:
        return None
    return server_tls(settings.certificate, settings.key_file)


def _dicom_door(configuration: Configuration) -> dict[str, Any]:
    """What the DICOM door needs of other sections, and its certificates."""
    assert configuration.storescp is not None
    tls, limits = configuration.storescp.tls, configuration.limits
    return {
        "archives": [entity.title for entity in configuration.ae.values()],
        "tls": server_tls(tls.certificate, tls.key_file, tls.ca) if tls is not None else None,
        "limits": InstanceLimits(limits.instance, limits.unpacked),
    }


def run(configuration: Configuration) -> int:
    """Serve until SIGTERM; return the exit code.

    Raises:
        ConfigurationError: A route depends on what is not built yet, or what runs would stand open.
        GatewayError: A port, the data folder or the ledger cannot be used.
    """
    blocking = [one for one in advice(configuration) if one.blocks]
    if blocking:
        raise ConfigurationError("; ".join(f"{one.key}: {one.what}" for one in blocking), hint=blocking[0].do)
    logs.configure(configuration.log.level)
    asyncio.run(Service(configuration).run())
    return 0


class Service:
    """One gateway.

    Args:
        configuration: Valid, and free of what blocks a start.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.readings = metrics.Readings()
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()
        self.http: list[HttpDoor] = []
        self._paging = False
        self._asking_idle = False
        # A reload and a look at the folders of keys take turns: who reads by an older file must not have the last word.
        self._reading = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._polling: list[asyncio.Task[None]] = []
        self._smtp: SmtpDoor | None = None
        self._storescp: StorageScpDoor | None = None
        self._users: Users | None = None
        self._accounts: Users | None = None

    @property
    def addresses(self) -> Mapping[str, tuple[str, int]]:
        """Where the doors listen, by section."""
        found = {}
        if self._smtp is not None:
            found["smtp"] = self._smtp.addresses[0]
        if self._storescp is not None:
            found["storescp"] = self._storescp.addresses[0]
        return found

    async def run(self) -> None:
        """Live: own the folder, open the ledger, recover, open the doors, serve, and stop in the opposite order."""
        data = self.configuration.gateway.data
        self._heed_signals()
        async with contextlib.AsyncExitStack() as stack:
            lock = Lock(data)
            stack.callback(lock.release)
            self.ledger = Ledger(connect(control.ledger_url(self.configuration)))
            stack.callback(self.ledger.close)
            try:
                self.spool = Spool(control.spool_root(self.configuration))
            except OSError as error:
                raise GatewayError(f"the spool cannot be used: {error.strerror}") from None
            stack.callback(self.spool.close)
            self.workers = Workers(
                READERS,
                memory=self.configuration.limits.worker_memory,
                seconds=self.configuration.limits.worker_time.total_seconds(),
            )
            stack.push_async_callback(self.workers.close)
            await self.workers.open()
            # Decoding an image may take minutes, and no mail shall wait for that.
            self.decoders = Workers(
                DECODERS,
                memory=self.configuration.limits.worker_memory,
                seconds=self.configuration.limits.worker_time.total_seconds(),
            )
            stack.push_async_callback(self.decoders.close)
            await self.decoders.open(at_once=False)
            self.scu = Scu(self.configuration)
            self._stamp = await asyncio.to_thread(keys.stamp, self.configuration)
            self.keyring = await self._load_keys(self.configuration)
            self.freshness = Freshness(self.configuration, self.ledger, self.keyring, self._inspect, self._renew_keys)
            await self.freshness.open()
            stack.push_async_callback(self.freshness.close)
            self.readings.freshness = self.freshness
            self._search_key = await asyncio.to_thread(pseudonyms.make_key, data)
            self.receive = Receive(
                self.configuration,
                self.ledger,
                self.spool,
                self._read,
                unseal=self._unseal,
                keyring=self.keyring,
                fetch=self.freshness.fetch,
                search_key=self._search_key,
            )
            self.store = Store(self.configuration, self.ledger, self.spool, self.scu, transcode=self._decode_instance)
            self._make_outbound()
            self.readings.stores, self.readings.submissions = self.store.throughput, self.submit.throughput
            self.janitor = Janitor(self.ledger, self.spool)
            self.carrier = Carrier(
                self.ledger,
                {
                    "receive": Kind(self.receive.look, LOOKS),
                    "store": Kind(self.store.look, 1000),
                    "compose": Kind(self.compose.look, COMPOSITIONS),
                    "submit": Kind(self.submit.look, 1),
                    "report": Kind(self.report.look, 1),
                },
            )
            await self._recover()
            try:
                await self._open(stack)
            except GatewayError:
                await self._end()  # a port that is in use is no crash: the next start owes nobody a grace
                raise
            await self._serve()
            await self._end()
        log.info("stopped")

    def _make_outbound(self) -> None:
        configuration = self.configuration
        relay = relay_of(configuration)
        self.compose = Compose(
            configuration, self.ledger, self.spool, relay, keyring=self.keyring, search_key=self._search_key
        )
        self.submit = Submit(configuration, self.ledger, self.spool, relay)
        self.report = Report(configuration, self.ledger, self.spool, relay)

    async def _read(self, message: Span, rules: reader.Rules, out: Path) -> Reading:
        return await self.workers.run(reader.read_to, message, rules, out)

    async def _unseal(
        self, message: Span, rules: reader.Rules, guard: unsealing.Guard, out: Path
    ) -> unsealing.Unsealed:
        return await self.workers.run(unsealing.read_protected, message, rules, guard, out)

    async def _inspect(self, path: Path, source: Source, last_update: datetime | None, now: datetime) -> Inspection:
        return await self.workers.run(inspect, path, source, last_update, now)

    async def _load_keys(self, configuration: Configuration) -> unsealing.Keyring:
        found = await asyncio.to_thread(keys.load, configuration)
        for one in found.problems:
            log.error("certificate_unusable", key=one.key)
        self._keys, self._survey_at_once = found, True
        return found.keyring

    async def _renew_keys(self) -> None:
        """Read anchors, CRLs and imported certificates anew when their folders have changed."""
        async with self._reading:
            stamp = await asyncio.to_thread(keys.stamp, self.configuration)
            if stamp != self._stamp:
                keyring = await self._load_keys(self.configuration)
                self._stamp = stamp
                self._use(keyring)

    def _use(self, keyring: unsealing.Keyring) -> None:
        self.receive.keyring = self.compose.keyring = self.freshness.keyring = keyring

    async def _survey(self, now: datetime, *, sealing: bool) -> None:
        """Look what runs out, what cannot be used, and whether mail to each partner can be sealed."""
        try:
            found = await asyncio.to_thread(partners.survey, self.configuration, self._keys, now, sealing=sealing)
        except Exception as error:  # noqa: BLE001  whatever a hostile certificate makes a library raise, all else goes on
            log.error("survey_failed", exception=type(error).__name__)  # noqa: TRY400
            return
        await self.ledger.write(lambda c: partners.note(c, found, now))
        self.readings.certificates = {one.subject: one.ends.timestamp() for one in found.lasting}

    async def _decode_instance(
        self, source: Span, transfer_syntax: str, targets: Sequence[str], out: Path
    ) -> transcode.Transcoded:
        return await self.decoders.run(transcode.transcode, source, transfer_syntax, targets, out)

    # Start

    def _heed_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def _hang_up(self) -> None:
        self._start(self._reload())

    async def _recover(self) -> None:
        now = datetime.now(UTC)
        shutil.rmtree(self.configuration.gateway.data / "scratch", ignore_errors=True)
        crashed = await self.ledger.write(lambda c: _begin(c, now))
        if crashed:
            await self.ledger.read(demand_health)
            self.store.not_before = self.submit.not_before = now + GRACE_AFTER_CRASH
            log.warning("recovered", reason="unclean-stop")
        if kind := await self.ledger.write(lambda c: restoration.begin(c, control.lanes(self.configuration), now)):
            log.warning("lanes_paused", reason=kind)
        await self.ledger.write(lambda c: self.store.part_with_removed(c, now))
        lanes = [submissions.LANE, *(f"store:{name}" for name in self.configuration.ae)]
        # Marks of a former life are doubts even where nothing waits any more: every lane looks once.
        await self.ledger.write(lambda c: tickets.put_all(c, lanes, now))
        self._told, _ = await self.ledger.read(lambda c: inventory.delivered_after(c, sys.maxsize))
        await self.janitor.reissue(now)

    async def _end(self) -> None:
        await self.ledger.write(lambda c: c.execute(delete(fact).where(fact.c.name == _RUNNING)))

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        configuration = self.configuration
        # Before anybody can ask whether we are ready.
        doors = {"smtp": configuration.smtp, "storescp": configuration.storescp}
        self.readings.doors = {name: False for name, section in doors.items() if section is not None}
        socket = control.ControlSocket(configuration.gateway.data / "control.sock", self._perform)
        await socket.open()
        stack.push_async_callback(socket.close)
        registry = metrics.registry(
            self.readings,
            lambda: self._smtp.counters if self._smtp else None,
            lambda: self._storescp.counters if self._storescp else None,
        )
        if (console := configuration.console) is not None:
            pages = self._make_pages(console, stack) if console.users_file is not None else None
            tls = _door_tls(console)
            door = HttpDoor("console", console.listen, registry=registry, ready=self._shut, tls=tls, pages=pages)
            await self._open_http(stack, door)
        if configuration.metrics is not None:
            door = HttpDoor("metrics", configuration.metrics.listen, registry=registry, ready=self._shut)
            await self._open_http(stack, door)
        if configuration.smtp is not None:
            self._smtp = self._make_smtp()
            await self._smtp.open()
            stack.push_async_callback(self._smtp.close, 0.0)
            self.readings.doors["smtp"] = True
        if configuration.storescp is not None:
            door_settings = _dicom_door(configuration)
            self._storescp = StorageScpDoor(configuration.storescp, self.compose, self._on_report, **door_settings)
            await self._storescp.open()
            stack.push_async_callback(self._storescp.close, 0.0)
            self.readings.doors["storescp"] = True
        await self._open_mailboxes()
        self.pager = Pager(configuration.notice, configuration.gateway.name)

    async def _open_mailboxes(self) -> None:
        configuration, now = self.configuration, datetime.now(UTC)
        boxes = mailboxes_of(configuration)
        await self.ledger.write(lambda c: mailboxes.retire(c, boxes, now))
        claim = await self.ledger.write(lambda c: mailboxes.claim(c, now))
        before = {one.door: one for one in await self.ledger.read(mailboxes.health)}
        limits = configuration.limits
        for door, box in boxes.items():
            kind, _, name = door.partition(".")
            section = configuration.imap[name] if kind == "imap" else configuration.pop3[name]
            rules = Rules(
                door,
                section.address,
                section.other if kind == "imap" else "leave",  # to move is to delete where there are no folders
                section.poll.total_seconds(),
                limits.message,
                limits.header,
                getattr(section, "failed", "the mailbox"),
                claim,
            )
            self.readings.polls.append(Poll(rules, box, self.ledger, self.receive, before.get(door)))

    def _make_pages(self, settings: Console, stack: contextlib.AsyncExitStack) -> Pages:
        assert settings.users_file is not None
        self._accounts = _read_users(settings.users_file)
        engine = connect_reader(control.ledger_url(self.configuration))
        stack.callback(engine.dispose)
        insight = Insight(lambda: self.configuration, self.readings, self.ledger, self._search_key, self._perform)
        secure = settings.certificate is not None or settings.behind_proxy
        return Pages(insight, engine, self._accounts, secure=secure, proxied=settings.behind_proxy)

    async def _open_http(self, stack: contextlib.AsyncExitStack, door: HttpDoor) -> None:
        await door.open()
        stack.push_async_callback(door.close)
        self.http.append(door)

    def _make_smtp(self) -> SmtpDoor:
        configuration = self.configuration
        settings = configuration.smtp
        assert settings is not None
        if settings.users_file is not None:
            self._users = _read_users(settings.users_file)
        return SmtpDoor(
            settings,
            hostname=configuration.gateway.name,
            limits=Limits(configuration.limits.message, configuration.limits.header),
            incoming=self.receive,
            tls=_door_tls(settings),
            authenticate=self._authenticate if self._users is not None else None,
        )

    async def _authenticate(self, name: str, password: str) -> bool:
        assert self._users is not None
        return await asyncio.to_thread(self._users.verify, name, password) is not None

    def _logins(self, configuration: Configuration) -> Iterator[tuple[Users, Path]]:
        """Who may log in at each open door, with the file that says so."""
        for users, section in ((self._users, configuration.smtp), (self._accounts, configuration.console)):
            if users is not None and section is not None and section.users_file is not None:
                yield users, section.users_file

    async def _on_report(self, report: commitment.Report) -> bool:
        return await self.store.report(report.transaction, report.committed, report.failed)

    def _shut(self) -> list[str]:
        return [name for name, is_open in self.readings.doors.items() if not is_open]

    # Life

    async def _serve(self) -> None:
        beat = asyncio.create_task(watchdog.beat(lambda: True))
        carrying = asyncio.create_task(self.carrier.run(), name="carrier")
        looking = asyncio.create_task(self._look_around(), name="look-around")
        self._start(self.freshness.run())
        watchdog.ready()
        self._polling = [asyncio.create_task(one.run(), name=one.rules.door) for one in self.readings.polls]
        log.info("ready", count=len(self.readings.doors))
        self.ready.set()
        stop = asyncio.create_task(self.stopping.wait())
        done, _ = await asyncio.wait({stop, carrying, looking}, return_when=asyncio.FIRST_COMPLETED)
        watchdog.stopping()
        await self._stop(carrying, looking, beat, stop)
        for task in done - {stop}:
            task.result()  # a stage that ended by itself ended badly: say so with the exit code

    async def _stop(self, carrying: asyncio.Task[None], *others: asyncio.Task[Any]) -> None:
        """Stop: no new work at once, running sends may finish, what is cut off is written down (R31)."""
        self.readings.doors = dict.fromkeys(self.readings.doors, False)
        patience = self.configuration.limits.stop.total_seconds()
        self.store.stop()
        self.submit.stop()
        self.carrier.pause()
        for task in self._polling:
            task.cancel()  # what was not taken lies where it lay
        await asyncio.gather(*self._polling, return_exceptions=True)
        if self._smtp is not None:
            await self._smtp.close(min(patience, LAST_WORDS))
        if self._storescp is not None:
            await self._storescp.close(min(patience, LAST_WORDS))
        if not await self.carrier.idle(patience):
            self.store.abort()
            self.submit.abort()
            await self.carrier.idle(LAST_WORDS)
        for task in (carrying, *others, *self._tasks):
            task.cancel()
        await asyncio.gather(carrying, *others, *self._tasks, return_exceptions=True)

    def _start(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_around(self) -> None:
        due = dict.fromkeys(("reissue", "ask", "purge", "prove", "survey", "seal"), datetime.now(UTC))
        due["prove"] += timedelta(minutes=5)
        due["ask"] += ASK_EVERY
        while True:
            try:
                await self._look_once(due)
            except (GatewayError, OSError) as error:
                log.error("look_failed", exception=type(error).__name__)  # noqa: TRY400
            await asyncio.sleep(LOOK_AROUND)

    async def _look_once(self, due: dict[str, datetime]) -> None:
        now = datetime.now(UTC)
        self.readings.free_bytes, self.readings.capacity = self.spool.free(), self.spool.capacity
        self.readings.ledger_bytes = _size_of(control.ledger_files(self.configuration))
        low = self.readings.free_bytes < self.receive.floor

        def note(connection: Connection) -> None:
            janitor.note_late(connection, now)
            janitor.note_room(connection, now, low=low)

        await self.ledger.write(note)
        await self._renew_keys()
        self.readings.census = await self.ledger.read(lambda c: inventory.census(c, now, self.configuration.ae))
        self._told, delivered = await self.ledger.read(lambda c: inventory.delivered_after(c, self._told))
        self.readings.latencies.add(delivered)
        self.readings.heartbeat = now.timestamp()
        if not self._paging:
            self._paging = True
            self._start(self._page())
        await self._chores(due, now)

    async def _page(self) -> None:
        """Tell of what nobody outside was told; a pager that hangs holds up nothing else."""
        try:
            for one in await self.ledger.read(notices.untold):
                await self.pager.page(one)
                await self.ledger.write(partial(notices.told, one=one))
            await self.report.mail_notices()
        except (GatewayError, OSError) as error:
            log.error("look_failed", exception=type(error).__name__)  # noqa: TRY400
        finally:
            self._paging = False

    async def _ask_idle(self) -> None:
        """Ask idle destinations whether they are there; one that hangs holds up nothing else."""
        try:
            await self.store.ask_idle()
        except GatewayError as error:
            log.error("look_failed", exception=type(error).__name__)  # noqa: TRY400
        finally:
            self._asking_idle = False

    async def _chores(self, due: dict[str, datetime], now: datetime) -> None:
        limits = self.configuration.limits
        if _is_due(due, "reissue", now, REISSUE_EVERY):
            await self.ledger.write(lambda c: restoration.see(c, now))
            self.readings.partners = await self.ledger.read(inventory.partners)
            await self.janitor.reissue(now)
        if _is_due(due, "ask", now, ASK_EVERY) and not self._asking_idle:
            self._asking_idle = True
            self._start(self._ask_idle())
        if _is_due(due, "purge", now, PURGE_EVERY):
            await self.janitor.purge(now, limits.retention, limits.remember)
            await self.janitor.sweep(now)
        if _is_due(due, "prove", now, PROVE_EVERY):
            await self.janitor.prove(now)
            self.readings.unaccounted, self.readings.proved = self.janitor.unaccounted, now.timestamp()
        if self._survey_at_once:
            self._survey_at_once = False
            due["survey"] = due["seal"] = now
        sealing = _is_due(due, "seal", now, SEAL_EVERY)
        if _is_due(due, "survey", now, SURVEY_EVERY) or sealing:
            await self._survey(now, sealing=sealing)

    # What a person asks of the running daemon

    async def _perform(self, verb: str, arguments: Mapping[str, Any], who: str) -> dict[str, Any]:
        if verb == "send":
            paths = [Path(path) for path in arguments["files"]]
            return {"reasons": await self.compose.take_files(arguments["partner"], paths, who)}
        if verb in partners.CHANGES:
            return await self._change_partner(verb, arguments, who)
        arguments = control.resolve_lane(self.configuration, arguments)
        scraps = await self.ledger.write(lambda c: control.change(c, verb, arguments, who))
        await asyncio.to_thread(self.spool.erase, scraps)
        log.info("operator", verb=verb, id=arguments.get("id"))
        return await self.ledger.read(lambda c: control.describe(c, arguments))

    async def _change_partner(self, verb: str, arguments: Mapping[str, Any], who: str) -> dict[str, Any]:
        now = datetime.now(UTC)
        change = await asyncio.to_thread(partners.prepare, self.configuration, verb, arguments, now)
        await self.ledger.write(lambda c: change.make(c, who, now))
        await self._renew_keys()
        log.info("operator", verb=verb, partner=arguments["partner"])
        return await asyncio.to_thread(partners.description, self.configuration, arguments["partner"], now)

    async def _reload(self) -> None:
        """Take over routes, partners, destinations, certificates and users; a bad file changes nothing (R32)."""
        await self.ready.wait()  # the file may have changed since the start read it
        async with self._reading:
            watchdog.reloading()
            try:
                new = await asyncio.to_thread(load, self.configuration.source)
                _demand_good(advice(new), "")
                # A file that is good as a whole may not be when half of it waits for a restart.
                needed, held = restart_needed(self.configuration, new), in_force(self.configuration, new)
                _demand_good(advice(held), ", as long as nobody restarts the gateway")
                await self._take_over(held, needed)
            except GatewayError as error:
                log.error("reload_refused", exc_info=error)  # noqa: TRY400
            finally:
                watchdog.ready()

    async def _take_over(self, new: Configuration, needed: Sequence[str]) -> None:
        now = datetime.now(UTC)
        # What a bad file may refuse comes before the first change: a part of a configuration is none (R32).
        to_peers = client_certificates(new)
        to_smtp, to_console = _door_tls(new.smtp), _door_tls(new.console)
        dicom = _dicom_door(new) if self._storescp is not None and new.storescp is not None else None
        users = [(one, _read_users(section)) for one, section in self._logins(new)]
        keyring = await self._load_keys(new)
        for key in needed:
            log.warning("needs_restart", key=key)
        self.scu.reload(to_peers)
        if self._smtp is not None and to_smtp is not None:
            self._smtp.tls = to_smtp
        for door in self.http:
            if door.section == "console" and to_console is not None:
                door.tls = to_console
        if self._storescp is not None and new.storescp is not None and dicom is not None:
            self._storescp.reload(new.storescp, **dicom)
        for one, read in users:
            one.follow(read)
        self.configuration = new
        self._use(keyring)
        self.freshness.reload(new)
        self.receive.reload(new)
        for stage in (self.store, self.compose, self.submit, self.report):
            stage.reload(new)
        await self.ledger.write(lambda c: self.store.part_with_removed(c, now))
        await self.janitor.reissue(now)
        log.info("reloaded")


def _demand_good(found: Iterable[Advice], when: str) -> None:
    for one in found:
        if one.blocks:
            raise ConfigurationError(f"{one.key}: {one.what}{when}")


def _begin(connection: Connection, now: datetime) -> bool:
    """Write down that a life begins; tell whether the last one ended uncleanly, and count its crashes."""
    crashed = connection.scalar(select(fact.c.value).where(fact.c.name == _RUNNING)) is not None
    running = tickets.restart(connection, now)
    if crashed:
        busy = [key.partition(":")[2] for key in running if key.startswith(("receive:", "compose:"))]
        messages.count_crashes(connection, busy, now)
        connection.execute(delete(fact).where(fact.c.name == _RUNNING))
    connection.execute(insert(fact).values(name=_RUNNING, value=now.isoformat()))
    return crashed


def _size_of(files: Sequence[Path]) -> int:
    size = 0
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def _is_due(due: dict[str, datetime], name: str, now: datetime, every: timedelta) -> bool:
    # A clock that went back must not postpone a chore for as long as it went (R29).
    if due[name] - now > every:
        due[name] = now
    if now < due[name]:
        return False
    due[name] = now + every
    return True
