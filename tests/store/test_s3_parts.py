"""How large parts are, and where they wait."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from visor_gateway.errors import StoreError, StoreFull
from visor_gateway.store.parts import FIRST_BYTES, LARGEST_BYTES, MEMORY_BYTES, PartSizes, open_part
from visor_gateway.store.spool import Spool, SpoolBody

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


def parts_for(sizes: PartSizes, size: int) -> list[int]:
    """The parts that an object of `size` bytes is written in."""
    found: list[int] = []
    while size > 0:
        found.append(min(size, sizes.of(len(found) + 1)))
        size -= found[-1]
    return found


@pytest.mark.parametrize("max_size", [1, GIB, TIB, 5 * TIB])
def test_an_unknown_length_never_needs_too_many_parts(max_size: int) -> None:
    sizes = PartSizes(None, max_size)
    parts = parts_for(sizes, max_size)
    assert len(parts) <= 10_000
    assert max(parts) <= LARGEST_BYTES
    assert parts == sorted(parts[:-1]) + parts[-1:]
    assert sizes.of(1) == sizes.of(900) == FIRST_BYTES


def test_parts_of_a_tebibyte_are_small_for_long_and_never_huge() -> None:
    sizes = PartSizes(None, TIB)
    number = next(number for number in range(1, 10_001) if sizes.of(number) > MEMORY_BYTES)
    assert sum(sizes.of(each) for each in range(1, number)) > 10 * GIB
    assert sizes.of(10_000) < 256 * MIB
    assert PartSizes(None, 5 * TIB).of(10_000) < 1200 * MIB


@given(size=st.integers(1, 5 * TIB), max_parts=st.integers(1100, 10_000))
def test_a_known_length_is_cut_into_equal_parts(size: int, max_parts: int) -> None:
    sizes = PartSizes(size, 5 * TIB, max_parts)
    assert sizes.of(1) == sizes.of(max_parts) >= FIRST_BYTES
    assert sizes.of(1) * max_parts >= size
    assert sizes.of(1) <= LARGEST_BYTES


def test_one_part_too_many_is_refused() -> None:
    with pytest.raises(StoreError, match="too many parts"):
        PartSizes(None, GIB, 1000).of(1001)


@pytest.mark.parametrize("capacity", [MEMORY_BYTES, MEMORY_BYTES + 1])
async def test_a_part_is_sent_any_number_of_times(tmp_path: Path, capacity: int) -> None:
    spool = Spool(tmp_path / "spool", GIB)
    part = await open_part(spool, capacity)
    content = os.urandom(3 * MIB + 1)
    await part.append(memoryview(content[:MIB]))
    await part.append(memoryview(content[MIB:]))
    assert (part.length, part.room) == (len(content), capacity - len(content))
    assert spool.used == (len(content) if capacity > MEMORY_BYTES else 0)
    for _ in range(2):
        body = part.body()
        assert body.length == len(content)
        got = b""
        while block := await body.receive_some():
            got += block
        assert got == content
    assert await part.digest() == hashlib.sha256(content).hexdigest()
    await part.aclose()
    await part.aclose()
    assert spool.used == 0


async def test_a_spool_has_no_names_and_a_limit(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 10)
    first, second = await spool.open(), await spool.open()
    await first.append(b"12345678")
    with pytest.raises(StoreFull, match="spool_max_bytes"):
        await second.append(b"123")
    assert list((tmp_path / "spool").iterdir()) == []
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    await first.aclose()
    await second.append(b"123")
    assert await SpoolBody(second).receive_some() == b"123"
    await second.aclose()
    assert spool.used == 0


async def test_a_spool_that_can_not_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError) as raised:
        await Spool(tmp_path / "file" / "spool", 10).open()
    assert str(tmp_path) not in str(raised.value)


async def test_a_cancelled_write_gives_its_space_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 100)
    file = await spool.open()
    with trio.CancelScope() as scope:
        scope.cancel()
        await file.append(b"12345")
    await file.aclose()
    assert spool.used == 0
