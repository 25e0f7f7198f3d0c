"""What was read or made from records, kept for as long as nothing in the database changes. Sans-IO."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Fresh(Generic[K, V]):
    """Values of one version of the database; those of another are dropped at the first look.

    Memory: at most `limit` bytes by the sizes that are told; what was kept first goes first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._version: Hashable | None = None
        self._values: dict[K, tuple[V, int]] = {}
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes that are kept now, as they were told."""
        return self._size

    def find(self, version: Hashable | None, key: K) -> V | None:
        """The value, if it was kept under this version. `version` is what the repository says now."""
        if version is None or version != self._version:
            return None
        found = self._values.get(key)
        return None if found is None else found[0]

    def keep(self, version: Hashable | None, key: K, value: V, size: int) -> None:
        """Keep a value that was read after `version` was seen. `size`: its bytes, and its key's."""
        if version is None or size > self._limit:
            return
        if version != self._version:
            self._values.clear()
            self._version, self._size = version, 0
        self._drop(key)
        while self._size + size > self._limit:
            self._drop(next(iter(self._values)))
        self._values[key] = value, size
        self._size += size

    def _drop(self, key: K) -> None:
        dropped = self._values.pop(key, None)
        if dropped is not None:
            self._size -= dropped[1]
