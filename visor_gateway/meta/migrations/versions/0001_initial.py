"""Records, leases, accounts, and what may be used once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from visor_gateway.meta.text import text

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _images()
    _accounts()
    op.create_table(
        "used",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("expires_at", text(27), nullable=False, index=True),
    )


def _images() -> None:
    op.create_table(
        "images",
        sa.Column("id", text(36), primary_key=True),
        sa.Column("name", text(255), nullable=False),
        sa.Column("architecture", text(16), nullable=False),
        sa.Column("owner", text(64), nullable=False),
        sa.Column("access", text(16), nullable=False),
        sa.Column("status", text(16), nullable=False),
        sa.Column("type", text(16)),
        sa.Column("format", text(16)),
        sa.Column("store", text(255)),
        sa.Column("location", text()),
        sa.Column("kernel", text()),
        sa.Column("ramdisk", text()),
        sa.Column("size", sa.BigInteger),
        sa.Column("checksum", text()),
        sa.Column("sha256", text(64)),
        sa.Column("created_at", text(27), nullable=False),
        sa.Column("updated_at", text(27)),
        sa.Column("uploaded_at", text(27)),
        sa.Column("accessed_at", text(27)),
        sa.Column("access_count", sa.BigInteger, nullable=False),
        sa.Column("attempt_id", text(36)),
        sa.Column("validator", text()),
        sa.Column("entombed_at", text(27)),
    )
    entombed = sa.text("entombed_at IS NOT NULL")
    op.create_index("images_entombed", "images", ["entombed_at"], sqlite_where=entombed, postgresql_where=entombed)
    op.create_table(
        "attributes",
        sa.Column("image_id", text(36), sa.ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", text(64), primary_key=True),
        sa.Column("value", text(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("attributes_by_name", "attributes", ["name", "value"])
    op.create_table(
        "attempts",
        sa.Column("attempt_id", text(36), primary_key=True),
        sa.Column("image_id", text(36), nullable=False),
        sa.Column("instance_id", text(255), nullable=False),
        sa.Column("store", text(255), nullable=False),
        sa.Column("location", text(), nullable=False),
        sa.Column("expires_at", text(27), nullable=False),
    )


def _accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", text(36), primary_key=True),
        sa.Column("access_key", text(64), nullable=False, unique=True),
        sa.Column("email", text(254)),
        sa.Column("role", text(16), nullable=False),
        sa.Column("key_id", text(16)),
        sa.Column("secret", sa.LargeBinary),
        sa.Column("created_at", text(27), nullable=False),
        sa.Column("updated_at", text(27)),
        sa.Column("deleted_at", text(27)),
    )
    op.create_table(
        "tokens",
        sa.Column("id", text(36), primary_key=True),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column(
            "account_id",
            text(36),
            sa.ForeignKey("accounts.id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("read_only", sa.Boolean, nullable=False),
        sa.Column("name", text()),
        sa.Column("created_at", text(27), nullable=False),
        sa.Column("expires_at", text(27), nullable=False, index=True),
    )
    op.create_table(
        "tickets",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column(
            "account_id",
            text(36),
            sa.ForeignKey("accounts.id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("route", text(), nullable=False),
        sa.Column("expires_at", text(27), nullable=False, index=True),
    )
