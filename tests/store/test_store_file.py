"""The file store is held to the contract of stores; what only files have is tested here and in the files beside."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio
from file_subject import FileSubject
from hypothesis import given
from recorded_disk import RecordedDisk
from store_suite import HOSTILE, StoreSuite, drain, hostile_text, leaving_nothing, new_key, open_descriptors, put, read

from visor_gateway.errors import ObjectChanged, ObjectMissing, StoreError, StoreFull, StoreUnreachable
from visor_gateway.store.contract import Store
from visor_gateway.store.file import FileStore
from visor_gateway.store.filecalls import FileCalls
from visor_gateway.store.objectkey import ObjectKey


class TestFileStore(StoreSuite):
    @pytest.fixture
    async def subject(self, tmp_path: Path) -> FileSubject:
        return FileSubject(tmp_path / "images")


@pytest.fixture
async def subject(tmp_path: Path) -> AsyncGenerator[FileSubject, None]:
    subject = FileSubject(tmp_path / "images")
    async with leaving_nothing(subject):
        yield subject


@pytest.fixture
async def store(subject: FileSubject) -> FileStore:
    await subject.store.check()
    return subject.store


def test_it_is_a_store(tmp_path: Path) -> None:
    _: Store = FileStore("file", tmp_path)


# --- where things are ------------------------------------------------------------------------------


async def test_nobody_else_can_read_the_files(store: FileStore, subject: FileSubject) -> None:
    writer = await store.open_write(key := new_key())
    partial = next(subject.directory.glob("*/*"))
    assert stat.S_IMODE(partial.stat().st_mode) == 0o600
    await writer.commit()
    assert stat.S_IMODE((subject.directory / key).stat().st_mode) == 0o600
    assert stat.S_IMODE((subject.directory / key).parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(subject.directory.stat().st_mode) == 0o700


async def test_a_location_says_nothing_of_the_servers_directories(store: FileStore) -> None:
    writer = await store.open_write(key := new_key())
    await writer.abort()
    assert writer.location == f"file:///{key}"


async def test_a_missing_directory_is_made_with_all_above_it(tmp_path: Path) -> None:
    for name in ("checked", "written"):
        store = FileStore("file", tmp_path / name / "b" / "c")
        if name == "checked":
            await store.check()
        else:
            await put(store, b"x")
        assert stat.S_IMODE((tmp_path / name / "b" / "c").stat().st_mode) == 0o700


async def test_a_directory_relative_to_the_start_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FileStore("file", Path("images"))
    await store.check()
    monkeypatch.chdir("/")
    await put(store, b"x")
    assert list((tmp_path / "images").glob("*/*"))


async def test_a_store_without_a_usable_directory_can_be_built_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    store = FileStore("file", tmp_path / "taken")
    key = new_key()
    for call in (store.check, lambda: store.open_write(key), lambda: store.leftovers(0), lambda: store.abandon(key)):
        with pytest.raises(StoreUnreachable) as caught:
            await call()
        assert str(tmp_path) not in caught.value.message


async def test_a_directory_that_went_away_does_not_make_objects_missing(tmp_path: Path) -> None:
    store = FileStore("file", tmp_path / "images")
    location, _ = await put(store, b"x")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    for call in (store.stat, store.open_read, store.delete):
        with pytest.raises(StoreUnreachable):
            await call(location)
    (tmp_path / "elsewhere").rename(tmp_path / "images")
    assert await read(store, location) == b"x"


async def test_a_check_tells_of_a_full_disk(tmp_path: Path) -> None:
    real = os.statvfs(tmp_path)

    def full(*fields: str) -> FileCalls:
        values = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")} | dict.fromkeys(fields, 0)
        return FileCalls(statvfs=lambda _: type("statvfs", (), values))  # type: ignore[arg-type, return-value]

    for fields in (("f_bavail",), ("f_favail",)):
        with pytest.raises(StoreFull):
            await FileStore("file", tmp_path, calls=full(*fields)).check()
    await FileStore("file", tmp_path, calls=full("f_files", "f_favail")).check()  # such a system counts no files


async def test_a_check_does_without_files_that_have_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_unnamed_files(path: str, flags: int, *rest: int, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "")
        return os.open(path, flags, *rest, dir_fd=dir_fd)

    await FileStore("file", tmp_path, calls=FileCalls(open=no_unnamed_files)).check()
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(StoreUnreachable, match="Permission denied"):
        await FileStore("file", tmp_path, calls=FileCalls(open=no_unnamed_files)).check()


# --- attacks ---------------------------------------------------------------------------------------


def _filled(text: str) -> str:
    return text.format(image=uuid.uuid4(), attempt=uuid.uuid4())


@pytest.mark.parametrize("text", HOSTILE)
async def test_a_key_that_is_not_two_uuids_is_refused(store: FileStore, text: str) -> None:
    key = _filled(text)
    with pytest.raises(StoreError):
        await store.open_write(key)
    with pytest.raises(StoreError):
        await store.abandon(key)


@pytest.mark.parametrize("scheme", ["file:///", "file://", "file:", "FILE:///", "file://localhost/", "http:///", ""])
@pytest.mark.parametrize("text", HOSTILE)
async def test_a_location_that_is_not_two_uuids_has_no_object(store: FileStore, text: str, scheme: str) -> None:
    with pytest.raises(ObjectMissing):
        await store.open_read(scheme + _filled(text))


@pytest.mark.parametrize("scheme", ["file://", "file:", "file:/", "FILE:///", "file://localhost/", "http:///", "", "/"])
async def test_an_object_has_one_location(store: FileStore, scheme: str) -> None:
    _, _ = await put(store, b"x", key := new_key())
    for wrong in (scheme + key, "file:///" + key.upper(), "file:///" + key.replace("-", "%2d")):
        with pytest.raises(ObjectMissing):
            await store.stat(wrong)


@given(text=hostile_text)
def test_no_text_is_taken_for_a_key_or_location(text: str) -> None:
    with pytest.raises(StoreError):
        ObjectKey.parse(text)
    with pytest.raises(ObjectMissing):
        ObjectKey.from_location("file:///" + text)


async def test_no_symbolic_link_is_followed(store: FileStore, subject: FileSubject, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / (attempt := str(uuid.uuid4()))).write_text("secret")
    linked, real = str(uuid.uuid4()), str(uuid.uuid4())
    (subject.directory / linked).symlink_to(secret)
    (subject.directory / real).mkdir()
    (subject.directory / real / attempt).symlink_to(secret / attempt)
    for key in (f"{linked}/{attempt}", f"{real}/{attempt}"):
        with pytest.raises(ObjectMissing):
            await store.open_read(f"file:///{key}")
        with pytest.raises(ObjectMissing):
            await store.stat(f"file:///{key}")
        with pytest.raises(StoreError):
            await store.open_write(key)
        await store.delete(f"file:///{key}")
        await store.abandon(key)
    with pytest.raises(StoreUnreachable):
        await store.open_write(f"{linked}/{uuid.uuid4()}")
    assert (secret / attempt).read_text() == "secret"
    assert [path.name for path in secret.iterdir()] == [attempt]
    (subject.directory / linked).unlink()


async def test_a_link_in_the_way_of_a_new_file_is_not_written_through(
    store: FileStore, subject: FileSubject, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    image, attempt = new_key().split("/")
    (subject.directory / image).mkdir()
    (subject.directory / image / f"{attempt}.partial").symlink_to(target)
    with pytest.raises(StoreError):
        await store.open_write(f"{image}/{attempt}")
    assert target.read_text() == "mine"
    await store.abandon(f"{image}/{attempt}")


async def test_what_is_no_regular_file_is_no_object(store: FileStore, subject: FileSubject) -> None:
    image, attempt = new_key().split("/")
    (subject.directory / image).mkdir()
    for make in (os.mkfifo, os.mkdir):
        path = subject.directory / image / attempt
        make(path)
        with trio.fail_after(60), pytest.raises(ObjectMissing):
            await store.open_read(f"file:///{image}/{attempt}")
        path.rmdir() if path.is_dir() else path.unlink()
    (subject.directory / image).rmdir()


async def test_files_of_others_in_the_directory_are_left_alone(store: FileStore, subject: FileSubject) -> None:
    (subject.directory / "lost+found").mkdir()
    (subject.directory / "note.txt").write_text("x")
    image = subject.directory / str(uuid.uuid4())
    image.mkdir()
    (image / "note.txt").write_text("x")
    assert await store.leftovers(0) == []
    assert (image / "note.txt").exists()
    assert (subject.directory / "lost+found").exists()
    (image / "note.txt").unlink()
    image.rmdir()


# --- reading ---------------------------------------------------------------------------------------


async def test_a_file_that_became_shorter_is_an_error_and_no_end(store: FileStore, subject: FileSubject) -> None:
    location, _ = await put(store, bytes(10_000), key := new_key())
    stream = await store.open_read(location)
    os.truncate(subject.directory / key, 5000)
    assert len(await stream.receive_some()) == 5000
    with pytest.raises(ObjectChanged):
        await stream.receive_some()
    await stream.aclose()


async def test_blocks_have_the_size_that_was_set(tmp_path: Path) -> None:
    store = FileStore("file", tmp_path, block_size=1000)
    location, _ = await put(store, bytes(2500))
    stream = await store.open_read(location, 100)
    assert [len(await stream.receive_some()) for _ in range(4)] == [1000, 1000, 400, 0]
    await stream.aclose()


async def test_a_block_is_used_again_by_the_next_call(store: FileStore) -> None:
    location, _ = await put(store, b"a" * store._block_size + b"b" * store._block_size)
    stream = await store.open_read(location)
    first = await stream.receive_some()
    second = await stream.receive_some()
    assert bytes(first) == bytes(second) == b"b" * store._block_size
    await stream.aclose()


async def test_the_descriptor_is_offered_and_blocks_in_reads(store: FileStore) -> None:
    location, _ = await put(store, b"0123456789")
    stream = await store.open_read(location, 3, 4)
    assert (os.pread(stream.file, 100, stream.position), stream.end) == (b"3456789", 7)
    assert os.get_blocking(stream.file)
    assert not os.get_inheritable(stream.file)
    await stream.aclose()
    assert stream.file == -1


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS])
async def test_bytes_that_are_not_at_hand_are_read_in_a_thread(tmp_path: Path, code: int) -> None:
    def cold(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise OSError(code, "")
        assert not _in_trio()
        return os.preadv(fd, buffers, offset)

    store = FileStore("file", tmp_path, block_size=1000, calls=FileCalls(preadv=cold))
    content = os.urandom(5500)
    location, _ = await put(store, content)
    assert await read(store, location, 10) == content[10:]


def _in_trio() -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


async def test_a_disk_that_fails_a_read_is_told_without_a_path(tmp_path: Path) -> None:
    for flags in (os.RWF_NOWAIT, 0):

        def broken(fd: int, buffers: list[memoryview], offset: int, given: int = 0, flags: int = flags) -> int:
            raise OSError(errno.EIO if given == flags else errno.EAGAIN, "secret", str(tmp_path))

        store = FileStore("file", tmp_path, calls=FileCalls(preadv=broken))
        location, _ = await put(store, b"x")
        stream = await store.open_read(location)
        with pytest.raises(StoreUnreachable, match="Input/output error") as caught:
            await stream.receive_some()
        assert str(tmp_path) not in caught.value.message
        await stream.aclose()


async def test_reading_hot_pages_lets_others_run(store: FileStore) -> None:
    location, _ = await put(store, bytes(8 << 20))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await read(store, location)
        nursery.cancel_scope.cancel()
    assert turns >= 16


# --- writing ---------------------------------------------------------------------------------------


async def test_room_is_reserved_before_the_bytes_come(store: FileStore, subject: FileSubject) -> None:
    writer = await store.open_write(new_key(), size=1 << 20)
    found = next(subject.directory.glob("*/*")).stat()
    assert (found.st_size, found.st_blocks * 512 >= 1 << 20) == (0, True)
    await writer.write(b"short")
    await writer.commit()
    found = next(subject.directory.glob("*/*")).stat()
    assert found.st_size == 5
    assert found.st_blocks * 512 < 1 << 20


async def test_more_than_can_be_held_is_refused_at_once(tmp_path: Path, subject: FileSubject, store: FileStore) -> None:
    with pytest.raises(StoreFull):
        await store.open_write(new_key(), size=1 << 62)
    assert list(subject.directory.iterdir()) == []


async def test_a_write_that_takes_little_at_a_time_loses_nothing(tmp_path: Path) -> None:
    store = FileStore("file", tmp_path, calls=FileCalls(write=lambda fd, data: os.write(fd, data[:7])))
    content = os.urandom(1000)
    location, _ = await put(store, content)
    assert await read(store, location) == content


async def test_an_object_whose_name_was_made_by_a_lost_reply_is_ours(tmp_path: Path) -> None:
    def repeated(*names: str, **directories: int) -> None:
        os.link(*names, **directories)
        os.link(*names, **directories)

    store = FileStore("file", tmp_path, calls=FileCalls(link=repeated))
    location, _ = await put(store, b"content")
    assert await read(store, location) == b"content"


async def test_an_abort_and_a_close_end_their_work_in_a_scope_that_is_cancelled(store: FileStore) -> None:
    location, _ = await put(store, b"x")
    stream, writer = await store.open_read(location), await store.open_write(new_key())
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.aclose()
        await writer.abort()
    assert [f"file:///{key}" for key in await store.leftovers(0)] == [location]


async def test_an_object_that_appears_before_the_commit_is_kept(store: FileStore, subject: FileSubject) -> None:
    writer = await store.open_write(key := new_key())
    await writer.write(b"ours")
    (subject.directory / key).write_bytes(b"theirs")
    with pytest.raises(StoreError) as caught:
        await writer.commit()
    assert caught.value.status == 409
    await writer.abort()
    assert await read(store, writer.location) == b"theirs"


async def test_the_directory_of_an_image_goes_with_its_last_object(store: FileStore, subject: FileSubject) -> None:
    image_id = str(uuid.uuid4())
    locations = [(await put(store, b"x", new_key(image_id)))[0] for _ in range(2)]
    await store.delete(locations[0])
    assert (subject.directory / image_id).exists()
    await store.delete(locations[1])
    assert not (subject.directory / image_id).exists()


async def test_an_empty_directory_that_a_crash_left_is_swept(store: FileStore, subject: FileSubject) -> None:
    (subject.directory / str(uuid.uuid4())).mkdir()
    assert await store.leftovers(3600) == []
    assert len(list(subject.directory.iterdir())) == 1
    assert await store.leftovers(0) == []
    assert list(subject.directory.iterdir()) == []


async def test_the_disk_gets_the_bytes_in_steps_while_they_come(
    tmp_path: Path, disk: RecordedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visor_gateway.store.file.WRITEBACK_STEP", 1000)
    monkeypatch.setattr("visor_gateway.store.file.WRITEBACK_STEPS", 2)
    store = FileStore("file", tmp_path, calls=disk.calls)
    writer = await store.open_write(new_key())
    for size in (999, 1, 3500):
        await writer.write(bytes(size))
    await writer.commit()
    assert disk.steps == [
        ("start", 0, 1000),
        ("start", 1000, 1000),
        ("wait", 0, 1000),
        ("start", 2000, 1000),
        ("wait", 1000, 1000),
        ("start", 3000, 1000),
    ]


async def test_the_steps_to_the_disk_change_no_byte(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visor_gateway.store.file.WRITEBACK_STEP", 4096)
    content = os.urandom(50_000)
    location, _ = await put(store, content)
    assert await read(store, location) == content


async def test_a_reader_needs_no_thread_of_the_writers(tmp_path: Path) -> None:
    store = FileStore("file", tmp_path, threads=1)
    location, _ = await put(store, b"x")
    async with store._writers:
        with trio.fail_after(60):
            assert await drain(await store.open_read(location)) == b"x"
            await store.stat(location)
    assert store._readers.borrowed_tokens == 0
    assert str(tmp_path) not in " ".join(open_descriptors().values())
