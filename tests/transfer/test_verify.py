"""The last block is kept back until the bytes are known to be right."""

from __future__ import annotations

import hashlib

import pytest
import trio
from blake3 import blake3

from visor_gateway.errors import ObjectChanged, StoreError
from visor_gateway.store.contract import Block, Direct
from visor_gateway.transfer.digest import Digests
from visor_gateway.transfer.verify import HELD, Hashed, Verified

DATA = bytes(range(256)) * 4


class Source:
    """Blocks of DATA, all in one buffer, as a store gives them."""

    def __init__(self, size: int) -> None:
        self.given = 0
        self._buffer = bytearray(size)

    async def receive_some(self) -> Block:
        await trio.lowlevel.checkpoint()
        block = DATA[self.given : self.given + len(self._buffer)]
        self._buffer[: len(block)] = block
        self.given += len(block)
        return memoryview(self._buffer)[: len(block)]


async def read(source: Verified | Hashed) -> bytes:
    found = b""
    while block := await source.receive_some():
        found += bytes(block)
    return found


@pytest.mark.parametrize("size", [1, 100, 256, 1023, 1024, 5000])
async def test_agreement_is_asked_for_once_when_the_last_block_was_read(size: int) -> None:
    asked: list[int] = []
    source = Source(size)

    async def agree() -> None:
        await trio.lowlevel.checkpoint()
        asked.append(source.given)

    assert await read(Verified(source, len(DATA), agree)) == DATA
    assert asked == [len(DATA)]


@pytest.mark.parametrize("size", [1, 100, 1024])
async def test_without_agreement_all_but_the_last_block_comes(size: int) -> None:
    async def refuse() -> None:
        await trio.lowlevel.checkpoint()
        raise ObjectChanged("no")

    verified = Verified(Source(size), len(DATA), refuse)
    found = b""
    for _ in range((len(DATA) - 1) // size):
        found += bytes(await verified.receive_some())
    with pytest.raises(ObjectChanged, match="no"):
        await verified.receive_some()
    assert found == DATA[: len(found)]


async def test_what_passes_is_what_is_hashed() -> None:
    hashed = Hashed(Source(100))
    assert await read(hashed) == DATA
    assert await hashed.sha256() == hashlib.sha256(DATA).hexdigest()


async def test_several_digests_are_of_the_same_bytes() -> None:
    hashed = Hashed(Source(100), Digests(("sha256", "blake3")))
    assert await read(hashed) == DATA
    digests = await hashed.digests()
    assert digests.hex("sha256") == hashlib.sha256(DATA).hexdigest()
    assert digests.hex("blake3") == blake3(DATA).hexdigest()


async def test_blocks_hashed_in_threads_are_hashed_before_their_buffer_is_used_again() -> None:
    size = 100_000

    class Large(Source):
        async def receive_some(self) -> Block:
            await trio.lowlevel.checkpoint()
            self.given += 1
            self._buffer[:] = bytes([self.given % 251]) * size
            return memoryview(self._buffer) if self.given <= 200 else b""

    hashed = Hashed(Large(size))
    while await hashed.receive_some():
        pass
    whole = b"".join(bytes([number % 251]) * size for number in range(1, 201))
    assert await hashed.sha256() == hashlib.sha256(whole).hexdigest()


class Socket(Source):
    """A source with a socket behind it."""

    def __init__(self, length: int) -> None:
        super().__init__(100)
        self.left = length
        self.healed: list[StoreError] = []

    def direct(self) -> Direct | None:
        return Direct(sock=-1, length=self.left, stall_timeout=1)

    def advance(self, count: int) -> None:
        self.left -= count

    async def heal(self, error: StoreError) -> None:
        await trio.lowlevel.checkpoint()
        self.healed.append(error)


async def test_the_last_block_is_never_offered_from_the_socket() -> None:
    async def agree() -> None:
        await trio.lowlevel.checkpoint()

    below = Socket(10 * HELD)
    verified = Verified(Hashed(below), 10 * HELD, agree)
    offered = verified.direct()
    assert offered is not None
    assert offered.length == 9 * HELD
    verified.advance(9 * HELD)
    assert (below.left, verified.direct()) == (HELD, None)
    error = StoreError("broken")
    await verified.heal(error)
    assert below.healed == [error]


async def test_what_has_no_socket_offers_none_and_heals_nothing() -> None:
    hashed = Hashed(Source(100))
    assert hashed.direct() is None
    with pytest.raises(StoreError, match="broken"):
        await hashed.heal(StoreError("broken"))
