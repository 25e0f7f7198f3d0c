"""A migration in a process of its own: the database is up to date, and nothing of it stays in this process."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from visor_gateway.errors import ConfigError
from visor_gateway.meta.migrations import apart, latest
from visor_gateway.meta.sql import open_metadata

FIRST_START = """
import os, sys, threading
from pathlib import Path
import trio
from visor_gateway.meta.migrations import apart
from visor_gateway.meta.sql import open_metadata
place = Path(sys.argv[1])
held = os.open(place / "lock", os.O_CREAT | os.O_RDWR)
apart.upgrade(f"sqlite:///{place}/db.sqlite")
os.fstat(held)  # only the fork has closed it

async def main():
    async with open_metadata(f"sqlite:///{place}/db.sqlite", place / "master.key") as metadata:
        await metadata.check()

trio.run(main)
assert "alembic" not in sys.modules
"""


def revision(path: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchall()


def program(code: str, place: Path) -> None:
    subprocess.run([sys.executable, "-c", code, str(place)], check=True, timeout=60)


def test_the_first_start_loads_no_alembic(tmp_path: Path) -> None:
    program(FIRST_START, tmp_path)
    database = tmp_path / "db.sqlite"
    assert revision(database) == [(latest(),)]
    assert database.stat().st_mode & 0o777 == 0o600


async def test_a_database_that_is_up_to_date_needs_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/db.sqlite"
    async with open_metadata(url, tmp_path / "master.key"):
        pass
    monkeypatch.setattr("os.fork", None)
    apart.upgrade(url)


@pytest.mark.parametrize(
    "url", ["postgresql://user:password@127.0.0.1:1/name", "sqlite:///relative", "sqlite://host/x"]
)
def test_anything_but_a_sqlite_file_is_left_alone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fork", None)
    apart.upgrade(url)


async def test_what_is_no_database_is_left_to_whoever_opens_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "db.sqlite").write_bytes(b"no database " * 1000)
    url = f"sqlite:///{tmp_path}/db.sqlite"
    apart.upgrade(url)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ConfigError, match="not a database"):
        async with open_metadata(url, tmp_path / "master.key"):
            pass


NEWER = """
import sys
from visor_gateway.meta.migrations import apart
apart.upgrade(f"sqlite:///{sys.argv[1]}/db.sqlite")
"""


async def test_a_schema_of_a_newer_version_stays_as_it_is(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/db.sqlite"
    async with open_metadata(url, tmp_path / "master.key"):
        pass
    with closing(sqlite3.connect(tmp_path / "db.sqlite")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    program(NEWER, tmp_path)
    assert revision(tmp_path / "db.sqlite") == [("9999",)]
