"""What an open file tells of itself: whether it is still as it was, and any part of it."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pytest

from visor_gateway.errors import ObjectChanged
from visor_gateway.store.file import FileReadStream, FileStore

DATA = os.urandom(5000)


async def opened(directory: Path) -> tuple[FileStore, FileReadStream, Path]:
    store = FileStore("file", directory, block_size=1000)
    await store.check()
    key = f"{uuid4()}/{uuid4()}"
    writer = await store.open_write(key)
    await writer.write(DATA)
    await writer.commit()
    return store, await store.open_read(writer.location), directory / key


async def test_an_untouched_file_is_unchanged_also_once_it_is_deleted(tmp_path: Path) -> None:
    _, stream, file = await opened(tmp_path)
    await stream.check()
    file.unlink()
    await stream.check()
    await stream.aclose()


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_file_that_was_written_to_is_changed_also_once_it_is_deleted(tmp_path: Path, deleted: bool) -> None:
    _, stream, file = await opened(tmp_path)
    with file.open("r+b") as handle:
        handle.write(b"x")
    os.utime(file, ns=(1, 1))  # whatever the clock's resolution is
    if deleted:
        file.unlink()
    with pytest.raises(ObjectChanged):
        await stream.check()
    await stream.aclose()


async def test_a_restored_mtime_hides_no_change(tmp_path: Path) -> None:
    _, stream, file = await opened(tmp_path)
    before = file.stat()
    os.utime(file, ns=(1, 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ObjectChanged):
        await stream.check()
    await stream.aclose()


async def test_parts_of_one_open_file_are_read_in_any_order(tmp_path: Path) -> None:
    _, stream, file = await opened(tmp_path)
    file.unlink()
    for offset, length in ((4000, 1000), (0, 1), (10, 2500), (5000, 0)):
        stream.narrow(offset, length)
        read = b""
        while block := await stream.receive_some():
            read += bytes(block)
        assert read == DATA[offset : offset + length]
    for offset, length in ((-1, 1), (4999, 2), (5001, 0), (0, -1)):
        with pytest.raises(ObjectChanged):
            stream.narrow(offset, length)
    await stream.aclose()
