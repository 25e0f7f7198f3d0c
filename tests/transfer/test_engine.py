"""Outcomes of transfers: settled once, told once, whatever happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from ingest_setting import Setting, push_of, setting

from visor_gateway.errors import Conflict, Draining, QueueFull, StoreUnreachable, TransferCancelled
from visor_gateway.transfer.admission import Admission, Slots
from visor_gateway.transfer.engine import Engine
from visor_gateway.transfer.limits import Rates
from visor_gateway.transfer.plane import HubPlane
from visor_gateway.transfer.transfer import Transfer


def told(s: Setting, transfer: Transfer) -> tuple[str, str | None]:
    found = s.hub.find(transfer.id)
    assert found is transfer
    assert transfer.ended.is_set()
    return transfer.state, transfer.error


async def test_what_the_work_returns_is_handed_on(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        transfer = push_of(await s.locked())

        async def work(transfer: Transfer) -> int:
            await trio.lowlevel.checkpoint()
            assert transfer.state == "running"
            transfer.meter.moved += 10
            return 42

        assert await s.engine.run(transfer, work) == 42
        assert told(s, transfer) == ("finished", None)
        sample = s.metrics.registry.get_sample_value
        assert sample("visor_transfers_total", {"kind": "push", "store": "file", "outcome": "finished"}) == 1
        assert sample("visor_transfer_bytes_total", {"kind": "push", "store": "file"}) == 10
        assert sample("visor_transfers_active", {"kind": "push", "store": "file"}) == 0


async def test_bytes_are_counted_while_they_move_and_once(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        transfer = push_of(await s.locked())
        seen: list[str] = []

        def count() -> None:
            lines = s.metrics.exposition().decode().splitlines()
            seen.extend(line.rpartition(" ")[2] for line in lines if line.startswith("visor_transfer_bytes_total"))

        async def work(transfer: Transfer) -> None:
            await trio.lowlevel.checkpoint()
            transfer.meter.moved += 10
            count()
            count()
            transfer.meter.moved += 5
            assert next(
                [name, samples[0][2]] for name, _, _, samples in s.metrics.families() if name == "visor_transfer_bytes"
            ) == ["visor_transfer_bytes", 15.0]
            transfer.meter.moved += 2

        await s.engine.run(transfer, work)
        count()
        assert seen == ["10.0", "10.0", "17.0"]


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (StoreUnreachable("the store is away"), "the store is away"),
        (ConnectionResetError("10.0.0.1 /secret/path"), "the client is gone or takes nothing"),
        (ValueError("a secret"), "internal error"),
    ],
)
async def test_a_failure_is_raised_as_it_is_and_shown_without_what_is_ours(
    tmp_path: Path, error: Exception, shown: str
) -> None:
    async with setting(tmp_path) as s:
        transfer = push_of(await s.locked())

        async def work(transfer: Transfer) -> None:
            await trio.lowlevel.checkpoint()
            raise error

        with pytest.raises(type(error)) as caught:
            await s.engine.run(transfer, work)
        assert caught.value is error
        counted = s.metrics.registry.get_sample_value("visor_store_errors_total", {"store": "file"})
        assert counted == (1 if isinstance(error, StoreUnreachable) else None)
        assert told(s, transfer) == ("failed", shown)


async def test_what_is_tried_again_is_counted_and_told_until_bytes_move(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        transfer = push_of(await s.locked())
        told: list[tuple[str, int]] = []
        publish = s.hub.publish
        s.hub.publish = lambda kind, transfer: (told.append((kind, transfer.attempt)), publish(kind, transfer))[1]  # type: ignore[method-assign]

        async def work(transfer: Transfer) -> None:
            await trio.lowlevel.checkpoint()
            transfer.resumed()
            transfer.retrying()
            transfer.retrying()
            transfer.resumed()
            transfer.resumed()

        await s.engine.run(transfer, work)
        transfer.retrying()
        assert told == [("started", 1), ("retrying", 2), ("retrying", 3), ("resumed", 3), ("finished", 3)]
        counted = s.metrics.registry.get_sample_value
        assert counted("visor_transfer_retries_total", {"kind": "push", "store": "file"}) == 2


async def test_a_cancelled_transfer_ends_after_its_work_has_cleaned_up(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        transfer = push_of(await s.locked())
        cleaned: list[bool] = []

        async def work(transfer: Transfer) -> None:
            transfer.cancel("request")
            try:
                await trio.sleep_forever()
            finally:
                cleaned.append(transfer.ended.is_set())

        with pytest.raises(TransferCancelled, match="request"):
            await s.engine.run(transfer, work)
        assert cleaned == [False]
        assert told(s, transfer) == ("cancelled", "request")


async def test_a_transfer_cancelled_before_it_began_never_works(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        transfer = push_of(await s.locked())
        transfer.cancel("request")

        async def work(transfer: Transfer) -> None:
            await trio.lowlevel.checkpoint()
            raise AssertionError("the work went on")

        with pytest.raises(TransferCancelled):
            await s.engine.run(transfer, work)


async def test_a_task_that_is_cancelled_settles_its_transfer(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        transfer = push_of(await s.locked())

        async def work(transfer: Transfer) -> None:
            scope.cancel()
            await trio.sleep_forever()

        with trio.CancelScope() as scope:
            await s.engine.run(transfer, work)
        assert told(s, transfer) == ("cancelled", "connection")


async def test_an_id_under_way_is_refused(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        transfer = push_of(await s.locked())

        async def work(transfer: Transfer) -> None:
            with pytest.raises(Conflict):
                await s.engine.run(transfer, work)

        await s.engine.run(transfer, work)


async def test_a_stopping_engine_starts_nothing(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        transfer = push_of(await s.locked())
        s.engine.drain()

        async def work(transfer: Transfer) -> None:
            await trio.lowlevel.checkpoint()
            raise AssertionError("started")

        with pytest.raises(Draining):
            await s.engine.run(transfer, work)
        with pytest.raises(Draining):
            s.engine.start(transfer, work)
        assert s.hub.live() == ()


async def test_background_work_can_be_cancelled_and_its_failure_ends_nothing_else(tmp_path: Path) -> None:
    async with setting(tmp_path) as s, trio.open_nursery() as nursery:
        await nursery.start(s.engine.serve)
        image = await s.locked()
        failing, lasting = push_of(image, "import"), push_of(image, "import")
        lasting.client = None

        async def fail(transfer: Transfer) -> None:
            await trio.lowlevel.checkpoint()
            raise ValueError("broken")

        async def last(transfer: Transfer) -> None:
            await trio.sleep_forever()

        s.engine.start(failing, fail)
        s.engine.start(lasting, last)
        await failing.ended.wait()
        assert s.engine.cancel_background("drain") == [lasting]
        await lasting.ended.wait()
        assert (failing.state, lasting.state, lasting.error) == ("failed", "cancelled", "drain")
        nursery.cancel_scope.cancel()


async def test_what_writes_an_image_is_cancelled_and_what_reads_it_is_not(tmp_path: Path) -> None:
    async with setting(tmp_path) as s, trio.open_nursery() as nursery:
        image = await s.locked()
        push, pull = push_of(image), push_of(image, "pull")

        async def last(transfer: Transfer) -> None:
            with pytest.raises(trio.Cancelled):
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()

        async def run(transfer: Transfer) -> None:
            with pytest.raises(TransferCancelled):
                await s.engine.run(transfer, last)

        nursery.start_soon(run, push)
        nursery.start_soon(run, pull)
        await trio.testing.wait_all_tasks_blocked()
        await HubPlane(s.hub).cancel_writers(image.id, "delete")
        assert [each for each in (push, pull) if each.cancel_reason == "delete"] == [push]
        await push.ended.wait()
        assert pull.state == "running"
        pull.cancel("request")


# --- the queue -----------------------------------------------------------------------------------


class Leaving:
    """A client's connection, of which all that matters is when the client goes."""

    def __init__(self) -> None:
        self.gone = trio.Event()

    async def wait_gone(self) -> None:
        await self.gone.wait()


async def forever(transfer: Transfer) -> None:
    await trio.sleep_forever()


async def never(transfer: Transfer) -> None:
    raise AssertionError("the work began")


async def test_a_transfer_waits_for_its_slot_and_its_rates_count_from_there(tmp_path: Path) -> None:
    async with setting(tmp_path) as s, trio.open_nursery() as nursery:
        rates = Rates(0, 1000)
        engine = Engine(s.hub, s.metrics, admission=Admission(Slots(transfers=1)), rates=rates)
        image = await s.locked()
        first, second = push_of(image), push_of(image)
        ran: list[Transfer] = []

        async def work(transfer: Transfer) -> None:
            await trio.lowlevel.checkpoint()
            assert transfer.state == "running"
            assert transfer.meter.seconds < 0.5
            ran.append(transfer)

        async def cancelled() -> None:
            with pytest.raises(TransferCancelled):
                await engine.run(first, forever)

        nursery.start_soon(cancelled)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(engine.run, second, work)
        await trio.testing.wait_all_tasks_blocked()
        active = {"kind": "push", "store": "file"}
        assert (second.state, second.position, second.shown()["position"]) == ("queued", 1, 1)
        assert s.metrics.registry.get_sample_value("visor_transfers_active", active) == 1
        assert s.metrics.registry.get_sample_value("visor_transfers_queued") == 1
        second.meter._began -= 1000
        first.cancel("request")
        await second.ended.wait()
        assert ran == [second]
        assert "position" not in second.shown()
        assert (second.pace.bytes_per_s, second.limit_bytes_per_s) == (1000, 1000)
        assert s.metrics.registry.get_sample_value("visor_transfers_active", active) == 0


async def test_a_client_that_leaves_the_queue_is_an_error_of_the_connection(tmp_path: Path) -> None:
    async with setting(tmp_path) as s, trio.open_nursery() as nursery:
        engine = Engine(s.hub, s.metrics, admission=Admission(Slots(transfers=1)))
        image = await s.locked()
        first, second = push_of(image), push_of(image)
        nursery.start_soon(engine.run, first, forever)
        await trio.testing.wait_all_tasks_blocked()
        connection = Leaving()

        async def leave() -> None:
            with pytest.raises(ConnectionError):
                await engine.run(second, never, connection)  # type: ignore[arg-type]

        nursery.start_soon(leave)
        await trio.testing.wait_all_tasks_blocked()
        connection.gone.set()
        await second.ended.wait()
        assert (second.state, second.error) == ("failed", "the client is gone or takes nothing")
        assert s.metrics.registry.get_sample_value("visor_transfers_queued") == 0
        nursery.cancel_scope.cancel()


async def test_a_task_cancelled_in_the_queue_settles_its_transfer(tmp_path: Path) -> None:
    async with setting(tmp_path) as s, trio.open_nursery() as nursery:
        engine = Engine(s.hub, s.metrics, admission=Admission(Slots(transfers=1)))
        image = await s.locked()
        second = push_of(image)
        nursery.start_soon(engine.run, push_of(image), forever)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await engine.run(second, never, Leaving())  # type: ignore[arg-type]
        assert told(s, second) == ("cancelled", "connection")
        nursery.cancel_scope.cancel()


async def test_a_full_queue_takes_in_nothing(tmp_path: Path) -> None:
    async with setting(tmp_path) as s, trio.open_nursery() as nursery:
        engine = Engine(s.hub, s.metrics, admission=Admission(Slots(transfers=1, queue_limit=0)))
        image = await s.locked()
        first, second = push_of(image), push_of(image)
        nursery.start_soon(engine.run, first, forever)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(QueueFull):
            await engine.run(second, never)
        with pytest.raises(QueueFull):
            await engine.check_room(store="file", user="bar", client=None)
        assert s.hub.live() == (first,)
        assert s.hub.find(second.id) is None
        assert s.metrics.registry.get_sample_value("visor_transfers_refused_total") == 2
        nursery.cancel_scope.cancel()


async def test_an_import_that_ends_in_the_queue_leaves_its_image_in_error(tmp_path: Path) -> None:
    async with setting(tmp_path) as s, trio.open_nursery() as nursery:
        engine = Engine(s.hub, s.metrics, admission=Admission(Slots(transfers=1, queue_limit=0)))
        await nursery.start(engine.serve)
        image = await s.locked()
        first, second = push_of(image), push_of(image, "import")
        second.client = None
        promised = await s.ingest.promise(second, image, s.store)
        nursery.start_soon(engine.run, first, forever)
        await trio.testing.wait_all_tasks_blocked()
        ended = trio.Event()

        async def give_up() -> None:
            await s.ingest.give_up(promised)
            ended.set()

        # It was promised already: a full queue does not refuse it.
        engine.start(second, never, unstarted=give_up)
        await trio.testing.wait_all_tasks_blocked()
        assert second.state == "queued"
        assert engine.cancel_background("drain") == [second]
        await ended.wait()
        assert await s.status(image) == "error"
        assert (second.state, second.error) == ("cancelled", "drain")
        nursery.cancel_scope.cancel()
