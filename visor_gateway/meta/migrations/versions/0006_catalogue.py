"""What records are at a VISOR Meta server."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from visor_gateway.meta.text import text

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "catalogue",
        sa.Column("image_id", text(36), primary_key=True),
        sa.Column("remote_id", text(36), unique=True),
        sa.Column("ours", sa.Boolean, nullable=False),
        sa.Column("base", sa.LargeBinary),
        sa.Column("changes", sa.BigInteger, nullable=False),
        sa.Column("told", sa.BigInteger, nullable=False),
        sa.Column("asked", sa.Boolean, nullable=False),
        sa.Column("missing", sa.Boolean, nullable=False),
        sa.Column("gone", sa.Boolean, nullable=False),
    )
    op.create_table(
        "catalogue_marker",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("instance_id", text(36), nullable=False),
    )
