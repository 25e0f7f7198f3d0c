"""What tells PostgreSQL's gateways in one row whether anything has changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from visor_gateway.meta.text import text

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

#: What gateways keep is made from these.
_WATCHED = ("images", "attributes", "locations", "accounts", "tokens")
# Once in a transaction is enough, as nobody sees the mark before its end: what says so ends with the transaction, and
# is undone with a savepoint, as the mark is.
_FUNCTION = """
CREATE FUNCTION visor_gateway_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(current_setting('visor_gateway.changed', true), '') <> 'yes' THEN
        UPDATE changes SET mark = gen_random_uuid()::text;
        PERFORM set_config('visor_gateway.changed', 'yes', true);
    END IF;
    RETURN NULL;
END
$$
"""


def upgrade() -> None:
    op.create_table(
        "changes",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("mark", text(36), nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        return  # which tells it by itself
    op.execute("INSERT INTO changes (number, mark) VALUES (1, gen_random_uuid()::text)")
    op.execute(_FUNCTION)
    for table in _WATCHED:
        # By whomever: a gateway of an earlier version, which runs until it is upgraded too, or a person.
        op.execute(
            f"CREATE TRIGGER visor_gateway_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION visor_gateway_changed()"
        )
