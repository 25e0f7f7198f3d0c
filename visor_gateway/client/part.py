"""The file that a download grows in until it is whole: `NAME.part`, and beside it what its bytes are of.

`NAME.part.json` names image and validator. It is written before the first byte and replaced whenever the download
starts over, so bytes are never continued with those of another image. The part file is locked while it is written to.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from .body import BLOCK
from .errors import TargetBusy


class Validator(msgspec.Struct, frozen=True):
    """What tells one state of an image from another.

    Attributes:
        uri: The image on its gateway.
        etag: Strong entity tag, quotes included.
        size: Bytes of the whole; None where unknown.
        sha256: Hex digest of the whole; None where unknown.
    """

    uri: str
    etag: str
    size: int | None
    sha256: str | None = None


_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
SIDECAR_LIMIT: Final = 65536


class PartFile:
    """An unfinished download. Methods block: call them in a thread. Make it with `open`, end it with `close`.

    Attributes:
        length: Bytes that are there.
        validator: What they are of; None where that is not known, so that they can't be continued.
    """

    def __init__(self, target: Path, fd: int) -> None:
        self._target = target
        self._path = _beside(target, ".part")
        self._sidecar = _beside(target, ".part.json")
        self._fd = fd
        self._hash = hashlib.sha256()
        self._hashed = 0
        self.length = os.fstat(fd).st_size
        self.validator = self._read_sidecar() if self.length else None

    @classmethod
    def open(cls, target: Path) -> PartFile:
        """Open or make the part file of `target` and lock it.

        Raises:
            TargetBusy: Another process writes it.
            OSError: As the system says it.
        """
        path = _beside(target, ".part")
        while True:
            fd = os.open(path, _OPEN, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(fd, path):
                    return cls(target, fd)
            except BlockingIOError as exc:
                os.close(fd)
                raise TargetBusy(f"{target}: another process downloads to it") from exc
            except BaseException:
                os.close(fd)
                raise
            # Between open and lock its former owner finished it or gave it up: what is locked is another file now.
            os.close(fd)

    def begin(self, validator: Validator | None) -> None:
        """Start over with nothing, for an image of that validator; None for one that can't be resumed."""
        os.ftruncate(self._fd, 0)
        self.length = self._hashed = 0
        self._hash = hashlib.sha256()
        self.validator = validator
        self._sidecar.unlink(missing_ok=True)
        if validator is not None:
            fresh = _beside(self._target, ".part.json.new")
            fresh.write_bytes(msgspec.json.encode(validator))
            fresh.replace(self._sidecar)

    def append(self, blocks: Sequence[bytes]) -> None:
        """Add bytes at the end. What was there before must have been hashed."""
        for block in blocks:
            view = memoryview(block)
            while view:
                written = os.pwrite(self._fd, view, self.length)
                self._hash.update(view[:written])
                self.length += written
                self._hashed = self.length
                view = view[written:]

    def hash_some(self) -> bool:
        """Read on in what an earlier process left, one block. False once the digest covers every byte."""
        block = os.pread(self._fd, min(BLOCK, self.length - self._hashed), self._hashed)
        self._hash.update(block)
        self._hashed += len(block)
        return bool(block)

    def sha256(self) -> str:
        """Hex digest of the bytes that `append` and `hash_some` went over."""
        return self._hash.hexdigest()

    def finish(self) -> None:
        """Make the bytes durable, then put them in the target's place in one step."""
        os.fsync(self._fd)
        self._path.replace(self._target)
        self._sidecar.unlink(missing_ok=True)
        directory = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def discard(self) -> None:
        """Remove the part file and what is kept beside it."""
        self._sidecar.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock. An empty part file is of no use and goes."""
        if self._fd < 0:
            return
        if self.length == 0 and _is_at(self._fd, self._path):
            self.discard()
        os.close(self._fd)
        self._fd = -1

    def _read_sidecar(self) -> Validator | None:
        try:
            return msgspec.json.decode(self._sidecar.read_bytes()[:SIDECAR_LIMIT], type=Validator)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)
