"""Stopping: no new client, idle ones end soon, busy ones finish in time or are cut."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import trio
from edge_peer import END, GET, Message, hello, respond, serving, until_no_connection
from trio.testing import MockClock, wait_all_tasks_blocked

from visor_gateway.metrics import Metrics
from visor_gateway.server.listen import Server, ServerSettings

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Slow:
    """Answers half at once and the other half when told."""

    def __init__(self) -> None:
        self.begun, self.go_on = trio.Event(), trio.Event()
        self.cancelled = False

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["path"] == "/late":
            self.begun.set()
            await self.go_on.wait()
            await respond(send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        self.begun.set()
        try:
            await self.go_on.wait()
        except trio.Cancelled:
            self.cancelled = True
            raise
        await send({"type": "http.response.body", "body": b"half"})


async def test_a_drain_without_clients_returns_at_once(mock_clock: MockClock) -> None:
    async with serving(hello) as edge:
        await edge.server.drain(3600)
        assert mock_clock.current_time() == 0


async def test_listeners_close_at_once_and_idle_connections_after_five_seconds(mock_clock: MockClock) -> None:
    async with serving(hello) as edge, trio.open_nursery() as nursery:
        used, fresh = await edge.connect(), await edge.connect()
        await used.send(GET)
        await used.answer()
        await wait_all_tasks_blocked()
        mock_clock.jump(3)
        nursery.start_soon(edge.server.drain, 3600)
        await wait_all_tasks_blocked()
        with pytest.raises(ConnectionRefusedError):
            await edge.connect()
        assert edge.server.statistics().draining
        mock_clock.jump(1.9)
        await wait_all_tasks_blocked()
        assert edge.server.statistics().connections == 2
        mock_clock.jump(0.1)
        assert await used.rest() == await fresh.rest() == (b"", "fin")


async def test_connections_that_have_been_idle_for_longer_end_at_once(mock_clock: MockClock) -> None:
    async with serving(hello) as edge:
        fresh = await edge.connect()
        await wait_all_tasks_blocked()
        mock_clock.jump(6)
        await edge.server.drain(3600)
        assert await fresh.rest() == (b"", "fin")
        assert mock_clock.current_time() == 6


async def test_a_request_on_an_idle_connection_is_answered_and_told_that_it_was_the_last() -> None:
    async with serving(hello) as edge, trio.open_nursery() as nursery:
        used, fresh = await edge.connect(), await edge.connect()
        await used.send(GET)
        assert "connection" not in (await used.answer()).headers
        await wait_all_tasks_blocked()
        nursery.start_soon(edge.server.drain, 3600)
        await wait_all_tasks_blocked()
        for peer in (used, fresh):
            await peer.send(GET)
            answer = await peer.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await peer.rest() == (b"", "fin")
            peer.close()


async def test_after_an_answer_that_did_not_say_so_one_more_request_is_served() -> None:
    app = Slow()
    async with serving(app) as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()
        await peer.send(GET)
        await app.begun.wait()
        nursery.start_soon(edge.server.drain, 3600)
        await wait_all_tasks_blocked()
        app.go_on.set()
        await peer.until(b"halfhalf")
        await peer.send(GET)
        assert (await peer.answer()).headers["connection"] == "close"
        assert await peer.rest() == (b"", "fin")
        peer.close()


async def test_a_transfer_under_way_finishes_during_the_drain(mock_clock: MockClock) -> None:
    app = Slow()
    async with serving(app) as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()
        await peer.send(GET)
        await app.begun.wait()
        nursery.start_soon(edge.server.drain, 3600)
        for _ in range(30):
            await wait_all_tasks_blocked()
            mock_clock.jump(100)
        await peer.until(END)
        app.go_on.set()
        await peer.until(b"halfhalf")
        await wait_all_tasks_blocked()
        mock_clock.jump(5)
        assert await peer.rest() == (b"", "fin")
        peer.close()


async def test_an_answer_that_begins_during_the_drain_says_connection_close() -> None:
    app = Slow()
    async with serving(app) as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()
        await peer.send(GET.replace(b"/ ", b"/late "))
        await app.begun.wait()
        nursery.start_soon(edge.server.drain, 3600)
        await wait_all_tasks_blocked()
        app.go_on.set()
        assert (await peer.answer()).headers["connection"] == "close"
        assert await peer.rest() == (b"", "fin")
        peer.close()


async def test_a_head_that_has_begun_is_still_served() -> None:
    async with serving(hello) as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()
        await peer.send(GET[:10])
        await wait_all_tasks_blocked()
        nursery.start_soon(edge.server.drain, 3600)
        await wait_all_tasks_blocked()
        await peer.send(GET[10:])
        answer = await peer.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        peer.close()


async def test_what_is_left_at_the_deadline_is_cut_with_rst(mock_clock: MockClock) -> None:
    app = Slow()
    async with serving(app) as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()
        await peer.send(GET)
        await app.begun.wait()
        nursery.start_soon(edge.server.drain, 30)
        await wait_all_tasks_blocked()
        mock_clock.jump(29)
        await wait_all_tasks_blocked()
        assert edge.server.statistics().connections == 1
        mock_clock.jump(2)
        await until_no_connection(edge)
        data, end = await peer.rest()
        assert end == "rst"
        assert not data.endswith(b"halfhalf")
        assert app.cancelled
        assert edge.metrics.connections_cut.labels("drain")._value.get() == 1  # type: ignore[attr-defined]


async def test_a_second_drain_with_no_grace_cuts_at_once() -> None:
    app = Slow()
    async with serving(app) as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()
        await peer.send(GET)
        await app.begun.wait()
        nursery.start_soon(edge.server.drain, 3600)
        await wait_all_tasks_blocked()
        await edge.server.drain(0)
        assert (await peer.rest())[1] == "rst"


async def test_a_websocket_that_nobody_closes_does_not_hold_the_drain(mock_clock: MockClock) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await trio.sleep_forever()

    async with serving(app) as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()
        await peer.send(HANDSHAKE)
        await peer.until(END)
        await wait_all_tasks_blocked()
        nursery.start_soon(edge.server.drain, 3600)
        await wait_all_tasks_blocked()
        mock_clock.jump(9)
        await wait_all_tasks_blocked()
        assert peer.silent()
        mock_clock.jump(2)
        assert await peer.exactly(4) == b"\x88\x02\x03\xe9"  # 1001, going away
        peer.close()
    assert mock_clock.current_time() < 20


async def test_a_websocket_that_its_application_closes_ends_with_its_own_code() -> None:
    closing = trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await closing.wait()
        await send({"type": "websocket.close", "code": 1012})

    async with serving(app) as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()
        await peer.send(HANDSHAKE)
        await peer.until(END)
        nursery.start_soon(edge.server.drain, 3600)
        await wait_all_tasks_blocked()
        closing.set()
        assert await peer.exactly(4) == b"\x88\x02\x03\xf4"
        peer.close()


async def test_a_server_that_is_cancelled_resets_what_is_under_way() -> None:
    app = Slow()
    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(GET)
        await app.begun.wait()
        edge.nursery.cancel_scope.cancel()
        assert (await peer.rest())[1] == "rst"


async def test_drains_before_and_after_serving_return_at_once() -> None:
    await Server(hello, ServerSettings(), Metrics()).drain(3600)
    async with serving(hello) as edge:
        await edge.server.drain(1)
        await edge.server.drain(3600)


async def test_a_drain_that_begins_just_as_a_client_arrives_is_no_failure() -> None:
    # Which of the two tasks that the arrival wakes runs first is left to chance.
    for _ in range(20):
        async with serving(hello) as edge:
            with socket.socket() as client, socket.socket(fileno=os.dup(edge.listening_descriptor)) as listening:
                client.connect(("127.0.0.1", edge.port))
                await trio.lowlevel.wait_readable(listening)
                await edge.server.drain(0)
