"""Where a download writes to, and the sink that can't take anything back: a pipe, a terminal, a device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from .errors import ImageChanged
from .part import Validator


class RawWriter(Protocol):
    """A blocking, unbuffered writer, such as `open(path, "wb", buffering=0)`."""

    def write(self, data: memoryview, /) -> int | None:
        """Take some of `data` and tell how much."""
        ...


class Sink(Protocol):
    """Takes an image in order. Methods block; they are called in a thread, one at a time. `part.PartFile` is one.

    Attributes:
        length: Bytes taken so far.
        validator: What they are of; None where they can't be continued.
    """

    length: int
    validator: Validator | None

    def begin(self, validator: Validator | None) -> None:
        """Start over. Raises `ImageChanged` where bytes were given away already."""
        ...

    def append(self, blocks: Sequence[bytes]) -> None:
        """Add bytes at the end. Raises `OSError`."""
        ...

    def hash_some(self) -> bool:
        """Bring the digest nearer to the end of what was there before; False once it is there."""
        ...

    def sha256(self) -> str:
        """Hex digest of everything taken."""
        ...

    def finish(self) -> None:
        """Everything is there and right: make it durable under its name."""
        ...

    def discard(self) -> None:
        """The bytes are wrong: leave nothing of them, where that is possible."""
        ...


class StreamSink:
    """A sink that hands bytes straight on. A cut is continued within one download, never by a later one."""

    def __init__(self, writer: RawWriter) -> None:
        self._writer = writer
        self._hash = hashlib.sha256()
        self.length = 0
        self.validator: Validator | None = None

    def begin(self, validator: Validator | None) -> None:
        if self.length:
            raise ImageChanged("The download can't be continued, and its first part was handed on already")
        self.validator = validator

    def append(self, blocks: Sequence[bytes]) -> None:
        for block in blocks:
            view = memoryview(block)
            while view:
                taken = self._writer.write(view) or 0
                self._hash.update(view[:taken])
                self.length += taken
                view = view[taken:]

    def hash_some(self) -> bool:
        return False

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def finish(self) -> None:
        """Nothing is left to do."""

    def discard(self) -> None:
        """Nothing can be taken back."""
