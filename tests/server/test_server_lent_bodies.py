"""The read side of a connection in other hands: what may be read, and what becomes of the connection afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from edge_peer import GET, read_body, respond, serving, until_no_connection

from visor_gateway.transfer.contract import LentBody

LENGTH = 200_000
BODY = bytes(range(256)) * 1000
HEAD = b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n" % LENGTH


async def take(body: LentBody, count: int) -> bytes:
    """Read the first `count` bytes of a lent body."""
    taken = bytearray(body.lead[:count])
    sock = trio.socket.fromfd(body.sock, *_TCP)
    try:
        while len(taken) < count:
            data = await sock.recv(min(body.left, count - len(taken)))
            if not data:
                break
            taken += data
            body.left -= len(data)
    finally:
        sock.close()
    return bytes(taken)


_TCP = (trio.socket.AF_INET, trio.socket.SOCK_STREAM)


def borrower(count: int = LENGTH) -> Any:
    """An application that reads `count` bytes of a lent body and answers with their number."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            await respond(send)
            return
        async with scope["state"]["connection"].lend_body() as body:
            taken = await take(body, count)
        assert taken == BODY[: len(taken)]
        await respond(send, b"%d" % len(taken))

    return app


@pytest.mark.parametrize("together", [1, 5000, LENGTH])
async def test_a_body_read_to_its_end_leaves_the_connection_usable(together: int) -> None:
    async with serving(borrower()) as edge:
        peer = await edge.connect()
        for _ in range(2):
            await peer.send(HEAD + b"\r\n" + BODY[:together])
            await peer.send(BODY[together:LENGTH] + GET)
            assert (await peer.answer()).body == b"%d" % LENGTH
            assert (await peer.answer()).body == b"hello"


async def test_a_body_that_came_with_its_head_is_all_lead() -> None:
    async with serving(borrower(10)) as edge:
        peer = await edge.connect()
        await peer.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n" + BODY[:10] + GET)
        assert (await peer.answer()).body == b"10"
        assert (await peer.answer()).body == b"hello"


async def test_a_body_left_early_ends_the_connection_with_the_answer() -> None:
    async with serving(borrower(1000)) as edge:
        peer = await edge.connect()
        await peer.send(HEAD + b"\r\n" + BODY[:50_000])
        answer = await peer.answer()
        assert (answer.body, answer.headers["connection"]) == (b"1000", "close")
        assert await peer.rest() == (b"", "fin")


async def test_an_interim_answer_goes_out_before_the_body_is_lent() -> None:
    async with serving(borrower()) as edge:
        peer = await edge.connect()
        await peer.send(HEAD + b"Expect: 100-continue\r\n\r\n")
        assert (await peer.answer()).status == 100
        await peer.send(BODY[:LENGTH])
        assert (await peer.answer()).body == b"%d" % LENGTH


async def test_after_a_body_left_early_nothing_more_is_received() -> None:
    received: list[bytes | None] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        async with scope["state"]["connection"].lend_body():
            pass
        received.append(await read_body(receive))
        await respond(send)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(HEAD + b"\r\n" + BODY[:50_000])
        assert (await peer.answer()).status == 200
    assert received == [None]


async def test_a_reset_ends_the_loan_and_goes_out_at_its_end() -> None:
    ended: list[BaseException] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        connection = scope["state"]["connection"]
        try:
            async with connection.lend_body():
                connection.reset()
                await trio.sleep_forever()
        except ConnectionError as error:
            ended.append(error)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(HEAD + b"\r\n")
        assert await peer.rest() == (b"", "rst")
        await until_no_connection(edge)
    assert len(ended) == 1


async def test_a_closed_connection_can_not_be_lent() -> None:
    refused: list[BaseException] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        connection = scope["state"]["connection"]
        connection.reset()
        try:
            async with connection.lend_body():
                raise AssertionError
        except ConnectionError as error:
            refused.append(error)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(HEAD + b"\r\n")
        assert (await peer.rest())[1] == "rst"
        await until_no_connection(edge)
    assert len(refused) == 1


async def test_a_chunked_body_can_not_be_lent() -> None:
    refused: list[BaseException] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        try:
            async with scope["state"]["connection"].lend_body():
                raise AssertionError
        except RuntimeError as error:
            refused.append(error)
        await read_body(receive)
        await respond(send)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert (await peer.answer()).status == 200
    assert len(refused) == 1
