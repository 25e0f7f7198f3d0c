"""What the file store leaves when the file system fails, hangs, or the process is killed, at every single call.

The calls go through `FileCalls`; here they are recorded, made to fail, made to hang, or are where a child is killed.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from file_subject import FileSubject
from store_suite import leaving_nothing, new_key, open_descriptors, put, read

from visor_gateway.errors import ObjectExists, ObjectMissing, StoreError, StoreFull, StoreUnreachable
from visor_gateway.store.contract import ObjectInfo
from visor_gateway.store.file import FileStore
from visor_gateway.store.filecalls import FileCalls

CONTENT = bytes(range(256)) * 1000


class Watched:
    """The operating system's calls, counted. `before` and `after` see each call's number, name and arguments.

    A call that `after` lets fail has been carried out all the same, as a disk may fail and still have done it.
    """

    def __init__(self) -> None:
        self.log: list[tuple[str, tuple[Any, ...]]] = []
        self.before: Callable[[int, str], None] = lambda number, name: None
        self.after: Callable[[int, str], None] = lambda number, name: None
        self._lock = threading.Lock()

    @property
    def calls(self) -> FileCalls:
        real = FileCalls()
        return FileCalls(**{
            field.name: self._watch(field.name, getattr(real, field.name)) for field in dataclasses.fields(FileCalls)
        })

    def _watch(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                number = len(self.log)
                self.log.append((name, arguments))
            self.before(number, name)
            result = call(*arguments, **named)
            try:
                self.after(number, name)
            except OSError:
                if name == "open":
                    os.close(result)
                raise
            return result

        return watched

    def names(self) -> list[str]:
        return [name for name, _ in self.log]


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def subject(tmp_path: Path, watched: Watched) -> FileSubject:
    directory = tmp_path / "images"
    directory.mkdir()
    return FileSubject(directory, watched.calls)


async def attempt(store: FileStore, key: str) -> ObjectInfo:
    """A whole upload as a careful caller does it."""
    writer = await store.open_write(key, size=len(CONTENT))
    try:
        await writer.write(CONTENT[:100])
        await writer.write(CONTENT[100:])
        return await writer.commit()
    except BaseException:
        with trio.move_on_after(20, shield=True):
            await writer.abort()
        raise


# --- durable before acknowledged -------------------------------------------------------------------


async def test_bytes_are_durable_before_the_name_and_the_name_before_the_answer(
    watched: Watched, subject: FileSubject
) -> None:
    await attempt(subject.store, new_key())
    kinds = {}
    order = []
    for number, (name, arguments) in enumerate(watched.log):
        if name in {"write", "fallocate"}:
            kinds[arguments[0]] = "file"
        if name in {"write", "ftruncate", "fsync", "link", "unlink"}:
            order.append(f"{name} {kinds.get(arguments[0], 'directory')}" if name == "fsync" else name)
        if name == "fstat" and number == max(i for i, n in enumerate(watched.names()) if n == "fstat"):
            order.append("describe")
    assert order == [
        *("write", "write", "ftruncate", "fsync file"),
        *("link", "unlink", "fsync directory", "fsync directory", "describe"),
    ]


async def test_both_directories_are_made_durable(watched: Watched, subject: FileSubject) -> None:
    synced: list[str] = []

    def note(number: int, name: str) -> None:
        if name == "fsync":
            synced.append(os.readlink(f"/proc/self/fd/{watched.log[number][1][0]}"))

    watched.before = note
    key = new_key()
    await attempt(subject.store, key)
    image_id, attempt_id = key.split("/")
    directory = str(subject.directory)
    assert synced == [f"{directory}/{image_id}/{attempt_id}.partial", f"{directory}/{image_id}", directory]


async def test_the_validator_is_that_of_the_finished_file(watched: Watched, subject: FileSubject) -> None:
    key = new_key()
    info = await attempt(subject.store, key)
    found = os.stat(subject.directory / key)
    assert info.validator == f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"


async def test_a_delete_is_durable_before_it_is_answered(watched: Watched, subject: FileSubject) -> None:
    location, _ = await put(subject.store, b"x")
    watched.log.clear()
    await subject.store.delete(location)
    steps = [name for name in watched.names() if name in {"unlink", "fsync", "rmdir"}]
    assert steps == ["unlink", "fsync", "rmdir", "fsync"]


async def test_a_directory_that_is_made_is_made_durable(tmp_path: Path, watched: Watched) -> None:
    synced: list[str] = []

    def note(number: int, name: str) -> None:
        if name == "fsync":
            synced.append(os.readlink(f"/proc/self/fd/{watched.log[number][1][0]}"))

    watched.before = note
    await FileStore("file", tmp_path / "a" / "b", calls=watched.calls).check()
    assert synced == [str(tmp_path), str(tmp_path / "a")]


async def failure_of(store: FileStore, key: str) -> StoreError | None:
    try:
        await attempt(store, key)
    except StoreError as exc:
        return exc
    return None


# --- every call fails ------------------------------------------------------------------------------


def failing(only: int, code: int) -> Callable[[int, str], None]:
    def fail(number: int, name: str) -> None:
        if number == only:
            raise OSError(code, os.strerror(code), "/a/path/of/the/server")

    return fail


async def count_calls(watched: Watched, body: Callable[[], Any]) -> Sequence[str]:
    watched.log.clear()
    await body()
    names = watched.names()
    watched.log.clear()
    return names


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, StoreFull), (errno.EIO, StoreUnreachable)])
async def test_an_upload_that_fails_at_any_call_leaves_nothing(
    watched: Watched, subject: FileSubject, when: str, code: int, error: type[StoreError]
) -> None:
    key = new_key()
    names = await count_calls(watched, lambda: attempt(subject.store, key))
    await subject.store.abandon(key)
    for number, name in enumerate(names):
        watched.log.clear()
        setattr(watched, when, failing(number, code))
        key = new_key()
        async with leaving_nothing(subject):
            if name == "close" and when == "before":
                # A close that fails has closed all the same (Linux); one that never happened can't be.
                watched.before, watched.after = (lambda number, name: None), failing(number, code)
            failure = await failure_of(subject.store, key)
            if failure is None:
                # A failing close takes nothing away; the others found nothing or something there, which is no failure.
                assert name == "close" or (when == "after" and name in {"mkdir", "stat"})
                assert await read(subject.store, f"file:///{key}") == CONTENT
                await subject.store.delete(f"file:///{key}")
            else:
                assert isinstance(failure, error), f"{name}, call {number}"
                assert "/a/path" not in failure.message
                if name == "open" and when == "after":
                    # A network file system may make a file and fail to say so; callers abandon what did not open.
                    await subject.store.abandon(key)
            watched.before = watched.after = lambda number, name: None
            with pytest.raises(ObjectMissing):
                await subject.store.stat(f"file:///{key}")
        assert os.listdir(subject.directory) == [], f"{name}, call {number}"


async def test_an_upload_whose_abort_fails_too_is_found_by_the_sweep(watched: Watched, subject: FileSubject) -> None:
    key = new_key()
    writer = await subject.store.open_write(key)
    descriptors = open_descriptors()

    def broken(number: int, name: str) -> None:
        if name in {"fsync", "unlink", "rmdir"}:
            raise OSError(errno.EIO, "")

    watched.before = broken
    with pytest.raises(StoreUnreachable):
        await writer.commit()
    with pytest.raises(StoreUnreachable):
        await writer.abort()
    assert len(open_descriptors()) == len(descriptors) - 1
    watched.before = lambda number, name: None
    assert await subject.store.leftovers(0) == [key]
    await writer.abort()
    assert os.listdir(subject.directory) == []


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_delete_that_fails_at_any_call_can_be_repeated(
    watched: Watched, subject: FileSubject, when: str
) -> None:
    location, _ = await put(subject.store, b"x")
    names = await count_calls(watched, lambda: subject.store.delete(location))
    for number, name in enumerate(names):
        key = new_key()
        location, _ = await put(subject.store, b"x", key)
        watched.log.clear()
        setattr(watched, "after" if name == "close" else when, failing(number, errno.EIO))
        async with leaving_nothing(subject):
            with suppress(StoreUnreachable):
                await subject.store.delete(location)
            watched.before = watched.after = lambda number, name: None
            await subject.store.delete(location)
        assert os.listdir(subject.directory) == []


@pytest.mark.parametrize("call", ["stat", "open_read", "check", "leftovers"])
async def test_a_look_that_fails_at_any_call_leaves_no_descriptor(
    watched: Watched, subject: FileSubject, call: str
) -> None:
    location, _ = await put(subject.store, b"x")

    async def look() -> None:
        if call == "open_read":
            assert await read(subject.store, location) == b"x"
        else:
            await {
                "stat": lambda: subject.store.stat(location),
                "check": subject.store.check,
                "leftovers": lambda: subject.store.leftovers(0),
            }[call]()

    names = await count_calls(watched, look)
    # Whoever closes a file that was read needs nothing of its status.
    closing = len(names) - 1 - names[::-1].index("fstat") if call == "open_read" else -1
    for number, name in enumerate(names):
        is_harmless = name in {"close", "mkdir"} or number == closing
        for when in ("after",) if name == "close" else ("before", "after"):
            watched.log.clear()
            setattr(watched, when, failing(number, errno.EIO))
            async with leaving_nothing(subject):
                with suppress(StoreUnreachable) if is_harmless else pytest.raises(StoreUnreachable):
                    await look()
            watched.before = watched.after = lambda number, name: None


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EFBIG, StoreFull),
        (errno.EROFS, StoreUnreachable),
        (errno.EACCES, StoreUnreachable),
        (errno.EIO, StoreUnreachable),
        (errno.EMFILE, StoreUnreachable),
        (errno.ESTALE, StoreUnreachable),
    ],
)
async def test_the_cause_is_told(watched: Watched, subject: FileSubject, code: int, error: type[StoreError]) -> None:
    writer = await subject.store.open_write(new_key())
    watched.before = failing(len(watched.log), code)
    with pytest.raises(error, match=os.strerror(code)) as caught:
        await writer.write(b"x")
    assert (caught.value.status, caught.value.retryable) == (503, True)
    with pytest.raises(StoreError):
        await writer.commit()
    await writer.abort()


async def test_a_directory_that_always_vanishes_is_given_up(watched: Watched, subject: FileSubject) -> None:
    def vanish(number: int, name: str) -> None:
        if name == "mkdir":
            for found in subject.directory.iterdir():
                found.rmdir()

    watched.after = vanish
    with pytest.raises(StoreUnreachable):
        await subject.store.open_write(new_key())


async def test_a_directory_that_vanishes_once_is_made_again(watched: Watched, subject: FileSubject) -> None:
    pending = [subject.directory]

    def vanish(number: int, name: str) -> None:
        if name == "mkdir" and watched.names().count("mkdir") == 2 and pending:
            for found in pending.pop().iterdir():
                found.rmdir()

    watched.after = vanish
    location, _ = await put(subject.store, b"x")
    assert await read(subject.store, location) == b"x"
    assert not pending


# --- every call hangs, and is cancelled meanwhile ---------------------------------------------------


class Hanging:
    """Lets one call hang until it is released."""

    def __init__(self, watched: Watched, number: int) -> None:
        self.reached = threading.Event()
        self.release = threading.Event()
        self._number = number
        watched.log.clear()
        watched.before = self._hang

    def _hang(self, number: int, name: str) -> None:
        if number == self._number:
            self.reached.set()
            assert self.release.wait(60)

    async def wait(self) -> None:
        assert await trio.to_thread.run_sync(self.reached.wait, 20, abandon_on_cancel=True)


async def test_an_upload_cancelled_while_any_call_hangs_leaves_nothing_or_the_whole(
    watched: Watched, subject: FileSubject
) -> None:
    key = new_key()
    names = await count_calls(watched, lambda: attempt(subject.store, key))
    await subject.store.abandon(key)
    for number, name in enumerate(names):
        hanging = Hanging(watched, number)
        key = new_key()
        committed: list[ObjectInfo] = []

        async def run(key: str = key, committed: list[ObjectInfo] = committed) -> None:
            committed.append(await attempt(subject.store, key))

        async with leaving_nothing(subject):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await hanging.wait()
                nursery.cancel_scope.cancel()
                hanging.release.set()
            watched.before = lambda number, name: None
            if committed:
                assert await read(subject.store, f"file:///{key}") == CONTENT
                await subject.store.delete(f"file:///{key}")
        assert os.listdir(subject.directory) == [], f"{name}, call {number}"


async def test_an_attempt_aborted_while_a_write_hangs_closes_its_file_only_after_that(
    watched: Watched, subject: FileSubject
) -> None:
    key = new_key()
    writer = await subject.store.open_write(key)
    hanging = Hanging(watched, 0)
    failures: list[StoreError] = []

    def write() -> None:
        try:
            writer.write_now(CONTENT)
        except StoreError as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    await hanging.wait()
    fd = writer._partial.fd
    await writer.abort()
    assert os.listdir(subject.directory) == []
    assert os.fstat(fd).st_nlink == 0  # open still, and without a name
    hanging.release.set()
    thread.join()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


async def test_a_read_cancelled_while_the_disk_hangs_ends_at_once(tmp_path: Path) -> None:
    reached, release = threading.Event(), threading.Event()

    def hang(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise OSError(errno.EAGAIN, "")
        reached.set()
        assert release.wait(60)
        return os.preadv(fd, buffers, offset)

    subject = FileSubject(tmp_path, FileCalls(preadv=hang))
    location, _ = await put(subject.store, CONTENT)
    async with leaving_nothing(subject):
        stream = await subject.store.open_read(location)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            assert await trio.to_thread.run_sync(reached.wait, 20)
            nursery.cancel_scope.cancel()
        assert not release.is_set()
        await stream.aclose()
        release.set()


async def test_a_read_tried_again_after_a_cancellation_is_not_overwritten_by_the_first(tmp_path: Path) -> None:
    reached, release = threading.Event(), threading.Event()
    hung: list[memoryview] = []

    def hang_once(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if not flags and not hung:
            hung.extend(buffers)
            reached.set()
            assert release.wait(60)
        elif flags and not hung:
            raise OSError(errno.EAGAIN, "")
        return os.preadv(fd, buffers, offset)

    subject = FileSubject(tmp_path, FileCalls(preadv=hang_once))
    subject.store._block_size = 1000
    location, _ = await put(subject.store, CONTENT)
    stream = await subject.store.open_read(location)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        assert await trio.to_thread.run_sync(reached.wait, 20)
        nursery.cancel_scope.cancel()
    await stream.receive_some()
    block = await stream.receive_some()
    release.set()
    await subject.settle()
    assert bytes(block) == CONTENT[1000:2000]
    await stream.aclose()


async def test_closing_needs_no_thread_of_a_hung_disk(tmp_path: Path) -> None:
    subject = FileSubject(tmp_path)
    store = FileStore("file", tmp_path, threads=1)
    subject.store = store
    location, _ = await put(store, CONTENT)
    async with leaving_nothing(subject):
        stream, writer = await store.open_read(location), await store.open_write(new_key())
        async with store._readers, store._writers:
            with trio.fail_after(60):
                await stream.aclose()
                await writer.abort()


async def test_an_abort_that_hangs_is_told_and_ends_by_itself(
    watched: Watched, subject: FileSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visor_gateway.store.file.CLOSE_SECONDS", 0.05)
    async with leaving_nothing(subject):
        writer = await subject.store.open_write(new_key())
        hanging = Hanging(watched, 0)
        with pytest.raises(StoreUnreachable, match="does not answer"):
            await writer.abort()
        hanging.release.set()


# --- the process is killed -------------------------------------------------------------------------

CHILD = """
import os, sys, trio
from dataclasses import replace
from pathlib import Path
from visor_gateway.store.file import FileStore
from visor_gateway.store.filecalls import FileCalls

directory, key, call, count, after = sys.argv[1:]
left = int(count)
real = getattr(FileCalls(), call)

def stop():
    print("here", flush=True)
    sys.stdin.read()

def deadly(*arguments, **named):
    global left
    left -= 1
    if left == 0 and after == "before": stop()
    result = real(*arguments, **named)
    if left == 0 and after == "after": stop()
    return result

async def main():
    store = FileStore("file", Path(directory), calls=replace(FileCalls(), **{call: deadly}))
    writer = await store.open_write(key, size=3000)
    for _ in range(3):
        await writer.write(bytes(1000))
    await writer.commit()
    print("committed", flush=True)

trio.run(main)
"""


def killed_at(directory: Path, key: str, call: str, count: int, when: str) -> None:
    """Run an upload in a child and kill it with SIGKILL when it comes to the `count`-th `call`."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory), key, call, str(count), when],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"here\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(60)
        child.stdin.close()
        child.stdout.close()


@pytest.mark.parametrize(
    ("call", "count", "when", "visible"),
    [
        ("mkdir", 2, "after", False),
        ("fallocate", 1, "before", False),
        ("write", 2, "after", False),
        ("fsync", 1, "before", False),
        ("link", 1, "before", False),
        ("link", 1, "after", True),
        ("unlink", 1, "after", True),
        ("fsync", 3, "after", True),
    ],
)
async def test_what_a_killed_upload_leaves_is_found_and_removed(
    tmp_path: Path, call: str, count: int, when: str, visible: bool
) -> None:
    directory = tmp_path / "images"
    directory.mkdir()
    store, key = FileStore("file", directory), new_key()
    await trio.to_thread.run_sync(killed_at, directory, key, call, count, when)
    if visible:
        assert (await store.stat(f"file:///{key}")).size == 3000
    else:
        with pytest.raises(ObjectMissing):
            await store.stat(f"file:///{key}")
    found = await store.leftovers(0)
    assert found == ([] if call == "mkdir" else [key])
    for left in found:
        await store.abandon(left)
    assert os.listdir(directory) == []


async def test_a_key_that_a_killed_upload_held_is_not_taken_again(tmp_path: Path) -> None:
    key = new_key()
    await trio.to_thread.run_sync(killed_at, tmp_path, key, "write", 1, "after")
    with pytest.raises(ObjectExists):
        await FileStore("file", tmp_path).open_write(key)
