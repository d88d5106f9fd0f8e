"""What modalities send lies in segments, many instances in a file: one is found by where it begins.

An earlier release would take the whole segment for the instance, so it must not open this ledger.
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index(op.f("ix_instance_blob"), table_name="instance")
    op.create_index(op.f("ix_instance_blob_start"), "instance", ["blob", "start"], unique=False)
