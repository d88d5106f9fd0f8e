"""CRLs at work: those in use are fetched before they end, those a mail needs at once, and a person is told of gaps."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from gateway import keys
from gateway.config import Configuration
from gateway.core.cms import revocation
from gateway.core.cms.revocation import Coverage, Source
from gateway.core.unsealing import Keyring
from gateway.edges.revocation import CrlFetcher, Inspect, Record
from gateway.ledger import revocations
from gateway.ledger.ledger import Ledger

log = structlog.get_logger(__name__)

PATIENCE: Final = 20.0
"""Seconds that a mail waits for a CRL. Whoever does not answer in them is left alone for a while, and no mail waits."""

LOOK: Final = 5.0
"""Seconds between two looks at which CRL is due."""

COVER_EVERY: Final = timedelta(minutes=1)
FIND_EVERY: Final = timedelta(hours=1)
"""Between two looks for the paths of all certificates, when none of them changed."""


class Freshness:
    """The CRLs of one gateway.

    Args:
        configuration: In force now.
        ledger: Where it is written down since when nobody knows.
        keyring: The certificates in use; replaced when they change.
        inspect: Looks at what was fetched.
        renew: Reads the folders anew.

    Attributes:
        coverage: What is known of each issuer.
    """

    def __init__(
        self,
        configuration: Configuration,
        ledger: Ledger,
        keyring: Keyring,
        inspect: Inspect,
        renew: Callable[[], Awaitable[None]],
    ) -> None:
        self.keyring = keyring
        self.coverage: tuple[Coverage, ...] = ()
        self._ledger = ledger
        self._renew = renew
        self._fetcher = CrlFetcher(keys.fetched(configuration), (), inspect, random.random)
        self._certificates: object = None
        self._covered: Keyring | None = None
        self._find_at = self._cover_at = datetime.min.replace(tzinfo=UTC)
        self.reload(configuration)

    def reload(self, configuration: Configuration) -> None:
        """Ask only the hosts of another configuration from now on."""
        settings = configuration.smime
        wanted = settings is not None and settings.revocation != "off"
        self._fetcher.hosts = settings.crl_hosts if settings is not None and wanted else ()

    @property
    def asked(self) -> tuple[Record, ...]:
        """The sources that may be asked."""
        return tuple(one for one in self._fetcher.records.values() if one.source.is_allowed(self._fetcher.hosts))

    async def open(self) -> None:
        """Remember what a former life knew."""
        await asyncio.to_thread(self._fetcher.load)

    async def close(self) -> None:
        """Ask nobody any more."""
        await self._fetcher.close()

    async def fetch(self, sources: Sequence[Source]) -> None:
        """Ask for CRLs that a mail needs. When one comes the keyring is a new one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                if await self._fetcher.fetch(sources):
                    await self._renew()

    async def run(self) -> None:
        """Keep CRLs fresh, until cancelled."""
        while True:
            try:
                await self._look(datetime.now(UTC))
            except Exception as error:  # noqa: BLE001  nobody foresaw it: CRLs must be kept fresh all the same
                log.error("look_failed", exception=type(error).__name__)  # noqa: TRY400
            await asyncio.sleep(LOOK)

    async def _look(self, now: datetime) -> None:
        ring = self.keyring
        certificates = (ring.identities, ring.partners, ring.trust.anchors)
        if certificates != self._certificates or not timedelta() <= now - self._find_at < FIND_EVERY:
            found = await asyncio.to_thread(keys.sources, ring, now)
            await self._fetcher.learn(found, now)
            self._certificates, self._find_at = certificates, now
        if await self._fetcher.renew():
            await self._renew()
        if self.keyring is not self._covered or not timedelta() <= now - self._cover_at < COVER_EVERY:
            await self._cover(now)

    async def _cover(self, now: datetime) -> None:
        ring = self.keyring
        covers = await asyncio.to_thread(revocation.coverage, self._fetcher.sources, ring.trust, now)
        await self._ledger.write(lambda connection: revocations.note(connection, covers, now))
        self.coverage, self._covered, self._cover_at = covers, ring, now
