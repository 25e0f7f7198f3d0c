"""Every wait on a client is bounded. Time is a mock clock's: no test waits."""

from __future__ import annotations

import errno
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from edge_peer import GET, LAST_GET, Edge, Message, Peer, echo, hello, read_body, respond, serving, until_no_connection
from trio.testing import MockClock, wait_all_tasks_blocked

from visor_gateway.server import listen
from visor_gateway.server.wire import Wire

POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"


@pytest.fixture
def later(mock_clock: MockClock) -> Callable[[float], Awaitable[None]]:
    """Let everything that is ready happen, then let time pass."""

    async def jump(seconds: float) -> None:
        await wait_all_tasks_blocked()
        mock_clock.jump(seconds)
        await wait_all_tasks_blocked()

    return jump


def cuts(edge: Edge, cause: str) -> float:
    return float(edge.metrics.connections_cut.labels(cause)._value.get())  # type: ignore[attr-defined]


# --- heads, idle connections ---------------------------------------------------------------------------


async def test_a_head_that_drips_in_is_cut_thirty_seconds_after_the_accept(mock_clock: MockClock, later: Any) -> None:
    async with serving(hello) as edge:
        peer = await edge.connect()
        for byte in (GET[:-2] + b"A: bcd")[:29]:
            await peer.send(bytes([byte]))
            await later(1)
        assert peer.silent()
        await later(1)
        assert (await peer.answer()).status == 408
        assert await peer.rest() == (b"", "fin")
        peer.close()
        await until_no_connection(edge)
        assert cuts(edge, "head") == 1


async def test_a_later_head_has_thirty_seconds_from_its_first_byte(mock_clock: MockClock, later: Any) -> None:
    async with serving(hello) as edge:
        peer = await edge.connect()
        await peer.send(GET)
        await peer.answer()
        await later(70)
        await peer.send(b"G")
        await later(29)
        assert peer.silent()
        await later(2)
        assert (await peer.answer()).status == 408


async def test_a_connection_without_any_request_is_closed_silently(mock_clock: MockClock, later: Any) -> None:
    async with serving(hello) as edge:
        peer = await edge.connect()
        await later(29)
        assert peer.silent()
        await later(2)
        assert await peer.rest() == (b"", "fin")


async def test_an_idle_connection_is_closed_and_empty_lines_do_not_keep_it(mock_clock: MockClock, later: Any) -> None:
    async with serving(hello) as edge:
        peer = await edge.connect()
        await peer.send(GET)
        await peer.answer()
        for _ in range(7):
            await later(10)
            await peer.send(b"\r\n")
        await later(4)
        assert peer.silent()
        await later(2)
        assert await peer.rest() == (b"", "fin")


async def test_a_head_of_sixteen_kibibytes_is_served_and_one_byte_more_is_431() -> None:
    async with serving(hello) as edge:
        filler = 16 * 1024 - len(GET) - len(b"A: \r\n")
        for extra, status in ((0, 200), (1, 431)):
            peer = await edge.connect()
            data = GET[:-2] + b"A: " + b"a" * (filler + extra) + b"\r\n\r\n"
            for start in range(0, len(data), 5000):
                await peer.send(data[start : start + 5000])
                await wait_all_tasks_blocked()
            assert (await peer.answer()).status == status


async def test_an_endless_head_is_answered_431_while_the_client_still_sends() -> None:
    async with serving(hello) as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()
        nursery.start_soon(peer.send, GET[:-2] + b"A: " + b"a" * 300_000)
        answer = await peer.answer()
        assert (answer.status, answer.headers["connection"]) == (431, "close")
        peer.half_close()
        assert await peer.rest() == (b"", "fin")


async def test_a_tls_handshake_that_does_not_come_is_cut(mock_clock: MockClock, later: Any, tls_files: Any) -> None:
    async with serving(hello, **tls_files.settings) as edge:
        peer = await edge.connect()
        await later(9)
        assert peer.silent()
        await later(2)
        assert (await peer.rest())[0] == b""
        await until_no_connection(edge)


# --- bodies ------------------------------------------------------------------------------------------


async def test_a_body_that_stops_is_answered_408_after_the_stall_timeout(mock_clock: MockClock, later: Any) -> None:
    async with serving(echo) as edge:
        peer = await edge.connect()
        await peer.send(POST + b"abc")
        await later(59)
        assert peer.silent()
        await later(2)
        answer = await peer.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert await peer.rest() == (b"", "fin")


async def test_a_body_that_drips_in_is_cut_for_its_rate(mock_clock: MockClock, later: Any) -> None:
    async with serving(echo) as edge:
        peer = await edge.connect()
        await peer.send(POST)
        for _ in range(6):
            await peer.send(b"x" * 100)
            await later(9.9)
            assert peer.silent()
        await later(1)
        await peer.send(b"x")
        assert (await peer.answer()).status == 408


async def test_a_slow_body_above_the_least_rate_goes_through(mock_clock: MockClock, later: Any) -> None:
    async with serving(echo) as edge:
        peer = await edge.connect()
        await peer.send(POST.replace(b"1000000", b"150000"))
        for _ in range(150):
            await peer.send(b"x" * 1000)
            await later(3)
        assert len((await peer.answer()).body) == 150_000


async def test_a_slow_application_does_not_make_the_client_slow(mock_clock: MockClock, later: Any) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"a"
        await trio.sleep(10_000)
        assert (await receive())["body"] == b"b"
        await respond(send)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na")
        for _ in range(100):
            await later(100)
        await peer.send(b"b")
        assert (await peer.answer()).status == 200


# --- clients that do not take what they asked for ------------------------------------------------------


async def flood(scope: Message, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": bytes(1 << 18), "more_body": True})


async def settled() -> None:
    """Give the kernel longer than it may delay an acknowledgement; the mock clock stands still."""
    await trio.to_thread.run_sync(time.sleep, 0.25)


async def seconds_pass(later: Any, count: int) -> None:
    for _ in range(count):
        await later(1)


async def until_cut(edge: Edge, later: Any) -> None:
    """Seconds pass; more than a few, where the kernel acknowledged the last bytes late."""
    for _ in range(120):
        await later(1)
        if not edge.server.statistics().connections:
            return
    raise AssertionError("a stalled client was not cut")


async def test_a_client_that_takes_nothing_is_reset_after_the_stall_timeout(mock_clock: MockClock, later: Any) -> None:
    async with serving(flood) as edge:
        peer = await edge.connect(receive_buffer=8192)
        await peer.send(GET)
        await seconds_pass(later, 59)
        assert edge.server.statistics().connections == 1
        await until_cut(edge, later)
        assert (await peer.rest())[1] == "rst"
        assert cuts(edge, "stall") == 1


async def test_stalled_clients_hold_no_memory_beyond_one_block_and_end_together(
    mock_clock: MockClock, later: Any
) -> None:
    sent = [0]

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(1 << 18), "more_body": True})
            sent[0] += 1

    async with serving(app) as edge:
        for _ in range(20):
            await (await edge.connect(receive_buffer=8192)).send(GET)
        await settled()
        await seconds_pass(later, 30)
        before = sent[0]
        await seconds_pass(later, 20)
        assert sent[0] == before  # nobody is fed without taking
        await until_cut(edge, later)


async def test_a_client_that_takes_a_little_now_and_then_is_never_cut(mock_clock: MockClock, later: Any) -> None:
    async with serving(flood) as edge:
        peer = await edge.connect(receive_buffer=4096)
        await peer.send(GET)
        for _ in range(60):
            await seconds_pass(later, 10)
            await peer.exactly(10_000)
            peer.buffer.clear()
        assert edge.server.statistics().connections == 1


@pytest.mark.parametrize("family", ["tcp", "unix"])
async def test_the_sign_of_life_is_what_the_client_acknowledges(family: str) -> None:
    ours, theirs = socket.socketpair() if family == "unix" else tcp_pair()
    with theirs:
        wire = Wire(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        assert wire.stalled(1000.0) == 0  # nothing waits for the client
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send, [bytes(1 << 24)])
            await wait_all_tasks_blocked(0.2)  # longer than an acknowledgement is delayed
            assert wire.unacknowledged() > 0
            assert [wire.stalled(now) for now in (1001.0, 1031.0, 1061.0)] == [0, 30, 60]
            for now in range(2000, 2150, 50):
                theirs.recv(1 << 20)
                await wait_all_tasks_blocked(0.2)
                assert wire.stalled(float(now)) == 0
            assert wire.stalled(2150.0) == 50
            nursery.cancel_scope.cancel()
        assert wire.closed
        assert wire.unacknowledged() > 0  # what was cut off never arrived


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return listener.accept()[0], client


async def test_a_client_that_vanishes_while_the_application_computes_is_noticed(
    mock_clock: MockClock, later: Any
) -> None:
    seen: list[str] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await read_body(receive)
        seen.append((await receive())["type"])
        with pytest.raises(ConnectionAbortedError):
            await respond(send)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(GET)
        await later(5)
        assert seen == []
        peer.vanish()
        await later(1)
        assert seen == ["http.disconnect"]
        await until_no_connection(edge)
        assert cuts(edge, "vanished") == 1


async def test_a_client_that_half_closes_still_gets_its_answer(mock_clock: MockClock, later: Any) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await trio.sleep(100)
        await respond(send)

    async with serving(app) as edge:
        peer = await edge.connect()
        await peer.send(GET)
        peer.half_close()
        await seconds_pass(later, 101)
        assert (await peer.answer()).body == b"hello"
        assert await peer.rest() == (b"", "fin")


async def test_the_lingering_close_is_bounded_in_time(mock_clock: MockClock, later: Any) -> None:
    async with serving(hello) as edge:
        peer = await edge.connect()
        await peer.send(POST)
        assert (await peer.answer()).status == 200
        await later(4)
        assert edge.server.statistics().connections == 1
        await later(2)
        assert edge.server.statistics().connections == 0


async def test_the_lingering_close_discards_a_mebibyte_and_leaves_the_rest_to_the_window(
    mock_clock: MockClock, later: Any
) -> None:
    async with serving(hello) as edge, trio.open_nursery() as nursery:
        peer = await edge.connect()
        sent = 0

        async def upload() -> None:
            nonlocal sent
            while True:
                sent += await peer.sock.send(bytes(1 << 16))

        await peer.send(POST.replace(b"1000000", b"9000000000"))
        nursery.start_soon(upload)
        assert (await peer.answer()).status == 200
        await settled()
        await later(4)
        before = sent
        await later(0.5)
        assert sent == before < 64 << 20
        nursery.cancel_scope.cancel()


# --- too many ----------------------------------------------------------------------------------------


async def test_a_connection_above_the_limit_is_answered_503_and_a_place_that_frees_is_used() -> None:
    async with serving(hello, max_connections=2) as edge:
        peers = [await edge.connect() for _ in range(2)]
        for peer in peers:
            await peer.send(GET)
            assert (await peer.answer()).status == 200
        surplus = await edge.connect()
        answer = await surplus.answer()
        assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "5", "close")
        assert await surplus.rest() == (b"", "fin")
        assert edge.metrics.connections_refused._value.get() == 1  # type: ignore[attr-defined]
        peers[0].close()
        while edge.server.statistics().connections > 1:
            await wait_all_tasks_blocked()
        assert (await edge.ask()).status == 200
        await peers[1].send(GET)
        assert (await peers[1].answer()).status == 200


async def test_refused_connections_that_linger_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "REFUSED_LINGERING", 3)
    async with serving(hello, max_connections=1) as edge:
        served = await edge.connect()
        await served.send(GET)
        await served.answer()
        surplus = [await edge.connect() for _ in range(10)]
        await wait_all_tasks_blocked()
        answered = [peer for peer in surplus if (await first_bytes(peer)).startswith(b"HTTP/1.1 503")]
        assert len(answered) == 3


async def first_bytes(peer: Peer) -> bytes:
    try:
        return await peer.sock.recv(100)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EPROTO])
async def test_a_failing_accept_is_tried_again(code: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: Any) -> None:
    failures = [code, code]
    accept = trio.SocketListener.accept

    async def failing(self: trio.SocketListener) -> trio.SocketStream:
        if failures:
            raise OSError(failures.pop(), "accept")
        return await accept(self)

    monkeypatch.setattr(trio.SocketListener, "accept", failing)
    async with serving(hello) as edge:
        assert (await edge.ask()).status == 200
        assert not failures


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "limit", "raised"),
    [
        (65536, 65536, 4096, 4096, 65536),
        (1024, 524288, 4096, 4096, 4096 * 3 + 128),
        (1024, 1024, 4096, 298, 1024),
        (100, 100, 4096, 1, 100),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4096, 4096, resource.RLIM_INFINITY),
        (1024, resource.RLIM_INFINITY, 1000, 1000, 3128),
    ],
)
def test_the_connection_limit_leaves_descriptors_for_the_rest(
    soft: int, hard: int, wanted: int, limit: int, raised: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [soft, hard]

    def set_limits(_: int, pair: tuple[int, int]) -> None:
        limits[:] = pair

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    assert listen.connection_limit(wanted) == limit
    assert limits[0] == raised


async def test_connections_that_arrive_together_are_accepted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, accept = [], trio.SocketListener.accept

    async def counted(self: trio.SocketListener) -> trio.SocketStream:
        waits.append(self)
        return await accept(self)

    monkeypatch.setattr(trio.SocketListener, "accept", counted)
    async with serving(hello) as edge:
        clients = [socket.create_connection(("127.0.0.1", edge.port)) for _ in range(20)]
        while edge.server.statistics().connections < len(clients):
            await wait_all_tasks_blocked()
        assert len(waits) <= 20 // listen.ACCEPTED_TOGETHER + 2
        for client in clients:
            client.sendall(LAST_GET)
        await until_no_connection(edge)
        for client in clients:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            client.close()
