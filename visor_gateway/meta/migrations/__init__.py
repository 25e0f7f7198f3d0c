"""The schema's history, and how a database is brought up to date.

Migrations are additive: a gateway of the version before keeps working on a database that was upgraded under it. A
column is dropped one minor version after its last reader. A SQLite database is copied before it is migrated
(`sqlite_copy.keep_copy`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa

_VERSIONS: Final = Path(__file__).parent / "versions"


def latest() -> str:
    """The revision of this version: migrations are numbered, and their files begin with the number."""
    return max(path.name for path in _VERSIONS.glob("*.py")).partition("_")[0]


def upgrade(connection: sa.Connection) -> None:
    """Bring the database up to date. The caller holds its write lock and commits.

    Raises:
        ConfigError: The database is something else's, or was upgraded by a newer version.
    """
    if not _is_up_to_date(connection):
        from . import history

        history.upgrade(connection)


def _is_up_to_date(connection: sa.Connection) -> bool:
    if not sa.inspect(connection).has_table("alembic_version"):
        return False
    return connection.scalars(sa.text("SELECT version_num FROM alembic_version")).all() == [latest()]
