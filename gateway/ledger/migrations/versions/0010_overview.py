"""Indexes by which the console lists and counts, however much the ledger holds."""

from alembic import op

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_message_outcome_received_at"), "message", ["outcome", "received_at"], unique=False)
    op.create_index(op.f("ix_message_partner_received_at"), "message", ["partner", "received_at"], unique=False)
