"""The data directory: where it is, which files it holds, and the lock that gives it to one process at a time.

The lock is `flock` on `gateway.lock`, which the kernel gives back however the process ends; the number of the process
stands in the file for those who want to signal it. Who reads the number checks that the lock is held: a number without
the lock is that of a process that is gone.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from .errors import ConfigError

#: Whoever looks for the holder takes a shared lock for an instant; a start that meets it tries again.
_TRIES: Final = 10
_PAUSE: Final = 0.02  # seconds


class DataDirectory(msgspec.Struct, frozen=True):
    """The files of a data directory. Absolute if `path` is."""

    path: Path

    @property
    def lock(self) -> Path:
        """Held by the daemon that runs on this directory."""
        return self.path / "gateway.lock"

    @property
    def control(self) -> Path:
        """The socket on which the daemon is asked for an upgrade, and older generations find it."""
        return self.path / "gateway.sock"

    @property
    def succession(self) -> Path:
        """Held by an older generation while it starts another process in the place of one that died."""
        return self.path / "gateway.succession"

    @property
    def log(self) -> Path:
        """What a daemon writes that was started in the background."""
        return self.path / "gateway.log"

    @property
    def admin(self) -> Path:
        """Address and credentials of the first user."""
        return self.path / "admin.toml"

    def database(self, url: str) -> str:
        """The URL of the gateway's database: `url` (`[metadata] url`), or, where that is a VISOR Meta server's, of the
        database beside it."""
        return f"sqlite:///{self.path / 'visor.sqlite3'}" if url.startswith("visor+") else url

    @property
    def master_key(self) -> Path:
        """The key that encrypts users' secrets, where the configuration names no other file."""
        return self.path / "master.key"


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """`$STATE_DIRECTORY` (systemd's), else `$XDG_STATE_HOME/visor-gateway`, else ~/.local/state/visor-gateway."""
    if state := environ.get("STATE_DIRECTORY"):
        # systemd separates several directories by colons; the first one is ours.
        return Path(state.partition(":")[0])
    base = environ.get("XDG_STATE_HOME", "")
    # A relative path is to be ignored (XDG Base Directory Specification).
    home = Path(base) if base.startswith("/") else Path(environ.get("HOME") or Path.home()) / ".local" / "state"
    return home / "visor-gateway"


class Held:
    """A data directory that is held by this process, maybe together with others that it was passed from or to.

    Attributes:
        directory: What is held.
        fd: The descriptor of the lock: as long as any process has it open, the lock is held.
    """

    def __init__(self, directory: DataDirectory, fd: int) -> None:
        self.directory = directory
        self.fd = fd

    def sign(self) -> None:
        """Write the number of this process into the lock file: it is the one to signal from now on."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let go. The number goes if it is ours."""
        if _written(self.directory.lock) == os.getpid():
            os.ftruncate(self.fd, 0)
        os.close(self.fd)


@contextmanager
def lock_data_dir(path: Path) -> Generator[DataDirectory]:
    """Hold the data directory, which is made (mode 0700) where it is missing. Released at the end of the block.

    Blocks for at most a fifth of a second.

    Raises:
        ConfigError: Another process holds it, or it can't be made or locked.
    """
    with hold_data_dir(path) as held:
        yield held.directory


@contextmanager
def hold_data_dir(path: Path, passed: int | None = None) -> Generator[Held]:
    """The same, for who passes the lock on.

    Args:
        path: The data directory.
        passed: The descriptor of the lock, from a process that holds it. Its number stays in the file until
            `Held.sign`.
    """
    held = Held(DataDirectory(path), _locked(path) if passed is None else passed)
    try:
        if passed is None:
            held.sign()
        yield held
    finally:
        held.close()


def _locked(path: Path) -> int:
    directory = DataDirectory(path)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(f"{path}: expected a data directory that can be written: {exc.strerror}") from exc
    try:
        _take(fd, directory)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _take(fd: int, directory: DataDirectory) -> None:
    for remaining in reversed(range(_TRIES)):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not remaining:
                holder = _written(directory.lock)
                who = f"process {holder}" if holder else "another process"
                raise ConfigError(f"{directory.path}: is used by {who}, expected a data directory of its own") from None
            time.sleep(_PAUSE)
        except OSError as exc:
            raise ConfigError(f"{directory.path}: expected a file system with locks: {exc.strerror}") from exc
        else:
            return


def lock_holder(path: Path) -> int | None:
    """The number of the process that holds the data directory; None if none does.

    Blocks for at most a fifth of a second.

    Raises:
        ConfigError: The lock file can't be read, or is held by a process that wrote no number into it.
    """
    directory = DataDirectory(path)
    for _ in range(_TRIES):
        if not _is_held(directory):
            return None
        if holder := _written(directory.lock):
            return holder
        time.sleep(_PAUSE)
    raise ConfigError(f"{directory.lock}: expected the number of the process that holds it")


def _is_held(directory: DataDirectory) -> bool:
    try:
        with closing(os.fdopen(os.open(directory.lock, os.O_RDONLY | os.O_CLOEXEC))) as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    except OSError as exc:
        raise ConfigError(f"{directory.lock}: expected a readable lock file: {exc.strerror}") from exc
    return False


def _written(lock: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(lock.read_text(encoding="ascii"))
    return None
