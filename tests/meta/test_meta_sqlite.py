"""What is SQLite's own: its file, its pragmas, and how it is locked."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa
import trio

from visor_gateway.errors import AttemptLost, ConfigError, MetadataUnavailable
from visor_gateway.meta import sqlite
from visor_gateway.meta.database import READERS
from visor_gateway.meta.sql import open_metadata


@pytest.fixture
def backend(sqlite_backend):
    return sqlite_backend


async def test_the_file_is_made_for_us_alone(backend):
    async with backend.open():
        for path in backend.directory.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert sorted(path.name for path in backend.directory.iterdir()) == ["master.key", "visor.db"]


@pytest.mark.parametrize("name", ["with space.db", "per%cent%20.db", "quo'te.db", "ünïcode.db"])
async def test_any_file_name_works(tmp_path, make_image, name):
    url = sa.URL.create("sqlite", database=str(tmp_path / name)).render_as_string()
    image = make_image()
    for _ in range(2):
        async with open_metadata(url, tmp_path / "key") as metadata:
            if await metadata.images.get(image.id) is None:
                await metadata.images.insert(image)
    assert (tmp_path / name).is_file()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "rubbish",
        "sqlite://",
        "sqlite:///relative.db",
        "sqlite:///:memory:",
        "sqlite://host/abs",
        "sqlite:////abs/path?mode=ro",
        "mysql://host/db",
        "sqlite+aiosqlite:////abs",
    ],
)
async def test_another_url_is_refused_without_showing_it(tmp_path, url):
    with pytest.raises(ConfigError, match="sqlite:////absolute/path") as caught:
        async with open_metadata(url, tmp_path / "key"):
            pass
    assert "password" not in caught.value.message


@pytest.mark.parametrize("what", ["no directory", "directory", "no database"])
async def test_a_file_that_can_not_be_a_database_is_named(tmp_path, what):
    path = tmp_path / "visor.db"
    if what == "no directory":
        path = tmp_path / "no" / "visor.db"
    elif what == "directory":
        path.mkdir()
    else:
        path.write_bytes(b"this is not a database, but a text of some length\n" * 100)
    with pytest.raises(ConfigError, match=rf"\[metadata\] url: {path}") as caught:
        async with open_metadata(f"sqlite:///{path}", tmp_path / "key"):
            pass
    assert "\n" not in caught.value.message


async def test_a_file_that_is_refused_is_closed_again(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(sa.Engine, "dispose", lambda engine: closed.append(engine.url.database))
    path = tmp_path / "visor.db"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(ConfigError):
        async with open_metadata(f"sqlite:///{path}", tmp_path / "key"):
            pass
    assert closed == [str(path)]


async def test_every_connection_waits_for_others_and_for_the_disk(metadata):
    names = ("synchronous", "foreign_keys", "secure_delete", "journal_mode", "busy_timeout")
    seen = []

    def look(connection):
        barrier.wait(60)
        seen.append([connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names])

    barrier = threading.Barrier(READERS)
    async with trio.open_nursery() as nursery:
        for _ in range(READERS):
            nursery.start_soon(metadata.images._database.read, look)
    barrier = threading.Barrier(1)
    await metadata.images._database.write(look)
    assert seen == [[2, 1, 1, "wal", sqlite.BUSY_SECONDS * 1000]] * (READERS + 1)


async def test_a_database_that_another_process_keeps_locked_is_unavailable_to_writers(backend, make_image, monkeypatch):
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    image, other = make_image(), make_image()
    async with backend.open() as metadata:
        await metadata.images.insert(image)
        blocker = sqlite3.connect(backend.database)
        try:
            blocker.execute("BEGIN IMMEDIATE")
            with pytest.raises(MetadataUnavailable):
                await metadata.images.insert(other)
            assert await metadata.images.get(image.id) == image
        finally:
            blocker.close()
        await metadata.images.insert(other)


async def test_a_start_on_a_locked_database_fails_and_leaves_nothing_open(backend, monkeypatch):
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    async with backend.open():
        pass
    blocker = sqlite3.connect(backend.database)
    try:
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(MetadataUnavailable):
            async with backend.open():
                pass
    finally:
        blocker.close()
    assert sorted(path.name for path in backend.directory.iterdir()) == ["master.key", "visor.db"]


async def test_a_cancelled_block_closes_every_connection(backend, gate):
    with trio.CancelScope() as scope:
        async with backend.open() as metadata, trio.open_nursery() as nursery:
            nursery.start_soon(metadata.images._database.write, gate)
            await gate.entered.wait()
            scope.cancel()
            gate.open()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert sorted(path.name for path in backend.directory.iterdir()) == ["master.key", "visor.db"]


@pytest.mark.real
def test_a_database_that_is_up_to_date_is_opened_without_the_program_of_migrations(tmp_path) -> None:
    script = (
        "import sys, trio\n"
        "from visor_gateway.meta.database import Database\n"
        "async def main():\n"
        f"    await (await Database.open('sqlite:///{tmp_path}/records.sqlite')).aclose()\n"
        "trio.run(main)\n"
        "print('alembic' in sys.modules)\n"
    )
    told = [subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout for _ in range(2)]
    assert told == [b"True\n", b"False\n"]


async def test_what_an_earlier_instance_left_is_over_at_start_and_for_good(metadata, make_image, make_attempt, written):
    earlier, ours = make_attempt(make_image(), "earlier"), make_attempt(make_image(), "ours")
    for attempt in (earlier, ours):
        await metadata.images.begin(attempt, new=make_image(id=attempt.image_id))
    assert await metadata.images.expired(ours="ours") == [earlier]
    assert await metadata.images.renew("earlier") == set()
    with pytest.raises(AttemptLost):
        await metadata.images.commit(earlier, written)
    assert (await metadata.images.commit(ours, written)).status == "available"
