"""The database and the master key: opens, version, integrity, and whether they belong together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...config import Settings
from ...datadir import DataDirectory
from ...errors import ConfigError, MetadataUnavailable
from ...meta import migrations
from ...meta.master_key import MasterKey
from ...meta.sqlite import path_of
from ...meta.sqlite_copy import DatabaseState, examine_database
from .finding import Finding, failed, note, ok, warning

CHECK_SECONDS: Final = 60.0  # of the integrity check: about 10 GB of database
AHEAD_SECONDS: Final = 120.0  # by which a file's time may be ahead of the clock
_RESTORE: Final = "stop the gateway and restore a backup (visor-admin restore)"


def examine_records(directory: DataDirectory, settings: Settings) -> Iterator[Finding]:
    """The database, then the key of the secrets in it."""
    keys = settings.auth.master_key_file or directory.master_key
    url = directory.database(settings.metadata.url.reveal())
    if not url.startswith("sqlite:"):
        yield from _on_server(url, keys)
        return
    try:
        path = Path(path_of(url))
    except ConfigError as exc:
        yield failed("database", exc.message, "correct the configuration")
        return
    if not path.exists():
        yield note("database", f"{path} is not there yet: the first start makes it")
        return
    try:
        state = examine_database(path, seconds=CHECK_SECONDS)
    except MetadataUnavailable as exc:
        yield failed("database", f"{path}: {exc.message}", f"if it is damaged, {_RESTORE}")
        return
    yield from _database(path, state)
    yield _master_key(keys, state)


def _on_server(url: str, keys: Path) -> Iterator[Finding]:
    # Imported here: its driver is an extra.
    from ...meta.postgres_state import examine_server

    shown = url.rpartition("@")[2]
    try:
        state = examine_server(url)
    except ConfigError as exc:
        yield failed("database", exc.message, "correct [metadata] url, or install the extra that it names")
        return
    except MetadataUnavailable as exc:
        yield failed(
            "database", f"{shown}: {exc.message}", "is the server up, and may the user of [metadata] url log in?"
        )
        return
    if state.revision is None:
        yield note("database", f"{shown} has no records yet: the first start makes the tables")
        return
    yield from _revision(shown, state)
    yield _master_key(keys, state)


def _revision(where: str, state: DatabaseState) -> Iterator[Finding]:
    found, known = str(state.revision), migrations.latest()
    if found > known:
        yield failed(
            "database",
            f"{where} was upgraded by a newer version: revision {found}, this version knows {known}",
            "run that version, or restore what was there before its upgrade",
        )
    elif found < known:
        yield note("database", f"{where} has revision {found}: the next start brings it to {known}")
    else:
        yield ok("database", f"{where}, revision {found}")


def _database(path: Path, state: DatabaseState) -> Iterator[Finding]:
    if state.revision is None:
        yield failed("database", f"{path} is not a gateway's", "correct [metadata] url")
    else:
        yield from _revision(str(path), state)
    if state.problems:
        yield failed("database", f"{path} is damaged: {'; '.join(state.problems)}", _RESTORE)
    elif not state.checked:
        yield warning(
            "database",
            f"{path}: the integrity check took longer than {CHECK_SECONDS:g} s",
            f"run it in a quiet hour: sqlite3 {path} 'PRAGMA integrity_check'",
        )
    elif state.revision is not None:
        yield ok("database", f"{path} is whole")
    if path.stat().st_mtime > time.time() + AHEAD_SECONDS:
        yield failed("clock", f"{path} was written in the future", "the clock went back: set it right (NTP)")


def _master_key(path: Path, state: DatabaseState) -> Finding:
    keys = MasterKey(path)
    try:
        keys.load()
    except ConfigError as exc:
        if not state.key_ids and not path.exists():
            return note("master key", f"{path} is not there yet: the first start makes it")
        return failed("master key", exc.message, "restore it from a backup, mode 0600, of the gateway's user")
    missing = state.key_ids - set(keys.ids)
    if missing:
        return failed(
            "master key",
            f"{path} is not the one of this database, which wants {', '.join(sorted(missing))}",
            "restore the key and the database from one backup",
        )
    return ok("master key", f"{path} opens the secrets of the database")
