"""The copy loop under a limit: paced, whole, in pieces, and its claim given up when it is cancelled."""

from __future__ import annotations

import pytest
import trio
from ingest_setting import Blocks
from trio.testing import MockClock

from visor_gateway.store.contract import Block
from visor_gateway.transfer.limits import BURST_SECONDS, Rates
from visor_gateway.transfer.meter import Meter
from visor_gateway.transfer.pump import pump

BLOCKS = [bytes([number]) * 100_000 for number in range(10)]


class Sink:
    def __init__(self) -> None:
        self.received = bytearray()
        self.times: list[tuple[float, int]] = []

    async def __call__(self, block: Block) -> None:
        await trio.lowlevel.checkpoint()
        self.received += block
        self.times.append((trio.current_time(), len(self.received)))


async def test_a_limited_copy_is_paced_and_whole(autojump_clock: MockClock) -> None:
    meter, sink, began = Meter(now=trio.current_time), Sink(), trio.current_time()
    rates = Rates(100_000, now=trio.current_time)
    await pump(Blocks(BLOCKS), sink, meter, waits=("store", "client"), pace=rates.pace())
    assert bytes(sink.received) == b"".join(BLOCKS)
    assert meter.moved == len(sink.received)
    for at, count in sink.times:
        assert count <= 100_000 * (at - began + BURST_SECONDS) + 1
    assert trio.current_time() - began == pytest.approx(10 - BURST_SECONDS, abs=0.3)
    meter.sample()
    assert meter.waited["limit"] > 9000
    assert meter.waited["client"] == 0
    # No long silence, however large the blocks are.
    assert max(later - earlier for (earlier, _), (later, _) in zip(sink.times, sink.times[1:], strict=False)) < 0.3


async def test_copies_share_what_there_is(autojump_clock: MockClock) -> None:
    rates = Rates(1_000_000, now=trio.current_time)
    sinks = [Sink() for _ in range(4)]
    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            for sink in sinks:
                source = Blocks(BLOCKS * 30)

                async def run(source: Blocks = source, sink: Sink = sink) -> None:
                    await pump(source, sink, Meter(), waits=("store", "client"), pace=rates.pace())

                nursery.start_soon(run)
    shares = [len(sink.received) for sink in sinks]
    assert min(shares) >= 0.9 * max(shares)
    assert 9_900_000 <= sum(shares) <= 10_250_001


async def test_without_a_limit_blocks_pass_as_they_come() -> None:
    blocks: list[Block] = []

    async def sink(block: Block) -> None:
        await trio.lowlevel.checkpoint()
        blocks.append(block)

    for pace in (None, Rates().pace()):
        await pump(Blocks(BLOCKS), sink, Meter(), waits=("store", "client"), pace=pace)
    assert all(block is BLOCKS[number % len(BLOCKS)] for number, block in enumerate(blocks))


async def test_a_cancelled_copy_gives_up_its_claim(autojump_clock: MockClock) -> None:
    rates = Rates(1000, now=trio.current_time)
    with trio.move_on_after(1):
        await pump(Blocks(BLOCKS), Sink(), Meter(), waits=("store", "client"), pace=rates.pace())
    assert rates.waiting == 0
