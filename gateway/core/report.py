"""What a mail is, judged by its header: a report that somebody's machine wrote is no study (AMB-37).

Two questions, since a mistake costs an image: what surely is a report is never looked into, whatever images it carries
back; what looks like the answer of a machine is one only if no DICOM is in it.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.core.mime import Head

_REPORTS: Final = ("multipart/report", "message/delivery-status", "message/disposition-notification")
_REPLIED: Final = ("auto-replied", "auto-notified")
_DAEMON: Final = re.compile(r"(?:^|[\s<\"(])mailer-daemon\b", re.IGNORECASE)
_POSTMASTER: Final = re.compile(r"(?:^|[\s<\"(])postmaster@", re.IGNORECASE)
_NULL: Final = "<>"
_REPLYING: Final = ("auto_reply", "auto-reply", "autoreply")


def is_report(head: Head) -> bool:
    """Tell whether a mail is a report: a DSN, an MDN or alike (RFC 6522), or a bounce from before there were such.

    A bounce is known by the address that none but mail systems write from, and by Exim's list of those who failed.
    """
    by_daemon = _DAEMON.search(head.sender) or _DAEMON.search(head.return_path)
    return head.type in _REPORTS or head.failed or bool(by_daemon)


def is_reply(head: Head) -> bool:
    """Tell whether a machine replied (RFC 3834 §5), let nobody answer (RFC 5321 §4.5.5), or wrote as postmaster.

    ``auto-generated`` decides nothing: our own mails bear it.
    """
    replied = head.auto_submitted.startswith(_REPLIED) or head.precedence in _REPLYING
    return replied or head.return_path == _NULL or bool(_POSTMASTER.search(head.sender))


def is_fragment(head: Head) -> bool:
    """Tell whether a mail is a piece of a bigger one (RFC 2046 §5.2.2)."""
    return head.type == "message/partial"
