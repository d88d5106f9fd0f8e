"""Since when nobody knows whether the certificates of an issuer are revoked, and the notice about it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, delete, insert, select

from gateway.core.cms.revocation import Coverage, moment
from gateway.ledger.notices import close_notice, open_notice
from gateway.ledger.tables import fact

KIND: Final = "revocation-unknown"

PATIENCE: Final = timedelta(hours=24)
"""Without a CRL that counts, before a person is told."""

_PREFIX: Final = "crl unknown "


def note(connection: Connection, covers: Iterable[Coverage], now: datetime) -> None:
    """Open a notice about each issuer of which no CRL has told anything for a day; close it when one does."""
    rows = select(fact.c.name, fact.c.value).where(fact.c.name.startswith(_PREFIX))
    known = {name: json.loads(value) for name, value in connection.execute(rows)}
    unknown = {f"{_PREFIX}{one.fingerprint[:24]}": one for one in covers if not one.state.counts}
    for name, one in unknown.items():
        if name not in known:
            value = json.dumps({"since": now.isoformat(), "issuer": one.issuer})
            connection.execute(insert(fact).values(name=name, value=value))
            continue
        since = moment(known[name]["since"])
        if since is not None and now - since >= PATIENCE:
            _open(connection, one, now)
    for name in known.keys() - unknown.keys():
        connection.execute(delete(fact).where(fact.c.name == name))
        close_notice(connection, now, KIND, known[name]["issuer"])


def _open(connection: Connection, one: Coverage, now: datetime) -> None:
    text = f"whether certificates of {one.issuer} are revoked is not known for a day: its CRL is {one.state}"
    open_notice(connection, now, KIND, one.issuer, text, "dicom-mail check")
