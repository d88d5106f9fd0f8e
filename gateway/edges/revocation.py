"""CRLs by HTTP (RFC 5280 §4.2.1.13): asked for only at the hosts of ``smime.crl_hosts``, kept in ``<data>/crls``.

What comes is taken when the authority signed it that the certificate names, and is not older than what we have; what
does not come, or is something else, leaves everything as it was. The addresses stand in certificates whose path leads
to an anchor of ours, so nobody who mails us chooses them.

OCSP is not asked. It would be a second question to the same hosts, put here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

import httpx
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from gateway.core.cms import revocation
from gateway.core.cms.revocation import Fault, Inspection, Source
from gateway.errors import GatewayError

log = structlog.get_logger(__name__)

LONGEST: Final = 32 << 20
"""Bytes of a CRL: a big authority's has some hundred thousand entries."""

DEADLINE: Final = 60.0
"""Seconds for the whole of a question, its redirects included."""

AT_ONCE: Final = 4
"""Questions at the same time."""

REDIRECTS: Final = 3

MOST: Final = 500
"""Sources that are remembered."""

FORGET: Final = timedelta(days=60)
"""After this time a source that nothing in use names, and no mail brought, is asked no more, and its file removed."""

BLOCK: Final = 1 << 16


class Inspect(Protocol):
    """Looks at a file that came, somewhere it can do no harm."""

    def __call__(
        self, path: Path, source: Source, last_update: datetime | None, now: datetime
    ) -> Awaitable[Inspection]:
        """Tell what it is."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a source.

    Attributes:
        source: It.
        wanted: When something in use or a mail last named it.
        last_update: Of the CRL that we have; None without any.
        next_update: Likewise.
        etag: As its server gave it, to ask whether there is a newer one.
        modified: Likewise.
        failures: Questions in a row that brought nothing.
        fault: Why, the last time; None when it went well, or was not asked yet.
        due: When it is asked next; None: at once.
    """

    source: Source
    wanted: datetime
    last_update: datetime | None = None
    next_update: datetime | None = None
    etag: str = ""
    modified: str = ""
    failures: int = 0
    fault: Fault | None = None
    due: datetime | None = None


class _FaultError(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


@dataclass(slots=True)
class _Answer:
    changed: bool
    etag: str = ""
    modified: str = ""


@dataclass(slots=True)
class CrlFetcher:
    """Keeps CRLs fresh.

    Args:
        folder: Where they are kept; made when it is needed.
        hosts: Who may be asked.
        inspect: Looks at what came.
        dice: Gives numbers in [0, 1).
        deadline: Seconds for a question.
        longest: Bytes of a CRL.
        clock: Tells the time.
    """

    folder: Path
    hosts: tuple[str, ...]
    inspect: Inspect
    dice: Callable[[], float]
    deadline: float = DEADLINE
    longest: int = LONGEST
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    records: dict[str, Record] = field(default_factory=dict)
    _busy: dict[str, asyncio.Task[bool]] = field(default_factory=dict)
    _free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    def load(self) -> None:
        """Remember what a former life knew. Blocks."""
        self.records = {one.source.name: one for one in _records(self.folder)}

    async def learn(self, sources: Iterable[Source], now: datetime) -> None:
        """Remember that these are in use."""
        for one in sources:
            known = self.records.get(one.name)
            if known is None and len(self.records) >= MOST:
                continue  # those that are remembered are in use all the same
            if known is None or now - known.wanted > timedelta(days=1):
                await self._keep(replace(known, wanted=now) if known else Record(one, now))

    async def fetch(self, sources: Iterable[Source]) -> bool:
        """Ask these, when their time has come and they did not fail; tell whether a new CRL came.

        For what failed nobody waits: ``renew`` asks it again, and a host that hangs delays mail once.
        """
        now = self.clock()
        wanted = list(dict.fromkeys(sources))
        await self.learn(wanted, now)
        known = [self.records[one.name] for one in wanted if one.name in self.records]
        return await self._ask_all([one.source.name for one in known if not one.failures], now)

    async def renew(self) -> bool:
        """Ask all whose time has come, and forget those that nobody needs; tell whether a new CRL came."""
        now = self.clock()
        for name, one in list(self.records.items()):
            if now - one.wanted > FORGET:
                del self.records[name]
                await asyncio.to_thread(self._remove, name)
        return await self._ask_all(list(self.records), now)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Everything that is remembered."""
        return tuple(one.source for one in self.records.values())

    async def _ask_all(self, names: Sequence[str], now: datetime) -> bool:
        asked = [self._start(name) for name in names if self._is_due(self.records[name], now)]
        # Whoever waits may be given up; the question is not, since others may wait for it too.
        return any(await asyncio.gather(*(asyncio.shield(one) for one in asked)))

    def _is_due(self, record: Record, now: datetime) -> bool:
        if not record.source.is_allowed(self.hosts):
            return False
        # A clock that went back must not silence us for as long as it went (R29).
        return record.due is None or now >= record.due or record.due - now > 2 * revocation.LATEST

    def _start(self, name: str) -> asyncio.Task[bool]:
        if name not in self._busy:
            task = asyncio.create_task(self._ask(name), name=f"crl {name}")
            self._busy[name] = task
            task.add_done_callback(lambda _: self._busy.pop(name, None))
        return self._busy[name]

    async def close(self) -> None:
        """Ask nobody any more."""
        for task in list(self._busy.values()):
            task.cancel()
        await asyncio.gather(*self._busy.values(), return_exceptions=True)

    async def _ask(self, name: str) -> bool:
        record, now = self.records[name], self.clock()
        draft = self.folder / f"{name}.part"
        try:
            async with self._free, asyncio.timeout(self.deadline):
                await asyncio.to_thread(_make, self.folder)
                answer = await self._get(record, draft)
            found = Inspection(None, record.last_update, record.next_update)
            if answer.changed:
                found = await self._take(record, draft, now)
        except (
            _FaultError,
            TimeoutError,
            httpx.HTTPError,
            httpx.InvalidURL,
            OSError,
            ValueError,
            GatewayError,
        ) as error:
            self._failed(name, _fault(error), now)
            return False
        finally:
            await asyncio.to_thread(draft.unlink, missing_ok=True)
        due = now + revocation.after_success(found, now, self.dice())
        await self._keep(
            replace(
                self.records.get(name, record),
                last_update=found.last_update,
                next_update=found.next_update,
                etag=answer.etag,
                modified=answer.modified,
                failures=0,
                fault=None,
                due=due,
            )
        )
        log.info("crl_fetched", state="new" if answer.changed else "same")
        return answer.changed

    async def _take(self, record: Record, draft: Path, now: datetime) -> Inspection:
        """Put what came in the place of what we have, when it is a CRL of its issuer."""
        found = await self.inspect(draft, record.source, record.last_update, now)
        if found.fault is not None:
            raise _FaultError(found.fault)
        await asyncio.to_thread(_promote, draft, self.folder / f"{record.source.name}.crl")
        return found

    def _failed(self, name: str, fault: Fault, now: datetime) -> None:
        record = self.records.get(name)
        if record is None:
            return
        failures = record.failures + 1
        due = now + revocation.after_failure(failures, self.dice())
        self.records[name] = replace(record, failures=failures, fault=fault, due=due)
        log.warning("crl_not_fetched", reason=str(fault), attempts=failures)

    async def _get(self, record: Record, draft: Path) -> _Answer:
        """Write what a source has into a file, when it is another one than ours."""
        url = record.source.url
        headers = {"Accept-Encoding": "identity", "Accept": "application/pkix-crl, */*;q=0.1"}
        if record.next_update is not None and (self.folder / f"{record.source.name}.crl").exists():
            headers |= {"If-None-Match": record.etag} if record.etag else {}
            headers |= {"If-Modified-Since": record.modified} if record.modified else {}
        # A proxy is taken from the environment, as everybody does; whom it asks for us stands in the configuration.
        async with httpx.AsyncClient(timeout=self.deadline, follow_redirects=False) as client:
            for _ in range(REDIRECTS + 1):
                async with client.stream("GET", url, headers=headers) as response:
                    if response.has_redirect_location:
                        url = str(response.url.join(response.headers["location"]))
                        if not revocation.is_allowed(url, self.hosts):
                            raise _FaultError(Fault.REDIRECTED)
                        continue
                    if response.status_code == httpx.codes.NOT_MODIFIED and len(headers) > 2:
                        return _Answer(changed=False, etag=record.etag, modified=record.modified)
                    if response.status_code != httpx.codes.OK:
                        raise _FaultError(Fault.REFUSED)
                    await self._write(response, draft)
                    given = (response.headers.get(one, "")[:200] for one in ("etag", "last-modified"))
                    return _Answer(True, *given)
        raise _FaultError(Fault.REDIRECTED)

    async def _write(self, response: httpx.Response, draft: Path) -> None:
        announced = response.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self.longest:
            raise _FaultError(Fault.TOO_LONG)
        left = self.longest
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            # Raw: what a server packs is no CRL to us, and cannot be a bomb.
            async for block in response.aiter_raw(BLOCK):
                left -= len(block)
                if left < 0:
                    raise _FaultError(Fault.TOO_LONG)
                await asyncio.to_thread(_write_all, file, block)
            await asyncio.to_thread(os.fsync, file)
        finally:
            os.close(file)

    async def _keep(self, record: Record) -> None:
        """Remember a source, also for the next life."""
        self.records[record.source.name] = record
        with contextlib.suppress(OSError):  # a full disk: it is learned again
            await asyncio.to_thread(_write_record, self.folder, record)

    def _remove(self, name: str) -> None:
        for suffix in (".crl", ".json"):
            (self.folder / f"{name}{suffix}").unlink(missing_ok=True)


def _fault(error: Exception) -> Fault:
    if isinstance(error, _FaultError):
        return error.fault
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return Fault.TOO_SLOW
    if isinstance(error, OSError):
        return Fault.NO_ROOM
    # A worker that died over it, or took too long, was given something that no authority makes.
    return Fault.UNREACHABLE if isinstance(error, httpx.HTTPError) else Fault.MALFORMED


# Files


def _make(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write_all(file: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(file, view) :]


def _promote(draft: Path, path: Path) -> None:
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_record(folder: Path, record: Record) -> None:
    _make(folder)
    values = {
        "url": record.source.url,
        "issuer": base64.b64encode(record.source.issuer).decode("ascii"),
        "is_ca": record.source.is_ca,
        "wanted": record.wanted.isoformat(),
        "last_update": record.last_update and record.last_update.isoformat(),
        "next_update": record.next_update and record.next_update.isoformat(),
        "etag": record.etag,
        "modified": record.modified,
    }
    path = folder / f"{record.source.name}.json"
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(values), "utf-8")
    draft.replace(path)


def _records(folder: Path) -> Iterator[Record]:
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob("*.json"))[:MOST]:
            with contextlib.suppress(
                OSError, ValueError, KeyError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion
            ):
                values = json.loads(path.read_text("utf-8"))
                source = Source(str(values["url"]), base64.b64decode(values["issuer"]), bool(values["is_ca"]))
                x509.load_der_x509_certificate(source.issuer).public_key()
                wanted = revocation.moment(values["wanted"])
                if source.name != path.stem or wanted is None:
                    continue  # nobody else's file
                yield Record(
                    source,
                    wanted,
                    revocation.moment(values["last_update"]),
                    revocation.moment(values["next_update"]),
                    str(values["etag"]),
                    str(values["modified"]),
                )


def remembered(folder: Path) -> tuple[Source, ...]:
    """The sources that a gateway with this folder learned. Blocks."""
    return tuple(one.source for one in _records(folder))
