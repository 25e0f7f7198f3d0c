"""From socket to socket, spliced or copied and hashed: right bytes and no more, whatever either end does."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Generator
from functools import partial

import pytest
import trio
from blake3 import blake3

from visor_gateway.errors import StoreError, StoreUnreachable
from visor_gateway.store.contract import Block, Direct
from visor_gateway.transfer import copier, pipes, sendbuffer, splice
from visor_gateway.transfer.copier import Copier
from visor_gateway.transfer.limits import Pace, Rates
from visor_gateway.transfer.meter import Meter
from visor_gateway.transfer.pipes import LARGE, SMALL, Pipes
from visor_gateway.transfer.relay import Move, relay
from visor_gateway.transfer.splice import Splicer

DATA = os.urandom(6 << 20)
SIZE = len(DATA)


@pytest.fixture
def splicer() -> Generator[Splicer, None, None]:
    before = set(threading.enumerate())
    files = len(os.listdir("/proc/self/fd"))
    with Splicer(quantum=1 << 20) as running:
        yield running
    assert not {thread.name for thread in set(threading.enumerate()) - before if not thread.name.startswith("Trio")}
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.fixture(params=["splice", "copy"])
def move(request: pytest.FixtureRequest, splicer: Splicer) -> Move:
    return splicer.splice if request.param == "splice" else partial(Copier().copy, (hashlib.sha256(),))


class Line:
    """An upstream's socket and a client's, and what is at their other ends."""

    def __init__(self) -> None:
        self.source, self.origin = socket.socketpair()
        self.sink, self.client = socket.socketpair()
        for sock in (self.source, self.origin, self.sink, self.client):
            sock.setblocking(False)

    def close(self) -> None:
        for sock in (self.source, self.origin, self.sink, self.client):
            sock.close()

    def offer(self, length: int, stall_timeout: float = 60) -> Direct:
        return Direct(sock=self.source.fileno(), length=length, stall_timeout=stall_timeout)

    async def send(self, data: bytes) -> None:
        stream = trio.socket.from_stdlib_socket(self.origin.dup())
        with stream:
            left = memoryview(data)
            while left:
                left = left[await stream.send(left) :]

    async def received(self, size: int) -> bytes:
        stream = trio.socket.from_stdlib_socket(self.client.dup())
        got = bytearray()
        with stream:
            while len(got) < size and (data := await stream.recv(1 << 16)):
                got += data
        return bytes(got)


@pytest.fixture
def line() -> Generator[Line, None, None]:
    line = Line()
    yield line
    line.close()


class Booked:
    """What a splice said that it moved."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, count: int) -> None:
        self.counts.append(count)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not condition():
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("length", [1, 65_537, SIZE])
async def test_as_many_bytes_as_were_offered_arrive_and_the_next_stay(move: Move, line: Line, length: int) -> None:
    meter, booked, received = Meter(), Booked(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.send, DATA[:length] + b"next")
        nursery.start_soon(move, line.offer(length), line.sink.fileno(), meter, None, booked)
        received.append(await line.received(length))
    assert received == [DATA[:length]]
    assert (meter.moved, booked.counts) == (length, [length])
    assert line.source.recv(100) == b"next"


async def test_many_clients_get_the_whole_while_one_reads_nothing(move: Move) -> None:
    lines = [Line() for _ in range(12)]
    meters = [Meter() for _ in lines]
    received: list[bytes] = []

    async def pull(line: Line) -> None:
        received.append(await line.received(SIZE))

    async def fill(line: Line) -> None:
        await line.send(DATA)

    async with trio.open_nursery() as moving:
        async with trio.open_nursery() as reading:
            for number, line in enumerate(lines):
                moving.start_soon(fill, line)
                moving.start_soon(move, line.offer(SIZE), line.sink.fileno(), meters[number], None, Booked())
                if number:
                    reading.start_soon(pull, line)
        assert received == [DATA] * 11
        assert meters[0].moved < SIZE
        meters[0].sample()
        assert meters[0].waited["client"] >= 0
        moving.cancel_scope.cancel()
    for line in lines:
        line.close()


async def test_what_came_before_a_break_is_with_the_client_and_was_booked(move: Move, line: Line) -> None:
    booked = Booked()

    async def broken() -> None:
        with pytest.raises(StoreUnreachable, match="ended"):
            await move(line.offer(SIZE), line.sink.fileno(), Meter(), None, booked)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(broken)
        await line.send(DATA[:100_000])
        line.origin.shutdown(socket.SHUT_WR)
    assert booked.counts == [100_000]
    assert await line.received(100_000) == DATA[:100_000]


async def test_a_silent_upstream_is_given_up(move: Move, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice, "LOOK_SECONDS", 0.01)
    booked = Booked()
    line.origin.send(b"abc")
    with pytest.raises(StoreUnreachable, match="stalled"):
        await move(line.offer(10, stall_timeout=0.02), line.sink.fileno(), Meter(), None, booked)
    assert booked.counts == [3]
    assert await line.received(3) == b"abc"


async def test_an_upstream_that_says_nothing_at_all_is_waited_for_and_given_up(line: Line) -> None:
    reads = []
    with pytest.MonkeyPatch.context() as patch, trio.fail_after(60):
        readv = os.readv
        patch.setattr(os, "readv", lambda *arguments: reads.append(1) or readv(*arguments))
        with pytest.raises(StoreUnreachable, match="stalled"):
            await Copier().copy((), line.offer(1000, 0.2), line.sink.fileno(), Meter(), None, Booked())
    assert len(reads) < 20


async def test_a_client_that_is_gone_is_an_error_of_the_client(move: Move, line: Line) -> None:
    line.client.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.send, DATA[:1000])
        with pytest.raises(BrokenPipeError):
            await move(line.offer(1000), line.sink.fileno(), Meter(), None, Booked())


async def test_a_cancelled_splice_lets_go_before_its_task_goes_on_and_keeps_no_bytes(
    splicer: Splicer, line: Line
) -> None:
    meter, booked = Meter(), Booked()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.send, DATA)
        nursery.start_soon(splicer.splice, line.offer(SIZE), line.sink.fileno(), meter, None, booked)
        await until(lambda: meter.moved > 0)
        nursery.cancel_scope.cancel()
    moved = meter.moved
    assert 0 < moved < SIZE
    assert not booked.counts
    # What was left in the pipe must not reach the next client.
    other = Line()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(splicer.splice, other.offer(4), other.sink.fileno(), Meter(), None, Booked())
        await other.send(b"next")
        assert await other.received(4) == b"next"
    other.close()


async def test_one_cancelled_before_it_began_takes_nothing(move: Move, line: Line) -> None:
    line.origin.send(b"abc")
    with trio.CancelScope() as scope:
        scope.cancel()
        await move(line.offer(3), line.sink.fileno(), Meter(), None, Booked())
    assert scope.cancelled_caught
    assert line.source.recv(10) == b"abc"


async def test_a_limit_is_kept_and_booked(move: Move, line: Line) -> None:
    pace, meter = Rates(0, 8_000_000).pace(), Meter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.send, DATA)
        nursery.start_soon(move, line.offer(SIZE), line.sink.fileno(), meter, pace, Booked())
        assert await line.received(SIZE) == DATA
    meter.sample()
    assert meter.waited["limit"] > 0


async def test_a_paused_transfer_moves_nothing_until_it_goes_on(move: Move, line: Line) -> None:
    pace, meter = Rates().pace(), Meter()
    pace.paused = True
    claims = Claims(pace)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.send, DATA[:100_000])
        nursery.start_soon(move, line.offer(100_000), line.sink.fileno(), meter, claims, Booked())
        await until(lambda: claims.made > 0)
        assert meter.moved == 0
        pace.paused = False
        assert await line.received(100_000) == DATA[:100_000]
    meter.sample()
    assert meter.waited["limit"] == 0  # who is paused waits for nobody


class Claims(Pace):
    """A pace that counts what is asked of it."""

    def __init__(self, pace: Pace) -> None:
        self.made = 0
        self._pace = pace

    @property
    def paused(self) -> bool:  # type: ignore[override]
        return self._pace.paused

    def claim(self, want: int) -> tuple[int, float]:
        answer = self._pace.claim(want)
        self.made += 1
        return answer

    def give_back(self, size: int) -> None:
        self._pace.give_back(size)

    def release(self) -> None:
        self._pace.release()


# --- hashing on the way ----------------------------------------------------------------------------------------------


@pytest.fixture(params=[1, 2, 8], ids=lambda cores: f"{cores} cores")
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one, the copying thread hashes; with two, one of two digests has a thread of its own."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(request.param)))


@pytest.mark.usefixtures("cores")
async def test_what_is_copied_is_hashed_whole_and_in_order(line: Line) -> None:
    digest, other = hashlib.sha256(DATA[:7]), blake3(DATA[:7])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.send, DATA[7:])
        copy = partial(Copier(buffer_size=100_000).copy, (digest, other))
        nursery.start_soon(copy, line.offer(SIZE - 7), line.sink.fileno(), Meter(), None, Booked())
        assert await line.received(SIZE - 7) == DATA[7:]
    assert digest.digest() == hashlib.sha256(DATA).digest()
    assert other.digest() == blake3(DATA).digest()


async def test_the_first_bytes_wait_for_no_others_and_each_step_is_told(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier, "LINGER_SECONDS", 3600.0)
    meter, told = Meter(), []
    copy = partial(Copier().copy, (), moved=lambda: told.append(meter.moved))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy, line.offer(1000), line.sink.fileno(), meter, None, lambda _: None)
            line.origin.send(DATA[:10])
            assert await line.received(10) == DATA[:10]
            line.origin.send(DATA[10:1000])
            assert await line.received(990) == DATA[10:1000]
    assert told == [10, 1000]


class Ranked:
    """A digest that notes how far back its thread stands."""

    def __init__(self) -> None:
        self.niceness: set[int] = set()

    def update(self, data: Block, /) -> None:
        self.niceness.add(niceness())


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.usefixtures("cores")
async def test_the_threads_of_a_copy_stand_back_and_no_others_do(line: Line) -> None:
    usual, ranked, moved = niceness(), Ranked(), set[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.send, DATA)
        copy = partial(Copier(nice=19).copy, (ranked,), moved=lambda: moved.add(niceness()))
        nursery.start_soon(copy, line.offer(SIZE), line.sink.fileno(), Meter(), None, Booked())
        assert await line.received(SIZE) == DATA
    assert (ranked.niceness, moved) == ({19}, {19})
    assert await trio.to_thread.run_sync(niceness) == usual


async def test_a_copy_that_stands_back_can_be_cancelled(line: Line) -> None:
    copier, meter = Copier(limit=1, nice=19), Meter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.send, DATA[:1000])
        nursery.start_soon(copier.copy, (), line.offer(SIZE), line.sink.fileno(), meter, None, Booked())
        await until(lambda: meter.moved == 1000)
        nursery.cancel_scope.cancel()
    line.origin.send(DATA[:10])
    assert await copier.copy((), line.offer(10), line.sink.fileno(), Meter(), None, Booked())


@pytest.mark.usefixtures("cores")
async def test_a_digest_has_what_was_booked_when_the_upstream_breaks(line: Line) -> None:
    digest, booked = hashlib.sha256(), Booked()
    line.origin.send(DATA[:1000])
    line.origin.shutdown(socket.SHUT_WR)
    with pytest.raises(StoreUnreachable):
        await Copier().copy((digest,), line.offer(SIZE), line.sink.fileno(), Meter(), None, booked)
    assert booked.counts == [1000]
    assert digest.digest() == hashlib.sha256(DATA[:1000]).digest()


@pytest.mark.usefixtures("cores")
async def test_a_digest_that_fails_ends_the_copy(line: Line) -> None:
    class Broken:
        def update(self, data: Block, /) -> None:
            raise MemoryError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.send, DATA[:1000])
        with pytest.raises(MemoryError):
            await Copier().copy((Broken(),), line.offer(1000), line.sink.fileno(), Meter(), None, Booked())


async def test_beyond_the_limit_nothing_is_copied_in_threads(line: Line) -> None:
    assert not await Copier(limit=0).copy((), line.offer(10), line.sink.fileno(), Meter(), None, Booked())


async def test_a_cancelled_copy_gives_its_place_back(line: Line) -> None:
    copier, meter = Copier(limit=1), Meter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.send, DATA)
        nursery.start_soon(copier.copy, (), line.offer(SIZE), line.sink.fileno(), meter, None, Booked())
        await until(lambda: meter.moved > 0)
        nursery.cancel_scope.cancel()
    assert meter.moved < SIZE
    other = Line()
    other.origin.send(b"next")
    assert await copier.copy((), other.offer(4), other.sink.fileno(), Meter(), None, Booked())
    other.close()


# --- pipes -----------------------------------------------------------------------------------------------------------


def test_there_are_a_few_large_pipes_then_small_ones_then_none() -> None:
    kept = Pipes(large=1, small=2)
    taken = [kept.take() for _ in range(4)]
    sizes = [pipe and fcntl.fcntl(pipe.writer, fcntl.F_GETPIPE_SZ) for pipe in taken]
    assert sizes == [LARGE, SMALL, SMALL, None]
    for pipe in taken:
        if pipe is not None:
            kept.give_back(pipe, empty=True)
    assert kept.take() is taken[0]  # kept, and the largest first
    assert taken[0] is not None
    kept.give_back(taken[0], empty=False)
    fresh = kept.take()
    assert fresh is not None
    assert fresh is not taken[0]
    assert fresh.size == LARGE
    kept.give_back(fresh, empty=True)
    kept.close()


def test_where_the_kernel_gives_no_pages_there_is_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    files = len(os.listdir("/proc/self/fd"))

    def refused(fd: int, command: int, size: int) -> None:
        raise PermissionError

    monkeypatch.setattr(pipes.fcntl, "fcntl", refused)
    assert Pipes().take() is None
    assert len(os.listdir("/proc/self/fd")) == files


# --- relaying --------------------------------------------------------------------------------------------------------


class Feed:
    """A source over the upstream's socket: `lead` was read ahead; heals by going on with the socket it is given."""

    def __init__(self, line: Line, length: int, lead: bytes = b"", spare: Line | None = None) -> None:
        self.line = line
        self.left = length
        self.lead = lead
        self.spare = spare
        self.healed: list[StoreError] = []

    def direct(self) -> Direct | None:
        return None if self.lead or not self.left else self.line.offer(self.left)

    def advance(self, count: int) -> None:
        self.left -= count

    async def receive_some(self) -> Block:
        await trio.lowlevel.checkpoint()
        if self.left and not self.lead:
            await trio.lowlevel.wait_readable(self.line.source)
            self.lead = self.line.source.recv(min(1000, self.left))
        data, self.lead = self.lead, b""
        self.left -= len(data)
        return data

    async def heal(self, error: StoreError) -> None:
        await trio.lowlevel.checkpoint()
        self.healed.append(error)
        if self.spare is None:
            raise error
        self.line, self.spare = self.spare, None


async def test_bytes_read_ahead_come_first_and_the_rest_is_spliced(move: Move, line: Line) -> None:
    feed, meter = Feed(line, SIZE, lead=DATA[:100]), Meter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.send, DATA[100:])
        nursery.start_soon(relay, feed, line.sink.fileno(), move, meter)
        assert await line.received(SIZE) == DATA
    assert meter.moved == SIZE


async def test_without_a_pipe_the_bytes_are_copied(line: Line) -> None:
    with Splicer(pipes=Pipes(large=0, small=0)) as splicer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.send, DATA[:50_000])
            nursery.start_soon(relay, Feed(line, 50_000), line.sink.fileno(), splicer.splice, Meter())
            assert await line.received(50_000) == DATA[:50_000]


async def test_a_broken_upstream_is_healed_where_it_broke(move: Move, line: Line) -> None:
    spare = Line()
    feed, meter = Feed(line, SIZE, spare=spare), Meter()
    line.origin.send(DATA[:1000])
    line.origin.shutdown(socket.SHUT_WR)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spare.send, DATA[1000:])
        nursery.start_soon(relay, feed, line.sink.fileno(), move, meter)
        assert await line.received(SIZE) == DATA
    assert len(feed.healed) == 1
    spare.close()


async def test_what_cannot_be_healed_ends_the_relay(move: Move, line: Line) -> None:
    line.origin.close()
    with pytest.raises(StoreUnreachable):
        await relay(Feed(line, 10), line.sink.fileno(), move, Meter())


async def test_a_client_that_takes_nothing_holds_no_claim_on_the_rate(line: Line) -> None:
    rates = Rates(100_000_000)
    released: list[bool] = []

    class Watched(Claims):
        def release(self) -> None:
            released.append(True)
            super().release()

    meter = Meter()
    pace = Watched(rates.pace())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.send, DATA)
        nursery.start_soon(Copier().copy, (), line.offer(SIZE), line.sink.fileno(), meter, pace, Booked())
        await until(lambda: bool(released))
        assert rates.waiting == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("seconds", "expected"), [(60.0, 3 << 20), (-1.0, 100_000)])
async def test_only_a_client_that_is_fast_gets_a_large_send_buffer_of_a_splice(
    line: Line, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: int
) -> None:
    monkeypatch.setattr(sendbuffer, "FAST_BYTES", 1 << 20)
    monkeypatch.setattr(sendbuffer, "FAST_SECONDS", seconds)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        line.client.close()
        line.client = socket.create_connection(listener.getsockname())
        line.sink.close()
        line.sink, _ = listener.accept()
    line.client.setblocking(False)
    line.sink.setblocking(False)
    line.sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 100_000)
    with Splicer(notsent_lowat=3 << 20) as splicer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.send, DATA)
            nursery.start_soon(splicer.splice, line.offer(SIZE), line.sink.fileno(), Meter(), None, Booked())
            assert await line.received(SIZE) == DATA
    assert line.sink.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == expected
