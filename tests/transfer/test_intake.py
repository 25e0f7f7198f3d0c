"""Bodies from socket to store in threads: the right bytes, bounded waits, and nothing left whatever happens."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from visor_gateway.errors import BodyIncomplete, StoreFull, StoreUnreachable, UnsafeImage
from visor_gateway.store.contract import Block, DirectWriteStream
from visor_gateway.transfer.contract import LentBody
from visor_gateway.transfer.intake import ENOUGH, Intake, _Patience
from visor_gateway.transfer.meter import Meter

BUFFER = 64 * 1024
LENGTHS = sorted({1, 100, *(n * BUFFER + d for n in (1, 2, 4, 7) for d in (-1, 0, 1))})
DATA = os.urandom(max(ENOUGH, 8 * BUFFER) + 10)


class Sink:
    """A store's end that keeps what it gets; `before` runs ahead of each write, in the thread that writes."""

    location = "memory:///x"

    def __init__(self, before: Callable[[int], object] = lambda _: None) -> None:
        self.content = bytearray()
        self._before = before

    def write_now(self, data: Block) -> None:
        self._before(len(self.content))
        self.content += data

    async def write(self, data: Block) -> None: ...

    async def commit(self) -> None: ...

    async def abort(self) -> None: ...


class Examiner:
    """Sees the bytes in order; refuses once it has seen `limit`."""

    def __init__(self, limit: int | None = None) -> None:
        self.seen = bytearray()
        self._limit = limit

    def feed(self, block: Block) -> None:
        self.seen += block
        if self._limit is not None and len(self.seen) >= self._limit:
            raise UnsafeImage("no")


class Upload:
    """One body under way over a real connection; `client` is its other end."""

    def __init__(self, sock: socket.socket, client: socket.socket) -> None:
        self.sock, self.client = sock, client
        self.hashes = [hashlib.sha256(), hashlib.md5()]
        self.examiner = Examiner()
        self.sink = Sink()
        self.meter = Meter()
        self.body = LentBody(sock.fileno(), b"", 0, 60.0, 256.0)

    async def run(self, intake: Intake | None = None) -> None:
        intake = intake or Intake(buffer_size=BUFFER)
        await intake.move(self.body, self.sink, self.hashes, self.examiner, self.meter)  # type: ignore[arg-type]

    async def send(self, data: bytes) -> None:
        await trio.to_thread.run_sync(self.client.sendall, data)

    def is_right(self, whole: bytes) -> bool:
        digests = [hash.hexdigest() for hash in self.hashes]
        return (
            self.sink.content == self.examiner.seen == whole
            and self.meter.moved == len(whole)
            and digests == [hashlib.sha256(whole).hexdigest(), hashlib.md5(whole).hexdigest()]
        )


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def at_work() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in {"intake", "hash"}]


def until_none_is_at_work() -> None:
    """The last thing that a thread does is to say that it is done."""
    for thread in threading.enumerate():
        if thread.name in {"intake", "hash"}:
            thread.join(60)
    assert at_work() == []


@contextmanager
def uploading(length: int = 0, lead: bytes = b"") -> Generator[Upload]:
    """An upload of `length` bytes; at the end no thread is at work and no descriptor is left."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        sock, _ = listener.accept()
    sock.setblocking(False)
    with sock, client:
        upload = Upload(sock, client)
        upload.body.lead, upload.body.left = lead, length - len(lead)
        before = descriptors()
        try:
            yield upload
        finally:
            until_none_is_at_work()
            assert descriptors() <= before


def test_a_double_of_the_store_is_held_to_the_contract() -> None:
    assert isinstance(Sink(), DirectWriteStream)


@pytest.mark.parametrize("lead", [0, 1, 5000])
@pytest.mark.parametrize("length", LENGTHS)
async def test_a_body_arrives_whole_and_not_a_byte_more_is_read(length: int, lead: int) -> None:
    whole, behind = DATA[:length], b"GET / HTTP/1.1\r\n\r\n"
    with uploading(length, whole[:lead]) as upload:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload.send, whole[lead:] + behind)
            await upload.run()
        assert upload.is_right(whole)
        assert upload.body.left == 0
        assert upload.sock.recv(1000) == behind


async def test_no_more_than_the_buffers_wait_for_a_slow_store() -> None:
    held, go_on = threading.Event(), threading.Event()

    def hold(written: int) -> None:
        held.set()
        go_on.wait(60)

    with uploading(len(DATA)) as upload:
        upload.sink = Sink(hold)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload.send, DATA)
            nursery.start_soon(upload.run)
            await trio.to_thread.run_sync(held.wait, 20)
            assert len(DATA) - upload.body.left <= 4 * BUFFER
            go_on.set()
        assert upload.is_right(DATA)


async def test_the_few_bytes_of_a_slow_client_are_stored_without_waiting_for_more() -> None:
    with uploading(1000) as upload:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload.run)
            for end in (10, 20, 1000):
                await upload.send(DATA[len(upload.sink.content) : end])
                with trio.fail_after(60):
                    while upload.meter.moved < end:
                        await trio.lowlevel.checkpoint()
        assert upload.is_right(DATA[:1000])


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("sent", [0, 1, BUFFER, BUFFER + 1])
async def test_a_client_that_vanishes_is_told_from_one_that_has_sent_all(sent: int, reset: bool) -> None:
    with uploading(2 * BUFFER) as upload:
        await upload.send(DATA[:sent])
        if reset:
            upload.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            upload.client.close()
        else:
            upload.client.shutdown(socket.SHUT_WR)
        with pytest.raises(BodyIncomplete):
            await upload.run()
        assert upload.body.left > 0


async def test_a_client_that_sends_nothing_is_given_up() -> None:
    with uploading(BUFFER) as upload:
        await upload.send(DATA[:100])
        upload.body.stall_timeout = 0.05
        with pytest.raises(BodyIncomplete, match="in time"):
            await upload.run()
        assert upload.body.left == BUFFER - 100


def test_patience_counts_silence_and_the_rate_over_all_waiting() -> None:
    patience = _Patience(LentBody(0, b"", 0, stall_timeout=60, min_rate=256))
    patience.wait(59)
    assert patience.left == 1
    patience.reward(60 * 256)
    assert patience.left == 60
    patience.wait(1)
    with pytest.raises(BodyIncomplete):
        patience.wait(1)  # 61 seconds waited, 60 seconds' worth sent


def test_patience_with_a_fast_client_ends_only_with_silence() -> None:
    patience = _Patience(LentBody(0, b"", 0, stall_timeout=60, min_rate=256))
    for _ in range(100):
        patience.reward(1 << 20)
        patience.wait(59)
    with pytest.raises(BodyIncomplete):
        patience.wait(1)


@pytest.mark.parametrize("moment", [0, BUFFER, 3 * BUFFER, 7 * BUFFER])
async def test_a_cancellation_at_any_write_leaves_no_thread_and_no_descriptor(moment: int) -> None:
    with uploading(len(DATA)) as upload, trio.CancelScope() as scope:
        token = trio.lowlevel.current_trio_token()
        upload.sink = Sink(lambda written: token.run_sync_soon(scope.cancel) if written >= moment else None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload.send, DATA[:-1])
            await upload.run()
    assert scope.cancelled_caught
    assert DATA.startswith(bytes(upload.sink.content))
    assert upload.meter.moved == len(upload.sink.content)


async def test_a_cancellation_wakes_a_thread_that_waits_for_the_client() -> None:
    with uploading(100) as upload, trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload.run)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught


async def test_a_cancellation_waits_for_the_write_that_is_under_way() -> None:
    writing, go_on = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        writing.set()
        go_on.wait(60)

    ended = trio.Event()
    with uploading(BUFFER * 2) as upload:
        upload.sink = Sink(hold)
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                try:
                    await upload.run()
                finally:
                    ended.set()

            nursery.start_soon(run)
            await upload.send(DATA[: BUFFER + 1])
            await trio.to_thread.run_sync(writing.wait, 20)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
                assert not ended.is_set()
                go_on.set()
        assert ended.is_set()
        assert upload.sink.content == DATA[:BUFFER]


@pytest.mark.parametrize("cancel", [True, False])
async def test_a_write_that_hangs_is_left_behind(cancel: bool, autojump_clock: object) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def hang(_: int) -> None:
        writing.set()
        assert go_on.wait(60)

    with uploading(BUFFER * 2) as upload:
        upload.sink = Sink(hang)
        upload.client.sendall(DATA[: BUFFER + 1])
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                with pytest.raises(trio.Cancelled if cancel else StoreUnreachable):
                    await upload.run()

            nursery.start_soon(run)
            while not writing.is_set():
                await trio.lowlevel.checkpoint()
            if cancel:
                nursery.cancel_scope.cancel()
        # The task has gone on. What comes back later touches nothing any more.
        assert sorted(at_work()) == ["hash", "hash", "intake"]
        upload.sock.close()
        go_on.set()
        while at_work():
            await trio.lowlevel.checkpoint()
        assert (upload.meter.moved, upload.body.left) == (0, BUFFER)


async def test_a_cancelled_task_begins_nothing() -> None:
    with uploading(100) as upload, trio.CancelScope() as scope:
        scope.cancel()
        await upload.run()
    assert (scope.cancelled_caught, upload.body.left) == (True, 100)


async def test_what_the_store_raises_ends_the_upload() -> None:
    def full(written: int) -> None:
        if written >= BUFFER:
            raise StoreFull("no room")

    with uploading(len(DATA)) as upload:
        upload.sink = Sink(full)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload.send, DATA[: 2 * BUFFER])
            with pytest.raises(StoreFull):
                await upload.run()
        assert upload.sink.content == DATA[:BUFFER]


async def test_bytes_that_are_refused_are_not_stored() -> None:
    with uploading(len(DATA)) as upload:
        upload.examiner = Examiner(limit=BUFFER + 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload.send, DATA[: 2 * BUFFER])
            with pytest.raises(UnsafeImage):
                await upload.run()
        assert upload.sink.content == DATA[:BUFFER]


async def test_a_digest_that_fails_holds_nothing_up() -> None:
    class Broken:
        def update(self, data: Block) -> None:
            raise MemoryError

    with uploading(len(DATA)) as upload:
        upload.hashes.insert(0, Broken())  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload.send, DATA)
            with pytest.raises(MemoryError):
                await upload.run()


class Ranked(Examiner):
    """A digest, too: both note how far back their threads stand."""

    def __init__(self) -> None:
        super().__init__()
        self.niceness: dict[str, int] = {}

    def _note(self, what: str) -> None:
        self.niceness[what] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def feed(self, block: Block) -> None:
        super().feed(block)
        self._note("mover")

    def update(self, data: Block, /) -> None:
        self._note("hash")


async def test_threads_of_an_upload_stand_back_and_no_others_do() -> None:
    ranked = Ranked()
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    with uploading(len(DATA)) as upload:
        upload.examiner = ranked
        upload.hashes = [ranked]  # type: ignore[list-item]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload.send, DATA)
            await upload.run(Intake(buffer_size=BUFFER, nice=19))
    assert ranked.niceness == {"mover": 19, "hash": 19}
    of_next = await trio.to_thread.run_sync(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert of_next == usual


def test_there_are_so_many_places_and_each_is_given_back() -> None:
    intake = Intake(limit=1)
    with intake.slot() as first, intake.slot() as second:
        assert (first, second) == (True, False)
    with intake.slot() as again:
        assert again
