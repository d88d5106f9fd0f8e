"""Fragments of messages, and the sets they belong to."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "fragment_set",
        sa.Column("id", _SERIAL, nullable=False),
        sa.Column("lead", sa.String(length=32), nullable=False),
        sa.Column("sender", sa.String(length=64), nullable=False),
        sa.Column("identity", sa.String(length=64), nullable=False),
        sa.Column("total", sa.Integer(), nullable=True),
        sa.Column("recipients", sa.JSON(), nullable=False),
        sa.Column("waited", sa.Float(), nullable=False),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["lead"], ["message.id"], name=op.f("fk_fragment_set_lead")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fragment_set")),
    )
    op.create_index(op.f("ix_fragment_set_lead"), "fragment_set", ["lead"], unique=False)
    op.create_index(op.f("ix_fragment_set_sender_identity"), "fragment_set", ["sender", "identity"], unique=False)
    op.create_table(
        "fragment",
        sa.Column("fragment_set", _SERIAL, autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("message", sa.String(length=32), nullable=False),
        sa.Column("joined", _SERIAL, nullable=True),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["fragment_set"], ["fragment_set.id"], name=op.f("fk_fragment_fragment_set")),
        sa.ForeignKeyConstraint(["message"], ["message.id"], name=op.f("fk_fragment_message")),
        sa.ForeignKeyConstraint(["joined"], ["fragment_set.id"], name=op.f("fk_fragment_joined")),
        sa.PrimaryKeyConstraint("fragment_set", "number", name=op.f("pk_fragment")),
    )
    op.create_index(op.f("ix_fragment_message"), "fragment", ["message"], unique=False)
    op.create_index(op.f("ix_fragment_joined"), "fragment", ["joined"], unique=False)
