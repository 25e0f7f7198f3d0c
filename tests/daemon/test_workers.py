"""What the supervisor decides: when a worker is replaced, and when it is taken for hung."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from visor_gateway.crew import BEAT_SECONDS
from visor_gateway.workers import Backoff, Silence


def test_a_worker_that_lived_is_replaced_at_once_and_those_that_die_early_ever_later() -> None:
    backoff = Backoff()
    assert backoff.delay(lived=3600) == 0
    delays = [backoff.delay(lived=0.1) for _ in range(10)]
    assert delays[:4] == [0.5, 1, 2, 4]
    assert delays == sorted(delays)
    assert delays[-1] == Backoff.LONGEST
    assert backoff.delay(lived=Backoff.LASTING) == 0
    assert backoff.delay(lived=0.1) == Backoff.FIRST


async def test_silence_is_told_after_its_time(autojump_clock: MockClock) -> None:
    silence = Silence()
    began = trio.current_time()
    await silence.wait(lambda: 30.0)
    assert trio.current_time() - began == pytest.approx(30, abs=2 * BEAT_SECONDS)


async def test_a_beat_begins_the_time_anew(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    silence = Silence()
    hung = trio.Event()

    async def watch() -> None:
        await silence.wait(lambda: 5.0)
        hung.set()

    nursery.start_soon(watch)
    for _ in range(20):
        await trio.sleep(3)
        silence.heard()
    assert not hung.is_set()
    await trio.sleep(10)
    assert hung.is_set()
