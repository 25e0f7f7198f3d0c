"""One client must not bring down the daemon, nor touch another client's transfer: every crash vector, one by one."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from edge_peer import END, GET, Edge, Message, echo, respond, serving, until_no_connection

BLOCK = bytes(range(256)) * 1024
BLOCKS = 24
DIGEST = hashlib.sha256(BLOCK * BLOCKS).digest()
CLOSE_1002 = b"\x88\x02\x03\xea"
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


async def app(scope: Message, receive: Any, send: Any) -> None:
    """A pull in pieces, a WebSocket that echoes, an early answer, a failure, an echo."""
    if scope["type"] == "websocket":
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
    elif scope["path"] == "/pull":
        fields = [(b"content-length", b"%d" % (len(BLOCK) * BLOCKS))]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        for number in range(BLOCKS):
            await send({"type": "http.response.body", "body": BLOCK, "more_body": number < BLOCKS - 1})
    elif scope["path"] == "/early":
        await respond(send, b"refused", 403)
    elif scope["path"] == "/fail":
        raise BaseExceptionGroup("deep", [ExceptionGroup("deeper", [RuntimeError("bug")])])
    else:
        await echo(scope, receive, send)


@asynccontextmanager
async def bystander() -> AsyncGenerator[Edge]:
    """A server in the middle of another client's transfer; afterwards that one must be whole and the server alive."""
    async with serving(app) as edge:
        pull = await edge.connect(receive_buffer=8192)
        await pull.send(GET.replace(b"/ ", b"/pull "))
        await pull.until(END)
        digest = hashlib.sha256(await pull.exactly(len(BLOCK)))
        yield edge  # ruff: ignore[fallible-context-manager] - the rest is for a test that has passed
        for _ in range(BLOCKS - 1):
            digest.update(await pull.exactly(len(BLOCK)))
        assert digest.digest() == DIGEST
        assert (await edge.ask()).status == 200
        await pull.send(GET)
        assert (await pull.answer()).status == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: !!!\r\n", 200),
        (b"Upgrade: h2c\r\nConnection: Upgrade\r\n", 200),
        (b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", 200),
        (b"Upgrade: \xff\xfe\r\nConnection: Upgrade\r\n", 200),
    ],
)
async def test_an_upgrade_that_is_not_spoken_here_is_as_if_it_were_not_there(request_bytes: bytes, status: int) -> None:
    async with bystander() as edge:
        peer = await edge.connect()
        await peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n" + request_bytes + b"\r\nok")
        answer = await peer.answer()
        assert (answer.status, answer.body) == (status, b"ok")


@pytest.mark.parametrize("field", [b"Sec-WebSocket-Protocol", b"Sec-WebSocket-Extensions", b"Connection"])
async def test_a_handshake_with_byte_e9_is_refused(field: bytes) -> None:
    async with bystander() as edge:
        peer = await edge.connect()
        await peer.send(HANDSHAKE + field + b": caf\xe9\r\n\r\n")
        assert (await peer.answer()).status == 400
        assert await peer.rest() == (b"", "fin")


@pytest.mark.parametrize("early", [b"\x81\x85\0\0\0\0hello", bytes(100), b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n"])
async def test_websocket_bytes_before_the_101_wait_for_it_or_end_that_connection(early: bytes) -> None:
    async with bystander() as edge:
        peer = await edge.connect()
        await peer.send(HANDSHAKE + b"\r\n" + early)
        assert b"101" in await peer.until(END)
        if early.endswith(b"hello"):
            assert await peer.exactly(7) == b"\x81\x05hello"
        else:
            assert await peer.exactly(4) == CLOSE_1002
        peer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        b"\x16\x03\x01\x00\xf0" + bytes(240),
        b"\x00" * 64,
        b"GET / HTTP/1.1\r\nHost: h\r\nX: \x00\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET " + b"\xe9" * 100 + b"\r\n\r\n",
        b"\r\n" * 100 + b"!\r\n\r\n",
    ],
)
async def test_bytes_that_are_no_request_end_in_a_refusal(data: bytes) -> None:
    async with bystander() as edge:
        peer = await edge.connect()
        await peer.send(data)
        assert (await peer.answer()).status in {400, 505}
        assert await peer.rest() == (b"", "fin")


async def test_an_upload_answered_early_harms_nobody() -> None:
    async with bystander() as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()

        async def upload() -> None:
            try:
                await peer.send(b"PUT /early HTTP/1.1\r\nHost: h\r\nContent-Length: 400000000\r\n\r\n")
                while True:
                    await peer.send(BLOCK)
            except OSError:
                pass

        nursery.start_soon(upload)
        assert (await peer.answer()).status == 403
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"5\r\nhelloXX", b"\xff\xff\r\n", b"ffffffffffffffffffffff\r\n"])
async def test_a_bad_chunk_during_another_transfer_ends_only_its_own_connection(chunk: bytes) -> None:
    async with bystander() as edge:
        peer = await edge.connect()
        await peer.send(b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n" + chunk)
        assert (await peer.answer()).status == 400


async def test_an_application_that_fails_ends_only_its_own_connection() -> None:
    async with bystander() as edge:
        assert (await edge.ask(GET.replace(b"/ ", b"/fail "))).status == 500


async def test_a_failure_inside_the_connection_is_fenced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bystander() as edge:

        def broken(*_: object) -> None:
            raise RuntimeError("a bug of ours")

        with monkeypatch.context() as patch:
            patch.setattr("visor_gateway.server.connection.parse_simple", broken)
            peer = await edge.connect()
            await peer.send(GET)
            assert (await peer.rest())[1] == "rst"


async def test_clients_that_reset_at_once_harm_nobody() -> None:
    async with bystander() as edge:
        for data in (b"", b"G", GET, HANDSHAKE, HANDSHAKE + b"\r\n", GET.replace(b"/ ", b"/pull ")):
            peer = await edge.connect()
            if data:
                await peer.send(data)
            peer.vanish()
        await until_no_connection(edge, but=1)


async def test_a_hundred_connections_leave_nothing_behind() -> None:
    async with serving(app) as edge:
        for number in range(100):
            peer = await edge.connect()
            await peer.send((GET, HANDSHAKE + b"\r\n", GET.replace(b"/ ", b"/pull "), b"junk")[number % 4])
            if number % 3 == 0:
                peer.half_close()
            peer.close()
        await until_no_connection(edge)
