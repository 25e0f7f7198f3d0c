"""WebSockets over real sockets: handshake, refusal, both closes, broken frames, peers that take nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from edge_peer import END, GET, Edge, Message, Peer, logged_requests, respond, serving, until_no_connection
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from visor_gateway.server.websocket import PING_PAYLOAD, SHARED_LENGTH

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = (
    b"GET /ws?ticket=abc HTTP/1.1\r\nHost: h\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n"
)


class Client:
    """The client's side of an open WebSocket."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.protocol = Connection(ConnectionType.CLIENT)

    async def send(self, event: Event) -> None:
        await self.peer.send(self.protocol.send(event))

    async def next(self) -> Event | str:
        """The next event, or "fin" or "rst"."""
        while True:
            if self.peer.buffer:
                self.protocol.receive_data(self.peer.take(len(self.peer.buffer)))
            for event in self.protocol.events():
                return event
            try:
                if not await self.peer.fill():
                    return "fin"
            except ConnectionResetError:
                return "rst"


async def open_websocket(edge: Edge, more: bytes = b"", **options: Any) -> Client:
    peer = await edge.connect(**options)
    await peer.send(HANDSHAKE + more + b"\r\n")
    head = await peer.until(END)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"permessage-deflate" not in head
    return Client(peer)


async def echo(scope: Message, receive: Any, send: Any) -> None:
    assert (await receive()) == {"type": "websocket.connect"}
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"], "bytes": message["bytes"]})


class Recorder:
    """Echoes, and keeps the disconnect message."""

    def __init__(self) -> None:
        self.told: list[Message] = []

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"], "bytes": message["bytes"]})
        self.told.append(message)


async def test_messages_pass_both_ways_and_the_subprotocol_is_agreed() -> None:
    seen: list[Message] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        seen.append(scope)
        await echo(scope, receive, send)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(HANDSHAKE + b"Sec-WebSocket-Protocol: visor.progress.v1, other\r\n\r\n")
        assert b"sec-websocket-protocol: visor.progress.v1\r\n" in await peer.until(END)
        client = Client(peer)
        await client.send(TextMessage(data="na\u00efve"))
        assert await client.next() == TextMessage(data="na\u00efve")
        await client.send(BytesMessage(data=bytes(40_000)))
        assert len((await client.next()).data) == 40_000  # type: ignore[union-attr]
        await client.send(Ping(payload=b"p"))
        assert await client.next() == Pong(payload=b"p")
    scope = seen[0]
    assert (scope["type"], scope["path"], scope["scheme"], scope["query_string"]) == (
        "websocket",
        "/ws",
        "ws",
        b"ticket=abc",
    )
    assert scope["state"]["request_id"]
    assert scope["client"][0] == "127.0.0.1"


async def test_compression_is_not_agreed_to() -> None:
    async with serving(echo) as edge:
        client = await open_websocket(edge, b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n")
        await client.send(TextMessage(data="x"))
        assert await client.next() == TextMessage(data="x")


async def test_a_refusal_before_the_upgrade_carries_headers_and_body() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({
            "type": "websocket.http.response.start",
            "status": 403,
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"2")],
        })
        await send({"type": "websocket.http.response.body", "body": b"{}"})

    async with serving(app) as edge:
        answer = await edge.ask(HANDSHAKE + b"\r\n")
        assert (answer.status, answer.body, answer.headers["content-type"]) == (403, b"{}", "application/json")
        assert answer.headers["connection"] == "close"


async def test_a_close_before_the_accept_is_a_403_with_a_json_body() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "websocket.close", "code": 1008})

    async with serving(app) as edge:
        answer = await edge.ask(HANDSHAKE + b"\r\n")
        assert (answer.status, json.loads(answer.body)["code"]) == (403, 403)


@pytest.mark.parametrize("raising", [True, False])
async def test_an_application_that_ends_before_accepting_is_answered_500(raising: bool) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await receive()
        if raising:
            raise ValueError("bug")

    async with serving(app) as edge:
        assert (await edge.ask(HANDSHAKE + b"\r\n")).status == 500


async def test_a_close_by_the_client_ends_both_sides() -> None:
    app = Recorder()
    async with serving(app) as edge:
        client = await open_websocket(edge)
        await client.send(CloseConnection(code=1000, reason="done"))
        assert isinstance(await client.next(), CloseConnection)
        assert await client.next() == "fin"
        client.peer.close()
        await until_no_connection(edge)
    assert [message["code"] for message in app.told] == [1000]


@pytest.mark.parametrize("answering", [True, False])
async def test_a_close_by_the_application_waits_for_the_client_only_so_long(
    mock_clock: MockClock, answering: bool
) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4000, "reason": "bye"})

    async with serving(app) as edge:
        client = await open_websocket(edge)
        closing = await client.next()
        assert closing == CloseConnection(code=4000, reason="bye")
        if answering:
            await client.send(closing.response())
        else:
            await wait_all_tasks_blocked()
            assert client.peer.silent()
            mock_clock.jump(5.1)
        assert await client.next() == "fin"


@pytest.mark.parametrize(("raising", "code"), [(True, 1011), (False, 1000)])
async def test_an_application_that_ends_closes_its_websocket(raising: bool, code: int) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        if raising:
            raise ExceptionGroup("several", [ValueError("secret")])

    async with serving(app) as edge:
        with capture_logs():
            client = await open_websocket(edge)
            closing = await client.next()
            assert isinstance(closing, CloseConnection)
            assert closing.code == code
            await client.send(closing.response())
            assert await client.next() == "fin"


@pytest.mark.parametrize("vanishing", [True, False])
async def test_a_client_that_leaves_without_a_close_becomes_a_1006(vanishing: bool) -> None:
    app = Recorder()
    async with serving(app) as edge:
        client = await open_websocket(edge)
        await wait_all_tasks_blocked()
        if vanishing:
            client.peer.vanish()
        else:
            client.peer.close()
        await until_no_connection(edge)
    assert [message["code"] for message in app.told] == [1006]


async def test_send_raises_once_the_websocket_is_over_and_a_late_close_does_not() -> None:
    raised = trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.disconnect"
        assert (await receive())["type"] == "websocket.disconnect"
        await send({"type": "websocket.close"})
        with pytest.raises(OSError, match="gone"):
            await send({"type": "websocket.send", "text": "x"})
        raised.set()

    async with serving(app) as edge:
        client = await open_websocket(edge)
        client.peer.close()
        await raised.wait()


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\x05hello",  # not masked
        b"\xff" * 64,
        bytes(64),
        b"\x81\xff" + b"\xff" * 8,
        b"\x83\x80\0\0\0\0",  # unknown opcode
        b"\x81\x82\0\0\0\0\xff\xfe",  # no UTF-8
        b"\x89\xfe\x01\x00\0\0\0\0",  # ping of 256 bytes
        b"\x88\x81\0\0\0\0\x03",  # close frame of one byte
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
async def test_frames_that_are_none_end_the_websocket_with_a_protocol_error(data: bytes) -> None:
    app = Recorder()
    async with serving(app) as edge:
        client = await open_websocket(edge)
        await client.peer.send(data)
        closing = await client.next()
        assert isinstance(closing, CloseConnection)
        assert closing.code == 1002
        assert await client.next() == "fin"
        client.peer.close()
        await until_no_connection(edge)
    assert len(app.told) == 1


@pytest.mark.parametrize("frames", [1, 20])
async def test_a_message_that_is_too_long_is_refused_with_1009(frames: int, mock_clock: MockClock) -> None:
    app = Recorder()
    async with serving(app, websocket_max_message_size=10_000) as edge:
        client = await open_websocket(edge)
        for number in range(frames):
            await client.send(BytesMessage(data=bytes(20_000 // frames), message_finished=number == frames - 1))
        closing = await client.next()
        assert isinstance(closing, CloseConnection)
        assert closing.code == 1009
        await wait_all_tasks_blocked()
        assert len(app.told) == 1
        mock_clock.jump(5.1)
        assert await client.next() == "fin"


async def test_messages_wait_for_the_application_and_do_not_pile_up() -> None:
    go_on = trio.Event()
    count = 0

    async def app(scope: Message, receive: Any, send: Any) -> None:
        nonlocal count
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        while (await receive())["type"] == "websocket.receive":
            count += 1

    async with serving(app) as edge, trio.open_nursery() as nursery:
        client = await open_websocket(edge)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for _ in range(2000):
                await client.send(BytesMessage(data=bytes(30_000)))
                sent += 1
            await client.send(CloseConnection(code=1000))

        nursery.start_soon(flood)
        await wait_all_tasks_blocked(0.05)
        assert sent < 1000  # what the kernels hold
        go_on.set()
        while isinstance(await client.next(), Event):
            pass
    assert count == 2000


async def test_a_client_that_takes_nothing_is_reset(mock_clock: MockClock) -> None:
    raised = trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(60_000)})
        except OSError:
            raised.set()

    async with serving(app) as edge:
        client = await open_websocket(edge, receive_buffer=8192)
        while not raised.is_set():
            await wait_all_tasks_blocked()
            mock_clock.jump(1)
        assert mock_clock.current_time() >= 60
        await until_no_connection(edge)
        while not isinstance(event := await client.next(), str):
            pass
        assert event == "rst"


async def test_a_send_that_the_application_cancels_leaves_no_half_frame_behind() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        with trio.move_on_after(0.01):
            await send({"type": "websocket.send", "bytes": bytes(30 << 20)})
        await send({"type": "websocket.send", "text": "after"})

    async with serving(app) as edge:
        client = await open_websocket(edge)
        await until_no_connection(edge)
        while not isinstance(event := await client.next(), str):
            assert not isinstance(event, TextMessage)
        assert event == "rst"


async def test_a_plain_request_to_a_websocket_application_is_its_own_affair() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await respond(send, scope["type"].encode())

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(GET)
        assert (await peer.answer()).body == b"http"


async def test_the_access_log_shows_the_handshake_without_its_ticket() -> None:
    async with serving(Recorder()) as edge:
        with logged_requests() as logs:
            client = await open_websocket(edge)
            client.peer.close()
            await until_no_connection(edge)
    entry = logs[-1]
    assert (entry["path"], entry["status"], entry["complete"]) == ("/ws?ticket=***", 101, True)


# --- what the channel asks of its connection -----------------------------------------------------


class Pinging:
    """An application that sends two texts in one write, with a ping, and leaves its connection to be looked at."""

    def __init__(self) -> None:
        self.connection: Any = None
        self.sent = trio.Event()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.connection = scope["state"]["connection"]
        await receive()
        await send({"type": "websocket.accept"})
        await self.connection.send_texts(["one", "zwei ü"], ping=True)
        await self.connection.send_texts([], ping=True)  # the first is not answered yet: no other one goes out
        self.sent.set()
        while (message := await receive())["type"] == "websocket.receive":
            await self.connection.send_texts([message["text"]])


async def test_texts_go_out_in_one_write_after_a_ping_that_is_open_until_its_own_pong_comes() -> None:
    app = Pinging()
    async with serving(app) as edge:
        client = await open_websocket(edge)
        assert [await client.next() for _ in range(3)] == [
            Ping(payload=PING_PAYLOAD),
            TextMessage(data="one"),
            TextMessage(data="zwei ü"),
        ]
        await app.sent.wait()
        assert app.connection.pinged_at is not None
        long = "x" * (2 * SHARED_LENGTH)
        await client.send(TextMessage(data=long))
        got = ""
        while len(got) < len(long):
            got += (await client.next()).data  # type: ignore[union-attr]
        assert got == long
        await client.send(Pong(payload=b"another's"))
        await client.send(TextMessage(data="still here?"))
        assert await client.next() == TextMessage(data="still here?")
        assert app.connection.pinged_at is not None
        await client.send(Pong(payload=PING_PAYLOAD))
        await client.send(TextMessage(data="and now?"))
        assert await client.next() == TextMessage(data="and now?")
        assert app.connection.pinged_at is None


class Hurried:
    """An application that sends at once for as long as it can, and then in the ordinary way."""

    def __init__(self) -> None:
        self.whole: list[bool] = []

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        connection = scope["state"]["connection"]
        await receive()
        assert not connection.sends_now
        await send({"type": "websocket.accept"})
        while connection.sends_now:
            self.whole.append(connection.send_texts_now([str(len(self.whole)), "x" * SHARED_LENGTH], ping=True))
        await connection.send_texts(["last"])
        assert (await receive())["type"] == "websocket.disconnect"
        assert not connection.sends_now


async def test_what_a_full_socket_does_not_take_at_once_goes_out_before_what_is_sent_next() -> None:
    app = Hurried()
    async with serving(app) as edge:
        client = await open_websocket(edge, receive_buffer=4096)
        events: list[Event] = []
        text = ""
        while text != "last":
            event = await client.next()
            assert isinstance(event, Event)
            if isinstance(event, Ping):
                events.append(event)
            elif isinstance(event, TextMessage):
                text += event.data
                if event.message_finished and text != "last":
                    events.append(TextMessage(data=text[:10]))
                    text = ""
        await client.send(CloseConnection(code=1000))
        await until_no_connection(edge)
    assert app.whole == [True] * (len(app.whole) - 1) + [False]
    texts = [event.data for event in events if isinstance(event, TextMessage)]
    assert texts == [each for number in range(len(app.whole)) for each in (str(number), "x" * 10)]
    assert sum(isinstance(event, Ping) for event in events) == 1


async def test_what_is_sent_at_once_to_a_client_that_is_gone_tells_so_by_the_next_send() -> None:
    failed = trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        connection = scope["state"]["connection"]
        await receive()
        await send({"type": "websocket.accept"})
        while connection.sends_now:
            connection.send_texts_now(["x" * SHARED_LENGTH])
            await trio.lowlevel.checkpoint()
        with pytest.raises(OSError, match="gone"):
            await connection.send_texts(["x"])
        failed.set()

    async with serving(app) as edge:
        client = await open_websocket(edge)
        client.peer.vanish()
        await failed.wait()
        await until_no_connection(edge)


async def test_nothing_is_sent_at_once_over_tls(tls_files: Any) -> None:
    asked: list[bool] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        asked.append(scope["state"]["connection"].sends_now)

    async with serving(app, **tls_files.settings) as edge:
        client = await edge.tls_client(tls_files.client)
        await client.send_all(HANDSHAKE + b"\r\n")
        assert (await client.receive_some(65536)).startswith(b"HTTP/1.1 101 ")
        await client.aclose()
        await until_no_connection(edge)
    assert asked == [False]


async def test_texts_can_not_be_sent_once_the_websocket_is_over_nor_where_there_is_none() -> None:
    failed: list[type[BaseException]] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        connection = scope["state"]["connection"]
        if scope["type"] == "http":
            with pytest.raises(RuntimeError):
                await connection.send_texts(["x"])
            await respond(send, b"refused")
            return
        await receive()
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.disconnect"
        try:
            await connection.send_texts(["x"])
        except OSError as exc:
            failed.append(type(exc))

    async with serving(app) as edge:
        assert (await edge.ask()).body == b"refused"
        client = await open_websocket(edge)
        await client.send(CloseConnection(code=1000))
        while await client.next() not in ("fin", "rst"):
            pass
    assert [each.__name__ for each in failed] == ["ClientGone"]
