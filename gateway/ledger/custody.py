"""An instance between its sender and us: written down, and not ours yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.core.pseudonym import Identity
from gateway.ledger.drafts import Draft


@dataclass(frozen=True, slots=True)
class Caller:
    """Who opened an association, and whom it meant.

    Attributes:
        calling: Calling AE title; proves nothing.
        called: Called AE title.
        peer: Address, without port.
    """

    calling: str
    called: str
    peer: str


@dataclass(frozen=True, slots=True)
class Received:
    """An instance that was received whole and is not ours yet.

    Attributes:
        caller: Who sent it to which title.
        sop_class: SOP Class UID, the same in command and data set.
        sop_instance: SOP Instance UID, likewise.
        study: Study Instance UID.
        series: Series Instance UID.
        transfer_syntax: Of the presentation context.
        size: Bytes of the file.
        sha256: Of the file, in hexadecimal; empty: not known yet.
        data_set_sha256: Of the data set (what "the same instance" means), in hexadecimal; empty: not known yet.
        data_set: Offset of the data set in the file.
        identity: What people search it by.
        draft: The file, or its place in a segment, written, not synced. Whoever accepts it commits or discards it.
    """

    caller: Caller
    sop_class: str
    sop_instance: str
    study: str
    series: str
    transfer_syntax: str
    size: int
    sha256: str
    data_set_sha256: str
    data_set: int
    identity: Identity = field(repr=False)
    draft: Draft
