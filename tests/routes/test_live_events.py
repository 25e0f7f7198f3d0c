"""The live channel as Server-Sent Events: what is in the stream, how it resumes, and how it ends."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace
from typing import Any

import live_messages as live
import pytest
import trio
from trio.testing import MockClock

from visor_gateway.errors import Draining, InvalidRequest
from visor_gateway.routes.live import events
from visor_gateway.routes.request import Caller, Request
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.meter import Meter
from visor_gateway.transfer.plane import HubPlane
from visor_gateway.transfer.transfer import Transfer

ADMIN = Caller(access_key="root", is_admin=True)
ANNE = Caller(access_key="anne")
EVENT = re.compile(r"event: (\w+)\n(?:id: ([0-9a-f]+):([0-9]+)\n)?data: (.+)\n\n")


@pytest.fixture
async def hub(nursery: trio.Nursery) -> Hub:
    hub = Hub()
    await nursery.start(hub.run)
    return hub


def start(hub: Hub, id: str, **fields: Any) -> Transfer:
    values = {"kind": "pull", "image": "i", "store": "file", "client": "192.0.2.1", "user": "anne", "size": 10**9}
    one = Transfer(id=id, **(values | fields))
    one.meter = Meter(now=trio.current_time)
    hub.add(one)
    one.begin(trio.CancelScope())
    hub.publish("started", one)
    return one


def end(hub: Hub, one: Transfer) -> None:
    one.settle("finished")
    hub.publish("finished", one)


class Reader:
    """A client of the stream, and the connection to it."""

    def __init__(self, hub: Hub, query: str = "", *, caller: Caller = ADMIN, last: str | None = None) -> None:
        self.client = live.Client()
        self.head: dict[str, Any] = {}
        self.ids: list[tuple[str, int]] = []
        self.heard: list[live.Message] = []
        self.whole = False
        self.unread = 0
        self.reads = True
        self._is_early = last is not None  # what comes before the missed events has no id
        self.was_reset = False
        self.ended = trio.Event()
        self._leave = trio.Event()
        services: Any = SimpleNamespace(plane=HubPlane(hub))
        headers = [] if last is None else [(b"last-event-id", last.encode())]
        self._request = Request(
            method="GET",
            caller=caller,
            params={},
            headers=headers,
            services=services,
            client="192.0.2.1",
            base_url="http://gateway.example",
            scope={"query_string": query.encode(), "state": {"connection": self}},
        )

    async def run(self) -> None:
        await events(self._request, self._receive, self._send)
        self.ended.set()

    async def _receive(self) -> dict[str, Any]:
        await self._leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if self.was_reset:
            raise ConnectionResetError
        if message["type"] == "http.response.start":
            self.head = message
            return
        self.whole = not message["more_body"]
        for kind, epoch, seq, data in EVENT.findall(message["body"].decode()):
            parsed = live.parse(data)
            assert kind == data.split('"', 4)[3]
            expected = getattr(parsed, "seq", None)
            if self._is_early:
                self._is_early, expected = kind == "hello", None
            assert expected == (int(seq) if seq else None)
            self.heard.append(parsed)
            if seq:
                self.ids.append((epoch, int(seq)))
        assert EVENT.sub("", message["body"].decode()) == ""
        self.unread += 0 if self.reads else len(message["body"])

    def leave(self) -> None:
        self._leave.set()

    def unacknowledged(self) -> int:
        return 0 if self.was_reset else self.unread

    def reset(self) -> None:
        self.was_reset = True

    def names(self) -> list[str]:
        return [type(each).__name__ for each in self.heard]


async def reading(hub: Hub, nursery: trio.Nursery, query: str = "", **options: Any) -> Reader:
    reader = Reader(hub, query, **options)
    nursery.start_soon(reader.run)
    await trio.testing.wait_all_tasks_blocked()
    return reader


async def test_the_stream_carries_the_messages_of_the_channel_with_ids_to_resume_at(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    reader = await reading(hub, nursery, caller=ANNE)
    headers = dict(reader.head["headers"])
    assert reader.head["status"] == 200
    assert headers[b"content-type"] == b"text/event-stream"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-accel-buffering"] == b"no"
    one = start(hub, "t")
    start(hub, "bobs", user="bob")
    one.meter.moved += 1000
    await trio.sleep(1)
    end(hub, one)
    await trio.sleep(0.1)
    # A last delta may say that it is gone.
    assert [name for name, _ in itertools.groupby(reader.names())][:5] == [
        "Hello",
        "Snapshot",
        "Event",
        "Delta",
        "Event",
    ]
    assert {epoch for epoch, _ in reader.ids} == {hub.epoch}
    assert [seq for _, seq in reader.ids] == sorted({seq for _, seq in reader.ids})
    assert [seq for _, seq in reader.ids] == [each.seq for each in reader.heard if hasattr(each, "seq")]


async def test_one_that_resumes_is_given_no_id_behind_what_it_missed(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    first = await reading(hub, nursery)
    epoch, seq = first.ids[-1]
    for id in "tu":
        end(hub, start(hub, id))
    await trio.sleep(0.1)
    resumed = await reading(hub, nursery, last=f"{epoch}:{seq}")
    assert resumed.names() == ["Hello", "Snapshot"] + ["Event"] * 4
    assert resumed.ids == [(epoch, each.seq) for each in first.heard if isinstance(each, live.Event)]
    other = await reading(hub, nursery, last="00ff:1")
    assert other.names() == ["Hello", "Gap", "Snapshot"]
    assert [seq for _, seq in other.ids] == [other.heard[-1].seq]


async def test_filters_and_cadence_are_in_the_query(autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery) -> None:
    start(hub, "1")
    two = start(hub, "2", kind="push")
    reader = await reading(hub, nursery, "kind=push&kind=import&hz=10")
    assert [t.id for each in reader.heard if isinstance(each, live.Snapshot) for t in each.transfers] == ["2"]
    for _ in range(10):
        two.meter.moved += 1000
        await trio.sleep(0.1)
    assert reader.names().count("Delta") >= 8


@pytest.mark.parametrize("query", ["owner=anne", "hz=often", "hz=nan", "hz=inf"])
async def test_a_wrong_query_is_refused_before_the_answer_begins(
    autojump_clock: MockClock, hub: Hub, query: str
) -> None:
    reader = Reader(hub, query)
    with pytest.raises(InvalidRequest):
        await reader.run()
    assert not reader.head


async def test_a_draining_gateway_refuses_before_the_answer_begins(autojump_clock: MockClock, hub: Hub) -> None:
    hub.close("drain")
    reader = Reader(hub)
    with pytest.raises(Draining):
        await reader.run()
    assert not reader.head


async def test_a_client_that_comes_back_gets_the_events_that_it_missed_once(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    one = start(hub, "t")
    first = await reading(hub, nursery)
    epoch, seq = first.ids[-1]
    first.leave()
    await first.ended.wait()
    end(hub, one)
    start(hub, "u")
    second = Reader(hub, last=f"{epoch}:{seq}")
    nursery.start_soon(second.run)
    end(hub, start(hub, "between"))  # after it came back, before its snapshot
    await trio.testing.wait_all_tasks_blocked()
    told = [(each.kind, each.transfer.id) for each in second.heard if isinstance(each, live.Event)]
    assert told == [("finished", "t"), ("started", "u"), ("started", "between"), ("finished", "between")]
    assert second.names()[:2] == ["Hello", "Snapshot"]


@pytest.mark.parametrize("last", ["0123:5", "", "nonsense", ":", "é:1", "0:" + "9" * 30])
async def test_an_id_of_another_epoch_or_none_of_ours_is_a_gap(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery, last: str
) -> None:
    start(hub, "t")
    reader = await reading(hub, nursery, last=last)
    assert reader.names() == ["Hello", "Gap", "Snapshot"]


@pytest.mark.parametrize("reason", ["drain", "auth"])
async def test_bye_is_the_last_message_and_the_stream_ends_whole(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery, reason: str
) -> None:
    reader = await reading(hub, nursery, caller=ANNE)
    if reason == "drain":
        hub.close("drain")
    else:
        hub.dismiss("anne")
    await reader.ended.wait()
    assert reader.names()[-1] == "Bye"
    assert reader.whole
    assert not reader.was_reset


async def test_a_client_that_goes_leaves_nothing_behind(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    reader = await reading(hub, nursery)
    reader.leave()
    await reader.ended.wait()
    assert not hub._subscriptions
    assert not hub._feeds


async def test_a_client_that_takes_nothing_for_ten_seconds_is_reset(
    autojump_clock: MockClock, hub: Hub, nursery: trio.Nursery
) -> None:
    reader = await reading(hub, nursery)
    reader.reads = False
    start(hub, "t")
    await reader.ended.wait()
    assert reader.names()[-1] == "Bye"
    assert reader.was_reset
