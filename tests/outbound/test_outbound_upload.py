"""Requests whose body is pushed: how they are framed, and what becomes of them when the peer does not play along."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from visor_gateway.outbound import (
    CONFIGURED,
    AddressDenied,
    BadResponse,
    BadTarget,
    BodyBroken,
    LocationPolicy,
    Outbound,
    SchemeRefused,
    Unreachable,
    Upload,
)
from visor_gateway.outbound.upload import ANSWER_LIMIT

Peer = Callable[[trio.SocketStream], Awaitable[None]]
CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"


async def receive_until(stream: trio.SocketStream, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        data = await stream.receive_some()
        assert data, received
        received += data
    return received


@asynccontextmanager
async def uploading(peer: Peer, *, stall_timeout: float = 10) -> AsyncGenerator[Upload, None]:
    """An upload to `peer`, begun. The peer's connection is closed when it returns."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await peer(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        outbound = Outbound(CONFIGURED, stall_timeout=stall_timeout)
        upload = await outbound.upload("PUT", f"http://127.0.0.1:{port}/x?op=CREATE", {"Content-Type": "a/b"})
        try:
            await upload.begin()
            yield upload
        finally:
            with trio.move_on_after(5, shield=True):
                await upload.aclose()
                await outbound.aclose()
        nursery.cancel_scope.cancel()


async def test_the_body_is_sent_in_chunks_and_the_answer_is_the_peers() -> None:
    seen: list[bytes] = []

    async def peer(stream: trio.SocketStream) -> None:
        seen.append(await receive_until(stream, b"0\r\n\r\n"))
        await stream.send_all(CREATED)

    async with uploading(peer) as upload:
        for block in (b"first", b"", bytearray(b"second"), memoryview(b"xthirdx")[1:-1]):
            await upload.send(block)
        answer = await upload.finish()
    assert (answer.status, answer.content) == (201, b"ok")
    head, body = seen[0].split(b"\r\n\r\n", 1)
    assert head.startswith(b"PUT /x?op=CREATE HTTP/1.1\r\n")
    assert {b"Transfer-Encoding: chunked", b"Content-Type: a/b"} <= set(head.split(b"\r\n"))
    assert b"content-length" not in head.lower()
    assert body == b"5\r\nfirst\r\n6\r\nsecond\r\n5\r\nthird\r\n0\r\n\r\n"


async def test_nothing_is_sent_before_it_begins() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    outbound = Outbound(CONFIGURED)
    upload = await outbound.upload("PUT", f"http://127.0.0.1:{listener.socket.getsockname()[1]}/")
    stream = await listener.accept()
    await upload.aclose()
    assert await stream.receive_some() == b""
    await stream.aclose()
    await listener.aclose()


async def test_an_interim_answer_is_none_and_an_early_one_is_found() -> None:
    interim_sent, refuse = trio.Event(), trio.Event()

    async def peer(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        interim_sent.set()
        await refuse.wait()
        await stream.send_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\nConnection: close\r\n\r\nwhy")
        await stream.send_eof()
        while await stream.receive_some():
            pass

    async with uploading(peer) as upload:
        await interim_sent.wait()
        await upload.send(b"data")
        assert not await upload.answered()
        refuse.set()
        with trio.fail_after(60):
            while not await upload.answered():
                await trio.lowlevel.checkpoint()
        answer = await upload.early_answer()
        assert answer is not None
        assert (answer.status, answer.content) == (403, b"why")


async def test_a_peer_that_is_gone_is_unreachable_and_has_no_answer() -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await stream.receive_some()

    async with uploading(peer) as upload:
        with pytest.raises(Unreachable):
            await send_for_ever(upload)
        assert await upload.early_answer() is None


async def test_a_peer_that_takes_nothing_is_given_up() -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with uploading(peer, stall_timeout=0.05) as upload:
        with pytest.raises(Unreachable, match="took nothing"):
            await send_for_ever(upload)


async def send_for_ever(upload: Upload) -> None:
    while True:
        await upload.send(bytes(1 << 20))


async def test_an_answer_that_does_not_come_is_waited_for_no_longer_than_a_stall() -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with uploading(peer, stall_timeout=0.05) as upload:
        with pytest.raises(BadResponse, match="no answer"):
            await upload.finish()


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nshort"]
)
async def test_what_is_no_whole_answer_is_no_success(answer: bytes) -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await receive_until(stream, b"0\r\n\r\n")
        await stream.send_all(answer[:-1])

    async with uploading(peer) as upload:
        with pytest.raises((BadResponse, Unreachable, BodyBroken)):
            await upload.finish()


async def test_of_a_long_answer_the_beginning_is_kept() -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await receive_until(stream, b"0\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 500 Error\r\n\r\n" + bytes(10 * ANSWER_LIMIT))

    async with uploading(peer) as upload:
        assert len((await upload.finish()).content) == ANSWER_LIMIT


async def test_a_cut_waits_until_the_peer_has_closed() -> None:
    noticed, close = trio.Event(), trio.Event()

    async def peer(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass
        noticed.set()
        await close.wait()

    async with uploading(peer) as upload, trio.open_nursery() as nursery:
        ended = trio.Event()

        async def cut() -> None:
            await upload.finish_by_cut()
            ended.set()

        nursery.start_soon(cut)
        await noticed.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()
        close.set()
        await ended.wait()


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://127.0.0.1:1/", AddressDenied),
        ("http://user:secret@example.org/", BadTarget),
        ("https://example.org/", SchemeRefused),
        ("nonsense", BadTarget),
    ],
)
async def test_an_upload_goes_only_where_the_policy_lets_it(url: str, error: type[Exception]) -> None:
    outbound = Outbound(LocationPolicy(allow=("http",)))
    with pytest.raises(error):
        await outbound.upload("PUT", url)
    await outbound.aclose()
