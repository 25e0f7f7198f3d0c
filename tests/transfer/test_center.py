"""One view of what several processes move: a center and branches, joined by buses over memory."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from visor_gateway.errors import Conflict, Draining, Forbidden, InvalidRequest, NotFound, QueueFull, TransferCancelled
from visor_gateway.metrics import Metrics, MetricsSum
from visor_gateway.transfer.admission import Admission, Slots
from visor_gateway.transfer.branch import Branch, BranchHistory
from visor_gateway.transfer.bus import Bus, MemberGone
from visor_gateway.transfer.center import LOST, Center
from visor_gateway.transfer.control import Change
from visor_gateway.transfer.engine import Engine
from visor_gateway.transfer.history import History
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.limits import Rates
from visor_gateway.transfer.meter import Meter
from visor_gateway.transfer.plane_host import PlaneHost
from visor_gateway.transfer.remote_plane import RemotePlane
from visor_gateway.transfer.reports import CENTER, Counts, Description, Step, Who
from visor_gateway.transfer.scrub import Progress
from visor_gateway.transfer.shares import RateShares
from visor_gateway.transfer.transfer import Transfer

ADMIN, ANNE, BOB = Who("root", True), Who("anne", False), Who("bob", False)


class Process:
    """One that moves bytes."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.metrics = Metrics()
        self.branch = Branch(self.bus, self.metrics, rates := Rates())
        self.engine = Engine(self.branch, self.metrics, rates=rates, gate=self.branch)
        self.plane = RemotePlane(self.bus)
        self.life = trio.CancelScope()

    async def run(self, stream: trio.abc.Stream, *, task_status: trio.TaskStatus[None]) -> None:
        with self.life:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.bus.attach, CENTER, stream)
                await nursery.start(self.branch.run)
                task_status.started()


class Gateway:
    def __init__(self, slots: Slots) -> None:
        self.bus = Bus(relays=True)
        self.hub = Hub()
        self.metrics = Metrics()
        rates = self.rates = Rates(0, 1_000_000)
        self.center = Center(self.bus, self.hub, Admission(slots), rates, self.metrics)
        shares = RateShares(self.bus, self.hub, rates)
        scrub: Any = Scrub()
        self.host = PlaneHost(
            self.bus, self.hub, self.metrics, scrub, shares, MetricsSum(), refresh=trio.lowlevel.checkpoint
        )
        self.one, self.two = Process(), Process()

    async def forget(self, name: str) -> None:
        """Do what the supervisor does when a member has gone."""
        await self.bus.wait_gone(name)
        self.center.forget(name)
        self.host.forget(name)


class Scrub:
    def __init__(self) -> None:
        self.asked: list[str] = []

    @property
    def progress(self) -> Progress:
        return Progress(waiting=len(self.asked))

    def ask(self, image_ids: list[str]) -> None:
        self.asked += image_ids


@asynccontextmanager
async def gateway(**slots: int) -> AsyncGenerator[tuple[Gateway, trio.Nursery], None]:
    made = Gateway(Slots(**slots))
    async with trio.open_nursery() as nursery:
        await nursery.start(made.hub.run)
        await nursery.start(made.center.run)
        for name, process in (("one", made.one), ("two", made.two)):
            here, there = trio.testing.memory_stream_pair()
            await nursery.start(made.bus.attach, name, here)
            nursery.start_soon(made.forget, name)
            await nursery.start(process.run, there)
        await trio.testing.wait_all_tasks_blocked()
        try:
            yield made, nursery
        finally:
            nursery.cancel_scope.cancel()


def pull(user: str | None = "anne", id: str | None = None, kind: str = "pull", image: str = "i") -> Transfer:
    made = Transfer(
        id=id or str(uuid4()),
        kind=kind,  # type: ignore[arg-type]
        image=image,
        store="file",
        client="192.0.2.1",
        user=user,
        size=1000,
    )
    made.meter = Meter(now=trio.current_time)
    return made


async def forever(transfer: Transfer) -> None:
    await trio.sleep_forever()


async def move(process: Process, transfer: Transfer, work: Any = forever) -> None:
    """Run a transfer as a request would."""
    with suppress(TransferCancelled, OSError):
        await process.engine.run(transfer, work)


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_every_process_shows_what_any_of_them_moves_as_its_own_would(autojump_clock: MockClock) -> None:
    async with gateway() as (g, nursery):
        here, there = pull(), pull("bob", kind="push", image="j")
        nursery.start_soon(move, g.one, here)
        await settle()
        nursery.start_soon(move, g.two, there)
        await trio.sleep(1)
        here.meter.moved += 300
        here.attempt, here.waiters = 2, 3
        await trio.sleep(1)
        for process in (g.one, g.two):
            found = await process.plane.list(ADMIN, ())
            assert {each["id"] for each in found.transfers} == {here.id, there.id}
            assert found.totals["by_kind"] == {"pull": 1, "push": 1}
            shown = await process.plane.find(ANNE, here.id)
            # But for the limit, which the center knows, and what goes on with the clock.
            moving = {"limit_bytes_per_s": None, "rate_avg": None, "rate": None, "eta_s": None, "wait": None}
            assert shown | moving == here.shown() | moving
            assert shown["bytes"] == 300
            assert [each["id"] for each in (await process.plane.list(BOB, ())).transfers] == [there.id]
            assert (await process.plane.list(ADMIN, (("image", frozenset("j")),))).totals["transfers"] == 1
            with pytest.raises(NotFound):
                await process.plane.find(BOB, here.id)


async def test_a_transfer_is_cancelled_from_another_process(autojump_clock: MockClock) -> None:
    async with gateway() as (g, nursery):
        one = pull()
        cleaned_up = False

        async def work(transfer: Transfer) -> None:
            nonlocal cleaned_up
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(2)
                cleaned_up = True

        nursery.start_soon(move, g.one, one, work)
        await settle()
        shown = await g.two.plane.cancel(ANNE, one.id)
        assert cleaned_up
        assert (shown["state"], shown["error"]) == ("cancelled", "request")
        with pytest.raises(Conflict):
            await g.two.plane.cancel(ANNE, one.id)
        assert (await g.two.plane.find(ANNE, one.id))["state"] == "cancelled"
        assert one.state == "cancelled"


async def test_writers_of_an_image_are_cancelled_wherever_they_are(autojump_clock: MockClock) -> None:
    async with gateway() as (g, nursery):
        push, reader, other = pull(kind="push"), pull(), pull(kind="push", image="j")
        for process, transfer in ((g.one, push), (g.one, reader), (g.two, other)):
            nursery.start_soon(move, process, transfer)
        await settle()
        await g.two.plane.cancel_writers("i", "delete")
        assert push.error == "delete"
        assert reader.state == other.state == "running"


async def test_a_transfer_is_paused_and_limited_from_another_process(autojump_clock: MockClock) -> None:
    async with gateway() as (g, nursery):
        one = pull()
        nursery.start_soon(move, g.one, one)
        await settle()
        shown = await g.two.plane.change(ANNE, one.id, Change(paused=True, limit_bytes_per_s=5000))
        assert (shown["state"], shown["limit_bytes_per_s"]) == ("paused", 5000)
        await settle()
        assert (one.state, one.pace.paused, one.limit_bytes_per_s) == ("paused", True, 5000)
        await trio.sleep(2)
        assert (await g.one.plane.find(ANNE, one.id))["state"] == "paused"
        found = await g.one.plane.change_all(ANNE, (("kind", frozenset({"pull"})),), Change(paused=False))
        assert [each["state"] for each in found.transfers] == ["running"]
        await settle()
        assert (one.state, one.pace.paused) == ("running", False)
        with pytest.raises(Forbidden):
            await g.two.plane.change(ANNE, one.id, Change(limit_bytes_per_s=2_000_000))
        assert (await g.two.plane.cancel_all(ANNE, (("image", frozenset("i")),))).totals["transfers"] == 1
        assert one.state == "cancelled"


async def test_an_id_is_taken_in_the_whole_gateway(autojump_clock: MockClock) -> None:
    async with gateway() as (g, nursery):
        one = pull()
        nursery.start_soon(move, g.one, one)
        await settle()
        for process in (g.one, g.two):
            with pytest.raises(Conflict):
                await process.engine.run(pull("bob", id=one.id), forever)
        # Refused, they took nothing with them.
        assert (await g.two.plane.find(ANNE, one.id))["state"] == "running"
        assert not g.two.branch.live()


async def test_slots_and_queue_are_the_gateways(autojump_clock: MockClock) -> None:
    async with gateway(transfers=1, queue_limit=2) as (g, nursery):
        first, second, third = pull(), pull(), pull("bob")
        for process, transfer in ((g.one, first), (g.two, second), (g.one, third)):
            nursery.start_soon(move, process, transfer)
            await settle()
        assert [each.state for each in (first, second, third)] == ["running", "queued", "queued"]
        shown = await g.two.plane.list(ADMIN, (("state", frozenset({"queued"})),))
        assert [each["position"] for each in shown.transfers] == [1, 2]
        for process in (g.one, g.two):
            with pytest.raises(QueueFull):
                await process.engine.run(pull("carl"), forever)
            with pytest.raises(QueueFull):
                await process.engine.check_room(store="file", user="carl", client="c")
        await g.two.plane.cancel(ADMIN, first.id)
        await settle()
        assert [each.state for each in (second, third)] == ["running", "queued"]
        assert (await g.one.plane.find(ADMIN, third.id))["position"] == 1
        # One that is queued can be cancelled too, and leaves its place.
        await g.two.plane.cancel(ADMIN, third.id)
        await g.one.plane.cancel(ADMIN, second.id)
        fourth = pull()
        nursery.start_soon(move, g.two, fourth)
        await settle()
        assert fourth.state == "running"


async def test_a_request_that_ends_while_it_is_admitted_leaves_no_place_taken(autojump_clock: MockClock) -> None:
    async with gateway(transfers=1) as (g, nursery):
        with trio.CancelScope() as scope:
            scope.cancel()
            await g.one.engine.run(pull(), forever)
        nursery.start_soon(move, g.one, pull())
        await settle()
        [live] = g.hub.live()
        assert live.state == "running"


async def test_what_a_process_moved_fails_with_it_and_nothing_else(autojump_clock: MockClock) -> None:
    async with gateway(transfers=2) as (g, nursery):
        lost, kept, queued = pull(), pull(), pull()
        for process, transfer in ((g.one, lost), (g.two, kept), (g.two, queued)):
            nursery.start_soon(move, process, transfer)
            await settle()
        await trio.sleep(1)
        lost.meter.moved += 100
        await trio.sleep(1)
        async with g.two.plane.watch(ADMIN) as watch:
            assert [json.loads(await watch.next_text() or "")["type"] for _ in range(2)] == ["hello", "snapshot"]
            g.one.life.cancel()
            await settle()
            event = json.loads(await watch.next_text() or "")
            assert (event["kind"], event["transfer"]["id"]) == ("failed", lost.id)
            assert event["transfer"]["error"] == LOST
            assert event["transfer"]["bytes"] == 100
        assert (await g.two.plane.find(ANNE, lost.id))["state"] == "failed"
        assert kept.state == queued.state == "running"
        assert set(g.bus.members) == {"two"}
        with pytest.raises(MemberGone):
            await g.one.plane.list(ADMIN, ())


class Repository:
    """A history in memory."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    async def add(self, ended: Any, *, keep: int) -> None:
        self.kept += ended

    async def find(self, query: Any) -> list[Any]:
        return self.kept[::-1]


async def test_the_history_is_one_in_the_order_of_the_ends_with_what_was_lost(autojump_clock: MockClock) -> None:
    async with gateway() as (g, nursery):
        repository: Any = Repository()
        g.center.record_in(History(repository, keep=100))
        kept, lost = pull(), pull()
        nursery.start_soon(move, g.two, kept)
        nursery.start_soon(move, g.one, lost)
        await trio.sleep(1)
        kept.meter.moved += 300
        await trio.sleep(1)
        await g.one.plane.cancel(ADMIN, kept.id)
        g.one.life.cancel()
        await settle()
        query: Any = None
        newest, oldest = await BranchHistory(g.two.bus, repository).find(query)
        assert (newest.id, newest.state, newest.error) == (lost.id, "failed", LOST)
        assert (oldest.id, oldest.state, oldest.bytes) == (kept.id, "cancelled", 300)
        assert oldest.duration_ms == 2000


# --- watchers ------------------------------------------------------------------------------------


async def test_watchers_of_all_processes_get_the_same_numbers_and_resume_anywhere(autojump_clock: MockClock) -> None:
    async with gateway() as (g, nursery):
        async with g.one.plane.watch(ADMIN) as first, g.two.plane.watch(ADMIN) as second:
            for watch in (first, second):
                assert json.loads(await watch.next_text() or "")["epoch"] == g.hub.epoch
                await watch.next_text()
            one = pull()
            nursery.start_soon(move, g.one, one)
            events = [json.loads(await watch.next_text() or "") for watch in (first, second)]
            assert events[0] == events[1]
            assert (events[0]["kind"], events[0]["transfer"]["id"]) == ("started", one.id)
        await g.one.plane.cancel(ADMIN, one.id)
        async with g.two.plane.watch(ADMIN) as again:
            again.hear(json.dumps({"type": "resume", "epoch": g.hub.epoch, "seq": events[0]["seq"]}))
            texts = [json.loads(await again.next_text() or "") for _ in range(3)]
            assert [each["type"] for each in texts] == ["hello", "snapshot", "event"]
            assert texts[2]["kind"] == "cancelled"


async def test_who_watches_closely_is_told_as_often_as_in_a_single_process(autojump_clock: MockClock) -> None:
    async with gateway() as (g, nursery), g.one.plane.watch(ADMIN) as watch:
        one = pull()
        nursery.start_soon(move, g.two, one)
        watch.hear('{"type": "subscribe", "hz": 10}')
        deltas = 0
        until = trio.current_time() + 4

        async def count() -> None:
            nonlocal deltas
            while trio.current_time() < until:
                if json.loads(await watch.next_text() or "")["type"] == "delta":
                    deltas += 1

        nursery.start_soon(count)
        while trio.current_time() < until:
            one.meter.moved += 1
            await trio.sleep(0.03)
        assert deltas > 30


async def test_limits_of_each_transfer_follow_the_configuration_wherever_it_runs(autojump_clock: MockClock) -> None:
    async with gateway() as (g, nursery):
        one, two = pull(), pull()
        for transfer in (one, two):
            nursery.start_soon(move, g.one, transfer)
        await settle()
        await g.two.plane.change(ADMIN, two.id, Change(limit_bytes_per_s=7))
        g.rates.limit_each(2_000_000)
        await settle()
        shown = {each["id"]: each["limit_bytes_per_s"] for each in (await g.two.plane.list(ADMIN, ())).transfers}
        assert shown == {one.id: 2_000_000, two.id: 7}
        assert one.limit_bytes_per_s == 2_000_000


async def test_cancelling_who_waits_for_a_message_loses_none(autojump_clock: MockClock) -> None:
    async with gateway() as (g, nursery), g.one.plane.watch(ADMIN) as watch:
        seen = []
        for round in range(40):
            if round == 5:
                nursery.start_soon(move, g.two, pull())
            if round == 10:
                await g.two.plane.cancel_all(ADMIN, (("kind", frozenset({"pull"})),))
            with trio.move_on_after(0.1):
                seen.append(json.loads(await watch.next_text() or ""))
        assert [each["kind"] for each in seen if each["type"] == "event"] == ["started", "cancelled"]
        numbers = [each["seq"] for each in seen]
        assert numbers == sorted(set(numbers))


async def test_what_watchers_say_is_heard_and_what_they_say_wrongly_is_answered(autojump_clock: MockClock) -> None:
    async with gateway() as (g, _), g.one.plane.watch(ANNE) as watch:
        watch.hear('{"type": "subscribe", "filter": {"colour": "red"}}')
        watch.complain(InvalidRequest("Expected a text frame"))
        texts = [json.loads(await watch.next_text() or "") for _ in range(4)]
        assert [each["type"] for each in texts] == ["hello", "snapshot", "error", "error"]
        assert "colour" in texts[2]["message"]
        assert texts[3]["message"] == "Expected a text frame"


async def test_watchers_are_dismissed_in_all_processes_and_forgotten_when_they_go(autojump_clock: MockClock) -> None:
    async with gateway() as (g, _):
        async with g.one.plane.watch(ANNE) as hers, g.two.plane.watch(BOB) as his:
            await g.two.plane.dismiss("anne")
            texts = [await hers.next_text() for _ in range(4)]
            assert json.loads(texts[2] or "") == {"type": "bye", "reason": "auth"}
            assert texts[3] is None
            assert hers.farewell == "auth"
            assert his.farewell is None
            assert len(g.hub._subscriptions) == 2
        await settle()
        assert not g.hub._subscriptions
        g.hub.close("drain")
        with pytest.raises(Draining):
            async with g.one.plane.watch(ANNE):
                pass


async def test_watchers_of_a_process_that_ends_are_forgotten(autojump_clock: MockClock) -> None:
    async with gateway() as (g, nursery):

        async def watch() -> None:
            async with g.one.plane.watch(ANNE) as watch:
                while await watch.next_text() is not None:
                    pass

        nursery.start_soon(watch)
        await settle()
        assert g.hub._subscriptions
        g.one.life.cancel()
        await settle()
        assert not g.hub._subscriptions


async def test_a_failure_of_who_watches_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    async with gateway() as (g, _):
        with pytest.raises(ConnectionResetError):
            async with g.one.plane.watch(ANNE):
                raise ConnectionResetError


# --- the rest of what is one ---------------------------------------------------------------------


def counted(exposition: bytes, name: str) -> float:
    families = text_string_to_metric_families(exposition.decode())
    return sum(s.value for family in families for s in family.samples if s.name == name)


async def test_metrics_are_sums_and_do_not_fall_when_a_process_ends(autojump_clock: MockClock) -> None:
    async with gateway() as (g, nursery):
        for process in (g.one, g.two):
            transfer = pull()
            nursery.start_soon(move, process, transfer)
            await settle()
            transfer.meter.moved += 100
            await g.one.plane.cancel(ADMIN, transfer.id)
            nursery.start_soon(move, process, pull())
            await settle()
        text = await g.two.plane.exposition()
        assert counted(text, "visor_transfers_total") == 2
        assert counted(text, "visor_transfer_bytes_total") == 200
        assert counted(text, "visor_transfers_active") == 2
        assert counted(text, "visor_transfer_duration_seconds_count") == 2
        g.one.life.cancel()
        await settle()
        text = await g.two.plane.exposition()
        assert counted(text, "visor_transfers_total") == 3  # one failed with its process
        assert counted(text, "visor_transfer_bytes_total") == 200
        assert counted(text, "visor_transfers_active") == 1


async def test_the_scrub_and_the_gateways_rate_are_asked_and_changed_anywhere(autojump_clock: MockClock) -> None:
    async with gateway() as (g, _):
        await g.one.plane.ask_scrub(["a", "b"])
        assert (await g.two.plane.scrub_progress()).waiting == 2
        assert await g.one.plane.limit_bytes_per_s() == 0
        await g.one.plane.limit(10**6)
        assert await g.two.plane.limit_bytes_per_s() == 10**6


async def test_all_that_is_shown_of_a_transfer_reaches_the_center() -> None:
    reported = {*Description.__struct_fields__, *Counts.__struct_fields__, *Step.__struct_fields__}
    known_there = {"eta_s", "limit_bytes_per_s"}
    assert pull().shown().keys() - reported - known_there == set()
