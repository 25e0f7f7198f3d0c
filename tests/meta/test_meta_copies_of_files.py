"""Copies of a SQLite database: whole while others write, kept before a migration, bounded in number."""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from alembic import command
from alembic.config import Config

from visor_gateway.errors import ConfigError, MetadataUnavailable
from visor_gateway.meta import migrations, sqlite_copy
from visor_gateway.meta.migrations import history
from visor_gateway.meta.sql import open_metadata
from visor_gateway.meta.sqlite_copy import KEPT, copy_database, examine_database

OLD = "0002"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database as the second revision left it."""
    path = tmp_path / "visor.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    migrate(path, OLD)
    return path


def migrate(path: Path, target: str) -> None:
    """Bring a database to an older revision than the newest."""
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(history.HERE))
        config.attributes["connection"] = connection
        command.upgrade(config, target)
    engine.dispose()


def query(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def opened(path: Path, work: Callable[[], None] = lambda: None) -> None:
    """Start and end a gateway's use of the database, with some work in between."""

    async def main() -> None:
        async with open_metadata(f"sqlite:///{path}", path.parent / "master.key") as metadata:
            await metadata.accounts.ensure_admin()
            work()

    trio.run(main)


# --- before a migration --------------------------------------------------------------------------


def test_a_migration_keeps_a_copy_of_what_was_there(database: Path) -> None:
    opened(database)
    copy = Path(f"{database}.of-{OLD}")
    assert query(copy, "SELECT version_num FROM alembic_version") == [(OLD,)]
    assert query(database, "SELECT version_num FROM alembic_version") == [(migrations.latest(),)]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert sorted(path.name for path in database.parent.iterdir()) == ["master.key", database.name, copy.name]


def test_the_version_before_starts_on_the_copy(database: Path) -> None:
    opened(database)
    Path(f"{database}.of-{OLD}").replace(database)
    assert examine_database(database, seconds=30).revision == OLD
    opened(database)  # and so does this one, again


def test_a_start_that_migrates_nothing_copies_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        opened(tmp_path / "visor.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["master.key", "visor.db"]


def test_only_the_newest_copies_are_kept(database: Path) -> None:
    for number in range(KEPT + 2):
        Path(f"{database}.of-{number:04}x").write_text("older")
    opened(database)
    copies = sorted(database.parent.glob("*.of-*"))
    assert len(copies) == KEPT
    assert Path(f"{database}.of-{OLD}") in copies


def test_without_room_for_the_copy_nothing_is_migrated(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sqlite_copy, "copy_database", full)
    with pytest.raises(ConfigError, match=r"room for a copy .*No space left") as caught:
        opened(database)
    assert "\n" not in caught.value.message
    assert query(database, "SELECT version_num FROM alembic_version") == [(OLD,)]


def test_a_downgrade_is_refused_in_one_line_that_says_what_to_do(database: Path) -> None:
    opened(database)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(ConfigError, match=rf"revision 9999, this version knows {migrations.latest()}\): run that"):
        opened(database)


# --- copies --------------------------------------------------------------------------------------


def test_a_copy_is_one_state_while_others_write(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE pairs (a INTEGER, b INTEGER, filler TEXT)")
    begun, stop = threading.Event(), threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(source, isolation_level=None)) as connection:
            number = 0
            while not stop.is_set():
                number += 1
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO pairs VALUES (?, NULL, ?)", (number, "x" * 5000))
                connection.execute("UPDATE pairs SET b = a WHERE a = ?", (number,))
                connection.execute("COMMIT")
                if number == 50:
                    begun.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert begun.wait(60)
        for number in range(5):
            copy_database(source, Path(f"{target}{number}"))
    finally:
        stop.set()
        writer.join()
    for number in range(5):
        copy = Path(f"{target}{number}")
        assert query(copy, "PRAGMA integrity_check") == [("ok",)]
        assert query(copy, "SELECT count(*) FROM pairs WHERE b IS NOT a") == [(0,)]
        assert query(copy, "SELECT count(*) >= 50, count(*) = max(a) FROM pairs") == [(1, 1)]


def test_a_copy_never_overwrites(database: Path, tmp_path: Path) -> None:
    target = tmp_path / "taken"
    target.write_text("somebody's")
    with pytest.raises(FileExistsError):
        copy_database(database, target)
    assert target.read_text() == "somebody's"


@pytest.mark.parametrize("content", [None, b"no database" * 1000], ids=["missing", "something else"])
def test_what_is_no_database_leaves_no_copy(tmp_path: Path, content: bytes | None) -> None:
    source = tmp_path / "source"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(MetadataUnavailable):
        copy_database(source, tmp_path / "target")
    with pytest.raises(MetadataUnavailable):
        examine_database(source, seconds=30)
    assert not (tmp_path / "target").exists()


# --- a look --------------------------------------------------------------------------------------


def test_a_look_changes_nothing_whether_or_not_somebody_has_it_open(tmp_path: Path) -> None:
    def look() -> None:
        state = examine_database(path, seconds=30)
        assert (state.revision, state.problems, state.checked) == (migrations.latest(), (), True)
        assert len(state.key_ids) == 1

    def files() -> dict[Path, tuple[int, int]]:
        return {each: (each.stat().st_size, each.stat().st_mtime_ns) for each in tmp_path.iterdir()}

    path = tmp_path / "visor.db"
    opened(path)
    before = files()
    look()
    assert files() == before
    opened(path, look)


def test_a_look_that_takes_too_long_says_so(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_copy, "_PROGRESS_STEPS", 1)
    assert not examine_database(database, seconds=-1).checked


def test_a_row_that_refers_to_nothing_is_found(database: Path) -> None:
    opened(database)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(
            "INSERT INTO locations (image_id, store, position, location, attempt_id, verified_at)"
            " VALUES ('gone', 's3', 1, 'x', 'y', 'z')"
        )
        connection.commit()
    assert examine_database(database, seconds=30).problems == ("a row of locations refers to one that is not there",)
