"""What was read last, for the time that the database is away."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Final, Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: Values that are kept; the one that was read the longest ago goes first. With its objects each takes about 2 KiB.
KEPT: Final = 4096


class Seen(NamedTuple):
    """The version of the database that was told last, and a moment of the monotonic clock at which it was right."""

    version: Hashable | None = None
    moment: float = 0.0


NEVER: Final = Seen()


class LastRead(Generic[K, V]):
    """Values as they were when they were last known to be right, for `seconds` after that; 0 keeps none. Sans-IO.

    That is when they were read, or since then when the database still was of the version of which they are.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._values: dict[K, tuple[V, Seen]] = {}

    def keep(self, key: K, value: V, version: Hashable | None = None) -> None:
        """Keep what was read just now, after `version` was told."""
        if not self._seconds:
            return
        self._values.pop(key, None)
        while len(self._values) >= KEPT:
            del self._values[next(iter(self._values))]
        self._values[key] = value, Seen(version, time.monotonic())

    def find(self, key: K, last: Seen = NEVER) -> V | None:
        """The value, unless it is too long ago that it was known to be right. `last`: what the database told last."""
        found = self._values.get(key)
        if found is None:
            return None
        value, (version, moment) = found
        if version is not None and version == last.version:
            moment = max(moment, last.moment)
        return value if time.monotonic() - moment <= self._seconds else None

    def drop(self, key: K) -> None:
        """Forget a value that is no longer right."""
        self._values.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()
