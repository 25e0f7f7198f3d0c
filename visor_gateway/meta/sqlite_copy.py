"""A SQLite database as a file: whole copies of one that is in use, and a look into one that changes nothing.

Everything here blocks, and may run beside any number of processes that use the database.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from ..errors import ConfigError, MetadataUnavailable

_PROGRESS_STEPS: Final = 100_000  # virtual machine instructions between two looks at the clock: some milliseconds
BUSY_SECONDS: Final = 10.0
_PROBLEMS: Final = 5  # of an integrity check that are told; more of them say no more


class DatabaseState(msgspec.Struct, frozen=True):
    """What a look into a database has found.

    Attributes:
        revision: Of its schema; None where it is no gateway's database.
        key_ids: Ids of the master keys that seal its secrets.
        problems: What the integrity check says, a few lines of it; empty where all is well.
        checked: Whether the integrity check came to its end in time.
    """

    revision: str | None
    key_ids: frozenset[str]
    problems: tuple[str, ...]
    checked: bool


def copy_database(source: Path, target: Path, *, meanwhile: Callable[[], object] | None = None) -> None:
    """Write one committed state of a database into a new file, mode 0600, durable when this returns.

    Writers go on while it is written, and are not in it. The copy is whole without the `-wal` beside it.

    Args:
        meanwhile: Called while the state is the last one and nobody can write: to read what has to belong to it. Short.

    Raises:
        FileExistsError: The target is there; it was not touched.
        OSError: The target can't be written; nothing of it is left.
        MetadataUnavailable: The database can't be read; nothing of the target is left.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        # Not `opened`: what that takes for a file that nobody writes to may be written to before the copy is made.
        with _translated(), closing(_connect(source, "mode=rw")) as old, closing(sqlite3.connect(target)) as new:
            if meanwhile is not None:
                with _nobody_writes(source):
                    # The read transaction that the copy is made in begins here.
                    old.execute("BEGIN")
                    old.execute("SELECT count(*) FROM sqlite_master").fetchone()
                    meanwhile()
            # All pages in one step: one read transaction, which no writer makes begin again.
            old.backup(new, pages=-1)
            # A copy in WAL mode could not be read without being written to.
            new.execute("PRAGMA journal_mode = DELETE")
        _sync(target)
    except BaseException:
        with suppress(OSError):
            target.unlink()
        raise


def examine_database(path: Path, *, seconds: float) -> DatabaseState:
    """Look into a database without changing anything, not even the files beside it.

    Args:
        seconds: How long the integrity check may take.

    Raises:
        MetadataUnavailable: It can't be read.
    """
    while True:
        # Without a log beside it nobody has it open. To read it in the usual way would make one.
        whole = not _log_of(path).exists()
        with _translated(), closing(_connect(path, "mode=ro&immutable=1" if whole else "mode=ro")) as connection:
            state = _state(connection, seconds)
        if not (whole and state.problems and _log_of(path).exists()):
            # Else somebody has opened it meanwhile, and what was read is of two states.
            return state


def _state(connection: sqlite3.Connection, seconds: float) -> DatabaseState:
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    revision, keys = None, frozenset[str]()
    if {"alembic_version", "accounts"} <= tables:
        found = [str(row[0]) for row in connection.execute("SELECT version_num FROM alembic_version")]
        revision = max(found, default=None)
        rows = connection.execute("SELECT DISTINCT key_id FROM accounts WHERE key_id IS NOT NULL")
        keys = frozenset(str(row[0]) for row in rows)
    problems = _problems(connection, seconds)
    return DatabaseState(revision, keys, problems or (), problems is not None)


@contextmanager
def _nobody_writes(path: Path) -> Generator[None]:
    with closing(_connect(path, "mode=rw")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


def _connect(path: Path, how: str) -> sqlite3.Connection:
    """Raises `sqlite3.Error` where there is no such file; one that is no database is found out by the first read."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None, timeout=BUSY_SECONDS)


def _log_of(path: Path) -> Path:
    return Path(f"{path}-wal")


def _problems(connection: sqlite3.Connection, seconds: float) -> tuple[str, ...] | None:
    """What the integrity check finds; None where it was not done in time."""
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _PROGRESS_STEPS)
    try:
        said = [str(row[0]) for row in connection.execute(f"PRAGMA integrity_check({_PROBLEMS})")]
        missing = [str(row[0]) for row in connection.execute("PRAGMA foreign_key_check").fetchmany(_PROBLEMS)]
    except sqlite3.OperationalError:
        if time.monotonic() > deadline:
            return None
        raise
    finally:
        connection.set_progress_handler(None, 0)
    problems = [line for line in said if line != "ok"]
    return (*problems, *(f"a row of {table} refers to one that is not there" for table in sorted(set(missing))))


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise MetadataUnavailable(f"The metadata database can't be read: {exc}") from exc


def _sync(path: Path) -> None:
    for each, kind in ((path, 0), (path.parent, os.O_DIRECTORY)):
        descriptor = os.open(each, os.O_RDONLY | os.O_CLOEXEC | kind)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- before a migration --------------------------------------------------------------------------

KEPT: Final = 3  # copies; each migration makes one


def keep_copy(database: Path, revision: str) -> Path:
    """Copy a database of this revision before it is migrated, and drop all such copies but the newest.

    Nobody may write to it meanwhile. A copy of the same revision that is there already, of a migration that failed
    after it, is replaced.

    Returns:
        The copy, beside the database.

    Raises:
        ConfigError: The copy can't be written. Without it nothing is migrated.
        MetadataUnavailable: The database can't be read.
    """
    target = Path(f"{database}.of-{revision}")
    beside = Path(f"{target}.new")
    try:
        beside.unlink(missing_ok=True)
        copy_database(database, beside)
        beside.replace(target)
        copies = sorted(database.parent.glob(f"{database.name}.of-*"), key=lambda path: path.stat().st_mtime_ns)
        for old in copies[:-KEPT]:
            old.unlink()
    except OSError as exc:
        raise ConfigError(
            f"[metadata] url: {database}: expected room for a copy before the upgrade: {exc.strerror}"
        ) from exc
    return target
