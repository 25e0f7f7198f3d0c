"""Turns: in order, one between two looks for input, and none for who gave up."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from visor_gateway.transfer.turns import Turns


class Looks(trio.abc.Instrument):
    """Counts how often the event loop has looked for input."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_a_single_caller_waits_for_nothing() -> None:
    looks = Looks()
    trio.lowlevel.add_instrument(looks)
    await Turns().take()
    assert looks.count == 0


async def test_the_event_loop_looks_for_input_between_two_turns() -> None:
    turns, looks = Turns(), Looks()
    trio.lowlevel.add_instrument(looks)
    taken: list[int] = []

    async def begin() -> None:
        await turns.take()
        taken.append(looks.count)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(begin)
    assert len(taken) == len(set(taken)) == 20


async def test_turns_are_given_in_the_order_in_which_they_were_asked_for() -> None:
    turns = Turns()
    asked: list[int] = []
    taken: list[int] = []

    async def begin(number: int) -> None:
        asked.append(number)
        await turns.take()
        taken.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(begin, number)
    assert taken == asked


async def test_who_is_cancelled_takes_no_turn_and_delays_nobody() -> None:
    turns = Turns()
    taken: list[str] = []

    async def begin(name: str) -> None:
        await turns.take()
        taken.append(name)

    async with trio.open_nursery() as nursery:
        await turns.take()
        with trio.CancelScope() as scope:
            scope.cancel()
            await begin("cancelled")
        nursery.start_soon(begin, "next")
    assert scope.cancelled_caught
    assert taken == ["next"]


async def test_a_turn_that_is_never_followed_by_another_leaves_the_next_one_free() -> None:
    turns = Turns()
    await turns.take()
    await wait_all_tasks_blocked()
    looks = Looks()
    trio.lowlevel.add_instrument(looks)
    await turns.take()
    assert looks.count == 0


async def test_a_turn_taken_by_a_task_that_then_sleeps_holds_up_nobody() -> None:
    turns = Turns()
    taken: list[str] = []

    async def hang() -> None:
        await turns.take()
        taken.append("hangs")
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hang)
        await wait_all_tasks_blocked()
        await turns.take()
        nursery.cancel_scope.cancel()
    assert taken == ["hangs"]
