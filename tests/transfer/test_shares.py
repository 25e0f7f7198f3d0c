"""Shares of the gateway's byte rate."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from visor_gateway.transfer.bus import Bus
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.limits import Rates
from visor_gateway.transfer.reports import SHARE
from visor_gateway.transfer.shares import ANSWER_SECONDS, Demand, RateShares, deal

demands = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.builds(Demand, st.integers(0, 50), st.one_of(st.just(math.inf), st.floats(0, 1e12))),
    min_size=1,
    max_size=8,
)


@given(st.integers(1000, 10**12), demands)
def test_shares_are_never_none_and_never_more_than_the_rate_together(rate: int, wanted: dict[str, Demand]) -> None:
    shares = deal(rate, wanted)
    assert shares.keys() == wanted.keys()
    assert all(share >= 1 for share in shares.values())
    assert sum(shares.values()) <= rate


@given(st.integers(10**6, 10**12), demands)
def test_where_somebody_wants_more_hardly_anything_is_left(rate: int, wanted: dict[str, Demand]) -> None:
    wanted["hungry"] = Demand(1, math.inf)
    assert sum(deal(rate, wanted).values()) > 0.99 * rate


def test_transfers_count_alike_and_what_one_can_not_use_others_get() -> None:
    inf = math.inf
    two = deal(10**6, {"a": Demand(1, inf), "b": Demand(3, inf)})
    assert two["b"] / two["a"] == pytest.approx(3, rel=0.15)
    unequal = deal(10**6, {"a": Demand(1, 100_000), "b": Demand(1, inf)})
    assert unequal["a"] == pytest.approx(100_000, rel=0.01)
    assert unequal["b"] == pytest.approx(900_000, rel=0.01)
    idle = deal(10**6, {"a": Demand(), "b": Demand(1, inf)})
    assert idle["b"] > 900_000
    assert idle["a"] > 0


class Member:
    """Takes shares, and can stop answering."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.share = 1
        self.answers = True
        self.bus.serve(SHARE, self._take)

    async def _take(self, member: str, share: int) -> None:
        if not self.answers:
            await trio.sleep_forever()
        self.share = share


async def test_at_no_moment_do_shares_in_force_exceed_the_rate(autojump_clock: MockClock) -> None:
    bus = Bus()
    members = {"a": Member(), "b": Member()}
    shares = RateShares(bus, Hub(), Rates(1_000_000))
    async with trio.open_nursery() as nursery:
        for name, member in members.items():
            here, there = trio.testing.memory_stream_pair()
            await nursery.start(bus.attach, name, here)
            await nursery.start(member.bus.attach, "center", there)
            assert shares.enrol(name) == 1
        await shares.deal()
        assert members["a"].share == members["b"].share == 500_000
        # One that does not answer may still use what it has: nobody else gets it.
        members["a"].answers = False
        shares.limit(600_000)
        began = trio.current_time()
        await shares.deal()
        assert trio.current_time() - began < 3 * ANSWER_SECONDS
        assert members["b"].share <= 300_000
        members["a"].answers = True
        await shares.deal()
        assert members["a"].share == members["b"].share == 300_000
        # Gone, its share is free.
        shares.forget("b")
        await shares.deal()
        assert members["a"].share == 600_000
        shares.limit(0)
        await shares.deal()
        assert members["a"].share == 0
        nursery.cancel_scope.cancel()


async def test_the_service_follows_a_change_at_once(autojump_clock: MockClock) -> None:
    bus, member = Bus(), Member()
    shares = RateShares(bus, Hub(), Rates())
    async with trio.open_nursery() as nursery:
        here, there = trio.testing.memory_stream_pair()
        await nursery.start(bus.attach, "a", here)
        await nursery.start(member.bus.attach, "center", there)
        assert shares.enrol("a") == 0
        nursery.start_soon(shares.run)
        await trio.sleep(10)
        shares.limit(5000)
        assert shares.bytes_per_s == 5000
        await trio.sleep(0.01)
        assert member.share == 5000
        nursery.cancel_scope.cancel()
