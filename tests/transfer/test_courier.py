"""The courier: who is woken, how often, and who runs in between."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from visor_gateway.transfer.courier import LONGEST_REST_SECONDS, REST_SECONDS, REST_SHARE, WOKEN_AT_ONCE, Courier


class Sleeper:
    def __init__(self, log: list[float] | None = None) -> None:
        self.woken: list[float] = [] if log is None else log

    def wake(self) -> None:
        self.woken.append(trio.current_time())


async def test_one_is_woken_at_once_and_then_once_a_round_however_often_it_is_called(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    courier, sleeper = Courier(), Sleeper()
    nursery.start_soon(courier.run)
    began = trio.current_time()
    courier.call(sleeper)
    await trio.testing.wait_all_tasks_blocked()
    assert sleeper.woken == [began]
    for _ in range(16):
        courier.call(sleeper)
    await trio.sleep(10 * REST_SECONDS)
    assert sleeper.woken == [began, began + REST_SECONDS]


async def test_others_run_between_a_few_that_are_woken(nursery: trio.Nursery) -> None:
    courier, woken = Courier(), list[float]()
    sleepers = [Sleeper(woken) for _ in range(10 * WOKEN_AT_ONCE)]
    most = 0

    async def look() -> None:
        nonlocal most
        seen = 0
        while seen < len(sleepers):
            await trio.lowlevel.checkpoint()
            most, seen = max(most, len(woken) - seen), len(woken)

    for sleeper in sleepers:
        courier.call(sleeper)
    nursery.start_soon(courier.run)
    await look()
    assert most <= 2 * WOKEN_AT_ONCE  # within one turn of the loop, the courier may come last, and first in the next


async def test_a_long_round_is_followed_by_a_longer_rest(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    courier, woken, cost = Courier(), list[float](), LONGEST_REST_SECONDS / 2 / REST_SHARE

    class Costly(Sleeper):
        def wake(self) -> None:
            super().wake()
            autojump_clock.jump(cost)

    one, two = Costly(woken), Costly(woken)
    nursery.start_soon(courier.run)
    began = trio.current_time()
    courier.call(one)
    await wait_all_tasks_blocked()
    courier.call(two)
    await trio.sleep(1)
    assert woken == [began, pytest.approx(began + cost * (1 + REST_SHARE))]
    cost = 10.0
    courier.call(one)
    await trio.sleep(cost + 1)
    courier.call(two)
    await trio.sleep(cost + 1)
    assert woken[3] - woken[2] < cost + 1 + LONGEST_REST_SECONDS


async def test_one_that_is_gone_is_not_woken(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    courier, gone, there = Courier(), Sleeper(), Sleeper()
    courier.call(gone)
    courier.call(there)
    courier.forget(gone)
    nursery.start_soon(courier.run)
    await wait_all_tasks_blocked()
    assert (gone.woken, len(there.woken)) == ([], 1)


async def test_what_is_to_be_done_after_a_round_is_done_after_each(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    courier, order = Courier(), list[str]()

    class Named:
        def wake(self) -> None:
            assert courier.is_going_round
            order.append("woken")

    courier.then(lambda: order.append("done"))
    nursery.start_soon(courier.run)
    for _ in range(2):
        courier.call(Named())
        courier.call(Named())
        await trio.sleep(1)
    assert order == ["woken", "woken", "done"] * 2
    assert not courier.is_going_round
