"""The arguments of SMTP commands (RFC 5321 §4.1.2): paths and parameters, from text to values."""

from __future__ import annotations

import re
from typing import Final

PATH_LIMIT: Final = 256
"""Octets of a path with its brackets (RFC 5321 §4.5.3.1.3)."""

# Characters beyond ASCII belong to the grammar since RFC 6531 §3.3; whether they were announced, the caller asks.
# A class is named by what is not in it: one that names all those characters takes Python ten milliseconds to compile.
_ATOM: Final = r'[^\x00-\x20"(),.:;<>@\[\\\]\x7f]+'
_LETTER_DIGIT: Final = r"[^\x00-/:-@\[-^`{-\x7f]"
_INSIDE: Final = r"[^\x00-,./:-@\[-^`{-\x7f]"
_LABEL: Final = rf"{_LETTER_DIGIT}(?:{_INSIDE}*{_LETTER_DIGIT})?"
_DOMAIN: Final = rf"{_LABEL}(?:\.{_LABEL})*\.?|\[[A-Za-z0-9:.\-]+\]"
_LOCAL: Final = rf"{_ATOM}(?:\.{_ATOM})*|\"(?:[^\"\\\x00-\x1f\x7f]|\\[ -~])*\""
_MAILBOX: Final = rf"(?:{_LOCAL})(?:@(?:{_DOMAIN}))?"
# A source route is accepted and ignored (RFC 5321 §3.3, appendix C).
_ROUTE: Final = rf"(?:@(?:{_DOMAIN})(?:,@(?:{_DOMAIN}))*:)?"

_PATH: Final = re.compile(rf"<{_ROUTE}(?P<mailbox>(?:{_MAILBOX})?)>(?P<rest>(?: .*)?)")
_BARE: Final = re.compile(rf"(?P<mailbox>{_MAILBOX})(?P<rest>(?: .*)?)")
_PARAMETER: Final = re.compile(r"(?P<keyword>[A-Za-z0-9][A-Za-z0-9\-]*)(?:=(?P<value>[^= ]+))?")


def parse_path(keyword: str, argument: str) -> tuple[str, str] | None:
    """Read the argument of MAIL or RCPT.

    Args:
        keyword: ``FROM`` or ``TO``.
        argument: What followed the verb.

    Returns:
        The mailbox as given (empty for ``<>``) and the text of the parameters; None when it is no path.
    """
    head, colon, path = argument.partition(":")
    if not colon or head.upper() != keyword:
        return None
    # QUIRK: many scripts and modalities put a space behind the colon (tests/dialogs/space_after_colon.txt).
    path = path.lstrip(" ")
    # QUIRK: some write the address without its brackets (tests/dialogs/no_brackets.txt).
    found = _PATH.fullmatch(path) or _BARE.fullmatch(path)
    if found is None or len(found["mailbox"].encode()) > PATH_LIMIT - 2:
        return None
    return found["mailbox"], found["rest"].strip()


def parse_parameters(text: str) -> dict[str, str] | None:
    """Read ``KEYWORD=value`` parameters (RFC 5321 §4.1.1.11); None when one has no such form or comes twice.

    Returns:
        Values by keyword in upper case; empty for a keyword without a value.
    """
    parameters: dict[str, str] = {}
    for word in text.split():
        found = _PARAMETER.fullmatch(word)
        if found is None or found["keyword"].upper() in parameters:
            return None
        parameters[found["keyword"].upper()] = found["value"] or ""
    return parameters
