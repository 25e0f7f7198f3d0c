"""The pumps: right bytes, in spite of slow, vanished, cancelled and many clients, short files and cold pages."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Generator
from pathlib import Path

import pytest
import trio

from visor_gateway.errors import ObjectChanged
from visor_gateway.transfer import coldreads, sendbuffer, sendpump
from visor_gateway.transfer.growth import Growth
from visor_gateway.transfer.hanging import Calls
from visor_gateway.transfer.limits import Rates
from visor_gateway.transfer.meter import Meter
from visor_gateway.transfer.sendjob import SendJob
from visor_gateway.transfer.zerocopy import ZeroCopy

DATA = os.urandom(6 << 20)


@pytest.fixture
def pumps() -> Generator[ZeroCopy, None, None]:
    before = set(threading.enumerate())
    files = len(os.listdir("/proc/self/fd"))
    with ZeroCopy(pumps=2, quantum=1 << 20) as running:
        yield running
    assert not {thread.name for thread in set(threading.enumerate()) - before if not thread.name.startswith("Trio")}
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.fixture
def file(tmp_path: Path) -> Generator[int, None, None]:
    path = tmp_path / "image"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def pair() -> Generator[tuple[socket.socket, socket.socket], None, None]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def read_all(sock: socket.socket, size: int) -> bytes:
    stream = trio.socket.from_stdlib_socket(sock.dup())
    received = bytearray()
    with stream:
        while len(received) < size and (data := await stream.recv(1 << 16)):
            received += data
    return bytes(received)


@pytest.mark.parametrize(("offset", "length"), [(0, len(DATA)), (12345, 2_000_000), (len(DATA) - 1, 1), (0, 0)])
async def test_a_range_arrives_as_it_is_in_the_file(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket], offset: int, length: int
) -> None:
    meter, received = Meter(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pumps.send_file, pair[0].fileno(), file, offset, length, meter)
        received.append(await read_all(pair[1], length))
    assert received[0] == DATA[offset : offset + length]
    assert meter.moved == length


async def test_a_file_that_grows_is_sent_as_it_is_released(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    meter, growth = Meter(), Growth()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumps.send_growing, pair[0].fileno(), file, 5, len(DATA) - 10, growth, meter)
            for until in (3, 6, 1_000_000, 1_000_001, len(DATA)):
                before, wanted = meter.moved, max(0, min(until, len(DATA) - 5) - 5)
                growth.tell(until, over=False)
                assert await read_all(pair[1], wanted - before) == DATA[before + 5 : wanted + 5]
                while meter.moved < wanted:
                    await trio.lowlevel.checkpoint()
    assert meter.moved == len(DATA) - 10


async def test_a_file_that_grows_no_more_is_sent_as_far_as_it_is(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    meter, growth = Meter(), Growth()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumps.send_growing, pair[0].fileno(), file, 0, len(DATA), growth, meter)
            growth.tell(1000, over=False)
            assert await read_all(pair[1], 1000) == DATA[:1000]
            growth.tell(1500, over=True)
            assert await read_all(pair[1], 500) == DATA[1000:1500]
    assert meter.moved == 1500


async def test_who_waits_for_more_of_a_file_can_be_cancelled(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    meter, growth = Meter(), Growth()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumps.send_growing, pair[0].fileno(), file, 0, len(DATA), growth, meter)
            growth.tell(1000, over=False)
            await read_all(pair[1], 1000)
            nursery.cancel_scope.cancel()
    growth.tell(2000, over=False)
    assert meter.moved == 1000
    assert not any(pump._dry for pump in pumps._pumps)


async def test_many_clients_get_the_whole_while_one_reads_nothing(pumps: ZeroCopy, file: int) -> None:
    pairs = [socket.socketpair() for _ in range(20)]
    meters = [Meter() for _ in pairs]
    received: list[bytes] = []

    async def pull(theirs: socket.socket) -> None:
        theirs.setblocking(False)
        received.append(await read_all(theirs, len(DATA)))

    async with trio.open_nursery() as sending:
        async with trio.open_nursery() as reading:
            for number, (ours, theirs) in enumerate(pairs):
                ours.setblocking(False)
                sending.start_soon(pumps.send_file, ours.fileno(), file, 0, len(DATA), meters[number])
                if number:
                    reading.start_soon(pull, theirs)
        assert received == [DATA] * 19
        assert 0 < meters[0].moved < len(DATA)
        meters[0].sample()
        sending.cancel_scope.cancel()
    for ends in pairs:
        for end in ends:
            end.close()


async def test_a_cancelled_job_is_let_go_before_its_task_goes_on(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    meter = Meter()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumps.send_file, pair[0].fileno(), file, 0, len(DATA), meter)
            while not meter.moved:
                await trio.lowlevel.checkpoint()
            scope.cancel()
    moved = meter.moved
    assert 0 < moved < len(DATA)
    # The pump has forgotten the socket: room in it moves nothing any more, and the number can be used again.
    assert await read_all(pair[1], moved) == DATA[:moved]
    other = Meter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pumps.send_file, pair[0].fileno(), file, 0, 1000, other)
        assert await read_all(pair[1], 1000) == DATA[:1000]
    assert meter.moved == moved


async def test_a_job_cancelled_before_it_began_sends_nothing(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await pumps.send_file(pair[0].fileno(), file, 0, len(DATA), Meter())
    with pytest.raises(BlockingIOError):
        pair[1].recv(1)


async def test_a_client_that_vanishes_is_told(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    meter = Meter()

    async def vanish() -> None:
        while not meter.moved:
            await trio.lowlevel.checkpoint()
        pair[1].close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(vanish)
        with pytest.raises(ConnectionError):
            await pumps.send_file(pair[0].fileno(), file, 0, len(DATA), meter)


async def test_a_file_that_is_too_short_is_told(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all, pair[1], 10)
        with pytest.raises(ObjectChanged):
            await pumps.send_file(pair[0].fileno(), file, len(DATA) - 10, 100, Meter())
        nursery.cancel_scope.cancel()


async def test_a_descriptor_that_is_no_socket_is_an_error_and_harms_no_other_job(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    sink = os.open(tmp_path / "sink", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="not permitted"):
        await pumps.send_file(sink, file, 0, 10, Meter())
    os.close(sink)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pumps.send_file, pair[0].fileno(), file, 0, 1000, Meter())
        assert await read_all(pair[1], 1000) == DATA[:1000]


async def test_cold_windows_are_read_by_other_threads_and_booked_as_disk(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sendpump.Pump, "_is_cached", lambda *_: False)
    threads: set[str] = set()
    preadv = os.preadv

    def watched(*arguments: object) -> int:
        threads.add(threading.current_thread().name)
        return preadv(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(coldreads.os, "preadv", watched)
    meter = Meter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pumps.send_file, pair[0].fileno(), file, 0, len(DATA), meter)
        assert await read_all(pair[1], len(DATA)) == DATA
    assert threads == {"reader"}


async def test_a_job_cancelled_while_its_window_is_read_waits_for_the_reader(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()
    preadv = os.preadv

    def slow(*arguments: object) -> int:
        reading.set()
        assert go_on.wait(60)
        return preadv(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sendpump.Pump, "_is_cached", lambda *_: False)
    monkeypatch.setattr(coldreads.os, "preadv", slow)
    ended: list[bool] = []

    async def run() -> None:
        with scope:
            await pumps.send_file(pair[0].fileno(), file, 0, len(DATA), Meter())
        ended.append(go_on.is_set())

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.to_thread.run_sync(reading.wait)
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert ended == []
        go_on.set()
    assert ended == [True]


async def test_a_limited_job_gets_what_the_limit_grants_and_not_a_byte_more(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    now = 0.0
    rates, meter = Rates(8_000_000, now=lambda: now), Meter()
    reader = trio.socket.from_stdlib_socket(pair[1].dup())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pumps.send_file, pair[0].fileno(), file, 0, len(DATA), meter, rates.pace())
        received = bytearray()
        with reader:
            for step in range(3):
                now = step / 4
                allowed = 2_000_000 * (step + 1)
                received += await reader.recv(1 << 16)
                # The clock stands still, and the job is parked: nothing more comes, however often it asks again.
                with trio.move_on_after(0.3):
                    while len(received) < len(DATA):
                        received += await reader.recv(1 << 16)
                assert allowed / 2 < len(received) <= allowed
                meter.sample()
            now = 10.0
            while len(received) < len(DATA):
                received += await reader.recv(1 << 16)
    assert bytes(received) == DATA
    assert meter.moved == len(DATA)
    assert meter.waited["limit"] > 600
    assert rates.waiting == 0


async def test_a_limited_client_that_takes_nothing_holds_back_no_other(pumps: ZeroCopy, file: int) -> None:
    now = 0.0
    rates = Rates(4 << 20, now=lambda: now)
    (ours, theirs), (ours_too, theirs_too) = socket.socketpair(), socket.socketpair()
    meter, received = Meter(), bytearray()
    reader = trio.socket.from_stdlib_socket(theirs_too.dup())
    with ours, theirs, ours_too, theirs_too, reader:
        for end in (ours, ours_too):
            end.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumps.send_file, ours.fileno(), file, 0, len(DATA), meter, rates.pace())
            while not meter.moved:
                now += 0.01
                await trio.lowlevel.checkpoint()
            nursery.start_soon(pumps.send_file, ours_too.fileno(), file, 0, len(DATA), Meter(), rates.pace())
            began = now
            while len(received) < len(DATA):
                with trio.move_on_after(0.01):
                    received += await reader.recv(1 << 20)
                now += 0.05
            nursery.cancel_scope.cancel()
        assert bytes(received) == DATA
        assert meter.moved < 1 << 20
        assert now - began < 30
    assert rates.waiting == 0


async def test_a_parked_job_that_is_cancelled_goes_at_once_and_gives_up_its_claim(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    now = 0.0
    rates, meter = Rates(400_000, now=lambda: now), Meter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pumps.send_file, pair[0].fileno(), file, 0, len(DATA), meter, rates.pace())
        while not meter.waited["limit"]:
            await trio.lowlevel.checkpoint()
            meter.sample()
        nursery.cancel_scope.cancel()
    assert rates.waiting == 0
    assert 75_000 <= meter.moved <= 100_000
    # What it had claimed and not moved is there for the next.
    now = 25_000 / 400_000
    assert rates.pace().claim(25_000) == (25_000, 0.0)


async def test_a_parked_job_costs_no_turns(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, turns = Rates(1000, now=lambda: 0.0), 0
    turn = sendpump.Pump._turn

    def counted(pump: sendpump.Pump, job: SendJob, calls: Calls) -> bool:
        nonlocal turns
        turns += 1
        return turn(pump, job, calls)

    monkeypatch.setattr(sendpump.Pump, "_turn", counted)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pumps.send_file, pair[0].fileno(), file, 0, len(DATA), Meter(), rates.pace())
        while rates.waiting == 0:
            await trio.lowlevel.checkpoint()
        before = turns
        await trio.sleep(0.6)
        assert turns - before <= 3
        nursery.cancel_scope.cancel()


def tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


@pytest.mark.parametrize(("seconds", "expected"), [(60.0, 3 << 20), (-1.0, 100_000)])
async def test_only_a_client_that_is_fast_gets_a_large_send_buffer(
    file: int, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: int
) -> None:
    monkeypatch.setattr(sendbuffer, "FAST_BYTES", 1 << 20)
    monkeypatch.setattr(sendbuffer, "FAST_SECONDS", seconds)
    ours, theirs = tcp()
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 100_000)
    with ours, theirs, ZeroCopy(notsent_lowat=3 << 20) as pumps:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumps.send_file, ours.fileno(), file, 0, len(DATA), Meter())
            assert await read_all(theirs, len(DATA)) == DATA
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == expected


def test_pumps_stand_back_behind_the_event_loop() -> None:
    with ZeroCopy(nice=7):
        nice = {
            thread.name: os.getpriority(os.PRIO_PROCESS, thread.native_id)
            for thread in threading.enumerate()
            if thread.native_id is not None
        }
    assert nice["pump-0"] == nice["MainThread"] + 7 or nice["pump-0"] == 7
