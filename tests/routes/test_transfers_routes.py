"""The routes of transfers, and the WebSocket with a client whose kernel is a number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import live_messages as live
import msgspec
import pytest
import trio
from trio.testing import MockClock

from visor_gateway.errors import Conflict, Draining, InvalidRequest, NotFound
from visor_gateway.routes import transfers
from visor_gateway.routes.live import websocket
from visor_gateway.routes.live_sender import (
    FAREWELL_SECONDS,
    LOOK_SECONDS,
    PING_SECONDS,
    PING_SLACK,
    SLOW_SECONDS,
)
from visor_gateway.routes.request import Answer, Caller, Request
from visor_gateway.transfer.courier import REST_SECONDS
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.meter import Meter
from visor_gateway.transfer.plane import CANCEL_SECONDS, LocalPlane
from visor_gateway.transfer.transfer import Outcome, Transfer

ADMIN = Caller(access_key="root", is_admin=True)
ANNE, BOB = Caller(access_key="anne"), Caller(access_key="bob")
PROTOCOL = "visor.progress.v1"


@pytest.fixture
async def hub(nursery: trio.Nursery) -> Hub:
    hub = Hub()
    await nursery.start(hub.run)
    return hub


def start(hub: Hub, id: str = "t", **fields: Any) -> Transfer:
    values = {"kind": "pull", "image": "i", "store": "file", "client": "192.0.2.1", "user": "anne", "size": 10**9}
    one = Transfer(id=id, **(values | fields))
    one.meter = Meter(now=trio.current_time)
    hub.add(one)
    one.begin(trio.CancelScope())
    hub.publish("started", one)
    return one


def end(hub: Hub, one: Transfer, outcome: Outcome = "finished") -> None:
    one.settle(outcome)
    hub.publish(outcome, one)
    one.ended.set()


def plane(hub: Hub) -> LocalPlane:
    unused: Any = None
    return LocalPlane(hub, unused, unused, unused)


def request(hub: Hub, caller: Caller, *, id: str = "", query: str = "") -> Request:
    services: Any = SimpleNamespace(plane=plane(hub))
    return Request(
        method="GET",
        caller=caller,
        params={"id": id},
        headers=[],
        services=services,
        client="192.0.2.1",
        base_url="http://gateway.example",
        scope={"query_string": query.encode()},
    )


def payload(answer: Answer) -> dict[str, Any]:
    """What a client reads."""
    assert answer.status == 200
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(answer.payload))
    return decoded


async def listed(hub: Hub, caller: Caller, query: str = "") -> set[str]:
    found = payload(await transfers.find(request(hub, caller, query=query)))
    shown = [msgspec.convert(each, live.Transfer) for each in found["transfers"]]
    assert msgspec.convert(found["totals"], live.Totals).transfers == len(shown)
    return {each.id for each in shown}


# --- GET, DELETE ---------------------------------------------------------------------------------


async def test_without_transfers_the_list_is_empty(autojump_clock: MockClock, hub: Hub) -> None:
    assert payload(await transfers.find(request(hub, ANNE))) == {
        "transfers": [],
        "totals": {"transfers": 0, "rate": 0, "bytes": 0, "by_state": {}, "by_kind": {}},
    }


async def test_lists_show_own_transfers_and_to_admins_all(autojump_clock: MockClock, hub: Hub) -> None:
    start(hub, "1")
    start(hub, "2", user="bob")
    start(hub, "3", user=None)
    assert await listed(hub, ANNE) == {"1"}
    assert await listed(hub, BOB) == {"2"}
    assert await listed(hub, ADMIN) == {"1", "2", "3"}
    assert await listed(hub, Caller()) == set()
    assert await listed(hub, ANNE, "user=bob") == set()


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("image=j", {"3"}),
        ("kind=pull", {"1", "2"}),
        ("kind=pull&store=s3", {"2"}),
        ("kind=pull&kind=push", {"1", "2", "3"}),
        ("state=paused", {"2"}),
        ("state=running", {"1", "3"}),
        ("user=bob", {"3"}),
        ("user=", set()),
        ("kind=none+of+these", set()),
    ],
)
async def test_every_filter_chooses(autojump_clock: MockClock, hub: Hub, query: str, found: set[str]) -> None:
    start(hub, "1")
    start(hub, "2", store="s3").state = "paused"
    start(hub, "3", kind="push", image="j", user="bob")
    assert await listed(hub, ADMIN, query) == found


async def test_an_unknown_filter_is_refused_by_name_and_without_its_value(autojump_clock: MockClock, hub: Hub) -> None:
    for name in ("owner", "sig", "ticket", "format"):
        with pytest.raises(InvalidRequest, match=f"Unknown filter '{name}'") as refusal:
            await transfers.find(request(hub, ADMIN, query=f"{name}=c4n4ry"))
        assert "c4n4ry" not in refusal.value.message
        assert refusal.value.status == 400


async def test_ended_transfers_are_listed_only_where_their_state_is_asked_for(
    autojump_clock: MockClock, hub: Hub
) -> None:
    start(hub, "live")
    end(hub, start(hub, "done"))
    end(hub, start(hub, "broken"), "failed")
    end(hub, start(hub, "bobs", user="bob"))
    assert await listed(hub, ANNE) == {"live"}
    assert await listed(hub, ANNE, "state=finished") == {"done"}
    assert await listed(hub, ANNE, "state=running&state=failed") == {"live", "broken"}


async def test_a_transfer_is_shown_while_it_runs_and_after_it_ended(autojump_clock: MockClock, hub: Hub) -> None:
    one = start(hub)
    one.meter.moved = 1234
    for state in ("running", "finished"):
        shown = msgspec.convert(payload(await transfers.get(request(hub, ANNE, id="t")))["transfer"], live.Transfer)
        assert (shown.id, shown.state, shown.bytes) == ("t", state, 1234)
        end(hub, one)


@pytest.mark.parametrize("handler", [transfers.get, transfers.cancel])
async def test_anothers_transfer_does_not_exist(autojump_clock: MockClock, hub: Hub, handler: Any) -> None:
    one = start(hub)
    messages = set()
    for caller, id in ((BOB, "t"), (Caller(), "t"), (ANNE, "x")):
        with pytest.raises(NotFound) as refusal:
            await handler(request(hub, caller, id=id))
        messages.add(refusal.value.message.replace(f"'{id}'", "''"))
    assert messages == {"No transfer found with id ''."}
    assert one.cancel_reason is None
    assert one.state == "running"


@pytest.mark.parametrize("caller", [ANNE, ADMIN])
async def test_cancelling_answers_when_nothing_of_the_transfer_runs(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery, caller: Caller
) -> None:
    one = start(hub)

    async def engine(task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as scope:
            one.begin(scope)
            task_status.started()
            await trio.sleep_forever()
        await trio.sleep(3)  # cleaning up
        end(hub, one, "cancelled")

    await nursery.start(engine)
    shown = payload(await transfers.cancel(request(hub, caller, id="t")))["transfer"]
    assert shown["state"] == "cancelled"
    assert one.cancel_reason == "request"
    assert trio.current_time() >= 3


async def test_cancelling_what_does_not_end_answers_after_a_bound(autojump_clock: MockClock, hub: Hub) -> None:
    start(hub)
    began = trio.current_time()
    shown = payload(await transfers.cancel(request(hub, ANNE, id="t")))["transfer"]
    assert shown["state"] == "running"
    assert trio.current_time() - began == pytest.approx(CANCEL_SECONDS)


@pytest.mark.parametrize("outcome", ["finished", "failed", "cancelled"])
async def test_what_has_ended_can_not_be_cancelled(autojump_clock: MockClock, hub: Hub, outcome: Outcome) -> None:
    end(hub, start(hub), outcome)
    with pytest.raises(Conflict, match=f"has ended already: {outcome}"):
        await transfers.cancel(request(hub, ANNE, id="t"))


async def test_a_cancellation_that_came_too_late_does_not_claim_success(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    one = start(hub)

    async def finish() -> None:
        await trio.sleep(1)
        end(hub, one)

    nursery.start_soon(finish)
    with pytest.raises(Conflict, match="finished"):
        await transfers.cancel(request(hub, ANNE, id="t"))


# --- the WebSocket -------------------------------------------------------------------------------


class Peer:
    """A WebSocket client and the connection to it, as the handler sees them.

    Attributes:
        unread: Bytes that the client's kernel has not acknowledged.
        reads: Whether it acknowledges what it is sent at once.
        blocked: Whether `send` blocks.
        pongs: Whether it answers pings.
        at_once: Whether it can be sent messages without waiting.
    """

    encrypted = False
    at_once = True

    def __init__(self, hub: Hub, caller: Caller = ADMIN, offered: list[str] | None = None) -> None:
        self.client = live.Client()
        self.sent: list[dict[str, Any]] = []
        self.unread = 0
        self.reads = True
        self.blocked = False
        self.pongs = True
        self.pinged_at: float | None = None
        self.blocks_after_bye = False
        self.gone = False
        self.was_reset = False
        self.ended = trio.Event()
        self._caller = caller
        self._services: Any = SimpleNamespace(plane=plane(hub))
        self._say, self._heard = trio.open_memory_channel[dict[str, Any]](1000)
        self._scope = {
            "type": "websocket",
            "headers": [],
            "subprotocols": [PROTOCOL] if offered is None else offered,
            "state": {"connection": self},
        }
        self._say.send_nowait({"type": "websocket.connect"})

    async def run(self) -> None:
        await websocket(self._scope, self._heard.receive, self._send, self._caller, self._services)
        self.ended.set()

    async def _send(self, message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if self.blocked or (self.blocks_after_bye and self.client.of(live.Bye)):
            await trio.sleep_forever()
        if self.gone or self.was_reset:
            raise ConnectionResetError
        self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if message["type"] == "websocket.send":
            self.client.hear(message["text"])
            self.unread += 0 if self.reads else len(message["text"])

    def say(self, text: str) -> None:
        self._say.send_nowait({"type": "websocket.receive", "text": text, "bytes": None})

    def say_bytes(self, data: bytes) -> None:
        self._say.send_nowait({"type": "websocket.receive", "text": None, "bytes": data})

    def leave(self) -> None:
        self._say.send_nowait({"type": "websocket.disconnect", "code": 1005})

    async def send_texts(self, texts: Sequence[str], *, ping: bool = False) -> None:
        if ping and self.pinged_at is None and not self.pongs:
            self.pinged_at = trio.current_time()
        for text in texts:
            await self._send({"type": "websocket.send", "text": text})

    @property
    def sends_now(self) -> bool:
        return self.at_once and not (self.blocked or self.gone or self.was_reset)

    def send_texts_now(self, texts: Sequence[str], *, ping: bool = False) -> bool:
        if ping and self.pinged_at is None and not self.pongs:
            self.pinged_at = trio.current_time()
        for text in texts:
            self._take({"type": "websocket.send", "text": text})
        return True

    def unacknowledged(self) -> int:
        return 0 if self.was_reset else self.unread

    def reset(self) -> None:
        self.was_reset = True

    @property
    def close_code(self) -> int | None:
        return self.sent[-1].get("code") if self.sent[-1]["type"] == "websocket.close" else None


@pytest.fixture(autouse=True, params=["at once", "in a task"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of sending look the same to clients."""
    monkeypatch.setattr(Peer, "at_once", request.param == "at once")


async def connected(hub: Hub, nursery: trio.Nursery, **options: Any) -> Peer:
    peer = Peer(hub, **options)
    nursery.start_soon(peer.run)
    await trio.testing.wait_all_tasks_blocked()
    return peer


@pytest.mark.parametrize(
    ("offered", "accepted"), [([PROTOCOL], PROTOCOL), ([], None), (["chat", PROTOCOL, "x"], PROTOCOL)]
)
async def test_the_subprotocol_is_accepted_where_it_is_offered(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery, offered: list[str], accepted: str | None
) -> None:
    peer = await connected(hub, nursery, offered=offered)
    assert peer.sent[0] == {"type": "websocket.accept", "subprotocol": accepted, "headers": []}
    assert [type(each) for each in peer.client.messages] == [live.Hello, live.Snapshot]


async def test_other_subprotocols_are_refused_before_the_upgrade(autojump_clock: MockClock, hub: Hub) -> None:
    peer = Peer(hub, offered=["chat", "visor.progress.v2"])
    with pytest.raises(InvalidRequest, match=PROTOCOL) as refusal:
        await peer.run()
    assert refusal.value.status == 400
    assert not peer.sent


async def test_a_draining_gateway_refuses_before_the_upgrade(autojump_clock: MockClock, hub: Hub) -> None:
    hub.close("drain")
    peer = Peer(hub)
    with pytest.raises(Draining):
        await peer.run()
    assert not peer.sent


async def test_a_watcher_sees_a_transfer_from_start_to_end(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    peer = await connected(hub, nursery, caller=ANNE)
    one = start(hub)
    start(hub, "bobs", user="bob")
    for _ in range(10):
        one.meter.moved += 1000
        await trio.sleep(0.25)
    end(hub, one)
    await trio.sleep(1)
    assert [event.kind for event in peer.client.of(live.Event)] == ["started", "finished"]
    assert peer.client.ended == {"t": 10_000}
    assert 4 <= len(peer.client.of(live.Delta)) <= 6
    assert peer.client.transfers == {}


async def test_a_client_can_subscribe_to_a_part_and_garbage_does_not_end_the_connection(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    start(hub, "1")
    start(hub, "2", kind="push")
    peer = await connected(hub, nursery)
    peer.say("garbage")
    peer.say_bytes(b'{"type":"subscribe"}')
    peer.say(json.dumps({"type": "subscribe", "filter": {"owner": "anne"}}))
    await trio.sleep(0.4)
    assert [error.code for error in peer.client.of(live.Error)] == [400, 400, 400]
    peer.say(json.dumps({"type": "subscribe", "filter": {"kind": "push"}, "hz": 10}))
    await trio.sleep(0.1)
    assert set(peer.client.transfers) == {"2"}


async def test_wishes_are_heard_no_more_often_than_twenty_times_a_second(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    peer = await connected(hub, nursery)
    for _ in range(500):
        peer.say('{"type":"subscribe"}')
    await trio.sleep(1.01)
    assert len(peer.client.of(live.Snapshot)) <= 23


@pytest.mark.parametrize("going", ["close", "broken"])
async def test_a_client_that_goes_leaves_nothing_behind(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery, going: str
) -> None:
    peer = await connected(hub, nursery)
    if going == "close":
        peer.leave()
    peer.gone = True
    start(hub)
    await peer.ended.wait()
    assert not hub._subscriptions
    assert not hub._feeds


async def test_a_cancelled_connection_leaves_nothing_behind(autojump_clock: MockClock, hub: Hub) -> None:
    peer = Peer(hub)
    with trio.move_on_after(1):
        await peer.run()
    assert not hub._subscriptions
    assert not hub._feeds


@pytest.mark.parametrize(("reason", "code"), [("drain", 1001), ("auth", 1008)])
async def test_bye_is_the_last_message_before_the_close(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery, reason: str, code: int
) -> None:
    peer = await connected(hub, nursery, caller=ANNE)
    end(hub, start(hub))
    if reason == "drain":
        hub.close("drain")
    else:
        hub.dismiss("anne")
    await peer.ended.wait()
    assert [type(each) for each in peer.client.messages[2:]] == [live.Event, live.Event, live.Bye]
    assert peer.client.of(live.Bye)[0].reason == reason
    assert peer.close_code == code
    assert not peer.was_reset


# --- slow clients --------------------------------------------------------------------------------


async def test_a_client_that_takes_nothing_for_ten_seconds_is_closed_and_reset(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    """Its kernel acknowledges no more, ours takes everything: `send` never blocks."""
    one = start(hub)
    peer = await connected(hub, nursery)
    await trio.sleep(60)
    assert not peer.ended.is_set()
    peer.reads = False
    stopped = trio.current_time()
    while not peer.ended.is_set():
        one.meter.moved += 1000
        await trio.sleep(0.25)
    assert 9 <= trio.current_time() - stopped <= 13
    assert peer.client.of(live.Bye)[0].reason == "slow"
    assert peer.close_code == 4008
    assert peer.was_reset


async def test_a_client_that_stops_reading_an_idle_channel_is_closed_too(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    peer = await connected(hub, nursery)
    peer.reads = False
    await peer.ended.wait()
    assert trio.current_time() <= 10 + 10 + 2 * LOOK_SECONDS
    assert peer.was_reset


async def test_a_client_on_whom_sending_blocks_for_ten_seconds_is_reset_and_sent_no_more(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    """Half a message may be out: neither bye nor a close frame can follow."""
    one = start(hub)
    peer = await connected(hub, nursery)
    peer.blocked = True
    sent = len(peer.sent)
    one.meter.moved += 1000
    began = trio.current_time()
    await peer.ended.wait()
    assert 10 <= trio.current_time() - began <= 11
    assert len(peer.sent) == sent
    assert peer.was_reset


async def test_a_client_that_takes_a_little_now_and_then_stays(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    one = start(hub)
    peer = await connected(hub, nursery)
    peer.reads = False
    for _ in range(100):
        one.meter.moved += 1000
        await trio.sleep(5)
        peer.unread -= 1
    assert not peer.ended.is_set()


async def test_a_client_that_was_idle_for_long_has_ten_seconds_for_the_next_message(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    peer = await connected(hub, nursery)
    await trio.sleep(9.5)  # nothing was sent since the snapshot
    peer.reads = False
    start(hub)
    await trio.sleep(8)
    peer.unread = 0
    peer.reads = True
    await trio.sleep(30)
    assert not peer.ended.is_set()


async def test_a_slow_client_delays_neither_transfers_nor_other_clients(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    slow, quick = await connected(hub, nursery), await connected(hub, nursery)
    slow.blocked = True
    for n in range(100):
        one = start(hub, str(n))
        one.meter.moved += 1000
        end(hub, one)
        await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() == 0
    await trio.sleep(2 * REST_SECONDS)
    assert len(quick.client.ended) == 100


async def test_a_client_that_reads_and_answers_no_ping_is_closed_and_reset(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    peer = await connected(hub, nursery)
    peer.pongs = False
    await peer.ended.wait()
    assert [each.reason for each in peer.client.of(live.Bye)] == ["slow"]
    assert (peer.close_code, peer.was_reset) == (4008, True)
    assert trio.current_time() == PING_SECONDS + PING_SLACK + SLOW_SECONDS


async def test_a_drain_does_not_wait_for_a_client_on_whom_closing_blocks(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    peer = await connected(hub, nursery)
    peer.blocks_after_bye = True
    hub.close("drain")
    await peer.ended.wait()
    assert peer.client.of(live.Bye)
    assert peer.was_reset
    assert trio.current_time() == pytest.approx(FAREWELL_SECONDS)
