"""Mailboxes: how each is, and which of its mails were taken."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_index(op.f("ix_message_sha256"), "message", ["sha256"], unique=False)
    op.create_table(
        "mailbox",
        sa.Column("door", sa.String(length=80), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("door", name=op.f("pk_mailbox")),
    )
    op.create_table(
        "mailbox_folder",
        sa.Column("id", _SERIAL, nullable=False),
        sa.Column("server", sa.String(length=255), nullable=False),
        sa.Column("account", sa.String(length=255), nullable=False),
        sa.Column("folder", sa.String(length=255), nullable=False),
        sa.Column("validity", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mailbox_folder")),
        sa.UniqueConstraint(
            "server", "account", "folder", "validity", name=op.f("uq_mailbox_folder_server_account_folder_validity")
        ),
    )
    op.create_table(
        "mailbox_mail",
        sa.Column("folder", _SERIAL, autoincrement=False, nullable=False),
        sa.Column("uid", sa.String(length=80), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("stamp", sa.String(length=40), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("message", sa.String(length=32), nullable=True),
        sa.Column("filing", sa.String(length=6), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["folder"], ["mailbox_folder.id"], name=op.f("fk_mailbox_mail_folder")),
        sa.PrimaryKeyConstraint("folder", "uid", name=op.f("pk_mailbox_mail")),
    )
    op.create_index(op.f("ix_mailbox_mail_sha256"), "mailbox_mail", ["sha256"], unique=False)
    op.create_index(op.f("ix_mailbox_mail_folder_filing"), "mailbox_mail", ["folder", "filing"], unique=False)
