"""The BLAKE3 of bytes whose SHA-256 was found right, together with that."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from visor_gateway.meta.text import text

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("images", sa.Column("learned", text(129)))
