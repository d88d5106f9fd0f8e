"""Proof of delivery, bounds for each kind of answer, and lanes that share fairly."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_OPEN = sa.text("outcome = 'waiting'")
_ASKED = sa.text("transaction_uid IS NOT NULL")


def upgrade() -> None:
    for column in (
        sa.Column("answers", sa.JSON(), nullable=True),
        sa.Column("aborted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("forced", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("known", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("sent_syntax", sa.String(length=64), nullable=True),
        sa.Column("stored_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("remark", sa.String(length=40), nullable=True),
        sa.Column("absences", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("transaction_uid", sa.String(length=64), nullable=True),
    ):
        op.add_column("delivery", column)
    turn = ["destination", "message", "next_attempt"]
    op.create_index("ix_delivery_turn", "delivery", turn, sqlite_where=_OPEN, postgresql_where=_OPEN)
    asked = ["transaction_uid"]
    op.create_index("ix_delivery_transaction", "delivery", asked, sqlite_where=_ASKED, postgresql_where=_ASKED)
    op.create_table(
        "commitment",
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("destination", sa.String(length=80), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("transaction_uid", name=op.f("pk_commitment")),
    )
