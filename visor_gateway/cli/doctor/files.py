"""The data directory and its files, and the room on each file system that the gateway writes to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...config import FileStore, Settings
from ...datadir import DataDirectory, lock_holder
from ...errors import ConfigError
from ..output import byte_count
from .finding import Finding, failed, note, ok, warning

LITTLE_BYTES: Final = 1 << 30
LITTLE_SHARE: Final = 0.05  # of a file system
NO_BYTES: Final = 64 << 20  # less than that fails the next upload, and soon the database
FEW_INODES: Final = 1000


def examine_data_directory(directory: DataDirectory) -> Iterator[Finding]:
    """Whether the gateway's user, as which this runs, can work with the data directory."""
    check, path = "data directory", directory.path
    if not path.exists():
        yield note(check, f"{path} is not there yet: the first start makes it")
        parent = nearest(path)
        if not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
            yield failed(check, f"{parent} can't be written to", f"make {path} for the gateway's user, mode 0700")
        return
    if not path.is_dir():
        yield failed(check, f"{path} is no directory", "name another one with --data-dir")
        return
    yield from _access(check, path)
    yield from _running(directory)
    for each in (directory.admin, directory.master_key):
        yield from _private("secrets", each)


def _access(check: str, path: Path) -> Iterator[Finding]:
    found = path.stat()
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        yield failed(check, f"{path} can't be written to by user {os.geteuid()}", "chown it to the gateway's user")
    elif found.st_mode & stat.S_IRWXO:
        yield warning(check, f"{path} can be entered by other users of this host", f"chmod 700 {path}")
    else:
        yield ok(check, f"{path}, of user {found.st_uid}")


def _running(directory: DataDirectory) -> Iterator[Finding]:
    try:
        holder = lock_holder(directory.path)
    except ConfigError as exc:
        yield failed("daemon", exc.message, "make the directory readable, or wait until the gateway has started")
    else:
        yield note("daemon", "none runs on this directory" if holder is None else f"runs as process {holder}")


def _private(check: str, path: Path) -> Iterator[Finding]:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as exc:
        yield failed(check, f"{path}: {exc.strerror}", "the gateway's user has to be able to read it")
        return
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield failed(check, f"{path} has mode {stat.S_IMODE(mode):04o}", f"chmod 600 {path}, and rotate what it holds")
    elif not os.access(path, os.R_OK, effective_ids=True):
        yield failed(check, f"{path} can't be read by user {os.geteuid()}", "chown it to the gateway's user")
    else:
        yield ok(check, f"{path}: mode {stat.S_IMODE(mode):04o}")


# --- room ----------------------------------------------------------------------------------------


def examine_space(directory: DataDirectory, settings: Settings) -> Iterator[Finding]:
    """The room on each file system that is written to, once for each."""
    used: dict[int, list[str]] = {}
    places: dict[int, Path] = {}
    for name, path in _places(directory, settings):
        there = nearest(path)
        device = there.stat().st_dev
        used.setdefault(device, []).append(name)
        places.setdefault(device, there)
    for device, names in used.items():
        yield _room(places[device], " and ".join(names))
    if settings.cache.max_bytes:
        yield from _cache(settings)


def _places(directory: DataDirectory, settings: Settings) -> Iterator[tuple[str, Path]]:
    yield "data directory", directory.path
    for name, store in settings.stores.named.items():
        if isinstance(store, FileStore):
            yield f"store {name}", store.directory
    if settings.cache.max_bytes:
        yield "cache", settings.cache.directory


def _room(path: Path, who: str) -> Finding:
    found = os.statvfs(path)
    free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    message = f"{byte_count(free)} of {byte_count(size)} are free on the file system of {path} ({who})"
    advice = "remove images or move a store to a larger file system; uploads are refused once it is full"
    if free < NO_BYTES:
        return failed("space", message, advice)
    if found.f_files and found.f_favail < FEW_INODES:
        return warning("space", f"{found.f_favail} files can be made on the file system of {path} ({who})", advice)
    if free < LITTLE_BYTES or free < size * LITTLE_SHARE:
        return warning("space", message, advice)
    return ok("space", message)


def _cache(settings: Settings) -> Iterator[Finding]:
    found = os.statvfs(nearest(settings.cache.directory))
    size = found.f_blocks * found.f_frsize
    wanted = settings.cache.max_bytes + settings.cache.min_free
    if wanted > size:
        yield warning(
            "cache",
            f"max_bytes and min_free are {byte_count(wanted)}, its file system has {byte_count(size)}",
            "lower [cache] max_bytes: what other programs use of the file system is evicted from the cache first",
        )


def nearest(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
