"""What may be asked of a transfer under way, by whom, and what watchers are told of it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from ingest_setting import Blocks
from trio.testing import MockClock

from visor_gateway.errors import Conflict, Forbidden, GatewayError, InvalidField
from visor_gateway.routes.request import Caller
from visor_gateway.transfer.control import Change, change_of, limit_of, steer
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.limits import ASK_AGAIN_SECONDS, Rates
from visor_gateway.transfer.meter import Meter
from visor_gateway.transfer.pump import pump
from visor_gateway.transfer.transfer import Transfer

ADMIN = Caller(access_key="root", is_admin=True)
ANNE = Caller(access_key="anne")


def started(hub: Hub, rates: Rates | None = None) -> Transfer:
    one = Transfer(id="t", kind="pull", image="i", store="file", client="192.0.2.1", user="anne", size=10**9)
    one.pace = (rates or Rates()).pace()
    hub.add(one)
    one.begin(trio.CancelScope())
    return one


def told(hub: Hub) -> list[str]:
    return [event.frame.text.split('"kind":"')[1].split('"')[0] for event in hub.events_since(hub.epoch, 0) or ()]


@pytest.mark.parametrize(
    ("body", "change"),
    [
        ({"paused": True}, Change(paused=True)),
        ({"paused": False, "limit_bytes_per_s": 5}, Change(paused=False, limit_bytes_per_s=5)),
        ({"limit_bytes_per_s": 0}, Change(limit_bytes_per_s=0)),
        ({"limit_bytes_per_s": None}, Change(limit_bytes_per_s=0)),
    ],
)
def test_a_change_is_read_from_json(body: dict[str, Any], change: Change) -> None:
    assert change_of(body) == change


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "Nothing to change"),
        ({"state": "paused"}, "'state'"),
        ({"paused": None}, "paused"),
        ({"paused": 1}, "paused"),
        ({"paused": True, "limit_bytes_per_s": -1}, "limit_bytes_per_s"),
        ({"limit_bytes_per_s": 1.5}, "limit_bytes_per_s"),
        ({"limit_bytes_per_s": True}, "limit_bytes_per_s"),
        ({"limit_bytes_per_s": "10"}, "limit_bytes_per_s"),
        ({"limit_bytes_per_s": 2**63}, "limit_bytes_per_s"),
    ],
)
def test_what_can_not_be_changed_is_refused_by_name(body: dict[str, Any], names: str) -> None:
    with pytest.raises(InvalidField, match=names):
        change_of(body)


async def test_pause_and_resume_are_told_once(autojump_clock: MockClock) -> None:
    hub = Hub()
    one = started(hub)
    for paused, state in ((True, "paused"), (True, "paused"), (False, "running"), (False, "running")):
        steer(hub, ANNE, [one], Change(paused=paused))
        assert one.state == state
    assert told(hub) == ["paused", "resumed"]


async def test_one_paused_in_the_queue_is_paused_when_its_turn_has_come(autojump_clock: MockClock) -> None:
    hub = Hub()
    one = Transfer(id="t", kind="pull", image="i", store="file", client="192.0.2.1", user="anne", size=10**9)
    hub.add(one)
    steer(hub, ANNE, [one], Change(paused=True))
    assert (one.state, told(hub)) == ("queued", [])
    one.begin(trio.CancelScope())
    assert one.state == "paused"


async def test_a_limit_holds_until_it_is_taken_off(autojump_clock: MockClock) -> None:
    hub = Hub()
    one = started(hub, Rates(0, 1000))
    steer(hub, ANNE, [one], Change(limit_bytes_per_s=500))
    assert one.limit_bytes_per_s == 500
    steer(hub, ANNE, [one], Change(limit_bytes_per_s=0))
    assert one.limit_bytes_per_s == 1000


async def test_only_admins_go_beyond_the_limit_of_the_gateway(autojump_clock: MockClock) -> None:
    hub = Hub()
    one = started(hub, Rates(0, 1000))
    with pytest.raises(Forbidden, match="1000 bytes per second"):
        steer(hub, ANNE, [one], Change(paused=True, limit_bytes_per_s=1001))
    assert (one.state, one.limit_bytes_per_s) == ("running", 1000)
    steer(hub, ADMIN, [one], Change(limit_bytes_per_s=1001))
    assert one.limit_bytes_per_s == 1001


async def test_what_has_ended_is_not_steered_and_nothing_beside_it(autojump_clock: MockClock) -> None:
    hub = Hub()
    one, other = (
        started(hub),
        Transfer(id="o", kind="pull", image="i", store="file", client=None, user="anne", size=None),
    )
    other.settle("finished")
    with pytest.raises(Conflict, match="ended already: finished"):
        steer(hub, ANNE, [one, other], Change(paused=True))
    assert one.state == "running"


def test_a_limit_must_be_named() -> None:
    with pytest.raises(GatewayError):
        limit_of({"limit_bytes_per_s": []})


# --- what a pause does to the bytes ------------------------------------------------------------------


async def test_a_paused_copy_moves_nothing_waits_for_nobody_and_goes_on_where_it_was(
    autojump_clock: MockClock,
) -> None:
    blocks = [bytes([number]) * 1000 for number in range(10)]
    meter, received, pace = Meter(now=trio.current_time), bytearray(), Rates(now=trio.current_time).pace()

    async def sink(block: Any) -> None:
        received.extend(block)
        pace.paused = len(received) == 3000
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: pump(Blocks(blocks), sink, meter, waits=("store", "client"), pace=pace))
        await trio.sleep(60)
        assert len(received) == 3000
        pace.paused = False
        began = trio.current_time()
    assert trio.current_time() - began <= ASK_AGAIN_SECONDS
    assert bytes(received) == b"".join(blocks)
    meter.sample()
    assert meter.waited == {"client": 0, "store": 0, "limit": 0, "disk": 0}


def test_what_a_paused_transfer_held_goes_to_the_others() -> None:
    now = 0.0
    rates = Rates(1000, now=lambda: now)
    one, other = rates.pace(), rates.pace()
    while one.claim(10**6)[0]:
        pass
    assert other.claim(10**6)[0] == 0
    one.paused = True
    assert one.claim(10**6) == (0, ASK_AGAIN_SECONDS)
    assert rates.waiting == 1
    now = 0.3  # enough for one piece, not for two
    assert other.claim(10**6)[0] > 0
