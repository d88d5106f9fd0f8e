"""The socket below an association: its deadlines, its TLS, and the PDUs that come out of it.

No thread but the caller's touches it, every wait ends, and another thread can end it at once.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from gateway.core import dimse
from gateway.errors import PeerUnreachableError

CLOSED: Final = "closed"
TIMEOUT: Final = "timeout"
"""The texts of a DroppedError when the peer ended the connection, and when the moment came."""

_NO_TLS: Final = "it does not speak TLS on this port"
_NONE_SHOWN: Final = "it wants a certificate of ours and was shown none that it takes"

_TLS_REASONS: Final = {
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
    "PACKET_LENGTH_TOO_LONG": _NO_TLS,
    "UNEXPECTED_EOF_WHILE_READING": "it ended the TLS handshake without a word: does it speak TLS on this port?",
    "UNSUPPORTED_PROTOCOL": "it offers nothing newer than TLS 1.1",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it offers nothing newer than TLS 1.1",
    "NO_PROTOCOLS_AVAILABLE": "it offers nothing newer than TLS 1.1",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _NONE_SHOWN,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": f"no cipher in common, or {_NONE_SHOWN}",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not take our certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it does not take our certificate for this use",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it says that our certificate was revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not take our certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the authority of our certificate",
    "TLSV1_ALERT_ACCESS_DENIED": "it does not let us in with our certificate",
}
"""What OpenSSL calls a failure, in words for a person; what is not listed is said as it is called."""

_VERIFY_REASONS: Final = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "its certificate is signed by itself and not among the authorities we trust",
    19: "its certificate is of an authority we do not trust",
    20: "its certificate is of an authority we do not trust",
    21: "its certificate is of an authority we do not trust",
    62: "its certificate is for another name than the host we call",
    64: "its certificate is for another address than the host we call",
}
"""Verify codes of OpenSSL (X509_V_ERR_*), likewise."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An application entity that we call.

    Attributes:
        title: Its AE title.
        host: Address, or a name, which is resolved within the system's own time-outs.
        port: TCP port.
        calling: Our own AE title.
        timeout: Seconds for each step: connecting (to each address of the host), TLS, the answer to a request.
        max_pdu: The longest PDU we want to receive (PS3.8 Annex D.1), in bytes.
        tls: How to secure the connection; None for a plain one.
    """

    title: str
    host: str
    port: int
    calling: str
    timeout: float
    max_pdu: int = 131072
    tls: ssl.SSLContext | None = None


class DroppedError(Exception):
    """The association is over; the text says by what, as a PDU's name or a few words."""


class Wire:
    """A connected socket, its deadlines, and the PDUs that come out of it.

    Attributes:
        patience: Seconds of silence that are borne while something is sent.
        open: Whether it may still be used.
    """

    def __init__(self, connection: socket.socket, patience: float) -> None:
        self.patience = patience
        self.open = True
        self._socket = connection
        self._inbox = dimse.Inbox()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._midway = False

    def write(self, block: bytes | bytearray | memoryview, until: float) -> None:
        """Send all of a block before a moment of the monotonic clock, some of it in every ``patience`` seconds."""
        view = memoryview(block)
        self._midway = True
        try:
            while view:
                self._wait(until)
                view = view[self._socket.send(view) :]
        except OSError as error:
            raise DroppedError(self._farewell() or _cause(error)) from None
        self._midway = False

    def read(self, until: float) -> dimse.Pdu:
        """Wait for the next PDU until a moment of the monotonic clock."""
        while (pdu := self._inbox.take()) is None:
            try:
                self._wait(until)
                self._receive()
            except OSError as error:
                raise DroppedError(_cause(error)) from None
        return pdu

    def spoken(self) -> int | None:
        """Tell the type of the PDU that the peer sent when it was not its turn; None without one. Does not wait."""
        if self._inbox.next_type is None and self._poll.poll(0):
            try:
                self._socket.settimeout(0)
                self._receive()
            except (BlockingIOError, ssl.SSLWantReadError):
                pass  # TLS traffic of its own, as session tickets
            except OSError as error:
                raise DroppedError(_cause(error)) from None
        return self._inbox.next_type

    def close(self) -> None:
        """Close in good order."""
        self.open = False
        if isinstance(self._socket, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):
                self._socket.settimeout(0)
                self._socket.unwrap()  # says close_notify and waits for nothing
        self._socket.close()

    def drop(self) -> None:
        """Close at once, with an A-ABORT where the peer can tell it from data."""
        if not self.open:
            return
        with contextlib.suppress(OSError):
            if self._midway:
                # What the kernel still holds is thrown away with a reset: a dead peer shall not keep memory for long.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                self._socket.settimeout(0)
                self._socket.send(dimse.ABORT)
        self.close()

    @property
    def certificate_ends(self) -> datetime | None:
        """When the certificate that the peer showed expires; None without TLS."""
        shown = self._socket.getpeercert() if isinstance(self._socket, ssl.SSLSocket) else None
        if not shown:
            return None
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)

    def interrupt(self) -> None:
        """End every wait of the thread that uses it, from another thread; the descriptor stays that thread's."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # below TLS, whose own shutdown is not for threads

    def _wait(self, until: float) -> None:
        remaining = until - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._socket.settimeout(min(remaining, self.patience))

    def _receive(self) -> None:
        block = self._socket.recv(1 << 16)
        if not block:
            raise ConnectionError
        self._inbox.add(block)

    def _farewell(self) -> str:
        """Name the A-ABORT that a peer sent before it closed, when writing failed; empty without one."""
        with contextlib.suppress(DroppedError, dimse.ProtocolError):
            if self.spoken() == dimse.A_ABORT:
                return self.read(time.monotonic()).name
        return ""


def _cause(error: OSError) -> str:
    if isinstance(error, ssl.SSLEOFError):
        return CLOSED
    if isinstance(error, ssl.SSLError):
        return _reason(error)
    if isinstance(error, TimeoutError):
        return TIMEOUT
    if isinstance(error, ConnectionError):
        return CLOSED
    return type(error).__name__


def connect(peer: Peer) -> Wire:
    """Connect, by TLS where the peer is called so: certificate and name checked, or no connection (TLS-3, TLS-4).

    Raises:
        PeerUnreachableError: Nobody answers there, or not as somebody we trust.
    """
    try:
        connection = socket.create_connection((peer.host, peer.port), peer.timeout)
    except OSError as error:
        raise unreachable(peer, f"cannot be reached: {_reason(error)}") from None
    try:
        # Each C-STORE is one small message each way; Nagle's algorithm would hold every one back for some 40 ms.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if peer.tls is not None:
            connection = peer.tls.wrap_socket(connection, server_hostname=peer.host)
    except (OSError, ValueError) as error:  # ValueError: a host that cannot be the name in a certificate
        connection.close()
        reason = _reason(error) if isinstance(error, OSError) else str(error)
        raise unreachable(peer, f"cannot be reached by TLS: {reason}") from None
    return Wire(connection, peer.timeout)


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_REASONS.get(error.verify_code, error.verify_message)
    if isinstance(error, ssl.SSLError):
        return _TLS_REASONS.get(error.reason or "", error.reason or type(error).__name__)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or type(error).__name__


def unreachable(peer: Peer, text: str) -> PeerUnreachableError:
    """Word what stands between us and a peer."""
    return PeerUnreachableError(f"{peer.title} at {peer.host}:{peer.port} {text}")
