"""`visor-admin backup`: one state of records and keys in one file, while the gateway serves."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from .. import __version__
from ..config import Settings
from ..datadir import DataDirectory
from ..errors import ConfigError
from ..meta.master_key import MasterKey
from ..meta.sqlite import path_of
from ..meta.sqlite_copy import DatabaseState, copy_database, examine_database
from . import archive
from .archive import ADMIN, DATABASE, FORMAT, MASTER_KEY, Manifest

_CHECK_SECONDS: Final = 3600.0  # a backup that was not checked is none


def places(directory: DataDirectory, settings: Settings) -> dict[str, Path]:
    """Where the gateway keeps what a backup holds.

    Raises:
        ConfigError: The database is not SQLite's.
    """
    url = directory.database(settings.metadata.url.reveal())
    if not url.startswith("sqlite:"):
        raise ConfigError("[metadata] url: expected a SQLite database: a server's is backed up with its own programs")
    return {
        DATABASE: Path(path_of(url)),
        MASTER_KEY: settings.auth.master_key_file or directory.master_key,
        ADMIN: directory.admin,
    }


def make_backup(target: Path, directory: DataDirectory, settings: Settings) -> tuple[Path, Manifest]:
    """Write a backup. Gateways may write to the database meanwhile: it is copied as it was at one moment.

    Args:
        target: The file, or a directory in which one is made that is named by the time.

    Returns:
        The file, and what is in it.

    Raises:
        ConfigError: There is nothing to back up, something can't be read or is damaged, or the target is there already.
        MetadataUnavailable: The database can't be read.
    """
    found = places(directory, settings)
    for name in (DATABASE, MASTER_KEY):
        if not found[name].exists():
            raise ConfigError(f"{found[name]}: expected the {name} of a gateway")
    now = datetime.now(UTC)
    if target.is_dir():
        target /= f"visor-gateway-{now:%Y%m%dT%H%M%SZ}.tar"
    try:
        with tempfile.TemporaryDirectory(prefix=".visor-gateway-", dir=target.parent) as place:  # mode 0700
            files, state = _taken(found, Path(place))
            members = tuple(archive.described(name, path) for name, path in files.items())
            revision = str(state.revision)
            manifest = Manifest(
                FORMAT, __version__, now.isoformat(timespec="seconds"), revision, tuple(sorted(state.key_ids)), members
            )
            archive.write(target, manifest, files)
    except FileExistsError as exc:
        raise ConfigError(f"{target}: exists and is not overwritten") from exc
    except OSError as exc:
        raise ConfigError(f"{exc.filename or target}: the backup can't be written: {exc.strerror}") from exc
    return target, manifest


def _taken(found: dict[str, Path], place: Path) -> tuple[dict[str, Path], DatabaseState]:
    """Copies of the files that belong together: a rotation of the master key takes its steps while it alone writes."""
    files = {name: place / name for name, path in found.items() if name != ADMIN or path.exists()}

    def read_keys() -> None:
        for name in files.keys() - {DATABASE}:
            _write(files[name], found[name].read_bytes())

    copy_database(found[DATABASE], files[DATABASE], meanwhile=read_keys)
    state = _checked(found[DATABASE], files[DATABASE])
    keys = MasterKey(files[MASTER_KEY])
    keys.load()
    if not state.key_ids <= set(keys.ids):
        raise ConfigError(
            f"{found[MASTER_KEY]}: expected the master key under which the database's secrets are encrypted"
        )
    return files, state


def _checked(database: Path, copy: Path) -> DatabaseState:
    state = examine_database(copy, seconds=_CHECK_SECONDS)
    if state.revision is None:
        raise ConfigError(f"{database}: expected the database of a gateway")
    if state.problems or not state.checked:
        raise ConfigError(f"{database}: expected a database without damage: {'; '.join(state.problems) or 'too large'}")
    return state


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
