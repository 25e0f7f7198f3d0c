"""The entries of the cache's directory: whole images that were verified. Blocking; for threads. `OSError` escapes."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from .filecalls import FileCalls
from .partial import CacheKey

UUID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
BESIDE: Final = ".new"

_ENTRY: Final = re.compile(rf"({UUID})\.([0-9a-f]{{64}})\.image\Z")
_DESCRIPTION: Final = re.compile(rf"({UUID})\.([0-9a-f]{{64}})\.json\Z")

_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_REPLACE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW

_DESCRIPTION_LIMIT: Final = 4096  # bytes


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One cached image. `used_at` is seconds since the epoch."""

    image_id: str
    sha256: str
    size: int
    used_at: float

    @property
    def key(self) -> CacheKey:
        """The key of the entry."""
        return CacheKey(self.image_id, self.sha256)


class _Description(msgspec.Struct, frozen=True):
    """What the file of an entry was like when it was verified."""

    size: int
    inode: int
    mtime_ns: int


class Entries:
    """The entries in the directory `path`. What makes and removes is called under the directory's lock."""

    def __init__(self, path: Path, calls: FileCalls) -> None:
        self._path = path
        self._calls = calls

    def file(self, key: CacheKey) -> Path:
        """Where the bytes of an entry are."""
        return self._path / f"{key.image_id}.{key.tag}.image"

    def __iter__(self) -> Iterator[Entry]:
        for name in os.listdir(self._path):
            if found := _ENTRY.match(name):
                key = CacheKey(found[1], found[2])
                with suppress(FileNotFoundError):
                    size = os.stat(self._path / name, follow_symlinks=False).st_size
                    used_at = os.stat(self._description(key), follow_symlinks=False).st_mtime
                    yield Entry(image_id=key.image_id, sha256=key.tag, size=size, used_at=used_at)

    def open(self, key: CacheKey, size: int) -> int | None:
        """Open an entry of that size and note its use; None where there is none. The caller closes the descriptor."""
        try:
            fd = self._calls.open(self.file(key), _READ)
        except FileNotFoundError:
            return None
        try:
            # Shared with all other readers. The process that filled it may hold it alone for a moment: then it is safe.
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            right = self._is_as_described(key, os.fstat(fd), size)
        except BaseException:
            os.close(fd)
            raise
        if not right:
            os.close(fd)
            return None
        with suppress(OSError):
            os.utime(self._description(key))
        return fd

    def hold(self, key: CacheKey) -> int:
        """Open the bytes of an entry, whatever they are. The caller closes the descriptor."""
        return self._calls.open(self.file(key), _READ)

    def add(self, key: CacheKey, status: os.stat_result, partial: Path) -> None:
        """Make a synced file, which is `partial` now, an entry. The directory is the caller's to sync."""
        self._describe(key, _Description(status.st_size, status.st_ino, status.st_mtime_ns))
        os.rename(partial, self.file(key))

    def remove(self, key: CacheKey) -> None:
        """Remove an entry. Who reads it reads on."""
        # The bytes first: a description alone is nothing.
        self._unlink(self.file(key))
        self._unlink(self._description(key))

    def remove_if_wrong(self, name: str, names: set[str]) -> None:
        """Remove what can't be a file of an entry, of those `names` in the directory."""
        if found := _ENTRY.match(name):
            key = CacheKey(found[1], found[2])
            try:
                right = self._is_as_described(key, os.stat(self.file(key), follow_symlinks=False))
            except FileNotFoundError:
                right = False
            if not right:
                self.remove(key)
        elif (found := _DESCRIPTION.match(name)) and self.file(CacheKey(found[1], found[2])).name not in names:
            self._unlink(self._path / name)

    def _is_as_described(self, key: CacheKey, status: os.stat_result, size: int | None = None) -> bool:
        description = self._read_description(key)
        found = _Description(status.st_size, status.st_ino, status.st_mtime_ns)
        return description == found and size in {None, status.st_size}

    def _read_description(self, key: CacheKey) -> _Description | None:
        try:
            fd = self._calls.open(self._description(key), _READ)
        except FileNotFoundError:
            return None
        try:
            return msgspec.json.decode(os.read(fd, _DESCRIPTION_LIMIT), type=_Description)
        except msgspec.DecodeError:
            return None
        finally:
            os.close(fd)

    def _describe(self, key: CacheKey, description: _Description) -> None:
        beside = self._path / f"{self._description(key).name}{BESIDE}"
        fd = self._calls.open(beside, _REPLACE, 0o600)
        try:
            self._calls.write(fd, msgspec.json.encode(description))
            self._calls.fsync(fd)
        finally:
            os.close(fd)
        os.rename(beside, self._description(key))

    def _description(self, key: CacheKey) -> Path:
        return self._path / f"{key.image_id}.{key.tag}.json"

    def _unlink(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            self._calls.unlink(path)
