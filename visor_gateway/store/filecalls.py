"""The calls to the operating system that the file store makes, in one place that tests can replace.

Each call blocks and raises `OSError`; `translated` turns that into the store's errors, once.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from ..errors import StoreFull, StoreUnreachable

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_SUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})

_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE
_WRITE: Final = 2  # SYNC_FILE_RANGE_WRITE
_WRITE_AND_WAIT: Final = 1 | 2 | 4  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _c_call(*names: str) -> Callable[..., int] | None:
    """The first of these functions that the C library has: glibc's `...64` take 64-bit offsets on every machine."""
    return next((getattr(_libc, name) for name in names if hasattr(_libc, name)), None)


_fallocate: Final = _c_call("fallocate64", "fallocate")
_sync_file_range: Final = _c_call("sync_file_range")
_fstatfs: Final = _c_call("fstatfs64", "fstatfs")
_TMPFS: Final = 0x01021994  # TMPFS_MAGIC
#: EXT4_SUPER_MAGIC (ext2 and ext3, too), XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC
_LOCAL: Final = frozenset({_TMPFS, 0xEF53, 0x58465342, 0x9123683E, 0xF2F52010})
_STATFS_ROOM: Final = 256  # bytes; the structure has 120 at most


def _checked(call: Callable[..., int] | None, *arguments: Any) -> None:
    if call is not None and call(*arguments) != 0:
        code = ctypes.get_errno()
        if code not in _NOT_SUPPORTED:
            raise OSError(code, os.strerror(code))


def fallocate(fd: int, size: int) -> None:
    """Reserve blocks for `size` bytes and leave the file's length as it is; no effect where that can't be done.

    Not `os.posix_fallocate`: where the file system can't reserve, the C library would write zeros to every block. And
    not in memory: there every page would be taken at once, a third of a second for each GiB, while the client waits.
    """
    if size > 0 and _in_memory(fd):
        room = os.fstatvfs(fd)
        if size > room.f_bavail * room.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif size > 0:
        _checked(_fallocate, fd, _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size))


def _in_memory(fd: int) -> bool:
    return _file_system(fd) == _TMPFS


def is_prompt(fd: int) -> bool:
    """Whether the status of an open file, and its close while it has a name, never wait for a disk or a network.

    True of file systems that keep the inodes of open files in memory. Over a network, in user space or on top of others
    nobody can say.
    """
    return _file_system(fd) in _LOCAL


def _file_system(fd: int) -> int:
    """The type of the file system, 0 where that can't be told. `struct statfs` begins with it, as a word."""
    found = ctypes.create_string_buffer(_STATFS_ROOM)
    if _fstatfs is None or _fstatfs(fd, found) != 0:
        return 0
    return ctypes.c_long.from_buffer(found).value


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Have the kernel begin to write a range to the disk. Promises nothing: only `fsync` makes durable."""
    _checked(_sync_file_range, fd, ctypes.c_int64(offset), ctypes.c_int64(length), _WRITE)


def wait_writeback(fd: int, offset: int, length: int) -> None:
    """Wait until a range was given to the disk, so that no more than a few steps of dirty pages gather."""
    _checked(_sync_file_range, fd, ctypes.c_int64(offset), ctypes.c_int64(length), _WRITE_AND_WAIT)


@dataclass(frozen=True)
class FileCalls:
    """The operating system's functions by their names in `os`; a test puts faulty or recording ones here."""

    open: Callable[..., int] = os.open
    close: Callable[[int], None] = os.close
    write: Callable[..., int] = os.write
    preadv: Callable[..., int] = os.preadv
    fadvise: Callable[[int, int, int, int], None] = os.posix_fadvise
    fstat: Callable[[int], os.stat_result] = os.fstat
    stat: Callable[..., os.stat_result] = os.stat
    statvfs: Callable[..., os.statvfs_result] = os.statvfs
    fsync: Callable[[int], None] = os.fsync
    ftruncate: Callable[[int, int], None] = os.ftruncate
    fallocate: Callable[[int, int], None] = fallocate
    is_prompt: Callable[[int], bool] = is_prompt
    start_writeback: Callable[[int, int, int], None] = start_writeback
    wait_writeback: Callable[[int, int, int], None] = wait_writeback
    link: Callable[..., None] = os.link
    unlink: Callable[..., None] = os.unlink
    mkdir: Callable[..., None] = os.mkdir
    rmdir: Callable[..., None] = os.rmdir
    listdir: Callable[[int], list[str]] = os.listdir


@contextmanager
def translated(store: str) -> Generator[None, None, None]:
    """Turn `OSError` into a `StoreError` whose message names the store and the cause, and no path."""
    try:
        yield
    except OSError as exc:
        cause = os.strerror(exc.errno) if exc.errno else "unknown error"
        if exc.errno in _NO_ROOM:
            raise StoreFull(f"The store '{store}' has no room for the bytes: {cause}") from exc
        raise StoreUnreachable(f"The store '{store}' failed: {cause}") from exc
