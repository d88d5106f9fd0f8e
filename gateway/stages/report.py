"""REPORT: what people are told by mail: notices to our own postmaster, and one neutral word to a partner.

Everything goes with the null sender, so that nothing can come back for it, and bears the marks of a machine: there is
no loop. Nothing in it is about a patient (R35). A relay that is down is not asked again at once; what was to be told
waits in the ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from gateway.config import Configuration
from gateway.core import dsn, routing
from gateway.core.dsn import Notification
from gateway.errors import RelayError
from gateway.ledger import messages, notices, submissions
from gateway.ledger.ledger import Ledger
from gateway.ledger.notices import Notice
from gateway.ledger.spool import Spool
from gateway.model import Mail, Span, Submission, utc
from gateway.stages.submit import Relay

log = structlog.get_logger(__name__)

PAUSE: Final = timedelta(minutes=1)
"""Until a relay is asked again that did not take a word of ours."""

MOST_AT_ONCE: Final = 50
"""Notices in one mail."""


class Report:
    """The stage: what the service and the carrier call.

    Args:
        configuration: In force now; replaced by ``reload``.
        ledger: The tables.
        spool: Where a mail lies while it is submitted.
        relay: How the relay is reached; None without one.
    """

    def __init__(self, configuration: Configuration, ledger: Ledger, spool: Spool, relay: Relay | None) -> None:
        self.configuration = configuration
        self.ledger = ledger
        self.spool = spool
        self._relay = relay
        self._not_before = datetime.fromtimestamp(0, UTC)

    def reload(self, configuration: Configuration) -> None:
        """Use another configuration from now on."""
        self.configuration = configuration

    # Notices

    async def mail_notices(self) -> None:
        """Mail the postmaster what was opened or closed since the last time, all of it in one mail (R33)."""
        now = datetime.now(UTC)
        found = await self.ledger.read(lambda c: notices.unmailed(c, MOST_AT_ONCE))
        if not found or now < self._not_before < now + 2 * PAUSE:
            return
        if self._relay is None or await self._post_notices(found, now):
            await self.ledger.write(lambda c: notices.mailed(c, found))
        else:
            self._not_before = now + PAUSE

    async def _post_notices(self, found: Sequence[Notice], now: datetime) -> bool:
        gateway, relay = self.configuration.gateway, self.configuration.relay
        assert relay is not None
        # The same notices have the same Message-ID: a mail in doubt that is repeated can be known.
        states = "".join(f"{one.id}{'-' if one.closed_at else '+'}" for one in found)
        word = hashlib.sha256(f"{states}{utc(found[0].opened_at)}".encode()).hexdigest()[:24]
        subject = f"{gateway.name}: {_headline(found)}"
        text = "\n".join(_paragraph(one) for one in found) + "\nAll that is open: dicom-mail check\n"
        ours = f"<notice.{word}@{gateway.name}>"
        content = dsn.write_notice(relay.sender, gateway.postmaster, ours, now, gateway.name, subject, text)
        answer = await self._post(content, gateway.postmaster)
        if answer is None or answer.doubtful:
            return False
        reply = answer.replies[0][1]
        if not reply.good:
            log.warning("notice_refused", status=reply.code)
        return reply.good or reply.permanent  # what is refused for good stays visible here; no notice of a notice

    # A word to a partner

    async def look(self, key: str) -> datetime | None:
        """Tell a partner, once, that its mail was not forwarded; return when to try again."""
        row = await self.ledger.read(lambda c: messages.trouble(c, key))
        now = datetime.now(UTC)
        if row is None or self._relay is None or not self._may_be_told(row):
            return None
        if (await self.ledger.read(submissions.condition)).paused:
            return now + PAUSE  # after a restore nobody knows who was told
        relay, gateway = self.configuration.relay, self.configuration.gateway
        assert relay is not None
        code, to = row.code or str(row.outcome), row.recipients[0] if row.recipients else relay.sender
        ours = f"<{key}.report@{gateway.name}>"
        one = Notification(
            relay.sender, row.sender, to, ours, row.message_id, now, gateway.name, row.outcome, code, *row.counts, key
        )
        answer = await self._post(dsn.write(one), row.sender)
        if answer is None or (answer.replies and not (answer.replies[0][1].good or answer.replies[0][1].permanent)):
            return now + PAUSE
        # At most once: one in doubt is not repeated, since its next would be one too many.
        await self.ledger.write(lambda c: messages.told_sender(c, key, now))
        log.info("sender_told", id=key, outcome=row.outcome, code=row.code)
        return None

    def _may_be_told(self, row: messages.Trouble) -> bool:
        """Whether a word goes where the mail came from: strangers get none, and nobody who was only named (DSN-4)."""
        partner = self.configuration.partner.get(row.partner)
        if partner is None or not row.sender.isascii() or not row.sender.isprintable():
            return False
        domain = row.sender.rpartition("@")[2].casefold()
        return routing.matches(partner.address, row.sender) or domain == partner.address.rpartition("@")[2].casefold()

    async def _post(self, content: bytes, recipient: str) -> Submission | None:
        """Submit a small mail; None when the relay cannot be used now."""
        assert self._relay is not None
        draft = self.spool.draft()
        try:
            draft.path.write_bytes(content)
            span = Span(draft.path, 0, len(content))
            return await self._relay.submit(Mail(span, "", (recipient,)))
        except RelayError as error:
            log.warning("word_not_posted", exception=type(error).__name__)
            return None
        finally:
            draft.discard()


def _headline(found: Sequence[Notice]) -> str:
    if len(found) > 1:
        return f"{len(found)} notices"
    return f"{found[0].kind} {'closed' if found[0].closed_at else 'opened'}"


def _paragraph(one: Notice) -> str:
    since = f"since {utc(one.opened_at)}"
    if one.closed_at is not None:
        return f"CLOSED  {one.text}\n        {since}, until {utc(one.closed_at)}\n"
    return f"OPEN    {one.text}\n        {since}\n" + (f"        {one.hint}\n" if one.hint else "")
