"""An index for every order of a list, and for every field that lists are filtered by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_MANDATORY = ("access", "access_count", "architecture", "status")
_OPTIONAL = ("accessed_at", "format", "store", "type", "uploaded_at")
#: Texts of any length, which no ordered index of PostgreSQL takes.
_LONG = ("checksum", "kernel", "location", "ramdisk")


def upgrade() -> None:
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    # SQLite has NULL first without being told, and does not let itself be told.
    null = "" if is_sqlite else " NULLS FIRST"
    for name in _MANDATORY:
        op.create_index(f"images_by_{name}", "images", [name, "id"])
    op.create_index("images_by_owner_and_id", "images", ["owner", "id"])
    for name in _OPTIONAL:
        op.create_index(f"images_by_{name}", "images", [sa.text(f"{name}{null}"), "id"])
    for name in _LONG:
        op.create_index(f"images_by_{name}", "images", [name, "id"] if is_sqlite else [name], postgresql_using="hash")
