"""The schema's history, told by Alembic. Imported where a migration is due: its ten megabytes stay for good."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from ...errors import ConfigError
from ..sqlite_copy import keep_copy

HERE: Final = Path(__file__).parent
# Alembic keeps the migration under way in module-level variables.
_alembic: Final = threading.Lock()


def upgrade(connection: sa.Connection) -> None:
    """Bring the database up to date. The caller holds its write lock and commits.

    Raises:
        ConfigError: The database is something else's, was upgraded by a newer version, or there is no room for a copy.
    """
    with _alembic:
        found = set(MigrationContext.configure(connection).get_current_heads())
        known = {script.revision for script in ScriptDirectory(str(HERE)).walk_revisions()}
        _check(connection, found, known)
        if found and connection.dialect.name == "sqlite":
            # What the old version would need to be started again.
            keep_copy(Path(str(connection.engine.url.database)), max(found))
        config = Config()
        config.set_main_option("script_location", str(HERE).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _check(connection: sa.Connection, found: set[str], known: set[str]) -> None:
    name = connection.engine.url.database
    if found - known:
        raise ConfigError(
            f"[metadata] url: {name}: expected a database of this version, but a newer one has changed its schema"
            f" (revision {', '.join(sorted(found - known))}, this version knows {max(known)}):"
            " run that version, or restore a copy from before its upgrade"
        )
    if not found and sa.inspect(connection).get_table_names():
        raise ConfigError(f"[metadata] url: {name}: expected an empty database or one of visor-gateway")
