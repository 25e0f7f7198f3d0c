"""Gateways that show each other's transfers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from visor_gateway.meta.text import text

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "gateways",
        sa.Column("name", text(64), primary_key=True),
        sa.Column("instance_id", text(36), nullable=False),
        sa.Column("peer_url", text(), nullable=False),
        sa.Column("expires_at", text(27), nullable=False),
    )
