"""Bytes from another server's socket into a store: whole after breaks, and in threads where that can be."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
import trio

from visor_gateway.errors import StoreError, StoreFull, TooLarge, UnsafeImage
from visor_gateway.store.contract import Block, Direct
from visor_gateway.transfer.deposit import Deposit
from visor_gateway.transfer.digest import Digests
from visor_gateway.transfer.intake import Intake
from visor_gateway.transfer.transfer import Transfer

DATA = os.urandom(3 << 20)
HEAD = 1000  # bytes of each connection that come with its head, and are no socket's any more


class Origin:
    """A source over connections that each end after `cuts[n]` bytes; the last one brings all the rest."""

    def __init__(self, *cuts: int) -> None:
        self.position = 0
        self.healed_at: list[int] = []
        self._cuts = [*cuts, len(DATA)]
        self._connect()

    def _connect(self) -> None:
        self.sock, other = socket.socketpair()
        self.sock.setblocking(False)
        part = DATA[self.position : self.position + self._cuts.pop(0)]
        self._head, rest = part[:HEAD], part[HEAD:]
        self._sender = threading.Thread(target=_send, args=(other, rest))
        self._sender.start()

    async def receive_some(self) -> Block:
        await trio.lowlevel.checkpoint()
        block, self._head = self._head, b""
        self.position += len(block)
        return block

    def direct(self) -> Direct | None:
        if self._head or self.position == len(DATA):
            return None
        return Direct(sock=self.sock.fileno(), length=len(DATA) - self.position, stall_timeout=60)

    def advance(self, count: int) -> None:
        self.position += count

    async def heal(self, error: StoreError) -> None:
        self.healed_at.append(self.position)
        self.close()
        self._connect()

    def close(self) -> None:
        self.sock.close()
        self._sender.join()


def _send(sock: socket.socket, data: bytes) -> None:
    """All of it, and the end of the connection."""
    with sock, suppress(OSError):
        sock.sendall(data)


class Writer:
    """A store that is written in threads."""

    location = "memory:///x"

    def __init__(self, before: Callable[[int], object] = lambda _: None) -> None:
        self.content = bytearray()
        self.in_threads = 0
        self._before = before

    def write_now(self, data: Block) -> None:
        self._before(len(self.content))
        self.content += data
        self.in_threads += len(data)

    async def write(self, data: Block) -> None:
        self._before(len(self.content))
        self.content += data

    async def commit(self) -> None: ...

    async def abort(self) -> None: ...


class Examiner:
    def __init__(self, limit: int = len(DATA) + 1) -> None:
        self.seen = bytearray()
        self._limit = limit

    def feed(self, block: Block) -> None:
        self.seen += block
        if len(self.seen) >= self._limit:
            raise UnsafeImage("no")


def transfer() -> Transfer:
    return Transfer(id="t", kind="import", image="i", store="file", client=None, user="u", size=len(DATA))


async def fetch(origin: Origin, writer: Writer, **options: object) -> tuple[Transfer, Digests]:
    moved, digests = transfer(), Digests(("sha256",))
    intake = options.pop("intake", None) or Intake()
    before = len(os.listdir("/proc/self/fd"))
    try:
        with trio.fail_after(60):
            await Deposit(moved, writer, digests, intake, **options).fetch(origin)  # type: ignore[arg-type]
    finally:
        origin.close()
        assert len(os.listdir("/proc/self/fd")) <= before
    return moved, digests


@pytest.mark.parametrize("cuts", [(), (HEAD + 1,), (1_000_000,), (HEAD, 700_000, 5000, 1_200_000)])
async def test_all_arrives_in_order_however_often_the_connection_breaks(cuts: tuple[int, ...]) -> None:
    origin, writer, examiner = Origin(*cuts), Writer(), Examiner()
    moved, digests = await fetch(origin, writer, examiner=examiner)
    assert writer.content == examiner.seen == DATA
    assert digests.hex("sha256") == hashlib.sha256(DATA).hexdigest()
    assert (moved.meter.moved, origin.position) == (len(DATA), len(DATA))
    assert len(origin.healed_at) == len(cuts)
    assert writer.in_threads >= len(DATA) - HEAD * (len(cuts) + 1) - sum(cuts)


async def test_where_all_threads_are_taken_nothing_comes_past_the_event_loop() -> None:
    class Blocks(Origin):
        async def receive_some(self) -> Block:
            if self._head or self.position == len(DATA):
                return await super().receive_some()
            await trio.lowlevel.wait_readable(self.sock)
            block = self.sock.recv(65536)
            self.position += len(block)
            return block

    writer = Writer()
    _, digests = await fetch(Blocks(), writer, intake=Intake(limit=0))
    assert (bytes(writer.content), writer.in_threads) == (DATA, 0)
    assert digests.hex("sha256") == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("error", [StoreFull("full"), StoreError("away")])
async def test_a_store_that_fails_is_no_origin_that_breaks(error: StoreError) -> None:
    def fail(written: int) -> None:
        if written > HEAD:
            raise error

    origin = Origin()
    with pytest.raises(type(error)):
        await fetch(origin, Writer(fail))
    assert origin.healed_at == []


async def test_an_image_that_is_refused_ends_it_at_once() -> None:
    origin, writer = Origin(), Writer()
    with pytest.raises(UnsafeImage):
        await fetch(origin, writer, examiner=Examiner(limit=HEAD + 1))
    assert origin.healed_at == []
    assert len(writer.content) < len(DATA)


async def test_more_than_may_be_taken_is_refused_before_it_is_read() -> None:
    writer = Writer()
    with pytest.raises(TooLarge):
        await fetch(Origin(), writer, max_size=len(DATA) - 1)
    assert len(writer.content) <= HEAD


async def test_a_cancelled_one_returns_when_the_threads_have_let_go() -> None:
    token, scope = trio.lowlevel.current_trio_token(), trio.CancelScope()

    def cancel(written: int) -> None:
        if written >= HEAD:
            token.run_sync_soon(scope.cancel)

    origin, writer = Origin(), Writer(cancel)
    with scope:
        await fetch(origin, writer)
    assert scope.cancelled_caught
    assert origin.healed_at == []
    assert DATA.startswith(bytes(writer.content))
