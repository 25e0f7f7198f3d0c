"""What is SQLite's own: the connections, its pragmas, the file, the kinds of transaction, the clock.

The sqlite3 driver would begin transactions by itself, and not for every statement; it is told not to
(`isolation_level=None`), and each transaction says how it begins: a writer by BEGIN IMMEDIATE, so that it waits
for the writer before it instead of failing half-way.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from ..errors import ConfigError
from . import migrations
from .reader import LoopReader
from .schema import _DatabaseTime

T = TypeVar("T")

EXPECTED: Final = "[metadata] url: expected sqlite:////absolute/path"
BUSY_SECONDS: Final = 10.0  # how long a writer waits for another process's
_IMMEDIATE: Final = "visor_immediate"  # execution option of a connection that writes


@compiles(_DatabaseTime, "sqlite")
def _database_time(element: _DatabaseTime, compiler: Any, **options: Any) -> str:
    # %f has milliseconds; the zeros make the text as long as `image.timestamp` makes it.
    shift = compiler.process(element.clauses, **options)
    return f"(strftime('%Y-%m-%dT%H:%M:%f', 'now', {shift}) || '000Z')"


class Sqlite:
    """A SQLite database (`database.Engine`). Used in worker threads, but for `version` and `rows`, which are the event
    loop's. Whoever opens it closes it."""

    is_shared = False  # the data directory is one gateway's

    def __init__(self, url: str, connections: int) -> None:
        """Holds at most `connections`, and one for the event loop. Makes the file (mode 0600) if it is missing.

        Raises:
            ConfigError: The URL is not a SQLite file's, or the file can't be used.
        """
        path = path_of(url)
        _make_file(path)
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=path),
            connect_args={"timeout": BUSY_SECONDS, "isolation_level": None},
            pool_size=connections,
            max_overflow=0,
            hide_parameters=True,  # they would stand in logs
        )
        sa.event.listen(self._engine, "connect", _set_pragmas)
        sa.event.listen(self._engine, "begin", _begin)
        try:
            _use_wal(self._engine, path)
            self._reader = LoopReader(Path(path))
        except BaseException:
            self._engine.dispose()
            raise

    def migrate(self) -> None:
        """As `database.Engine`: under the lock of the writers."""
        self.write(migrations.upgrade)

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """As `database.Engine`."""
        return self._run(work, immediate=False)

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """As `database.Engine`. Waits `BUSY_SECONDS` for the writer before it."""
        return self._run(work, immediate=True)

    def _run(self, work: Callable[[sa.Connection], T], *, immediate: bool) -> T:
        with self._engine.connect() as connection:
            connection.execution_options(**{_IMMEDIATE: immediate})
            with connection.begin():
                return work(connection)

    def version(self) -> int | None:
        """What `LoopReader.version` tells."""
        return self._reader.version()

    def ask_version(self) -> None:
        """As `database.Engine`: what `version` can't tell at once is not told."""

    def rows(self, statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]] | None:
        """What `LoopReader.rows` finds."""
        return self._reader.rows(statement, parameters)

    def wipe_log(self) -> None:
        """Move the write-ahead log into the database and empty it, so that overwritten rows are in neither. Readers may
        keep it from happening; then the next checkpoint does it."""
        with self._engine.connect() as connection:
            connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def listen(self, channel: str) -> NoReturn:
        """As `database.Engine`: there is nobody who would notify."""
        raise NotImplementedError("SQLite has no notices")

    def close(self) -> None:
        """Close every connection. No call is under way."""
        self._reader.close()
        self._engine.dispose()


def path_of(url: str) -> str:
    """The file that a URL names. Raises `ConfigError` where it is not a SQLite file's."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as exc:
        raise ConfigError(EXPECTED) from exc
    path = parsed.database
    if parsed.drivername != "sqlite" or parsed.host or parsed.query or path is None or not os.path.isabs(path):
        raise ConfigError(EXPECTED)
    return path


def _make_file(path: str) -> None:
    # SQLite gives its -wal and -shm files the mode of the database.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        raise ConfigError(f"[metadata] url: {path}: {exc.strerror}") from exc


def _set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    # A secret that was rotated away must not stay behind in a free page.
    connection.execute("PRAGMA secure_delete = ON")


def _begin(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get(_IMMEDIATE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _use_wal(engine: sa.Engine, path: str) -> None:
    """Switch the file to WAL. SQLite does not wait by itself when two processes do this at the same time."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            mode = _journal_mode(engine)
        except sa.exc.OperationalError as exc:
            if time.monotonic() > deadline or "locked" not in str(exc.orig):
                raise ConfigError(f"[metadata] url: {path}: {exc.orig}") from exc
            time.sleep(0.05)  # a worker thread's time
        except sa.exc.DatabaseError as exc:
            raise ConfigError(f"[metadata] url: {path}: {exc.orig}") from exc
        else:
            break
    if mode != "wal":
        raise ConfigError(f"[metadata] url: {path}: the file system can't hold a SQLite database in WAL mode")


def _journal_mode(engine: sa.Engine) -> str:
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        try:
            return str(cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.Error as exc:
            # Outside of SQLAlchemy's execution, so translated to its error here.
            raise sa.exc.DBAPIError.instance("PRAGMA journal_mode", None, exc, sqlite3.Error) from exc
        finally:
            cursor.close()
