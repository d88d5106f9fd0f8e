"""Outbound: collections, the mails that carry them, and notices by mail.

Columns and tables are only added: for anything else SQLite writes a table anew, and others refer to these.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None

_OPEN = sa.text("outcome = 'waiting'")


def upgrade() -> None:
    op.add_column("instance", sa.Column("blob", sa.String(length=80), nullable=True))
    op.create_index(op.f("ix_instance_blob"), "instance", ["blob"], unique=False)
    op.add_column("delivery", sa.Column("file_set", sa.Integer(), nullable=True))
    for name in ("opening_mailed", "closing_mailed"):
        op.add_column("notice", sa.Column(name, sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "collection",
        sa.Column("message", sa.String(length=32), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("partner", sa.String(length=80), nullable=False),
        sa.Column("study", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("calling", sa.String(length=16), nullable=False),
        sa.Column("called", sa.String(length=16), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["message"], ["message.id"], name=op.f("fk_collection_message")),
        sa.PrimaryKeyConstraint("message", name=op.f("pk_collection")),
        sa.UniqueConstraint(
            "study", "route", "partner", "generation", name=op.f("uq_collection_study_route_partner_generation")
        ),
    )
    op.create_table(
        "submission",
        sa.Column("message", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("file_set", sa.Integer(), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("parts", sa.Integer(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("envid", sa.String(length=80), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("blob", sa.String(length=80), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("composed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.String(length=9), nullable=False),
        sa.Column("code", sa.String(length=40), nullable=True),
        sa.Column("sending", sa.Boolean(), nullable=False),
        sa.Column("sends", sa.Integer(), nullable=False),
        sa.Column("sends_unknown", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("next_attempt", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["message"], ["message.id"], name=op.f("fk_submission_message")),
        sa.PrimaryKeyConstraint("message", "number", name=op.f("pk_submission")),
    )
    for name in ("message_id", "envid", "blob"):
        op.create_index(op.f(f"ix_submission_{name}"), "submission", [name], unique=False)
    op.create_index("ix_submission_open", "submission", ["next_attempt"], sqlite_where=_OPEN, postgresql_where=_OPEN)
    # Notices of before were told in the ways there were.
    op.execute("UPDATE notice SET opening_mailed = opening_told, closing_mailed = closing_told")
