"""What answers are made of, kept for as long as no record changes. It is what anybody may be sent who asks the same:
who that is, and whether he may see it, is looked at for every request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

from ..meta.fresh import Fresh

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Making(Generic[V]):
    """A value that is being made, for all who asked for it meanwhile."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.values: list[V] = []


class Kept(Generic[K, V]):
    """Values by key. Each is made once for all who ask while nothing changes. Bounded in bytes."""

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        """`limit`: bytes that may be kept; `size`: bytes of a value with its key."""
        self._fresh: Fresh[K, V] = Fresh(limit)
        self._sized = size
        self._making: dict[tuple[Hashable, K], _Making[V]] = {}

    @property
    def size(self) -> int:
        """Bytes that are kept now."""
        return self._fresh.size

    async def get(self, version: Hashable | None, key: K, make: Callable[[], Awaitable[V]]) -> V:
        """The value of a key.

        Args:
            version: What the repository that `make` reads says now; None: nothing is kept.

        Raises:
            Exception: What `make` raises.
        """
        if version is None:
            return await make()
        found = self._fresh.find(version, key)
        while found is None:
            making = self._making.get((version, key))
            if making is None:
                return await self._make(version, key, make)
            # It was begun under the version that this caller saw, so nothing is missing in it.
            await making.done.wait()
            found = making.values[0] if making.values else None
        return found

    async def _make(self, version: Hashable, key: K, make: Callable[[], Awaitable[V]]) -> V:
        making = self._making[version, key] = _Making()
        try:
            value = await make()
            making.values.append(value)
        finally:
            # Where it failed or was cancelled, those who wait try for themselves.
            del self._making[version, key]
            making.done.set()
        self._fresh.keep(version, key, value, self._sized(value))
        return value
