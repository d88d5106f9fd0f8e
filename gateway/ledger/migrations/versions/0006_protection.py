"""What the protection of a message amounts to (S/MIME)."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("message", sa.Column("protection", sa.JSON(), nullable=True))
