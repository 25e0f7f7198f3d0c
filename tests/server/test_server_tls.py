"""The same edge under TLS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from edge_peer import END, GET, LAST_GET, Message, hello, read_body, respond, serving
from trio_websocket import open_websocket

from visor_gateway.errors import ConfigError
from visor_gateway.metrics import Metrics
from visor_gateway.server.listen import Server, ServerSettings
from visor_gateway.server.listener import Inherited


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some(65536):
        data += piece
    return bytes(data)


async def test_requests_are_served_over_tls_as_http_1_1(tls_files: Any) -> None:
    seen: list[Message] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        seen.append(scope)
        await respond(send, await read_body(receive) or b"none")

    tls_files.client.set_alpn_protocols(["h2", "http/1.1"])
    async with serving(app, **tls_files.settings) as edge:
        client = await edge.tls_client(tls_files.client)
        assert client.selected_alpn_protocol() == "http/1.1"
        await client.send_all(GET)
        assert (await client.receive_some(65536)).endswith(b"none")
        await client.send_all(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 3000000\r\nConnection: close\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, bytes(3_000_000))
            assert (await receive_all(client)).endswith(END + bytes(3_000_000))
        await client.aclose()
    assert [scope["scheme"] for scope in seen] == ["https", "https"]
    assert seen[0]["state"]["connection"].lends is False


async def test_an_ordinary_end_is_announced_with_close_notify(tls_files: Any) -> None:
    async with serving(hello, **tls_files.settings) as edge:
        stream = await trio.open_tcp_stream("127.0.0.1", edge.port)
        client = trio.SSLStream(stream, tls_files.client, server_hostname="localhost")  # strict about truncation
        await client.send_all(LAST_GET)
        assert (await receive_all(client)).endswith(b"hello")
        await client.aclose()


async def test_an_early_answer_reaches_a_client_that_is_still_sending(tls_files: Any) -> None:
    async with serving(hello, **tls_files.settings) as edge:
        client = await edge.tls_client(tls_files.client)
        await client.send_all(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n" + bytes(500_000))
        assert (await receive_all(client)).endswith(b"hello")
        await trio.aclose_forcefully(client)


async def test_an_answer_that_ends_early_is_reset(tls_files: Any) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        raise OSError("the store has failed")

    async with serving(app, **tls_files.settings) as edge:
        client = await edge.tls_client(tls_files.client)
        await client.send_all(GET)
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(client)
        await trio.aclose_forcefully(client)


@pytest.mark.parametrize("data", [GET, b"\x16\x03\x01\x00\x05hello", bytes(100)])
async def test_a_client_that_does_not_speak_tls_is_closed(tls_files: Any, data: bytes) -> None:
    async with serving(hello, **tls_files.settings) as edge:
        peer = await edge.connect()
        await peer.send(data)
        assert b"HTTP" not in (await peer.rest())[0]
        client = await edge.tls_client(tls_files.client)
        await client.send_all(LAST_GET)
        assert (await receive_all(client)).endswith(b"hello")
        await client.aclose()


async def test_surplus_connections_are_closed(tls_files: Any) -> None:
    async with serving(hello, max_connections=1, **tls_files.settings) as edge:
        client = await edge.tls_client(tls_files.client)
        assert (await (await edge.connect()).rest())[0] == b""
        await client.send_all(LAST_GET)
        assert (await receive_all(client)).endswith(b"hello")
        await client.aclose()


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"])
def test_a_certificate_that_cannot_be_used_stops_the_start(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "certificate.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="certificate"):
        Server(hello, ServerSettings(tls_certificate=path), Metrics())


def test_old_versions_of_tls_are_refused(tls_files: Any) -> None:
    from visor_gateway.server.bind import tls_context

    context = tls_context(ServerSettings(**tls_files.settings))
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(("name", "secure"), [("http", False), ("tls", True), ("", True), ("other", True)])
async def test_the_name_of_an_inherited_socket_tells_whether_tls_is_spoken_on_it(
    tls_files: Any, name: str, secure: bool
) -> None:
    async with inheriting(name, ServerSettings(**tls_files.settings)) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        client: Any = trio.SSLStream(stream, tls_files.client, server_hostname="localhost") if secure else stream
        await client.send_all(LAST_GET)
        assert (await client.receive_some(65536)).endswith(b"hello")
        await trio.aclose_forcefully(client)


async def test_a_socket_for_tls_is_not_served_without_a_certificate() -> None:
    """Systemd keeps it open, so nobody would refuse who waits on it."""
    async with inheriting("tls", ServerSettings()) as port:
        # The reset may come before the connection is known to stand.
        with trio.fail_after(60), pytest.raises((OSError, trio.BrokenResourceError)):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.receive_some(1)


@asynccontextmanager
async def inheriting(name: str, settings: ServerSettings) -> AsyncGenerator[int]:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    port = sock.getsockname()[1]
    server = Server(hello, settings, Metrics(), inherited=[Inherited(sock, name)])
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        try:
            yield port
        finally:
            with trio.move_on_after(10, shield=True):
                await server.drain(0)


async def test_the_end_of_an_answer_does_not_wait_for_the_farewell_of_the_client(tls_files: Any) -> None:
    async with serving(hello, **tls_files.settings) as edge:
        transport = await trio.open_tcp_stream("127.0.0.1", edge.port)
        client = trio.SSLStream(transport, tls_files.client, server_hostname="localhost")
        await client.send_all(LAST_GET)
        assert (await receive_all(client)).endswith(b"hello")
        # Nothing was sent since: what the server has said last, and its FIN, came by themselves.
        assert await transport.receive_some(1) == b""
        await trio.aclose_forcefully(client)


async def test_a_cancelled_send_over_tls_resets_the_connection(tls_files: Any) -> None:
    """A part of a record is on its way: whatever came behind it would be noise."""
    sending = trio.CancelScope()
    is_full = trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"67108864")]})
        with sending:
            is_full.set()
            await send({"type": "http.response.body", "body": bytes(64 << 20)})

    async with serving(app, **tls_files.settings) as edge:
        client = await edge.tls_client(tls_files.client)
        await client.send_all(GET)
        await is_full.wait()
        sending.cancel()
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(client)
        await trio.aclose_forcefully(client)


async def test_an_upload_and_its_answer_pass_each_other_over_tls(tls_files: Any) -> None:
    """Sender and receiver of one connection wait for the client at the same time."""

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9000000")]})
        while (message := await receive())["type"] == "http.request":
            await send({"type": "http.response.body", "body": message["body"], "more_body": message["more_body"]})
            if not message["more_body"]:
                return

    body = bytes(range(250)) * 36_000
    async with serving(app, **tls_files.settings) as edge:
        client = await edge.tls_client(tls_files.client)
        received = b""

        async def receive() -> None:
            nonlocal received
            received = await receive_all(client)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await client.send_all(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\nConnection: close\r\n\r\n")
            await client.send_all(body)
        assert received.endswith(END + body)
        await trio.aclose_forcefully(client)


async def test_websocket_messages_pass_both_ways_over_tls(tls_files: Any) -> None:
    async def echo(scope: Message, receive: Any, send: Any) -> None:
        assert scope["scheme"] == "wss"
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})

    async with (
        serving(echo, **tls_files.settings) as edge,
        open_websocket("localhost", edge.port, "/", use_ssl=tls_files.client) as client,
        trio.open_nursery() as nursery,
    ):
        texts = [f"{number} ".ljust(20_000, "x") for number in range(200)]

        async def speak() -> None:
            for text in texts:
                await client.send_message(text)

        nursery.start_soon(speak)
        assert [await client.get_message() for _ in texts] == texts
