"""The files of the cache: whole images that were verified, and those that are being filled. Blocking; for threads.

One flat directory, which is its own index, so that several processes see the same and a restart forgets nothing:

    <image id>.<sha256>.image               an entry; its name promises the digest of what is in it
    <image id>.<sha256>.json                what the entry's file is like; its mtime is when it was last used
    <image id>.<tag>.<size>.partial         a fill under way (`partial.Partial`), with its .progress
    lock                                    held while names are made and removed

* An entry appears under its name by `rename`, after its digest was found right and its bytes were synced. Whatever a
  crash leaves before that is a partial file, which `prepare` removes.
* Files are written once. To evict, purge or give up is `unlink` and nothing else, so whoever has one open reads on.
* Who reads an entry holds its `flock`, shared. What is locked is not evicted.
* An entry whose file is not as it was when it was verified (inode, size, mtime) is none, and is removed.

Syncs: the bytes once, when the fill is whole; its description; the directory. A fill under way is not synced, as it
does not outlive a crash. Nothing is promised to anybody by an entry, so last uses are not synced at all.

`OSError` escapes; the caller decides to do without the cache.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, TypeAlias

from .cacheentries import BESIDE, UUID, Entries, Entry
from .filecalls import FileCalls
from .partial import PROGRESS_SUFFIX, SUFFIX, CacheKey, Partial, progress_of, take

_PARTIAL: Final = re.compile(rf"({UUID})\.([0-9a-f]{{64}})\.(\d{{1,19}})\.partial\Z")

_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_LOCK: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

#: Why a fill can't begin: another process fills the image, there is no room for it, the disk failed.
Refusal: TypeAlias = Literal["busy", "full", "failed"]


class CacheDirectory:
    """The directory of one cache. Every method blocks. Safe to use from several threads and processes at once.

    Args:
        path: The directory; `prepare` makes it.
        max_bytes: What entries and fills may take together.
        min_free: What stays free on the file system.
        evicted: Told of each entry that has to go for another image, in the thread that makes room.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        min_free: int = 0,
        evicted: Callable[[Entry], None] = lambda entry: None,
        calls: FileCalls | None = None,
    ) -> None:
        self.path = path.absolute()
        self.max_bytes = max_bytes
        self._min_free = min_free
        self._evicted = evicted
        self._calls = calls or FileCalls()
        self._entries = Entries(self.path, self._calls)

    def prepare(self) -> None:
        """Make the directory (mode 0700) if it is missing; remove what a crash left, and entries that are none."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            names = set(os.listdir(self.path))
            for name in names:
                if name.endswith(BESIDE):
                    self._unlink(name)
                elif _PARTIAL.match(name):
                    self._remove_if_abandoned(name)
                elif name.endswith(PROGRESS_SUFFIX) and name.removesuffix(PROGRESS_SUFFIX) + SUFFIX not in names:
                    self._unlink(name)
                else:
                    self._entries.remove_if_wrong(name, names)

    # --- entries ---------------------------------------------------------------------------------

    def open(self, key: CacheKey, size: int) -> int | None:
        """Open an entry of that size and note its use; None where there is none. The caller closes the descriptor."""
        return self._entries.open(key, size)

    def entries(self) -> list[Entry]:
        """What is in the cache, the least recently used first."""
        return sorted(self._entries, key=lambda entry: entry.used_at)

    def remove(self, image_id: str | None = None) -> list[Entry]:
        """Remove the entries of an image, or all of them, and take from its fills the name under which they would be
        published. Who reads them reads on. Returns the entries."""
        with self._locked():
            gone = [entry for entry in self._entries if image_id in {None, entry.image_id}]
            for entry in gone:
                self._entries.remove(entry.key)
            for name in os.listdir(self.path):
                if (found := _PARTIAL.match(name)) and image_id in {None, found[1]}:
                    self._unlink(name)
                    self._unlink(progress_of(name))
            return gone

    def discard(self, key: CacheKey, fd: int) -> bool:
        """Remove an entry that is still the file `fd`. Whether it was."""
        with self._locked(), suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(self._entries.file(key), follow_symlinks=False)):
                self._entries.remove(key)
                return True
        return False

    # --- fills -----------------------------------------------------------------------------------

    def begin(self, key: CacheKey, size: int) -> Partial | Refusal:
        """Begin a fill: room for `size` bytes is made, by eviction of what is least recently used, and reserved.

        Returns:
            "busy" where another process fills this image, "full" where there is no room for it.
        """
        with self._locked():
            partial = Partial(self.path, key, size, self._calls)
            if not self._remove_if_abandoned(partial.name):
                return "busy"
            if not self._make_room(size):
                return "full"
            try:
                partial.create()
            except OSError as exc:
                partial.unlink()
                partial.close()
                if exc.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                    return "full"
                raise
            return partial

    def follow(self, key: CacheKey, size: int) -> Partial | None:
        """Open the fill of another process; None where there is none any more."""
        with self._locked():
            partial = Partial(self.path, key, size, self._calls)
            try:
                if self._remove_if_abandoned(partial.name):
                    return None
                partial.follow()
            except FileNotFoundError:
                partial.close()
                return None
            return partial

    def adopt(self, partial: Partial) -> bool:
        """Make a fill that was followed one's own, where its process is gone. False where it is not, or has ended."""
        with self._locked():
            return partial.adopt()

    def disown(self, partial: Partial) -> None:
        """Take a fill its names, so that it becomes no entry and another one may begin."""
        with self._locked():
            if partial.leads_here():
                partial.unlink()

    def publish(self, partial: Partial, sha256: str) -> bool:
        """Make a whole file, which was found to have that digest, an entry. Does not close it.

        Returns:
            False where it was purged meanwhile: nothing is left of it then.
        """
        self._calls.fsync(partial.fd)
        status = os.fstat(partial.fd)
        if status.st_size != partial.size or partial.sealed not in {None, status.st_mtime_ns}:
            raise OSError(errno.EIO, "The file was changed by somebody else")
        with self._locked():
            if not partial.leads_here():
                return False
            self._entries.add(CacheKey(partial.key.image_id, sha256), status, self.path / partial.name)
            self._unlink(progress_of(partial.name))
            self._sync_directory()
        partial.share()
        return True

    def end(self, partial: Partial, *, ours: bool, resumable: bool = False) -> None:
        """Let go of a fill. Its names go, unless it was published or is another one's.

        Args:
            ours: Whether this process fills it, and does not only follow.
            resumable: Whether a process that follows may go on with it.
        """
        try:
            if ours and not (resumable and partial.is_followed()):
                with self._locked():
                    if partial.leads_here():
                        partial.unlink()
        finally:
            partial.close()

    def _remove_if_abandoned(self, name: str) -> bool:
        """Remove a partial file that nobody fills. Returns whether the name is free now."""
        try:
            fd = self._calls.open(self.path / name, _READ)
        except FileNotFoundError:
            self._unlink(progress_of(name))
            return True
        try:
            if not take(fd):
                return False
            self._unlink(name)
            self._unlink(progress_of(name))
            return True
        finally:
            os.close(fd)

    # --- room ------------------------------------------------------------------------------------

    def _make_room(self, size: int) -> bool:
        """Evict what it takes to have room for `size` bytes; nothing, where that would not do."""
        if size > self.max_bytes:
            return False
        entries = self.entries()
        filling = sum(int(found[3]) for found in map(_PARTIAL.match, os.listdir(self.path)) if found)
        room = self._calls.statvfs(self.path)
        missing = max(
            sum(entry.size for entry in entries) + filling + size - self.max_bytes,
            size + self._min_free - room.f_bavail * room.f_frsize,
        )
        with self._evictable(entries, missing) as victims:
            if sum(entry.size for entry in victims) < missing:
                return False
            for entry in victims:
                self._entries.remove(entry.key)
                self._evicted(entry)
        return True

    @contextmanager
    def _evictable(self, entries: Iterable[Entry], missing: int) -> Generator[list[Entry], None, None]:
        """As many of the entries as have the missing bytes, in their order, without those that somebody reads."""
        victims: list[Entry] = []
        held: list[int] = []
        try:
            for entry in entries:
                if missing <= 0:
                    break
                with suppress(FileNotFoundError):
                    held.append(self._entries.hold(entry.key))
                    if take(held[-1]):
                        victims.append(entry)
                        missing -= entry.size
            yield victims
        finally:
            for fd in held:
                os.close(fd)

    # --- the directory itself --------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Generator[None, None, None]:
        fd = self._calls.open(self.path / "lock", _LOCK, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _sync_directory(self) -> None:
        fd = self._calls.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._calls.fsync(fd)
        finally:
            os.close(fd)

    def _unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._calls.unlink(self.path / name)
