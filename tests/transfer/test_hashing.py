"""Digests in threads of their own."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import Any

import pytest

from visor_gateway.transfer.hashing import CORES, Buffers, Cores, Hasher

SIZE = 4096


def hash_pieces(hasher: Hasher, buffers: Buffers, count: int) -> None:
    """Have `hasher` take `count` buffers full of zeros."""
    for _ in range(count):
        buffer = buffers.take()
        buffer.holders = 1
        hasher.put(buffer, SIZE)


class Overlapping:
    """A digest that tells how many of its kind are updated at once."""

    def __init__(self) -> None:
        self.most = 0
        self._inside = 0
        self._lock = threading.Lock()
        self._both = threading.Barrier(2)

    def update(self, _: Any) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        # A second one that may come in does so while the first one waits for it.
        try:
            self._both.wait(0.01)
        except threading.BrokenBarrierError:
            self._both.reset()
        with self._lock:
            self._inside -= 1

    def hexdigest(self) -> str:
        return ""


@pytest.mark.parametrize("count", [1, 2])
def test_no_more_digests_are_computed_at_once_than_there_are_cores(count: int) -> None:
    buffers, cores, digest = Buffers(4, SIZE), Cores(count), Overlapping()
    hashers = [Hasher(digest, buffers, cores=cores) for _ in range(3)]
    for hasher in hashers:
        hasher.start()
    for hasher in hashers:
        hash_pieces(hasher, buffers, 10)
    for hasher in hashers:
        hasher.end()
        hasher.check()
    assert digest.most <= count


def test_a_digest_that_fails_gives_its_core_back() -> None:
    class Failing:
        def update(self, _: Any) -> None:
            raise MemoryError("none left")

        def hexdigest(self) -> str:
            return ""

    buffers, cores, digest = Buffers(2, SIZE), Cores(1), hashlib.sha256()
    failing, other = Hasher(Failing(), buffers, cores=cores), Hasher(digest, buffers, cores=cores)
    for hasher in (failing, other):
        hasher.start()
        hash_pieces(hasher, buffers, 3)
        hasher.end()
    with pytest.raises(MemoryError, match="none left"):
        failing.check()
    other.check()
    assert digest.hexdigest() == hashlib.sha256(bytes(3 * SIZE)).hexdigest()


def test_the_cores_are_those_of_this_process() -> None:
    taken = [CORES.__enter__() for _ in os.sched_getaffinity(0)]
    try:
        assert CORES._free.empty()
    finally:
        for _ in taken:
            CORES.__exit__()
