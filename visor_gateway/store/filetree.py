"""Objects as files in a directory: the blocking half of the file store, which runs in worker threads.

An object is the file `<image id>/<attempt id>` under the root; while it is written it is
`<image id>/<attempt id>.partial`, so that whoever knows the key finds what a crash left.

* Each step down is opened relative to the directory above it and never through a symbolic link; what is not a
  regular file does not exist.
* An image's directory is made by the attempt that needs it and removed by the one that leaves it empty. Attempts of
  one image race for it, so the maker begins again when the directory is gone under it.
* `publish` keeps the order: bytes durable, then the name, then the name durable. A crash between any two of the
  steps leaves a partial file or an object that no record names.

`OSError` escapes; the caller translates it. `StoreError` is raised where the meaning is known only here.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..errors import ObjectExists, ObjectMissing, StoreError, StoreFull, StoreUnreachable
from .contract import ObjectInfo
from .filecalls import FileCalls
from .objectkey import ObjectKey, is_image_id

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BELOW: Final = _DIRECTORY | os.O_NOFOLLOW
# O_NONBLOCK: to open a FIFO that somebody put there must not hang a thread.
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW

#: How often a writer makes its directory anew; each try is lost only to another attempt that ended just then.
_TRIES: Final = 100
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_IN_USE: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})


@dataclass
class Partial:
    """A file that is being written. `identity` is its device and inode; `fd` is -1 once it is closed.

    A call on the file may hang in a dead disk while the attempt is given up. Within `used` the descriptor stays open,
    so that its number is no other file's when the call comes back; what `give_up` can't close is closed then.
    """

    key: ObjectKey
    fd: int
    identity: tuple[int, int]
    _users: int = 0
    _orphan: int = -1
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def used(self, close: Callable[[int], None]) -> Generator[int, None, None]:
        """The descriptor, for the calls of a block."""
        with self._lock:
            self._users += 1
            fd = self.fd
        try:
            yield fd
        finally:
            with self._lock:
                self._users -= 1
                orphan = -1
                if not self._users:
                    orphan, self._orphan = self._orphan, -1
            if orphan >= 0:
                close(orphan)

    def give_up(self) -> int:
        """The descriptor, which the caller closes; -1 where that is left to whoever uses it still."""
        with self._lock:
            fd, self.fd = self.fd, -1
            if self._users and fd >= 0:
                fd, self._orphan = -1, fd
            return fd


def describe(found: os.stat_result) -> ObjectInfo:
    """What a file's status says of the object."""
    return ObjectInfo(size=found.st_size, validator=f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}")


def _without_ctime(info: ObjectInfo) -> str:
    return (info.validator or "").rpartition("-")[0]


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


class FileTree:
    """The directory of one file store. Every method blocks. Safe to use from several threads at once."""

    def __init__(self, directory: Path, calls: FileCalls) -> None:
        self._path = directory.absolute()
        self._calls = calls

    # --- writing ---------------------------------------------------------------------------------

    def create(self, key: ObjectKey, size: int | None) -> Partial:
        """Begin an object; `size` bytes are reserved if it is known. Leaves nothing when it fails.

        Raises:
            ObjectExists: The key is taken, by an object or by an attempt under way.
        """
        self._make(self._path)
        with self._root() as root:
            try:
                partial = self._create_below(root, key)
            except BaseException:
                with suppress(OSError):
                    self._remove_if_empty(root, key.image_id)
                raise
        try:
            self._calls.fallocate(partial.fd, size or 0)
        except BaseException:
            self.discard(partial)
            raise
        return partial

    def _create_below(self, root: int, key: ObjectKey) -> Partial:
        for _ in range(_TRIES):
            with suppress(FileExistsError):
                self._calls.mkdir(key.image_id, 0o700, dir_fd=root)
            with suppress(FileNotFoundError), self._opened(key.image_id, _BELOW, root) as directory:
                return self._create_in(directory, key)
        raise StoreUnreachable("The image's directory vanishes as often as it is made")

    def _create_in(self, directory: int, key: ObjectKey) -> Partial:
        if self._status(directory, key.attempt_id) is not None:
            raise ObjectExists("The store has an object of that key already")
        try:
            fd = self._calls.open(key.partial, _CREATE, 0o600, dir_fd=directory)
        except FileExistsError as exc:
            raise ObjectExists("An attempt of that key is under way already") from exc
        try:
            return Partial(key, fd, _identity(self._calls.fstat(fd)))
        except BaseException:
            self.close(fd)
            self._calls.unlink(key.partial, dir_fd=directory)
            raise

    def publish(self, partial: Partial, length: int) -> ObjectInfo:
        """Make the bytes durable, then the object visible, then its name durable. Closes the file.

        Raises:
            ObjectExists: The key is taken; that object is untouched, and nothing of this attempt is left.
            StoreError: The partial file was removed meanwhile.
        """
        key = partial.key
        with partial.used(self.close) as fd:
            self._calls.ftruncate(fd, length)  # gives back what was reserved and not written
            self._calls.fsync(fd)
        try:
            with self._root() as root, self._opened(key.image_id, _BELOW, root) as directory:
                self._name(directory, partial)
                self._calls.fsync(directory)
                # Another attempt may have made the image's directory and not have come to this point yet.
                self._calls.fsync(root)
        except FileNotFoundError as exc:
            raise StoreError("The attempt was removed from the store meanwhile") from exc
        with partial.used(self.close) as fd:
            info = describe(self._calls.fstat(fd))
        self._close(partial)
        return info

    def _name(self, directory: int, partial: Partial) -> None:
        """Give the file its final name, unless that is taken, and take away the other one."""
        key = partial.key
        try:
            self._calls.link(
                key.partial, key.attempt_id, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False
            )
        except FileExistsError as exc:
            # Over a network file system a repeated request may find the name that it made itself.
            if not self._is_ours(directory, partial):
                self.discard(partial)
                raise ObjectExists("The store has an object of that key already") from exc
        self._calls.unlink(key.partial, dir_fd=directory)

    def discard(self, partial: Partial) -> None:
        """Remove every trace of an attempt, also of one whose `publish` failed half-way. May be called again."""
        key = partial.key
        try:
            with self._root() as root:
                with suppress(FileNotFoundError), self._opened(key.image_id, _BELOW, root) as directory:
                    self._unlink(directory, key.partial)
                    if self._is_ours(directory, partial):
                        self._unlink(directory, key.attempt_id)
                self._remove_if_empty(root, key.image_id)
        finally:
            self._close(partial)

    def _is_ours(self, directory: int, partial: Partial) -> bool:
        found = self._status(directory, partial.key.attempt_id)
        return found is not None and _identity(found) == partial.identity

    def _close(self, partial: Partial) -> None:
        fd = partial.give_up()
        if fd >= 0:
            self.close(fd)

    # --- reading ---------------------------------------------------------------------------------

    def open(self, key: ObjectKey) -> tuple[int, ObjectInfo]:
        """Open an object. The caller closes the descriptor. Raises `ObjectMissing` if there is none."""
        with self._root() as root:
            fd = self._open_below(root, key)
        try:
            return fd, self._describe_regular(fd)
        except BaseException:
            self.close(fd)
            raise

    def _describe_regular(self, fd: int) -> ObjectInfo:
        found = self._calls.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ObjectMissing("The store has no such object")
        os.set_blocking(fd, True)
        return describe(found)

    def _open_below(self, root: int, key: ObjectKey) -> int:
        try:
            with self._opened(key.image_id, _BELOW, root) as directory:
                return self._calls.open(key.attempt_id, _READ, dir_fd=directory)
        except OSError as exc:
            if exc.errno in _NOT_THERE:
                raise ObjectMissing("The store has no such object") from exc
            raise

    def unchanged(self, fd: int, info: ObjectInfo) -> bool:
        """Whether an open object is still as it was described."""
        found = self._calls.fstat(fd)
        now = describe(found)
        if found.st_nlink == 0:
            # The delete of an object changes its ctime, and nothing of its bytes.
            return now.size == info.size and _without_ctime(now) == _without_ctime(info)
        return now == info

    def stat(self, key: ObjectKey) -> ObjectInfo:
        """Describe an object. Raises `ObjectMissing` if there is none."""
        fd, info = self.open(key)
        self.close(fd)
        return info

    def close(self, fd: int) -> None:
        """Close a descriptor. It is free whatever the call reports, and of bytes that were lost `fsync` has told."""
        with suppress(OSError):
            self._calls.close(fd)

    # --- removing --------------------------------------------------------------------------------

    def remove(self, key: ObjectKey, *, partial: bool) -> None:
        """Remove an object, and if `partial` is set its partial file too. What is not there is a success."""
        with self._root() as root:
            with self._if_there(key.image_id, root) as directory:
                if directory is not None:
                    if partial:
                        self._unlink(directory, key.partial)
                    self._unlink(directory, key.attempt_id)
                    self._calls.fsync(directory)
            self._remove_if_empty(root, key.image_id)
            self._calls.fsync(root)

    def keys(self, older_than: float) -> list[str]:
        """Keys of objects and partial files that nobody has written to for `older_than` seconds.

        An image's directory that a crash left empty has no key; it is removed on the way.
        """
        before = time.time() - older_than
        found: set[str] = set()
        with self._root() as root:
            for image_id in filter(is_image_id, self._calls.listdir(root)):
                with self._if_there(image_id, root) as directory:
                    if directory is not None:
                        names = self._calls.listdir(directory)
                        found.update(self._keys_in(directory, image_id, names, before))
                        forgotten = not names and self._calls.fstat(directory).st_mtime <= before
                if directory is not None and forgotten:
                    self._remove_if_empty(root, image_id)
        return sorted(found)

    def _keys_in(self, directory: int, image_id: str, names: Sequence[str], before: float) -> Iterator[str]:
        for name in names:
            key = ObjectKey.from_file(image_id, name)
            status = self._status(directory, name)
            if key is not None and status is not None and status.st_mtime <= before:
                yield str(key)

    def _unlink(self, directory: int, name: str) -> None:
        with suppress(FileNotFoundError):
            self._calls.unlink(name, dir_fd=directory)

    def _remove_if_empty(self, root: int, image_id: str) -> None:
        try:
            self._calls.rmdir(image_id, dir_fd=root)
        except OSError as exc:
            if exc.errno not in _IN_USE | _NOT_THERE:
                raise

    # --- the directory itself --------------------------------------------------------------------

    def probe(self) -> None:
        """Make the directory if it is missing, and see that a file can be made in it and has room."""
        self._make(self._path)
        with self._root() as root:
            self._probe_writable(root)
            room = self._calls.statvfs(root)
        if room.f_bavail == 0 or (room.f_files > 0 and room.f_favail == 0):
            raise StoreFull("The store has no room left")

    def _probe_writable(self, root: int) -> None:
        """Open a file without a name, which no crash can leave behind."""
        try:
            self.close(self._calls.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=root))
        except OSError as exc:
            if exc.errno not in {errno.EOPNOTSUPP, errno.EISDIR}:
                raise
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=root):
                raise PermissionError(errno.EACCES, "") from exc

    def _make(self, path: Path) -> None:
        """Make a directory and what is missing above it, durably."""
        try:
            self._calls.mkdir(path, 0o700)
        except FileExistsError:
            return
        except FileNotFoundError:
            self._make(path.parent)
            self._make(path)
            return
        with self._opened(path.parent, _DIRECTORY) as above:
            self._calls.fsync(above)

    @contextmanager
    def _root(self) -> Generator[int, None, None]:
        with self._opened(self._path, _DIRECTORY) as root:
            yield root

    @contextmanager
    def _if_there(self, image_id: str, root: int) -> Generator[int | None, None, None]:
        try:
            fd = self._calls.open(image_id, _BELOW, dir_fd=root)
        except OSError as exc:
            if exc.errno not in _NOT_THERE:
                raise
            yield None
            return
        try:
            yield fd
        finally:
            self.close(fd)

    @contextmanager
    def _opened(self, path: str | Path, flags: int, above: int | None = None) -> Generator[int, None, None]:
        fd = self._calls.open(path, flags, dir_fd=above)
        try:
            yield fd
        finally:
            self.close(fd)

    def _status(self, directory: int, name: str) -> os.stat_result | None:
        try:
            return self._calls.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
