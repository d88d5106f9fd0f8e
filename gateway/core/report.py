"""What a mail is, judged by its header: a report that somebody's machine wrote is no study (AMB-37)."""

from __future__ import annotations

from typing import Final

from gateway.core.mime import Head

_REPLIED: Final = ("auto-replied",)


def is_report(head: Head) -> bool:
    """Tell whether a mail is a report (RFC 6522): a DSN, an MDN or alike, whatever it carries back."""
    return head.type == "multipart/report"


def is_reply(head: Head) -> bool:
    """Tell whether a machine replied (RFC 3834 §5). ``auto-generated`` decides nothing: our own mails bear it."""
    return head.auto_submitted.startswith(_REPLIED)


def is_fragment(head: Head) -> bool:
    """Tell whether a mail is a piece of a bigger one (RFC 2046 §5.2.2)."""
    return head.type == "message/partial"
