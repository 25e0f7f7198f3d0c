"""Requests and answers over real sockets: framing, reuse, early answers, interim answers, what an end looks like."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest
import trio
from edge_peer import (
    END,
    GET,
    LAST_GET,
    Message,
    echo,
    hello,
    logged_requests,
    read_body,
    respond,
    serving,
    until_no_connection,
)
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

POST = b"POST /up HTTP/1.1\r\nHost: h\r\n"


async def test_answer_and_scope_are_what_asgi_says() -> None:
    seen: list[Message] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        seen.append(scope)
        await respond(send, b"x", 201, ("x-a", "b"))

    async with serving(app) as edge:
        answer = await edge.ask(b"GET /a%20b?c=d HTTP/1.1\r\nHost: h\r\nX-B: \xe9\r\nConnection: close\r\n\r\n")
    scope = seen[0]
    assert (answer.status, answer.body, answer.headers["x-a"], answer.headers["connection"]) == (
        201,
        b"x",
        "b",
        "close",
    )
    assert "date" in answer.headers
    assert (scope["type"], scope["method"], scope["path"], scope["raw_path"]) == ("http", "GET", "/a b", b"/a%20b")
    assert (scope["query_string"], scope["http_version"], scope["scheme"]) == (b"c=d", "1.1", "http")
    assert (b"x-b", b"\xe9") in scope["headers"]
    assert scope["client"][0] == "127.0.0.1"
    assert len(scope["state"]["request_id"]) == 16
    assert scope["state"]["connection"].lends is True


async def test_what_a_connection_was_goes_without_the_garbage_collector() -> None:
    # Left to it, hundreds of sockets and buffers would gather before it looks.
    kept: list[weakref.ref[Any]] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        kept.append(weakref.ref(scope["state"]["connection"]))
        await respond(send, b"x")

    async with serving(app) as edge:
        gc.disable()
        try:
            await edge.ask(LAST_GET)
            await until_no_connection(edge)
            await wait_all_tasks_blocked()
            assert [reference() for reference in kept] == [None]
        finally:
            gc.enable()


async def test_a_connection_serves_many_requests_with_bodies_of_both_framings() -> None:
    async with serving(echo) as edge:
        peer = await edge.connect()
        for number in range(3):
            await peer.send(POST + b"Content-Length: 3\r\n\r\nab%d" % number)
            assert (await peer.answer()).body == b"ab%d" % number
            await peer.send(
                POST + b"Transfer-Encoding: chunked\r\n\r\n2;ext=1\r\nab\r\n3\r\ncde\r\n0\r\nTrailer: x\r\n\r\n"
            )
            assert (await peer.answer()).body == b"abcde"
        await peer.send(GET)
        assert (await peer.answer()).status == 200


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        body = await read_body(receive)
        await respond(send, scope["path"].encode() + (body or b""))

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(
            b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nPOST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok\r\n"
            b"GET /3 HTTP/1.1\r\nHost: h\r\n\r\nGET /4 HTTP/1.1\r\nHo"
        )
        assert [(await peer.answer()).body for _ in range(3)] == [b"/1", b"/2ok", b"/3"]
        await peer.send(b"st: h\r\n\r\n")
        assert (await peer.answer()).body == b"/4"


async def test_http_1_0_is_answered_and_closed() -> None:
    async def streaming(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"un", "more_body": True})
        await send({"type": "http.response.body", "body": b"known"})

    async with serving(streaming) as edge:
        peer = await edge.connect()
        await peer.send(b"GET / HTTP/1.0\r\n\r\n")
        data, end = await peer.rest()
    head, _, body = data.partition(END)
    assert (body, end) == (b"unknown", "fin")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()


async def test_head_and_first_piece_arrive_together_and_an_empty_piece_flushes_the_head() -> None:
    flushed, go_on = trio.Event(), trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        if scope["path"] == "/flush":
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            flushed.set()
            await go_on.wait()
        await send({"type": "http.response.body", "body": b"body"})

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(GET)
        assert (await peer.sock.recv(65536)).endswith(END + b"body")
        await peer.send(GET.replace(b"/ ", b"/flush "))
        await flushed.wait()
        assert await peer.until(END)
        assert not peer.buffer
        go_on.set()
        assert await peer.exactly(4) == b"body"


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
async def test_large_body_is_whole_and_head_has_none(method: bytes) -> None:
    block = bytes(range(256)) * 4096

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"%d" % (8 * len(block)))],
        })
        for number in range(8):
            await send({"type": "http.response.body", "body": block, "more_body": number < 7})

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(LAST_GET.replace(b"GET", method))
        answer = await peer.answer(head_only=method == b"HEAD")
        assert answer.body == (b"" if method == b"HEAD" else block * 8)
        assert await peer.rest() == (b"", "fin")


# --- 100-continue and the body at the application's pace ---------------------------------------------


async def test_100_continue_is_sent_when_the_application_first_reads_and_not_before() -> None:
    let_read = trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await let_read.wait()
        await echo(scope, receive, send)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(POST + b"Content-Length: 2\r\nExpect: 100-Continue\r\n\r\n")
        await wait_all_tasks_blocked()
        assert peer.silent()
        let_read.set()
        assert await peer.until(END) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await peer.send(b"ok")
        assert (await peer.answer()).body == b"ok"


async def test_refusal_before_the_body_sends_no_100_continue() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await respond(send, b"no", 403)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        answer = await peer.answer()
        assert (answer.status, answer.headers["connection"]) == (403, "close")
        assert await peer.rest() == (b"", "fin")


async def test_nothing_of_a_body_is_read_before_the_application_asks() -> None:
    let_read = trio.Event()
    sent = 0

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await let_read.wait()
        await respond(send, b"%d" % len(await read_body(receive) or b""))

    async with serving(app) as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()
        size = 64 << 20

        async def upload() -> None:
            nonlocal sent
            await peer.send(POST + b"Content-Length: %d\r\n\r\n" % size)
            block = bytes(1 << 16)
            while sent < size:
                await peer.send(block)
                sent += len(block)

        nursery.start_soon(upload)
        await wait_all_tasks_blocked(0.05)
        assert sent < size // 2  # what the kernels hold
        let_read.set()
        assert (await peer.answer()).body == b"%d" % size


async def test_a_cancelled_receive_loses_no_byte() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        body = b""
        while True:
            with trio.move_on_after(0.001):
                message = await receive()
                body += message["body"]
                if not message["more_body"]:
                    break
        await respond(send, body)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            await peer.send(b"1\r\na\r\n" * 100)
            await trio.sleep(0.0015)
        await peer.send(b"0\r\n\r\n")
        assert (await peer.answer()).body == b"a" * 2000


# --- early answers -----------------------------------------------------------------------------------


async def test_early_answer_reaches_a_client_that_is_still_sending() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await respond(send, b"too much", 413)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(POST + b"Content-Length: 100000000\r\n\r\n")
        await peer.send(bytes(900_000))  # the client sends on before it looks at the answer
        answer = await peer.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (413, b"too much", "close")
        assert await peer.rest() == (b"", "fin")
        peer.close()
        await until_no_connection(edge)


async def test_early_answer_while_the_body_is_being_read_ends_the_reading() -> None:
    ended = trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        async def read() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await respond(send, b"no", 409)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(POST + b"Content-Length: 10\r\n\r\nabc")
        assert (await peer.answer()).status == 409
        await ended.wait()
        assert await peer.rest() == (b"", "fin")


async def test_http_disconnect_follows_the_answer_and_blocks_no_application() -> None:
    seen: list[str] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b""
        await respond(send)
        seen.extend([(await receive())["type"] for _ in range(20)])

    async with serving(app) as edge:
        peer = await edge.connect()
        for _ in range(2):
            await peer.send(GET)
            assert (await peer.answer()).status == 200
            await wait_all_tasks_blocked()
    assert seen == ["http.disconnect"] * 40


# --- ends that must not be taken for success ---------------------------------------------------------


@pytest.mark.parametrize("fields", [[(b"content-length", b"10")], []], ids=["length", "chunked"])
@pytest.mark.parametrize("raising", [True, False])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_answer_that_ends_early_is_reset(fields: Any, raising: bool, version: bytes) -> None:
    sent = trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await sent.wait()
        if raising:
            raise ValueError("the store has failed")

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(GET.replace(b"1.1", version))
        await peer.until(b"begun")
        sent.set()
        assert (await peer.rest())[1] == "rst"
        assert edge.metrics.connections_cut.labels("incomplete")._value.get() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("body", [b"short", b"longer than it should be"])
async def test_a_body_that_contradicts_its_length_never_looks_whole(body: bytes) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": body[:3], "more_body": True})
        await send({"type": "http.response.body", "body": body[3:]})

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(GET)
        data, end = await peer.rest()
        assert end == "rst"
        assert len(data.partition(END)[2]) < 10


@pytest.mark.parametrize("started", [True, False])
async def test_an_application_that_raises_before_anything_is_sent_is_answered_500(started: bool) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        raise ExceptionGroup("several", [ValueError("secret detail"), OSError("another")])

    async with serving(app) as edge:
        with capture_logs() as logs:
            answer = await edge.ask()
        assert answer.status == 500
        assert json.loads(answer.body) == {
            "code": 500,
            "message": "The request could not be served because of an internal error",
        }
        assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == (
            "nosniff",
            "no-referrer",
        )
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        assert [entry["event"] for entry in logs] == ["request failed"]
        head = await edge.connect()
        await head.send(GET.replace(b"GET", b"HEAD"))
        answer = await head.answer(head_only=True)
        assert (answer.status, answer.headers["x-error-code"]) == (500, "500")
        assert await head.rest() == (b"", "fin")


async def test_an_application_that_answers_nothing_is_answered_500() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        pass

    async with serving(app) as edge:
        assert (await edge.ask()).status == 500


async def test_illegal_answer_headers_become_a_500() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await respond(send, b"x", 200, ("location", "http://h/\r\nset-cookie: a"))

    async with serving(app) as edge:
        assert (await edge.ask()).status == 500


async def test_a_cancelled_send_resets_and_nothing_follows_it() -> None:
    outcome: list[type[BaseException] | None] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % (64 << 20))]})
        with trio.move_on_after(0.01):
            await send({"type": "http.response.body", "body": bytes(64 << 20)})
        try:
            await send({"type": "http.response.body", "body": b"more"})
        except OSError as exc:
            outcome.append(type(exc))

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(GET)
        await until_no_connection(edge)
        data, end = await peer.rest()
    assert end == "rst"
    assert not data.endswith(b"more")
    assert len(outcome) == 1


# --- vanished clients --------------------------------------------------------------------------------


async def test_send_raises_once_the_client_has_gone() -> None:
    raised = trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
        except ConnectionAbortedError:
            raised.set()
            raise

    async with serving(app) as edge:
        with capture_logs() as failures, logged_requests() as logs:
            peer = await edge.connect()
            await peer.send(GET)
            await peer.exactly(1000)
            peer.vanish()
            await raised.wait()
            await until_no_connection(edge)
        assert failures == []  # of ours
        assert [entry["complete"] for entry in logs] == [False]


@pytest.mark.parametrize("half_closed", [True, False])
async def test_a_client_that_vanishes_in_its_body_becomes_a_disconnect(half_closed: bool) -> None:
    seen: list[bytes | None] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        seen.append(await read_body(receive))

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(POST + b"Content-Length: 10\r\n\r\nabc")
        await wait_all_tasks_blocked()
        if half_closed:
            peer.half_close()
            assert (await peer.answer()).status == 400
            assert await peer.rest() == (b"", "fin")
        else:
            peer.vanish()
        await until_no_connection(edge)
    assert seen == [None]


async def test_an_application_may_answer_a_body_that_broke_off_itself() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        assert await read_body(receive) is None
        await respond(send, b"mine", 400)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(POST + b"Content-Length: 10\r\n\r\nabc")
        peer.half_close()
        answer = await peer.answer()
        assert (answer.body, answer.headers["connection"]) == (b"mine", "close")


@pytest.mark.parametrize(
    "chunks",
    [
        b"g\r\n",
        b"-1\r\n",
        b"5\r\nabcdefg",
        b"1" * 21 + b"\r\n",
        b"0x5\r\nabcde\r\n",
        b"5 5\r\nabcde",
        b"\r\n",
        b"0\r\nbad trailer\r\n\r\n",
    ],
)
async def test_broken_chunk_framing_is_answered_400_and_closed(chunks: bytes) -> None:
    async with serving(echo) as edge:
        peer = await edge.connect()
        await peer.send(POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n" + chunks)
        answer = await peer.answer()
        assert (answer.status, json.loads(answer.body)["code"]) == (400, 400)
        assert await peer.rest() == (b"", "fin")


@pytest.mark.parametrize("extension", [b"1;" + b"a" * 8000 + b"\r\nx\r\n", b"1;" + b"a" * 400_000])
async def test_a_body_that_is_mostly_chunk_extensions_is_refused(extension: bytes) -> None:
    async with serving(echo) as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()
        nursery.start_soon(peer.send, POST + b"Transfer-Encoding: chunked\r\n\r\n" + extension * 80)
        assert (await peer.answer()).status in {400, 431}
        nursery.cancel_scope.cancel()


async def test_one_byte_chunks_are_no_abuse() -> None:
    async with serving(echo) as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()
        nursery.start_soon(
            peer.send, POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n"
        )
        assert len((await peer.answer()).body) == 20_000


# --- what a transfer may do with the connection ----------------------------------------------------------


async def test_reset_cuts_with_rst_and_wakes_the_application() -> None:
    outcome: list[Any] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        connection = scope["state"]["connection"]
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        assert connection.unacknowledged() > 0
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                outcome.append((await receive())["type"])

            await wait_all_tasks_blocked()
            connection.reset()
            connection.reset()
        assert connection.unacknowledged() > 0  # what was cut off never arrived
        try:
            await send({"type": "http.response.body", "body": b"more"})
        except OSError:
            outcome.append("error")

    async with serving(app) as edge:
        peer = await edge.connect(receive_buffer=4096)
        await peer.send(GET)
        await until_no_connection(edge)
        assert (await peer.rest())[1] == "rst"
    assert outcome == ["http.disconnect", "error"]


async def test_a_unix_socket_is_served_and_its_name_removed(tmp_path: Any) -> None:
    path = tmp_path / "edge.sock"
    async with serving(hello, bind=(f"unix:{path}",)) as edge:
        assert edge.server.addresses == (str(path),)
        for _ in range(2):
            stream = await trio.open_unix_socket(str(path))
            await stream.send_all(LAST_GET)
            assert (await stream.receive_some(65536)).endswith(b"hello")
            await stream.aclose()
    assert not path.exists()
