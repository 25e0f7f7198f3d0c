"""How far a fill is, for other processes: three words in a small file that all of them have open.

The process that fills writes, the others read. The third word is made of the other two, so a text that is half-written,
or that somebody else has changed or cut, is known for what it is. The bytes that it promises were written to the
image's file before. Not a mapping: a file that is cut under one ends the process.
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from typing import Final, NamedTuple

_WORDS: Final = struct.Struct("=QQQ")  # how many bytes are committed, the stage, and what they are in sum
_MASK: Final = (1 << 64) - 1


class Stage(IntEnum):
    """What became of a fill."""

    FILLING = 0
    VERIFIED = 1  # all of it is there, and right
    FAILED = 2  # the store gave it up, or it was cancelled
    CHANGED = 3  # the store has other bytes than the record describes
    BROKEN = 4  # the cache's disk failed


class Told(NamedTuple):
    """What others are told: bytes of the image that are in its file, and what became of the fill so far."""

    committed: int
    stage: Stage


class Progress:
    """One such file, of which the caller owns the descriptor. Both calls are of a page in memory."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell(self, committed: int, stage: Stage = Stage.FILLING) -> None:
        """Let others know. Raises `OSError`."""
        os.pwrite(self._fd, _WORDS.pack(committed, stage, _sum(committed, stage)), 0)

    def look(self) -> Told | None:
        """What the process that fills has told last; None where that can't be made out now. Raises `OSError`."""
        text = os.pread(self._fd, _WORDS.size, 0)
        if len(text) < _WORDS.size:
            return None
        committed, stage, check = _WORDS.unpack(text)
        return Told(committed, Stage(stage)) if check == _sum(committed, stage) else None


def _sum(committed: int, stage: int) -> int:
    return (committed + (stage << 56)) ^ _MASK
