"""Messages that go into a sink: in order, once, each for many at once, and only while the sink is ready."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from visor_gateway.transfer.bus import Bus
from visor_gateway.transfer.courier import LONGEST_REST_SECONDS
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.plane import HubPlane, Watch
from visor_gateway.transfer.remote_plane import RemotePlane
from visor_gateway.transfer.reports import CENTER, Delivery, Who
from visor_gateway.transfer.subscription import QUEUED_EVENTS
from visor_gateway.transfer.transfer import Transfer
from visor_gateway.transfer.watchers import Watchers

ADMIN = Who("root", True)


class Sink:
    """Keeps what is put into it. `fetched` is what its task was woken for."""

    def __init__(self) -> None:
        self.open = True
        self.opened = trio.Event()
        self.leaves_over = 0  # how many times more it leaves something to its task
        self.texts: list[str] = []
        self.fetched: list[str | None] = []

    def ready(self) -> bool:
        return self.open

    def put(self, texts: Sequence[str]) -> bool:
        assert self.open
        self.texts += texts
        self.leaves_over -= 1
        return self.leaves_over < 0

    async def follow(self, watch: Watch) -> None:
        watch.attach(self)
        while not self.fetched or self.fetched[-1] is not None:
            text = await watch.next_text()
            self.fetched.append(text)
            if not self.open:  # as a task that can't send
                await self.opened.wait()

    def types(self) -> list[str]:
        return [json.loads(text)["type"] for text in self.texts]


class CountingBus(Bus):
    """Keeps what it publishes for watchers."""

    def __init__(self) -> None:
        super().__init__()
        self.deliveries: list[Delivery] = []

    def publish(self, topic: Any, payload: Any, *, to: str | None = None) -> None:
        if topic.name == "deliver":
            self.deliveries += payload
        super().publish(topic, payload, to=to)


class Stage:
    """A hub, and a plane on which to watch it: its own, or that of a member with or without a courier."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.bus = CountingBus()
        self.watchers = Watchers(self.bus, self.hub)
        self.plane: Any = HubPlane(self.hub)
        self.center = trio.CancelScope()


@asynccontextmanager
async def staged(kind: str) -> AsyncGenerator[tuple[Stage, trio.Nursery]]:
    stage = Stage()
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.hub.run)
        if kind != "local":
            here, there = trio.testing.memory_stream_pair()
            theirs = Bus()
            stage.plane = RemotePlane(theirs)

            async def attach(*, task_status: trio.TaskStatus[None]) -> None:
                with stage.center:
                    async with trio.open_nursery() as members:
                        await members.start(stage.bus.attach, "one", here)
                        task_status.started()

            await nursery.start(attach)
            await nursery.start(theirs.attach, CENTER, there)
        if kind == "with a courier":
            await nursery.start(stage.plane.serve)
        try:
            yield stage, nursery
        finally:
            nursery.cancel_scope.cancel()


def start(hub: Hub, id: str) -> Transfer:
    made = Transfer(id=id, kind="pull", image="i", store="file", client="192.0.2.1", user="anne", size=10**9, offset=0)
    hub.add(made)
    made.begin(trio.CancelScope())
    hub.publish("started", made)
    return made


async def rounds() -> None:
    """Until couriers have been everywhere."""
    await trio.sleep(4 * LONGEST_REST_SECONDS)


KINDS = ["local", "with a courier", "without a courier"]


@pytest.mark.parametrize("kind", KINDS)
async def test_many_get_all_in_order_without_their_tasks(autojump_clock: MockClock, kind: str) -> None:
    async with staged(kind) as (stage, nursery), AsyncExitStack() as stack:
        sinks = [Sink() for _ in range(40)]
        for sink in sinks:
            nursery.start_soon(sink.follow, await stack.enter_async_context(stage.plane.watch(ADMIN)))
        await rounds()
        moving = start(stage.hub, "a")
        for _ in range(4):
            moving.meter.moved += 1000
            await trio.sleep(0.5)
        start(stage.hub, "b")
        await rounds()
        for sink in sinks:
            opening = [json.loads(text or "")["type"] for text in sink.fetched] + sink.types()
            assert opening[:3] == ["hello", "snapshot", "event"]
            assert opening.count("event") == 2
            assert opening.count("delta") >= 4
            numbers = [json.loads(text)["seq"] for text in sink.texts]
            assert numbers == sorted(set(numbers))
            assert sink.texts[-4:] == sinks[0].texts[-4:]
            assert set(sink.types()[2:]) <= {"event", "delta", "heartbeat"}
            assert len(sink.fetched) <= 2
        if kind != "local":
            told = [each for each in stage.bus.deliveries if any('"kind":"started"' in text for text in each.texts)]
            assert sum(len(each.watches) for each in told) == 80
            assert len(told) < 10


@pytest.mark.parametrize("kind", KINDS)
async def test_who_is_not_ready_is_sent_a_gap_and_a_snapshot_later(autojump_clock: MockClock, kind: str) -> None:
    async with staged(kind) as (stage, nursery), stage.plane.watch(ADMIN) as watch:
        sink = Sink()
        nursery.start_soon(sink.follow, watch)
        await rounds()
        sink.open = False
        sink.texts, sink.fetched = [], []
        for number in range(3 * QUEUED_EVENTS):
            start(stage.hub, str(number))
        await rounds()
        assert len(sink.fetched) == 1  # its task has that, and can't send it
        start(stage.hub, "later")
        sink.open = True
        sink.opened.set()
        await rounds()
        types = [json.loads(text or "{}").get("type") for text in sink.fetched] + sink.types()
        assert types.count("gap") == 1
        assert types.count("snapshot") == 1
        seen = "".join(str(text) for text in [*sink.fetched, *sink.texts])
        assert f'"{3 * QUEUED_EVENTS - 1}"' in seen
        assert '"later"' in seen


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_sink_leaves_over_wakes_the_task_once(autojump_clock: MockClock, kind: str) -> None:
    async with staged(kind) as (stage, nursery), stage.plane.watch(ADMIN) as watch:
        sink = Sink()
        nursery.start_soon(sink.follow, watch)
        await rounds()
        sink.texts, sink.fetched, sink.leaves_over = [], [], 1
        start(stage.hub, "a")
        await rounds()
        start(stage.hub, "b")
        await rounds()
        assert sink.fetched.count("") == 1
        events = [json.loads(text) for text in [*sink.texts, *sink.fetched] if text and '"type":"event"' in text]
        assert [event["transfer"]["id"] for event in events] == ["a", "b"]


@pytest.mark.parametrize("kind", KINDS)
async def test_after_bye_the_task_is_told_of_the_end(autojump_clock: MockClock, kind: str) -> None:
    async with staged(kind) as (stage, nursery), stage.plane.watch(ADMIN) as watch:
        sink = Sink()
        nursery.start_soon(sink.follow, watch)
        await rounds()
        start(stage.hub, "a")
        stage.hub.close("drain")
        await rounds()
        said = [text for text in [*sink.texts, *sink.fetched] if text]
        assert sink.fetched[-1] is None
        assert sum('"bye"' in text for text in said) == 1
        assert sum('"kind":"started"' in text for text in said) == 1
        assert watch.farewell == "drain"


@pytest.mark.parametrize("kind", KINDS[1:])
async def test_a_center_that_is_gone_is_a_drain(autojump_clock: MockClock, kind: str) -> None:
    async with staged(kind) as (stage, nursery), stage.plane.watch(ADMIN) as watch:
        sink = Sink()
        nursery.start_soon(sink.follow, watch)
        await rounds()
        stage.center.cancel()
        await rounds()
        assert sink.fetched[-1] is None
        assert watch.farewell == "drain"
