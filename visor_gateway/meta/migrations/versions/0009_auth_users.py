"""Users of a VISOR Auth server."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from visor_gateway.meta.text import text

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "auth_users",
        sa.Column("account_id", text(36), sa.ForeignKey("accounts.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("remote_id", text(36), nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        return
    # What gateways keep of users is made from this, too.
    op.execute(
        "CREATE TRIGGER visor_gateway_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON auth_users"
        " FOR EACH STATEMENT EXECUTE FUNCTION visor_gateway_changed()"
    )
