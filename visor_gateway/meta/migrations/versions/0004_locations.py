"""Further locations of an image's bytes, and which bytes an attempt copies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from visor_gateway.meta.text import text

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "locations",
        sa.Column("image_id", text(36), sa.ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("store", text(255), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("location", text(), nullable=False),
        sa.Column("attempt_id", text(36), nullable=False),
        sa.Column("validator", text()),
        sa.Column("verified_at", text(27), nullable=False),
        sa.Column("bad_since", text(27)),
    )
    op.add_column("attempts", sa.Column("copies", text(36)))
