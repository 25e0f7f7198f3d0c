"""A disk that does not answer keeps the threads that wait for it, and nobody and nothing else."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from visor_gateway.errors import StoreUnreachable
from visor_gateway.transfer import coldreads, sendpump
from visor_gateway.transfer.hanging import LOOK_SECONDS, SILENT_LOOKS, Calls
from visor_gateway.transfer.meter import Meter
from visor_gateway.transfer.zerocopy import ZeroCopy

DATA = os.urandom(3 << 20)


class Disk:
    """Stands before a call of the operating system: those that begin while it hangs wait until it is `mended`."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call
        self.hangs = True
        self.asked = threading.Semaphore(0)
        self._mended = threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        if self.hangs:
            self.asked.release()
            assert self._mended.wait(60)
        return self.call(*arguments)

    def mend(self) -> None:
        self.hangs = False
        self._mended.set()


@contextmanager
def hanging(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> Generator[Disk, None, None]:
    disk = Disk(getattr(module.os, name))
    monkeypatch.setattr(module.os, name, disk)
    try:
        yield disk
    finally:
        disk.mend()


@pytest.fixture
def file(tmp_path: Path) -> Generator[int, None, None]:
    path = tmp_path / "image"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def pair() -> Generator[tuple[socket.socket, socket.socket], None, None]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def pumps() -> Generator[ZeroCopy, None, None]:
    """When a test ends no thread and no descriptor is left, though its disk has hung meanwhile."""
    files = len(os.listdir("/proc/self/fd"))
    with ZeroCopy(patience=3) as running:
        yield running
        (pump,) = running._pumps
        while pump._lost or pump.reads.hanging or pump._messages:
            os.sched_yield()  # what was left behind is on its way back
    for thread in threading.enumerate():
        if thread.name in {"pump-0", "reader", "close"}:
            thread.join(60)
    assert not {thread.name for thread in threading.enumerate()} & {"pump-0", "reader", "close"}
    assert len(os.listdir("/proc/self/fd")) == files


def find_silent(pumps: ZeroCopy) -> None:
    for _ in range(SILENT_LOOKS + 1):
        pumps.look()


async def read(sock: socket.socket, size: int) -> bytes:
    stream = trio.socket.from_stdlib_socket(sock.dup())
    received = bytearray()
    with stream:
        while len(received) < size and (data := await stream.recv(1 << 20)):
            received += data
    return bytes(received)


async def pull(pumps: ZeroCopy, file: int, size: int = len(DATA)) -> bytes:
    """One pull over a connection of its own."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    received: list[bytes] = []
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumps.send_file, ours.fileno(), file, 0, size, Meter())
            received.append(await read(theirs, size))
    return received[0]


async def until(true: Callable[[], object]) -> None:
    with trio.fail_after(60):
        while not true():
            await trio.lowlevel.checkpoint()


# --- one thread's calls ------------------------------------------------------------------------------


def test_only_a_call_that_is_looked_at_again_and_again_is_silent() -> None:
    calls = Calls()
    for _ in range(2 * SILENT_LOOKS):
        assert calls.look() == 0
        calls.begin()
        assert calls.look() == 0
        assert calls.look() == 1
        assert calls.end()
    assert not calls.leave_behind()
    calls.begin()
    assert [calls.look() for _ in range(4)] == [0, 1, 2, 3]
    told: list[bool] = []
    assert calls.leave_behind(lambda: told.append(True))
    assert not calls.leave_behind()
    assert told == [True]
    assert not calls.end()


# --- the thread that sends ---------------------------------------------------------------------------


async def test_a_pump_that_hangs_is_replaced_and_the_others_go_on(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    with hanging(sendpump, "sendfile", monkeypatch) as disk:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumps.send_file, pair[0].fileno(), file, 0, len(DATA), Meter())
            await trio.to_thread.run_sync(disk.asked.acquire)
            disk.hangs = False
            others: list[bytes] = []

            async def other() -> None:
                others.append(await pull(pumps, file))

            async with trio.open_nursery() as beside:
                beside.start_soon(other)
                await trio.testing.wait_all_tasks_blocked()
                assert others == []
                find_silent(pumps)
            assert others == [DATA]
            # What hangs is not lost either: the disk may be back before anybody gives up.
            disk.mend()
            assert await read(pair[1], len(DATA)) == DATA


async def test_a_cancellation_does_not_wait_for_a_call_that_hangs_and_resets_the_client(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    with hanging(sendpump, "sendfile", monkeypatch) as disk:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumps.send_file, pair[0].fileno(), file, 0, len(DATA), Meter())
            await trio.to_thread.run_sync(disk.asked.acquire)
            disk.hangs = False
            nursery.cancel_scope.cancel()
            find_silent(pumps)
        pair[0].close()
        with pytest.raises(ConnectionResetError):
            await read(pair[1], 1)
        assert await pull(pumps, file) == DATA


async def test_a_call_that_hangs_for_too_long_fails_its_transfer(
    pumps: ZeroCopy, file: int, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    with hanging(sendpump, "sendfile", monkeypatch) as disk:

        async def look() -> None:
            await trio.to_thread.run_sync(disk.asked.acquire)
            while True:
                pumps.look()
                await trio.testing.wait_all_tasks_blocked()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            with pytest.raises(StoreUnreachable, match="does not answer"):
                await pumps.send_file(pair[0].fileno(), file, 0, len(DATA), Meter())
            nursery.cancel_scope.cancel()


async def test_the_service_looks_at_regular_times(monkeypatch: pytest.MonkeyPatch, autojump_clock: object) -> None:
    looks: list[float] = []
    monkeypatch.setattr(ZeroCopy, "look", lambda _: looks.append(trio.current_time()))
    with ZeroCopy() as pumps, trio.move_on_after(4.5):
        await pumps.serve()
    assert looks == [LOOK_SECONDS * number for number in range(1, 5)]


# --- the threads that read ---------------------------------------------------------------------------


async def test_readers_that_hang_are_replaced_and_others_read_on(
    pumps: ZeroCopy, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sendpump.Pump, "_is_cached", lambda *_: False)
    with hanging(coldreads, "preadv", monkeypatch) as disk:
        async with trio.open_nursery() as nursery:
            for _ in range(coldreads.READERS):
                nursery.start_soon(pull, pumps, file)
            for _ in range(coldreads.READERS):
                await trio.to_thread.run_sync(disk.asked.acquire)
            disk.hangs = False
            find_silent(pumps)
            assert await pull(pumps, file) == DATA
            nursery.cancel_scope.cancel()  # and this does not wait for them


async def test_a_disk_in_which_many_hang_is_asked_nothing_more_until_it_answers(
    pumps: ZeroCopy, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sendpump.Pump, "_is_cached", lambda *_: False)
    monkeypatch.setattr(coldreads, "HANGING", 1)
    pumps._pumps[0].reads._threads = 1
    with hanging(coldreads, "preadv", monkeypatch) as disk:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull, pumps, file)
            await trio.to_thread.run_sync(disk.asked.acquire)
            nursery.start_soon(pull, pumps, file)  # waits for the same reader
            await until(lambda: [disk for disk in pumps._pumps[0].reads._disks.values() if disk._wanted])
            find_silent(pumps)
            ours, theirs = socket.socketpair()
            with ours, theirs, pytest.raises(StoreUnreachable):
                await pumps.send_file(ours.fileno(), file, 0, len(DATA), Meter())
            disk.mend()
            # Both are served after all.
        await until(lambda: pumps._pumps[0].reads.hanging == 0)
        assert await pull(pumps, file) == DATA
