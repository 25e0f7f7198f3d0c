"""What was read last, for the time that the database is away."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: Values that are kept; the one that was read the longest ago goes first. With its objects each takes about 2 KiB.
KEPT: Final = 4096


class LastRead(Generic[K, V]):
    """Values as they were when they were last read, for `seconds` after that; 0 keeps none. Sans-IO."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._values: dict[K, tuple[V, float]] = {}

    def keep(self, key: K, value: V) -> None:
        """Keep what was read just now."""
        if not self._seconds:
            return
        self._values.pop(key, None)
        while len(self._values) >= KEPT:
            del self._values[next(iter(self._values))]
        self._values[key] = value, time.monotonic()

    def find(self, key: K) -> V | None:
        """The value, unless it was read too long ago."""
        found = self._values.get(key)
        if found is None or time.monotonic() - found[1] > self._seconds:
            return None
        return found[0]

    def drop(self, key: K) -> None:
        """Forget a value that is no longer right."""
        self._values.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()
