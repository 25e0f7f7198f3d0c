"""First bytes: a pull that begins waits behind no other's megabytes, and a crowd behind no clock."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Generator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from visor_gateway.transfer.coldreads import ColdReads
from visor_gateway.transfer.growth import Growth
from visor_gateway.transfer.meter import Meter
from visor_gateway.transfer.sendpump import FIRST, Pump
from visor_gateway.transfer.telling import Telling
from visor_gateway.transfer.zerocopy import ZeroCopy

SIZE = 4 << 20
QUANTUM = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Generator[int, None, None]:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def clients() -> Generator[list[int], None, None]:
    """Four sockets to clients that read nothing."""
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(4)]
        for sock in (sock for pair in pairs for sock in pair):
            stack.enter_context(sock)
            sock.setblocking(False)
        yield [ours.fileno() for ours, _ in pairs]


class Sent:
    """Takes the place of `sendfile`: what was sent by which turn. The first call waits for `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.turns: list[tuple[int, int]] = []
        self.go = threading.Event()
        monkeypatch.setattr(os, "sendfile", self._send)

    def _send(self, sock: int, file: int, offset: int, count: int) -> int:
        self.go.wait(60)
        self.turns.append((offset, count))
        return count


async def test_first_turns_are_short_and_come_before_those_of_jobs_that_have_begun(
    file: int, clients: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Sent(monkeypatch)
    with trio.fail_after(60), ZeroCopy(quantum=QUANTUM) as pumps:
        async with trio.open_nursery() as nursery:
            for number, client in enumerate(clients):
                begin = number * 100
                nursery.start_soon(pumps.send_file, client, file, begin, 2 * QUANTUM, Meter())
            await wait_all_tasks_blocked()
            sent.go.set()
    firsts = [(number * 100, FIRST) for number in range(4)]
    seconds = [(number * 100 + FIRST, QUANTUM) for number in range(4)]
    assert sorted(sent.turns[:4]) == firsts
    assert sorted(sent.turns[4:8]) == seconds


async def test_what_a_growing_file_lacks_is_not_read_ahead(
    file: int, clients: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    released, growth = 300_000, Growth()
    monkeypatch.setattr(Pump, "_is_cached", lambda pump, fd, offset: offset < released)
    monkeypatch.setattr(ColdReads, "warm", lambda *_: pytest.fail("read ahead"))
    sent = Sent(monkeypatch)
    sent.go.set()
    growth.tell(released, over=True)
    meter = Meter()
    with trio.fail_after(60), ZeroCopy(quantum=QUANTUM) as pumps:
        await pumps.send_growing(clients[0], file, 0, SIZE, growth, meter)
    assert sent.turns == [(0, FIRST), (FIRST, released - FIRST)]
    assert meter.moved == released


async def test_a_fill_is_looked_at_when_a_thread_tells_of_it_and_not_before(autojump_clock: MockClock) -> None:
    telling, committed, noted = Telling(), 0, [0]
    looks = 0

    def note() -> bool:
        nonlocal looks
        looks += 1
        if noted[-1] == committed:
            return False
        noted.append(committed)
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(telling.serve, note, lambda: 500)
        await trio.sleep(100)
        assert looks == 1
        committed, before = 7, trio.current_time()
        telling.grown_in_thread()
        await wait_all_tasks_blocked()
        assert noted == [0, 7]
        assert trio.current_time() == before
        committed = 8
        telling.grown_in_thread()  # after the last look: it will look by itself
        await wait_all_tasks_blocked()
        assert noted == [0, 7]
        await trio.sleep(1)
        assert noted == [0, 7, 8]
        committed = 9
        telling.grown()
        await wait_all_tasks_blocked()
        assert noted == [0, 7, 8, 9]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("readers", "seconds"), [(1, 0.004), (8, 0.018), (500, 0.02)])
async def test_a_crowd_is_told_of_larger_pieces_less_often(
    autojump_clock: MockClock, readers: int, seconds: float
) -> None:
    telling, times = Telling(), list[float]()

    def note() -> bool:
        times.append(trio.current_time())
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(telling.serve, note, lambda: readers)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert [later - earlier for earlier, later in pairwise(times)] == pytest.approx([seconds] * (len(times) - 1))
    assert len(times) > 40
