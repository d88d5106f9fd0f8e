"""What a browser sends to us: a small form, and proof that a page of ours made it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

LONGEST: Final = 8 << 10
"""Bytes of a form."""

FIELDS: Final = 16

TOKEN: Final = "token"  # noqa: S105  the name of a field
"""The field that proves where a form comes from."""


async def read(request: Request) -> Mapping[str, str]:
    """Read a form.

    Raises:
        HTTPException: It is none, it is too long, or another site sent it.
    """
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise HTTPException(403, "Another site sent this form; nothing was done.")
    if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
        raise HTTPException(415, "This is no form.")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LONGEST:
            raise HTTPException(413, "This form is too long.")
    try:
        return dict(parse_qsl(body.decode("utf-8"), max_num_fields=FIELDS, keep_blank_values=True, errors="strict"))
    except (ValueError, UnicodeError):
        raise HTTPException(400, "This form cannot be read.") from None


def demand(form: Mapping[str, str], token: str) -> None:
    """Make sure that a form bears its token.

    Raises:
        HTTPException: It does not: another site made it, or the session it was made in is over.
    """
    if not hmac.compare_digest(form.get(TOKEN, "").encode("utf-8", "surrogatepass"), token.encode()):
        raise HTTPException(403, "This form is not of this session; nothing was done. Open the page again.")


class Seal:
    """Binds the form of somebody who has no session yet to a cookie of his browser."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def cookie(self) -> str:
        """Make a value for the cookie."""
        return secrets.token_urlsafe(32)

    def token(self, cookie: str) -> str:
        """The token that goes with a cookie."""
        return hmac.new(self._key, cookie.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
