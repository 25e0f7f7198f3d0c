"""`visor-admin restore`: puts a backup back in place, all of it or nothing.

Everything is checked before the first file is touched: sums, versions, the integrity of the database, and whether keys
and records belong together. Then each file takes its place by one rename, the database first: a gateway that met a
crash between two of them would find a database without its key, and refuse to start, rather than begin a new one. What
was there before stays beside it as `NAME.replaced-TIME`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ..config import Settings
from ..datadir import DataDirectory, lock_data_dir
from ..errors import ConfigError, GatewayError
from ..meta import migrations
from ..meta.master_key import MasterKey
from ..meta.sqlite_copy import examine_database
from . import archive
from .archive import ADMIN, DATABASE, MASTER_KEY, Manifest
from .backup import places

#: The database first (see above).
_ORDER: Final = (DATABASE, MASTER_KEY, ADMIN)
_CHECK_SECONDS: Final = 3600.0


def restore_backup(
    file: Path, directory: DataDirectory, settings: Settings, *, replace: bool = False
) -> tuple[Manifest, list[Path]]:
    """Put a backup back in place.

    Args:
        file: What `backup` wrote.
        directory: The data directory, made where it is missing.
        settings: They say where database and master key belong.
        replace: Whether what is there may be put aside.

    Returns:
        What the backup held, and where what was there before is now.

    Raises:
        ConfigError: The backup can't be used, a gateway runs, or something is in the way. Nothing was changed.
        MetadataUnavailable: The backup's database can't be read. Nothing was changed.
    """
    found = places(directory, settings)
    is_new = not directory.path.exists()
    try:
        manifest = archive.read(file)  # before anything is made
        if manifest.revision > migrations.latest():
            raise ConfigError(
                f"{file}: expected a backup of this version or an older one, but its database has revision"
                f" {manifest.revision}, this version knows {migrations.latest()}"
            )
        with lock_data_dir(directory.path), _staged(file, found) as staged:
            _check(file, manifest, staged)
            wanted = {name: path for name, path in staged.items() if not _is_there(name, path, found[name], manifest)}
            if not replace:
                _refuse_what_is_there(found, wanted)
            return manifest, _put(wanted, found, directory.path)
    except (OSError, GatewayError) as exc:
        if is_new:
            _forget(directory)
        if isinstance(exc, GatewayError):
            raise
        raise ConfigError(f"{exc.filename or directory.path}: can't be restored: {exc.strerror}") from exc


def _forget(directory: DataDirectory) -> None:
    with suppress(OSError):
        directory.lock.unlink()
        directory.path.rmdir()


@contextmanager
def _staged(file: Path, found: Mapping[str, Path]) -> Generator[dict[str, Path]]:
    """The backup's files, each beside its place: only there can a rename put it in place. Removed at the end."""
    staged = {name: path.with_name(f".{path.name}.restore-{os.getpid()}") for name, path in found.items()}
    try:
        archive.read(file, staged)
        yield {name: path for name, path in staged.items() if path.exists()}
    finally:
        for path in staged.values():
            path.unlink(missing_ok=True)


def _check(file: Path, manifest: Manifest, staged: Mapping[str, Path]) -> None:
    state = examine_database(staged[DATABASE], seconds=_CHECK_SECONDS)
    if state.problems or not state.checked or state.revision != manifest.revision:
        why = "; ".join(state.problems) or "it is another one than the manifest says"
        raise ConfigError(f"{file}: expected a database without damage: {why}")
    keys = MasterKey(staged[MASTER_KEY])
    keys.load()
    if not state.key_ids <= set(keys.ids):
        raise ConfigError(f"{file}: expected the master key under which its database's secrets are encrypted")


def _is_there(name: str, staged: Path, target: Path, manifest: Manifest) -> bool:
    """Whether the place holds what it has to already: the same bytes, or a master key file with every key."""
    if name == DATABASE or not target.exists():
        return False
    if name == MASTER_KEY:
        keys = MasterKey(target)
        with suppress(ConfigError):
            keys.load()
        return set(manifest.key_ids) <= set(keys.ids)
    return staged.read_bytes() == target.read_bytes()


def _refuse_what_is_there(found: Mapping[str, Path], wanted: Mapping[str, Path]) -> None:
    for name in wanted:
        if found[name].exists():
            raise ConfigError(f"{found[name]}: is there already; --replace puts it aside")


def _put(wanted: Mapping[str, Path], found: Mapping[str, Path], directory: Path) -> list[Path]:
    """Give every file its place; a failure takes back what was done.

    Returns:
        What was there before.
    """
    suffix = f".replaced-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    owner = directory.stat()
    aside: list[Path] = []
    with ExitStack() as undo:
        for name in (name for name in _ORDER if name in wanted):
            staged, target = wanted[name], found[name]
            if os.geteuid() == 0:
                os.chown(staged, owner.st_uid, owner.st_gid)
            if name == DATABASE:
                aside += _clear_log(target, suffix, undo)
            if target.exists():
                old = target.with_name(target.name + suffix)
                os.link(target, old)
                aside.append(old)
                undo.callback(_take_back, old, target)
            else:
                undo.callback(target.unlink, missing_ok=True)
            staged.replace(target)
            archive.sync_directory(target.parent)
        undo.pop_all()
    return aside


def _take_back(old: Path, target: Path) -> None:
    if target.exists() and old.samefile(target):
        # Nothing had taken its place yet; a rename between two names of one file does nothing.
        old.unlink()
    else:
        old.replace(target)


def _clear_log(database: Path, suffix: str, undo: ExitStack) -> list[Path]:
    """Leave no log beside the database that is replaced: SQLite would apply it to the new one."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as connection:
        # Who closes a database last moves its log into it.
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    aside = []
    for ending in ("-wal", "-shm"):
        log = Path(f"{database}{ending}")
        if log.exists():
            # Of a damaged database. Named like the database that is put aside, they still belong together.
            old = Path(f"{database}{suffix}{ending}")
            log.replace(old)
            undo.callback(_take_back, old, log)
            aside.append(old)
    return aside
