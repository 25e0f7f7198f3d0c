"""Pipes for `splice`, which are kept: making one costs more than moving a small image.

The kernel lets the pipes of one user hold 64 MiB (`pipe-user-pages-soft`); beyond that an unprivileged process gets
none that is larger than a page or two. So there are a few large ones, then small ones, then none, and whoever gets none
copies.
"""

from __future__ import annotations

import fcntl
import os
from typing import Final

LARGE: Final = 1 << 20
LARGE_COUNT: Final = 32
SMALL: Final = 256 * 1024
SMALL_COUNT: Final = 64


class Pipe:
    """One pipe, empty when it is taken. Both ends are non-blocking."""

    __slots__ = ("reader", "size", "writer")

    def __init__(self, size: int) -> None:
        """Raises `OSError` where the kernel gives none of this size."""
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.size = size
        try:
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, size)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class Pipes:
    """The pipes of one daemon, for one thread. `close` it when all of them were given back."""

    def __init__(self, *, large: int = LARGE_COUNT, small: int = SMALL_COUNT) -> None:
        self._left = {LARGE: large, SMALL: small}
        self._free: dict[int, list[Pipe]] = {LARGE: [], SMALL: []}

    def take(self) -> Pipe | None:
        """A pipe, the largest to be had; None if there is none. To be given back."""
        for size, free in self._free.items():
            if free:
                return free.pop()
            if self._left[size]:
                try:
                    pipe = Pipe(size)
                except OSError:
                    continue  # the user's pages are used up, or the descriptors: perhaps a smaller one is to be had
                self._left[size] -= 1
                return pipe
        return None

    def give_back(self, pipe: Pipe, *, empty: bool) -> None:
        """Keep a pipe for the next one; one with bytes in it is closed, lest they end up in another transfer."""
        if empty:
            self._free[pipe.size].append(pipe)
        else:
            pipe.close()
            self._left[pipe.size] += 1

    def close(self) -> None:
        """Close those that nobody has."""
        for size, free in self._free.items():
            self._left[size] += len(free)
            while free:
                free.pop().close()
