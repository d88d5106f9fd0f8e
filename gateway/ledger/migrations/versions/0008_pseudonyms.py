"""Pseudonyms: keyed hashes by which the items of a patient are found."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pseudonym",
        sa.Column("message", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["message"], ["message.id"], name=op.f("fk_pseudonym_message")),
        sa.PrimaryKeyConstraint("message", "digest", name=op.f("pk_pseudonym")),
    )
    op.create_index(op.f("ix_pseudonym_digest"), "pseudonym", ["digest"], unique=False)
