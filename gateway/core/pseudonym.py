"""Pseudonyms: a Patient ID or an accession number turned into a word that says nothing and can be looked up (PRV-2).

The ledger must answer "where are the images of this patient?" and must hold no patient data. So it keeps keyed hashes
of both numbers: who has the key and the number finds the item, who has the ledger alone finds nothing. A number is
normalised first, because people type what they read: case, spaces and the form of letters make no difference.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from dataclasses import dataclass
from typing import Final

from gateway.core import patient

KEY_BYTES: Final = 32
"""Length of a key."""

DIGITS: Final = 32
"""Characters of a pseudonym: 128 bits of HMAC-SHA-256 (RFC 2104), in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a data set says that people search by. Holds patient data: it stays in the process that reads.

    Attributes:
        patient: Patient ID (0010,0020), as the bytes it came in; so is the rest.
        accession: Accession Number (0008,0050).
        character_set: Specific Character Set (0008,0005).
    """

    patient: bytes = b""
    accession: bytes = b""
    character_set: bytes = b""


def of_patient(key: bytes, text: str) -> str | None:
    """The pseudonym of a Patient ID; None when nothing is left of it."""
    return _digest(key, "patient", text)


def of_accession(key: bytes, text: str) -> str | None:
    """The pseudonym of an accession number; None when nothing is left of it."""
    return _digest(key, "accession", text)


def of_instance(key: bytes, identity: Identity, prefix: str = "") -> tuple[str, ...]:
    """The pseudonyms under which an instance is found.

    Args:
        key: Of this gateway; empty: nothing is to be found.
        identity: As the instance came.
        prefix: What the route puts before its Patient ID: it is found by both, since the sender knows the one and the
            PACS the other.
    """
    if not key:
        return ()
    number = _text(identity.patient, identity.character_set)
    found = [of_patient(key, number), of_accession(key, _text(identity.accession, identity.character_set))]
    if prefix and normalise(number):
        found.append(of_patient(key, prefix + number))
    return tuple(word for word in found if word is not None)


def normalise(text: str) -> str:
    """Reduce a number to what makes it this number: no padding, no spaces, no case, one form of each letter."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(one for one in folded if one.isprintable() and not one.isspace())


def _digest(key: bytes, kind: str, text: str) -> str | None:
    number = normalise(text)
    if not number:
        return None
    return hmac.new(key, f"{kind}\0{number}".encode(), hashlib.sha256).hexdigest()[:DIGITS]


def _text(value: bytes, character_set: bytes) -> str:
    """Read a number; where its characters cannot be told, byte by byte: then it is at least always the same."""
    text = patient.decode(value, character_set)
    return value.decode("latin-1") if text is None else text
