"""The live channel over real sockets, under a clock of its own: clients that answer, and those that do not."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio_websocket
from edge_peer import END, Edge, Message, Peer, serving
from trio.testing import MockClock
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import CloseConnection, Event, Ping, Pong, TextMessage

from visor_gateway.routes.live import events, websocket
from visor_gateway.routes.live_sender import PING_SECONDS, SLOW_SECONDS
from visor_gateway.routes.request import Caller, Request
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.plane import HubPlane
from visor_gateway.transfer.transfer import Transfer

ADMIN = Caller(access_key="root", is_admin=True)
HANDSHAKE = (
    b"GET /transfers/ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Channel:
    """The channel of a hub as an application."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.ended: list[float] = []
        self._services: Any = SimpleNamespace(plane=HubPlane(hub))

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        began = trio.current_time()
        try:
            if scope["type"] == "websocket":
                await websocket(scope, receive, send, ADMIN, self._services)
            else:
                await events(self._request(scope), receive, send)
        finally:
            self.ended.append(trio.current_time() - began)

    def _request(self, scope: Message) -> Request:
        return Request(
            method="GET",
            caller=ADMIN,
            params={},
            headers=[],
            services=self._services,
            client="192.0.2.1",
            base_url="http://gateway.example",
            scope={"query_string": b"", "state": scope["state"]},
        )


@pytest.fixture
async def channel(nursery: trio.Nursery) -> Channel:
    hub = Hub()
    await nursery.start(hub.run)
    return Channel(hub)


async def open_channel(edge: Edge, **options: Any) -> tuple[Peer, Connection]:
    peer = await edge.connect(**options)
    await peer.send(HANDSHAKE)
    assert (await peer.until(END)).startswith(b"HTTP/1.1 101 ")
    return peer, Connection(ConnectionType.CLIENT)


async def follow(peer: Peer, protocol: Connection, *, answers: bool) -> list[Event]:
    """Everything that comes until the end; pings are answered or not."""
    seen: list[Event] = []
    while True:
        protocol.receive_data(peer.take(len(peer.buffer)))
        for event in protocol.events():
            seen.append(event)
            if isinstance(event, Ping) and answers:
                await peer.send(protocol.send(event.response()))
        try:
            if not await peer.fill():
                return seen
        except ConnectionResetError:
            return seen


async def test_who_reads_and_answers_no_ping_is_closed(autojump_clock: MockClock, channel: Channel) -> None:
    async with serving(channel) as edge:
        peer, protocol = await open_channel(edge)
        seen = await follow(peer, protocol, answers=False)
    said = [json.loads(event.data) for event in seen if isinstance(event, TextMessage)]
    assert [each["type"] for each in said[:2]] == ["hello", "snapshot"]
    assert said[-1] == {"type": "bye", "reason": "slow"}
    assert [event.code for event in seen if isinstance(event, CloseConnection)] == [4008]
    assert len([event for event in seen if isinstance(event, Ping)]) == 1
    assert channel.ended == [pytest.approx(PING_SECONDS + SLOW_SECONDS, abs=1.5)]


async def test_a_pong_that_answers_nothing_does_not_count(autojump_clock: MockClock, channel: Channel) -> None:
    async with serving(channel) as edge:
        peer, protocol = await open_channel(edge)
        async with trio.open_nursery() as nursery:

            async def pretend() -> None:
                while True:
                    await peer.send(protocol.send(Pong(payload=b"me")))
                    await trio.sleep(1)

            nursery.start_soon(pretend)
            seen = await follow(peer, protocol, answers=False)
            nursery.cancel_scope.cancel()
    assert [event.code for event in seen if isinstance(event, CloseConnection)] == [4008]


async def test_who_answers_pings_stays_and_is_pinged_again(autojump_clock: MockClock, channel: Channel) -> None:
    async with serving(channel) as edge:
        peer, protocol = await open_channel(edge)
        seen: list[Event] = []
        with trio.move_on_after(120):
            while True:
                protocol.receive_data(peer.take(len(peer.buffer)))
                for event in protocol.events():
                    seen.append(event)
                    if isinstance(event, Ping):
                        await peer.send(protocol.send(event.response()))
                await peer.fill()
        assert not channel.ended
        pings = [event for event in seen if isinstance(event, Ping)]
        assert len(pings) >= 120 / (PING_SECONDS + 1) - 1
        assert len([event for event in seen if isinstance(event, TextMessage) and "heartbeat" in event.data]) >= 11


async def test_trio_websocket_answers_by_itself(autojump_clock: MockClock, channel: Channel) -> None:
    async with serving(channel) as edge:
        url = f"ws://127.0.0.1:{edge.port}/transfers/ws"
        async with trio_websocket.open_websocket_url(url) as socket:
            beats = 0
            while beats < 6:
                beats += json.loads(await socket.get_message())["type"] == "heartbeat"
        assert not [seconds for seconds in channel.ended if seconds < 55]


def start(hub: Hub, id: str) -> Transfer:
    one = Transfer(
        id=id, kind="pull", image="i" * 5000, store="file", client="192.0.2.1", user="anne", size=10**9, offset=0
    )
    hub.add(one)
    one.begin(trio.CancelScope())
    hub.publish("started", one)
    return one


@pytest.mark.parametrize("route", ["websocket", "events"])
async def test_who_stops_reading_is_reset_and_others_hear_on(
    autojump_clock: MockClock, channel: Channel, route: str
) -> None:
    async with serving(channel) as edge:
        if route == "websocket":
            await open_channel(edge, receive_buffer=2048)
        else:
            peer = await edge.connect(receive_buffer=2048)
            await peer.send(b"GET /transfers/events HTTP/1.1\r\nHost: h\r\n\r\n")
            await peer.until(END)
        other, protocol = await open_channel(edge)
        heard: list[str] = []
        with trio.move_on_after(60):
            async with trio.open_nursery() as nursery:

                async def publish() -> None:
                    number = 0
                    while True:
                        number += 1
                        one = start(channel.hub, str(number))
                        one.settle("finished")
                        channel.hub.publish("finished", one)
                        await trio.sleep(0.1)

                nursery.start_soon(publish)
                while True:
                    protocol.receive_data(other.take(len(other.buffer)))
                    for event in protocol.events():
                        if isinstance(event, Ping):
                            await other.send(protocol.send(event.response()))
                        elif isinstance(event, TextMessage) and event.message_finished:
                            heard.append(event.data)
                    await other.fill()
        assert len(channel.ended) == 1
        assert channel.ended[0] < PING_SECONDS + SLOW_SECONDS + 10
        assert len(heard) > 500
