"""What the file store asks of the file system before the first byte comes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from store_suite import new_key

from visor_gateway.errors import StoreFull
from visor_gateway.store import filecalls
from visor_gateway.store.file import FileStore
from visor_gateway.store.filecalls import fallocate

MIB = 1 << 20


def test_blocks_are_reserved_and_the_length_stays(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "x", os.O_CREAT | os.O_WRONLY)
    try:
        fallocate(fd, MIB)
        assert os.fstat(fd).st_size == 0
        assert os.fstat(fd).st_blocks * 512 >= MIB or filecalls._in_memory(fd)
    finally:
        os.close(fd)


def test_in_memory_nothing_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filecalls, "_in_memory", lambda _: True)
    fd = os.open(tmp_path / "x", os.O_CREAT | os.O_WRONLY)
    try:
        fallocate(fd, MIB)
        assert os.fstat(fd).st_blocks == 0
    finally:
        os.close(fd)


async def test_what_does_not_fit_into_memory_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filecalls, "_in_memory", lambda _: True)
    monkeypatch.setattr(filecalls.os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=10, f_frsize=4096))
    store = FileStore("file", tmp_path / "images")
    with pytest.raises(StoreFull, match=os.strerror(errno.ENOSPC)):
        await store.open_write(new_key(), size=10 * 4096 + 1)
    assert list((tmp_path / "images").iterdir()) == []
    await (await store.open_write(new_key(), size=10 * 4096)).abort()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm")
def test_files_in_memory_are_known(tmp_path: Path) -> None:
    fd = os.open("/dev/shm", os.O_RDONLY)
    try:
        assert filecalls._in_memory(fd)
    finally:
        os.close(fd)
