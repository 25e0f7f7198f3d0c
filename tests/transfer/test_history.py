"""What is gathered of ended transfers, stored in steps, and kept while the database is away."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from visor_gateway.errors import MetadataUnavailable, StoreUnreachable
from visor_gateway.meta.contract import EndedTransfer, HistoryQuery
from visor_gateway.metrics import Metrics
from visor_gateway.transfer.engine import Engine
from visor_gateway.transfer.history import FLUSH_SECONDS, GATHERED, History
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.meter import Meter
from visor_gateway.transfer.transfer import Transfer


class Repository:
    def __init__(self) -> None:
        self.kept: list[EndedTransfer] = []
        self.away = False

    async def add(self, ended: Sequence[EndedTransfer], *, keep: int) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise MetadataUnavailable("away")
        self.kept = [*self.kept, *ended][-keep:]

    async def find(self, query: HistoryQuery) -> list[EndedTransfer]:
        await trio.lowlevel.checkpoint()
        return self.kept[::-1]


def transfer(id: str = "t") -> Transfer:
    one = Transfer(id=id, kind="pull", image="i", store="file", client="192.0.2.1", user="anne", size=1000, offset=7)
    one.meter = Meter(now=trio.current_time)
    return one


@pytest.fixture
async def repository() -> Repository:
    return Repository()


async def test_a_transfer_that_ended_is_remembered_with_what_it_did(
    autojump_clock: MockClock, repository: Repository
) -> None:
    history = History(repository, keep=10)
    engine = Engine(Hub(), Metrics())
    engine.record_in(history)

    async def work(one: Transfer) -> None:
        with one.meter.waiting("client"):
            await trio.sleep(2)
        one.meter.moved += 1000

    await engine.run(transfer("good"), work)

    async def fails(one: Transfer) -> None:
        await trio.lowlevel.checkpoint()
        raise StoreUnreachable("The store is away")

    with pytest.raises(StoreUnreachable):
        await engine.run(transfer("bad"), fails)
    bad, good = await history.find(HistoryQuery())
    assert (good.id, good.state, good.bytes, good.size, good.offset, good.error) == (
        "good",
        "finished",
        1000,
        1000,
        7,
        None,
    )
    assert (good.duration_ms, good.rate_avg, good.wait_client, good.wait_store) == (2000, 500, 2000, 0)
    assert good.ended_at >= good.started_at
    assert (bad.id, bad.state, bad.bytes, bad.error) == ("bad", "failed", 0, "The store is away")


async def test_what_ended_is_stored_within_seconds(
    autojump_clock: MockClock, repository: Repository, nursery: trio.Nursery
) -> None:
    history = History(repository, keep=10)
    nursery.start_soon(history.serve)
    history.add(transfer())
    assert not repository.kept
    await trio.sleep(FLUSH_SECONDS + 0.1)
    assert [each.id for each in repository.kept] == ["t"]


async def test_with_the_database_away_the_newest_are_kept_in_order(
    autojump_clock: MockClock, repository: Repository
) -> None:
    history = History(repository, keep=2 * GATHERED)
    repository.away = True
    for number in range(GATHERED):
        history.add(transfer(str(number)))
    await history.flush()
    history.add(transfer("last"))
    repository.away = False
    await history.flush()
    assert [each.id for each in repository.kept] == [*map(str, range(1, GATHERED)), "last"]


async def test_a_history_of_none_keeps_nothing(autojump_clock: MockClock, repository: Repository) -> None:
    history = History(repository, keep=0)
    history.add(transfer())
    assert await history.find(HistoryQuery()) == []
