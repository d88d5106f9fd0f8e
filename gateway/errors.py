"""Every error the gateway raises on purpose: what happened, and what a person can do about it.

The exit codes are part of the outer contract: 1 the work failed, 2 usage or configuration, 3 only a peer is
unreachable. The text is safe to print and to log: it never holds patient data.
"""

from __future__ import annotations

from typing import ClassVar


class GatewayError(Exception):
    """The root of the gateway's own errors.

    Attributes:
        text: One line that says what happened, without patient data.
        hint: What the reader can do about it; empty when the text says it all.
        exit_code: What the command line ends with when nobody handles the error.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, text: str, *, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.text} ({self.hint})" if self.hint else self.text


class ConfigurationError(GatewayError):
    """The configuration cannot be used as it stands."""

    exit_code = 2


class UsageError(GatewayError):
    """The command was called in a way that has no meaning."""

    exit_code = 2


class PeerUnreachableError(GatewayError):
    """Nothing is wrong here, but a peer does not answer."""

    exit_code = 3


class RelayError(PeerUnreachableError):
    """The mail relay cannot be used now; no mail was given to it whole.

    Attributes:
        lasting: It will not pass by itself: a name, a certificate or a password is wrong. A person is told at once.
        within: It came in the middle of a mail, which may have brought it about.
    """

    def __init__(self, text: str, *, lasting: bool = False, hint: str = "", within: bool = False) -> None:
        super().__init__(text, hint=hint)
        self.lasting = lasting
        self.within = within


class MailboxError(PeerUnreachableError):
    """A mailbox cannot be used now.

    Attributes:
        state: What is the matter, as one of ``core.mailbox.State``.
    """

    def __init__(self, text: str, state: str, *, hint: str = "") -> None:
        super().__init__(text, hint=hint)
        self.state = state


class TokenError(PeerUnreachableError):
    """No access token can be got now, so nobody can be logged in to with one.

    Attributes:
        lasting: It will not pass by itself: a secret has run out, or a consent was withdrawn.
    """

    def __init__(self, text: str, *, lasting: bool = False, hint: str = "") -> None:
        super().__init__(text, hint=hint)
        self.lasting = lasting


class FolderInUseError(GatewayError):
    """Another process owns the data folder."""


class LedgerError(GatewayError):
    """The ledger cannot be opened or does not keep what it is told."""


class LowDiskError(GatewayError):
    """There is not enough free space to take in new work (R5). Always temporary."""


class WorkerError(GatewayError):
    """A worker process died, ran out of its memory or overran its time on one piece of work."""


class RefusedError(GatewayError):
    """A message that is not taken, with the reply its peer gets (RFC 5321 §4.2).

    Attributes:
        code: The SMTP reply code: 4yz the peer shall try again, 5yz it shall not (R6).
        status: The enhanced status code, as ``5.7.1`` (RFC 3463).
    """

    def __init__(self, code: int, status: str, text: str, *, hint: str = "") -> None:
        super().__init__(text, hint=hint)
        self.code = code
        self.status = status

    @property
    def reply(self) -> str:
        """The whole reply line, without its line end."""
        return f"{self.code} {self.status} {self.text}"


class AssociationRejectedError(GatewayError):
    """A peer answered the association request with A-ASSOCIATE-RJ (PS3.8 §9.3.4).

    Attributes:
        permanent: It will say so again until somebody changes it or us: open the breaker and alarm (NET-5).
        reason: The standard's words for its reason.
    """

    def __init__(self, text: str, *, permanent: bool, reason: str, hint: str = "") -> None:
        super().__init__(text, hint=hint)
        self.permanent = permanent
        self.reason = reason
