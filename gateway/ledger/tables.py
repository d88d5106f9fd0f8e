"""The domain tables: what the gateway knows, in the field's words.

Every business fact is a column, changed by compare-and-set in the same transaction as the ticket for the next step
and the event that tells of it. The schema is the same on SQLite and PostgreSQL. No column holds patient data: UIDs
name a study to those who have it, and nothing else does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    literal_column,
    text,
)


class Moment(TypeDecorator[datetime]):
    """A moment in UTC, aware in Python; text that sorts by time in SQLite, ``timestamptz`` in PostgreSQL."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a naive moment: nobody could say when it was."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a zone")
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the zone back that SQLite does not keep."""
        if value is None or dialect.name == "postgresql":
            return value
        return value.replace(tzinfo=UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by themselves only in an INTEGER
_OPEN = text("outcome = 'waiting'")
_ASKED = text("transaction_uid IS NOT NULL")


MAIL: Final = "mail:"
"""Before a partner's name in ``delivery.destination``: no AE may be named so, and no lane of STORE ever looks there."""


def is_mail(column: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a destination is a partner's mailbox."""
    return column.like(literal_column(f"'{MAIL}%'"))  # written out: SQLite plans anew for a value it would be handed


def _table(name: str, *parts: Any) -> Table:
    return Table(name, metadata, *parts)


message = _table(
    "message",
    Column("id", String(32), primary_key=True),
    Column("direction", String(3), nullable=False),
    Column("stage", String(8), nullable=False),
    Column("outcome", String(9), nullable=False),
    Column("code", String(40)),
    # how it came (RFC 5321)
    Column("door", String(80), nullable=False),
    Column("peer", String(64), nullable=False),
    Column("account", String(255)),
    Column("sender", Text, nullable=False),
    Column("recipients", JSON, nullable=False),
    # who it is from and what shall become of it
    Column("message_id", Text),
    Column("from_address", Text),
    Column("partner", String(80)),
    Column("routes", JSON, nullable=False),
    Column("urgent", Boolean, nullable=False, default=False),
    Column("late_at", Moment),
    # the bytes
    Column("blob", String(80), nullable=False),  # a collection has no bytes of its own: empty, as its digests
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("body_sha256", String(64), nullable=False),
    Column("instances_blob", String(80)),
    # It has the outcome of that one: it is the same mail again, or a fragment of the message which that one stands for.
    Column("duplicate_of", String(32), ForeignKey("message.id")),
    # what RECEIVE made of it
    Column("kind", String(8)),
    Column("protection", JSON),  # what its protection amounts to; None when nobody had to look
    Column("problem", String(40)),  # a part that could not be read, beside the instances that go on
    Column("crashes", Integer, nullable=False, default=0),
    Column("tries", Integer, nullable=False, default=0),
    # when
    Column("received_at", Moment, nullable=False),
    Column("closed_at", Moment),
    Column("purged_at", Moment),
    Column("receive_seconds", Float),
    Column("read_seconds", Float),
    Column("store_began_at", Moment),
    Column("store_ended_at", Moment),
    Index(None, "message_id", "body_sha256"),
    Index(None, "received_at"),
    Index(None, "outcome", "received_at"),
    Index(None, "partner", "received_at"),
    Index(None, "duplicate_of"),
    Index(None, "sha256"),
    Index("ix_message_open", "stage", sqlite_where=_OPEN, postgresql_where=_OPEN),
)

fragment_set = _table(
    "fragment_set",
    Column("id", _Serial, primary_key=True),
    Column("lead", String(32), ForeignKey("message.id"), nullable=False, index=True),  # it stands for the whole
    Column("sender", String(64), nullable=False),  # SHA-256 of whom it is from
    Column("identity", String(64), nullable=False),  # SHA-256 of the parameter id: a foreign text of any length
    Column("total", Integer),  # None until a fragment says it
    Column("recipients", JSON, nullable=False),  # of all its fragments
    Column("waited", Float, nullable=False, default=0.0),  # seconds
    Column("looked_at", Moment, nullable=False),
    Index(None, "sender", "identity"),
)

fragment = _table(
    "fragment",
    Column("fragment_set", _Serial, ForeignKey("fragment_set.id"), primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("message", String(32), ForeignKey("message.id"), nullable=False, index=True),
    Column("joined", _Serial, ForeignKey("fragment_set.id"), index=True),  # the set whose whole it is; None: the mail
    Column("body_sha256", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
)

finding = _table(
    "finding",
    Column("id", _Serial, primary_key=True),
    Column("message", String(32), ForeignKey("message.id"), nullable=False, index=True),
    Column("code", String(40), nullable=False),
    Column("severity", String(8), nullable=False),
    Column("part", Text, nullable=False),
    Column("text", Text, nullable=False),
)

instance = _table(
    "instance",
    Column("message", String(32), ForeignKey("message.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("sop_class", String(64), nullable=False),
    Column("sop_instance", String(64), nullable=False, index=True),
    Column("study", String(64), nullable=False, index=True),
    Column("series", String(64), nullable=False),
    Column("transfer_syntax", String(64), nullable=False),
    # Of what a modality sent both are empty until somebody wants to know: its sender does not wait for them.
    Column("sha256", String(64), nullable=False),
    Column("data_set_sha256", String(64), nullable=False),
    Column("part", Text, nullable=False),
    Column("file_id", Text),
    Column("start", BigInteger, nullable=False),  # within the blob it lies in
    Column("data_set", Integer, nullable=False),  # where the data set begins, counted from start
    Column("size", BigInteger, nullable=False),
    # A file of its own, or a segment of many; collections may share it. None: in the instances blob of the message.
    Column("blob", String(80)),
    Index(None, "blob", "start"),
)

pseudonym = _table(
    "pseudonym",
    Column("message", String(32), ForeignKey("message.id"), primary_key=True),
    Column("digest", String(32), primary_key=True, index=True),  # keyed hash of a Patient ID or an accession number
)

delivery = _table(
    "delivery",
    Column("id", _Serial, primary_key=True),
    Column("message", String(32), nullable=False),
    Column("number", Integer, nullable=False),
    Column("destination", String(80), nullable=False),
    Column("outcome", String(9), nullable=False),
    Column("code", String(40)),
    Column("sending", Boolean, nullable=False, default=False),  # in the window that is on the wire now
    Column("sends", Integer, nullable=False, default=0),
    Column("sends_unknown", Integer, nullable=False, default=0),
    Column("failures", Integer, nullable=False, default=0),  # definite ones, for the back-off rule
    Column("status", Integer),
    Column("comment", Text),
    Column("next_attempt", Moment),
    Column("closed_at", Moment),
    Column("answers", JSON(none_as_null=True)),  # transient failures by code: each kind has its own bound
    Column("aborted_at", Moment),  # when the peer first cut an association while this was on the wire
    Column("forced", Boolean, nullable=False, default=False, server_default=false()),  # by a person: over a downtime
    Column("known", Boolean, nullable=False, default=False, server_default=false()),  # stored or queued before
    Column("sent_syntax", String(64)),  # what it was transcoded to, when it was
    # proof of delivery beyond the C-STORE status
    Column("stored_at", Moment),  # a success status came, the proof has not
    Column("remark", String(40)),  # what that status remarked
    Column("absences", Integer, nullable=False, default=0, server_default="0"),  # times it was said stored and was not
    Column("transaction_uid", String(64)),  # under which commitment was asked for
    Column("file_set", Integer),  # of its collection; None: for a PACS, or not composed yet
    ForeignKeyConstraint(["message", "number"], ["instance.message", "instance.number"]),
    UniqueConstraint("message", "number", "destination"),
    Index("ix_delivery_open", "destination", "next_attempt", sqlite_where=_OPEN, postgresql_where=_OPEN),
    Index("ix_delivery_turn", "destination", "message", "next_attempt", sqlite_where=_OPEN, postgresql_where=_OPEN),
    Index("ix_delivery_transaction", "transaction_uid", sqlite_where=_ASKED, postgresql_where=_ASKED),
)

commitment = _table(
    "commitment",
    Column("transaction_uid", String(64), primary_key=True),
    Column("destination", String(80), nullable=False),
    Column("requested_at", Moment, nullable=False),
    Column("closed_at", Moment),  # reported or given up: the UID is dead (SC-6)
)

collection = _table(
    "collection",
    Column("message", String(32), ForeignKey("message.id"), primary_key=True),
    Column("route", Text, nullable=False),
    Column("partner", String(80), nullable=False),
    Column("study", String(64), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("calling", String(16), nullable=False),
    Column("called", String(16), nullable=False),
    Column("opened_at", Moment, nullable=False),
    Column("last_at", Moment, nullable=False),
    Column("instances", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("completed_at", Moment),  # nothing joins it any more
    UniqueConstraint("study", "route", "partner", "generation"),
)

submission = _table(
    "submission",
    Column("message", String(32), ForeignKey("message.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("file_set", Integer, nullable=False),  # fragments of one message/partial carry one file-set together
    Column("part", Integer, nullable=False),
    Column("parts", Integer, nullable=False),
    Column("message_id", Text, nullable=False, index=True),
    Column("envid", String(80), nullable=False, index=True),
    Column("recipient", Text, nullable=False),
    Column("blob", String(80), nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("composed_at", Moment, nullable=False),
    Column("outcome", String(9), nullable=False),
    Column("code", String(40)),
    Column("sending", Boolean, nullable=False, default=False),  # it is on the wire now
    Column("sends", Integer, nullable=False, default=0),
    Column("sends_unknown", Integer, nullable=False, default=0),
    Column("failures", Integer, nullable=False, default=0),
    Column("status", Integer),  # the relay's reply code
    Column("comment", Text),
    Column("next_attempt", Moment),
    Column("closed_at", Moment),
    Index("ix_submission_open", "next_attempt", sqlite_where=_OPEN, postgresql_where=_OPEN),
)

destination = _table(
    "destination",
    Column("name", String(80), primary_key=True),
    Column("paused", Boolean, nullable=False, default=False),
    Column("failures", Integer, nullable=False, default=0),
    Column("breaker_until", Moment),
    Column("down_since", Moment),
    Column("trouble", Text),
    Column("answered_at", Moment),
)

event = _table(
    "event",
    Column("id", _Serial, primary_key=True),
    Column("at", Moment, nullable=False, index=True),
    Column("message", String(32), index=True),
    Column("destination", String(80)),
    Column("kind", String(40), nullable=False),
    Column("who", String(80)),
    Column("text", Text, nullable=False),
)

notice = _table(
    "notice",
    Column("id", _Serial, primary_key=True),
    Column("kind", String(40), nullable=False),
    Column("about", String(80), nullable=False),
    Column("text", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("opened_at", Moment, nullable=False),
    Column("closed_at", Moment),
    Column("opening_told", Boolean, nullable=False, default=False),
    Column("closing_told", Boolean, nullable=False, default=False),
    Column("opening_mailed", Boolean, nullable=False, default=False, server_default=false()),
    Column("closing_mailed", Boolean, nullable=False, default=False, server_default=false()),
    Index(
        "ix_notice_open",
        "kind",
        "about",
        unique=True,
        sqlite_where=text("closed_at IS NULL"),
        postgresql_where=text("closed_at IS NULL"),
    ),
)

mailbox = _table(
    "mailbox",
    Column("door", String(80), primary_key=True),
    Column("state", String(20), nullable=False),
    Column("since", Moment, nullable=False),
    Column("looked_at", Moment),  # when it was last seen to be well
    Column("text", Text, nullable=False),
)

mailbox_folder = _table(
    "mailbox_folder",
    Column("id", _Serial, primary_key=True),
    Column("server", String(255), nullable=False),
    Column("account", String(255), nullable=False),
    Column("folder", String(255), nullable=False),
    Column("validity", BigInteger, nullable=False),  # UIDVALIDITY; 0 by POP3
    UniqueConstraint("server", "account", "folder", "validity"),
)

mailbox_mail = _table(
    "mailbox_mail",
    Column("folder", _Serial, ForeignKey("mailbox_folder.id"), primary_key=True, autoincrement=False),
    Column("uid", String(80), primary_key=True),  # UID, or UIDL
    Column("size", BigInteger, nullable=False),  # as the server said it
    Column("stamp", String(40), nullable=False),  # INTERNALDATE: another one means that the UID was used again
    Column("sha256", String(64), nullable=False, index=True),  # empty: never fetched
    Column("message", String(32)),  # the item; its row may be purged before this one
    Column("filing", String(6), nullable=False),
    Column("at", Moment, nullable=False),
    Index(None, "folder", "filing"),
)

ticket = _table(
    "ticket",
    Column("key", String(120), primary_key=True),
    Column("due", Moment, nullable=False),
    Column("running", Boolean, nullable=False, default=False),
    Column("again", Moment),  # wanted once more while it runs: no wake-up is lost
    Index(None, "running", "due"),
)

total = _table(
    "total",
    Column("unit", String(10), primary_key=True),
    Column("outcome", String(9), primary_key=True),
    Column("count", BigInteger, nullable=False),
)

fact = _table(
    "fact",
    Column("name", String(40), primary_key=True),
    Column("value", Text, nullable=False),
)
