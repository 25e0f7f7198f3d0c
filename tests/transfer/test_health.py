"""What is told of stores: looked at in the background, bounded, and never by everybody who asks."""

from __future__ import annotations

import trio
from memory_store import MemoryStore
from trio.testing import MockClock

from visor_gateway.errors import StoreUnreachable
from visor_gateway.metrics import Metrics
from visor_gateway.transfer.health import CHECK_SECONDS, FRESH_SECONDS, INTERVAL_SECONDS, StoreHealth


class Patient(MemoryStore):
    """A store whose checks are counted; `state` says how they end."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.state = "well"
        self.checks = 0

    async def check(self) -> None:
        self.checks += 1
        await trio.lowlevel.checkpoint()
        if self.state == "silent":
            await trio.sleep_forever()
        if self.state == "away":
            raise StoreUnreachable("http://secret.example is away")


def up(metrics: Metrics, store: str) -> float | None:
    return metrics.registry.get_sample_value("visor_store_up", {"store": store})


async def test_stores_are_asked_at_intervals_and_what_they_say_is_told(autojump_clock: MockClock) -> None:
    one, other, metrics = Patient("one"), Patient("other"), Metrics()
    health = StoreHealth({"one": one, "other": other}, metrics)
    await health.look()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(health.serve)
        other.state = "away"
        await trio.sleep(INTERVAL_SECONDS + 1)
        assert (up(metrics, "one"), up(metrics, "other")) == (1, 0)
        assert await health.told() == {"one": "ok", "other": "failed"}
        other.state = "well"
        await trio.sleep(INTERVAL_SECONDS)
        assert (up(metrics, "one"), up(metrics, "other")) == (1, 1)
        assert one.checks == 3
        nursery.cancel_scope.cancel()


async def test_a_store_that_keeps_silent_has_failed_and_holds_up_nobody(autojump_clock: MockClock) -> None:
    one, other, metrics = Patient("one"), Patient("other"), Metrics()
    one.state = "silent"
    health = StoreHealth({"one": one, "other": other}, metrics)
    began = trio.current_time()
    assert await health.told() == {"one": "failed", "other": "ok"}
    assert trio.current_time() - began <= CHECK_SECONDS
    assert (up(metrics, "one"), up(metrics, "other")) == (0, 1)


async def test_many_who_ask_cost_a_store_one_check(autojump_clock: MockClock) -> None:
    store = Patient("one")
    health = StoreHealth({"one": store}, Metrics())
    heard: list[dict[str, str]] = []

    async def ask() -> None:
        heard.append(await health.told())

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
    assert heard == [{"one": "ok"}] * 100
    assert store.checks == 1
    store.state = "away"
    await trio.sleep(FRESH_SECONDS + 1)
    assert await health.told() == {"one": "failed"}
    assert store.checks == 2
