"""Indexes that lists are read off."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("images_by_created_at", "images", ["created_at", "id"])
    op.create_index("images_by_name", "images", ["name", "id"])
    op.create_index("images_by_owner", "images", ["owner", "created_at", "id"])
    op.create_index("images_by_sha256", "images", ["sha256"])
    # SQLite has NULL first without being told, and does not let itself be told.
    null = "" if op.get_bind().dialect.name == "sqlite" else " NULLS FIRST"
    op.create_index("images_by_size", "images", [sa.text(f"size{null}"), "id"])
    op.create_index("images_by_updated_at", "images", [sa.text(f"updated_at{null}"), "id"])
