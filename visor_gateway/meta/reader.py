"""Reads that the event loop makes itself: a few rows by their key, from a SQLite connection of its own.

Such a read takes some tens of microseconds, handing it to a thread and back several times that. The connection only
reads and never waits: where SQLite would have to, the answer is None and a thread is asked instead.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite as dialect

_DIALECT: Final = dialect.dialect(paramstyle="named")


def text(statement: sa.Select[Any]) -> str:
    """A statement as SQLite takes it, with named parameters. Values come back as they are stored."""
    return str(statement.compile(dialect=_DIALECT))


class LoopReader:
    """A read-only connection. It is opened in any thread, and then used by one. Whoever opens it closes it."""

    def __init__(self, path: Path) -> None:
        """Raises `sqlite3.Error` if the database can't be opened; it must exist."""
        self._connection = sqlite3.connect(
            f"{path.as_uri()}?mode=ro", uri=True, timeout=0, isolation_level=None, check_same_thread=False
        )

    def close(self) -> None:
        """Close the connection. A second call changes nothing."""
        self._connection.close()

    def version(self) -> int | None:
        """A number that is another one after any change to the database by any process; None where that can't be
        told now.

        SQLite looks at the head of the write-ahead log, which all processes share: a commit that has returned, to
        whomever, is seen.
        """
        rows = self.rows("PRAGMA data_version", {})
        return None if rows is None else int(rows[0][0])

    def rows(self, statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]] | None:
        """The rows that one statement selects, which must be few; None where the database can't be read now."""
        try:
            return self._connection.execute(statement, parameters).fetchall()
        except sqlite3.Error:
            return None
