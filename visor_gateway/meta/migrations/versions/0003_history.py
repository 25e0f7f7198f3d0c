"""Transfers that ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from visor_gateway.meta.text import text

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "history",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", text(36), nullable=False),
        sa.Column("kind", text(16), nullable=False),
        sa.Column("image", text(36), nullable=False),
        sa.Column("store", text(255)),
        sa.Column("client", text(64)),
        sa.Column("user", text(64)),
        sa.Column("state", text(16), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("rate_avg", sa.BigInteger, nullable=False),
        sa.Column("started_at", text(27), nullable=False),
        sa.Column("ended_at", text(27), nullable=False),
        sa.Column("duration_ms", sa.BigInteger, nullable=False),
        sa.Column("wait_client", sa.BigInteger, nullable=False),
        sa.Column("wait_store", sa.BigInteger, nullable=False),
        sa.Column("wait_limit", sa.BigInteger, nullable=False),
        sa.Column("wait_disk", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("error", text()),
        # A number is never given again: pages go by it.
        sqlite_autoincrement=True,
    )
