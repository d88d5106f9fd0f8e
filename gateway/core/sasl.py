"""Initial responses of SASL mechanisms: how a name and a secret are written (RFC 4616, RFC 7628)."""

from __future__ import annotations

from base64 import b64encode


def plain(user: str, password: str) -> str:
    """PLAIN (RFC 4616), in base64. Only ever sent under TLS, or to this machine."""
    return _encoded(f"\0{user}\0{password}")


def xoauth2(user: str, token: str) -> str:
    """XOAUTH2, the older form of Google and Microsoft, in base64 (IMAP-11)."""
    return _encoded(f"user={user}\1auth=Bearer {token}\1\1")


def oauthbearer(user: str, token: str, host: str, port: int) -> str:
    """OAUTHBEARER (RFC 7628 §3.1), in base64 (IMAP-11)."""
    name = user.replace("=", "=3D").replace(",", "=2C")  # RFC 5801 §4
    return _encoded(f"n,a={name},\1host={host}\1port={port}\1auth=Bearer {token}\1\1")


DUMMY = "AQ=="
"""What answers the JSON of a failed OAUTHBEARER, so that the refusal itself comes (RFC 7628 §3.2.3); to XOAUTH2 it is
an empty line."""


def _encoded(text: str) -> str:
    return b64encode(text.encode()).decode("ascii")
