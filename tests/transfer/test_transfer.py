"""The life of one transfer."""

from __future__ import annotations

from typing import Any

import live_messages as live
import msgspec
import pytest
import trio

from visor_gateway.transfer.meter import Meter
from visor_gateway.transfer.transfer import Transfer


@pytest.fixture
def one() -> Transfer:
    return make()


def make(**fields: Any) -> Transfer:
    values = {"kind": "pull", "image": "i", "store": "file", "client": "192.0.2.1", "user": "anne", "size": 1000}
    return Transfer(id="t", **(values | fields))


async def test_cancelling_ends_what_runs_in_its_scope(one: Transfer) -> None:
    with trio.CancelScope() as scope:
        one.begin(scope)
        assert one.state == "running"
        one.cancel("request")
        one.cancel("drain")
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert one.cancel_reason == "request"


async def test_a_transfer_cancelled_in_the_queue_never_runs(one: Transfer) -> None:
    one.cancel("delete")
    with trio.CancelScope() as scope:
        one.begin(scope)
        assert one.state == "queued"
        await trio.sleep_forever()
    assert scope.cancelled_caught


def test_what_has_ended_can_not_be_cancelled(one: Transfer) -> None:
    one.settle("finished")
    one.ended.set()
    one.cancel("request")
    assert one.cancel_reason is None


def test_the_first_outcome_stands(one: Transfer) -> None:
    one.settle("failed", "the store is gone")
    one.settle("finished")
    assert (one.state, one.error) == ("failed", "the store is gone")


def test_a_failed_pull_ends_with_the_bytes_that_arrived_and_a_finished_one_with_all() -> None:
    for outcome, count in (("failed", 300), ("cancelled", 300), ("finished", 1000)):
        one = make()
        one.meter.moved = 1000
        one.meter.unacknowledged = lambda: 700
        one.settle(outcome)  # type: ignore[arg-type]
        assert one.shown()["bytes"] == count


def test_the_remaining_time_is_known_only_while_bytes_flow() -> None:
    now = 0.0
    one = make(size=1000)
    one.meter = Meter(now=lambda: now)
    assert one.eta_s is None
    one.begin(trio.CancelScope())
    now, one.meter.moved = 1.0, 200
    one.meter.sample()
    assert one.eta_s == pytest.approx(4.0)
    one.size = None
    assert one.eta_s is None
    one.size = 100  # a source that gives more than it promised
    assert one.eta_s == 0
    one.state = "paused"
    assert one.eta_s is None


@pytest.mark.parametrize("fields", [{}, {"store": None, "client": None, "user": None, "size": None}])
def test_a_transfer_is_shown_as_the_contract_says(fields: dict[str, Any]) -> None:
    shown = msgspec.convert(make(**fields).shown(), live.Transfer)
    assert shown.state == "queued"
    assert shown.started_at.endswith("Z")
