"""A migration in a process of its own: Alembic and what a migration takes of memory are gone with it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from ...errors import ConfigError
from . import latest


def upgrade(url: str) -> None:
    """Bring a SQLite database that is missing or behind up to date, by a fork of this process. Anything else is left
    alone, a PostgreSQL among it.

    To be called by a process of one thread that has not opened the database. Nothing is raised: whoever opens the
    database afterwards brings it up to date where this has failed, and tells why that can't be done. A fork that
    outlives this process ends its migration, and holds nothing but the database's own lock.
    """
    if not url.startswith("sqlite") or not _is_due(url):
        return
    child = os.fork()
    if not child:
        _run(url)
    os.waitpid(child, 0)


def _is_due(url: str) -> bool:
    from ..sqlite import path_of  # which imports this package

    try:
        path = Path(path_of(url))
        if not path.exists():
            return True
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except (ConfigError, OSError, sqlite3.Error):
        return False
    return found != [(latest(),)]


def _run(url: str) -> NoReturn:
    status = 1
    try:
        from ..sqlite import Sqlite

        # Locks, listening sockets and what else was inherited are not this process's to hold.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        database = Sqlite(url, connections=1)
        try:
            database.migrate()
        finally:
            database.close()
        status = 0
    finally:
        os._exit(status)  # whatever it raises: nothing of the process that was forked may run on here
