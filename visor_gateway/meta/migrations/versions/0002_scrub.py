"""When an image's bytes were last scrubbed, and since when they are known to be bad."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from visor_gateway.meta.text import text

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("images", sa.Column("scrubbed_at", text(27)))
    op.add_column("images", sa.Column("bad_since", text(27)))
