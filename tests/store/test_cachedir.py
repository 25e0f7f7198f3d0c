"""The cache's directory: no file without its digest under a name that is served, whatever happens; and its bounds."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from recorded_disk import RecordedDisk

from visor_gateway.store.cachedir import CacheDirectory
from visor_gateway.store.cacheentries import Entry
from visor_gateway.store.filecalls import FileCalls
from visor_gateway.store.partial import CacheKey, Partial, progress_of

SIZE = 100_000


@pytest.fixture
def directory(tmp_path: Path) -> CacheDirectory:
    made = CacheDirectory(tmp_path / "cache", max_bytes=3 * SIZE)
    made.prepare()
    return made


def content_of(seed: int) -> bytes:
    return random.Random(seed).randbytes(SIZE)


def key_of(seed: int) -> CacheKey:
    return CacheKey(f"00000000-0000-4000-8000-{seed:012x}", hashlib.sha256(content_of(seed)).hexdigest())


def begun(directory: CacheDirectory, seed: int) -> Partial:
    partial = directory.begin(key_of(seed), SIZE)
    assert isinstance(partial, Partial)
    return partial


def fill(directory: CacheDirectory, seed: int) -> CacheKey:
    partial = begun(directory, seed)
    partial.write(content_of(seed))
    assert directory.publish(partial, key_of(seed).tag)
    partial.close()
    return key_of(seed)


def read(directory: CacheDirectory, key: CacheKey) -> bytes | None:
    fd = directory.open(key, SIZE)
    if fd is None:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read()


def names(directory: CacheDirectory) -> list[str]:
    return sorted(name for name in os.listdir(directory.path) if name != "lock")


def entry_path(directory: CacheDirectory, key: CacheKey) -> Path:
    return directory.path / f"{key.image_id}.{key.tag}.image"


# --- entries -------------------------------------------------------------------------------------


def test_an_entry_is_there_once_it_is_published_and_survives_a_restart(directory: CacheDirectory) -> None:
    partial = begun(directory, 1)
    partial.write(content_of(1))
    assert read(directory, key_of(1)) is None
    assert directory.publish(partial, key_of(1).tag)
    partial.close()
    again = CacheDirectory(directory.path, max_bytes=3 * SIZE)
    again.prepare()
    assert read(again, key_of(1)) == content_of(1)
    (entry,) = again.entries()
    assert (entry.key, entry.size) == (key_of(1), SIZE)
    assert (directory.path.stat().st_mode & 0o777, entry_path(again, key_of(1)).stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )


def test_an_entry_of_another_size_than_asked_for_is_none(directory: CacheDirectory) -> None:
    assert directory.open(fill(directory, 1), SIZE + 1) is None


def shorten(path: Path) -> None:
    os.truncate(path, SIZE - 1)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(1, 1))


def replace_file(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.with_suffix(".other").write_bytes(b"")  # takes the inode
    path.write_bytes(data)


def lose_description(path: Path) -> None:
    path.with_suffix(".json").unlink()


def spoil_description(path: Path) -> None:
    path.with_suffix(".json").write_bytes(b'{"size": "many"}')


@pytest.mark.parametrize("harm", [shorten, overwrite, replace_file, lose_description, spoil_description])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_file_that_is_not_as_it_was_verified_is_no_entry(
    directory: CacheDirectory, harm: Callable[[Path], None], restarted: bool
) -> None:
    key = fill(directory, 1)
    harm(entry_path(directory, key))
    if restarted:
        directory.prepare()
        assert not [name for name in names(directory) if name.startswith(key.image_id) and "other" not in name]
    assert read(directory, key) is None
    # And it can be filled anew.
    assert read(directory, fill(directory, 1)) == content_of(1)


def test_a_link_is_no_entry(directory: CacheDirectory, tmp_path: Path) -> None:
    key = fill(directory, 1)
    path = entry_path(directory, key)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        directory.open(key, SIZE)
    directory.prepare()
    assert names(directory) == []


def test_a_removed_entry_is_read_to_its_end(directory: CacheDirectory) -> None:
    fd = directory.open(fill(directory, 1), SIZE)
    assert fd is not None
    assert [entry.key for entry in directory.remove()] == [key_of(1)]
    assert names(directory) == []
    with os.fdopen(fd, "rb") as file:
        assert file.read() == content_of(1)


# --- fills ---------------------------------------------------------------------------------------


def test_one_at_a_time_fills_an_image(directory: CacheDirectory) -> None:
    partial = begun(directory, 1)
    assert CacheDirectory(directory.path, max_bytes=3 * SIZE).begin(key_of(1), SIZE) == "busy"
    directory.end(partial, ours=True)
    fill(directory, 1)


def test_a_fill_that_was_purged_becomes_no_entry(directory: CacheDirectory) -> None:
    partial = begun(directory, 1)
    partial.write(content_of(1))
    directory.remove(key_of(1).image_id)
    other = begun(directory, 1)
    assert not directory.publish(partial, key_of(1).tag)
    directory.end(partial, ours=True)
    # The name is another one's now.
    assert [name.rpartition(".")[2] for name in names(directory)] == ["partial", "progress"]
    other.close()


def test_a_start_removes_what_a_crash_left_and_no_fill_under_way(directory: CacheDirectory) -> None:
    crashed, running = begun(directory, 1), begun(directory, 2)
    crashed.close()
    (directory.path / "x.json.new").write_bytes(b"")
    lone = directory.path / f"{uuid4()}.{'a' * 64}.json"
    lone.write_bytes(b"{}")
    CacheDirectory(directory.path, max_bytes=3 * SIZE).prepare()
    assert names(directory) == [running.name, progress_of(running.name)]
    running.close()


def test_a_file_that_is_not_whole_is_never_published(directory: CacheDirectory) -> None:
    partial = begun(directory, 1)
    partial.write(content_of(1)[:-1])
    with pytest.raises(OSError, match="changed by somebody else"):
        directory.publish(partial, key_of(1).tag)
    directory.end(partial, ours=True)
    assert names(directory) == []


class Crash(Exception):
    pass


@pytest.mark.parametrize("step", range(8))
def test_a_crash_at_any_step_leaves_an_entry_whole_or_none(tmp_path: Path, step: int) -> None:
    """Each call of the operating system in turn is the last one."""
    left = SimpleNamespace(calls=step)

    def last(call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **keywords: object) -> object:
            if left.calls == 0:
                raise Crash
            left.calls -= 1
            return call(*arguments, **keywords)

        return counted

    calls = FileCalls()
    failing = replace(calls, fsync=last(os.fsync), write=last(os.write), open=last(os.open), unlink=last(os.unlink))
    directory = CacheDirectory(tmp_path, max_bytes=3 * SIZE)
    directory.prepare()
    partial = begun(directory, 1)
    partial.write(content_of(1))
    directory._calls = directory._entries._calls = failing  # type: ignore[assignment]
    with suppress(Crash):
        directory.publish(partial, key_of(1).tag)
    partial.close()
    again = CacheDirectory(tmp_path, max_bytes=3 * SIZE)
    again.prepare()
    assert read(again, key_of(1)) in {None, content_of(1)}
    assert len(names(again)) in {0, 2}


FILLER = """
import hashlib, random, sys
from visor_gateway.store.cachedir import CacheDirectory
from visor_gateway.store.partial import CacheKey
directory = CacheDirectory(__import__("pathlib").Path(sys.argv[1]), max_bytes=10**9)
directory.prepare()
for seed in range(int(sys.argv[2]), 10**6):
    content = random.Random(seed).randbytes(100_000)
    key = CacheKey(f"00000000-0000-4000-8000-{seed:012x}", hashlib.sha256(content).hexdigest())
    partial = directory.begin(key, len(content))
    for at in range(0, len(content), 10_000):
        partial.write(content[at:at + 10_000])
        print("x", end="", flush=True)
    directory.publish(partial, key.tag)
    print("x", end="", flush=True)
"""


def test_kill_at_random_points_leaves_no_wrong_entry(tmp_path: Path) -> None:
    rounds, chance = 12, random.Random(5)
    for number in range(rounds):
        command = [sys.executable, "-c", FILLER, str(tmp_path), str(number * 1000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as filler:
            assert filler.stdout is not None
            filler.stdout.read(chance.randrange(1, 60))
            filler.kill()
        directory = CacheDirectory(tmp_path, max_bytes=10**9)
        directory.prepare()
        for entry in directory.entries():
            fd = directory.open(entry.key, SIZE)
            assert fd is not None
            with os.fdopen(fd, "rb") as file:
                assert hashlib.sha256(file.read()).hexdigest() == entry.sha256
        assert not [name for name in names(directory) if name.endswith((".partial", ".progress", ".new"))]
    assert directory.entries()


# --- room ----------------------------------------------------------------------------------------


def test_the_least_recently_used_goes_and_what_is_read_stays(directory: CacheDirectory) -> None:
    gone: list[Entry] = []
    directory._evicted = gone.append
    for seed in (1, 2, 3):
        fill(directory, seed)
        os.utime(entry_path(directory, key_of(seed)).with_suffix(".json"), (seed, seed))
    reading = directory.open(key_of(2), SIZE)
    assert reading is not None
    os.utime(entry_path(directory, key_of(2)).with_suffix(".json"), (0, 0))
    fill(directory, 4)
    assert [entry.key for entry in gone] == [key_of(1)]
    os.close(reading)
    fill(directory, 5)
    assert [entry.key for entry in gone] == [key_of(1), key_of(2)]
    assert {entry.key for entry in directory.entries()} == {key_of(3), key_of(4), key_of(5)}


def test_use_counts(directory: CacheDirectory) -> None:
    for seed in (1, 2, 3):
        fill(directory, seed)
        os.utime(entry_path(directory, key_of(seed)).with_suffix(".json"), (seed, seed))
    read(directory, key_of(1))
    assert [entry.key for entry in directory.entries()] == [key_of(2), key_of(3), key_of(1)]


def test_where_eviction_would_not_do_nothing_is_evicted(directory: CacheDirectory) -> None:
    fill(directory, 1)
    running = [begun(directory, seed) for seed in (2, 3)]
    reading = directory.open(key_of(1), SIZE)
    assert reading is not None
    assert directory.begin(key_of(4), SIZE) == "full"
    assert directory.begin(CacheKey(key_of(4).image_id, key_of(4).tag), 3 * SIZE + 1) == "full"
    assert read(directory, key_of(1)) == content_of(1)
    os.close(reading)
    for each in running:
        each.close()


def test_free_space_is_left(tmp_path: Path) -> None:
    free = SimpleNamespace(f_bavail=10, f_frsize=SIZE)
    calls = replace(FileCalls(), statvfs=lambda path: free)
    directory = CacheDirectory(tmp_path, max_bytes=10 * SIZE, min_free=8 * SIZE, calls=calls)
    directory.prepare()
    fill(directory, 1)
    fill(directory, 2)
    free.f_bavail = 8
    fill(directory, 3)
    assert {entry.key for entry in directory.entries()} == {key_of(2), key_of(3)}
    free.f_bavail = 1
    assert directory.begin(key_of(4), SIZE) == "full"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_reservation_that_fails_leaves_nothing(tmp_path: Path, code: int) -> None:
    def refused(fd: int, size: int) -> None:
        raise OSError(code, os.strerror(code))

    directory = CacheDirectory(tmp_path, max_bytes=10 * SIZE, calls=replace(FileCalls(), fallocate=refused))
    directory.prepare()
    assert directory.begin(key_of(1), SIZE) == "full"
    assert names(directory) == []


def test_what_a_fill_wrote_can_be_locked_by_nobody_else(directory: CacheDirectory) -> None:
    partial = begun(directory, 1)
    with (directory.path / partial.name).open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    partial.close()


def test_the_disk_is_given_a_fill_late_and_not_too_late(
    tmp_path: Path, disk: RecordedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visor_gateway.store.partial.WRITEBACK_STEP", 1000)
    monkeypatch.setattr("visor_gateway.store.partial.WRITEBACK_LATE", 3000)
    monkeypatch.setattr("visor_gateway.store.partial.WRITEBACK_BEHIND", 1000)
    directory = CacheDirectory(tmp_path / "cache", max_bytes=3 * SIZE, calls=disk.calls)
    directory.prepare()
    partial = begun(directory, 1)
    partial.write(bytes(3999))
    assert disk.steps == []  # a smaller one is left to the sync, for which nobody waits
    partial.write(bytes(1))
    partial.write(bytes(2500))
    assert disk.steps == [
        ("start", 0, 1000),
        ("wait", 0, 1000),
        ("start", 1000, 1000),
        ("wait", 1000, 1000),
        ("start", 2000, 1000),
    ]
    partial.close()
