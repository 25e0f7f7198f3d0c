"""The backends that the contract suite runs against, and makers of what it stores.

A backend opens the same metadata as often as asked, as several gateways would, and can make a lease run out.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
import threading
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from roles import KEY, Role, serving
from servers.postgresql import PostgreSQL, start
from servers.visor_auth import AuthServer
from servers.visor_http import opened
from servers.visor_meta import MetaServer

import visor_gateway
from visor_gateway.image import Image
from visor_gateway.meta.contract import Attempt, Written
from visor_gateway.meta.sql import Metadata, open_metadata
from visor_gateway.meta.visor.accounts import open_accounts
from visor_gateway.meta.visor.opening import CatalogueMetadata, open_catalogue

#: The modules about what may be at a Meta or Auth server: VISOR's, or another gateway's role. What other modules are
#: about is always in the local database.
CATALOGUED = {
    "test_meta_images": ("visor", "role"),
    "test_meta_attempts": ("visor", "role"),
    "test_meta_copies": ("visor",),
    "test_meta_learned": ("visor",),
    "test_meta_scrub": ("visor",),
    "test_meta_accounts": ("auth", "auth_role"),
    "test_meta_credentials": ("auth",),
}


class SqliteBackend:
    """A SQLite database in a directory of its own.

    Attributes:
        has_own_users: Whether users, not admins alone, are in it.
    """

    has_own_users = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database = directory / "visor.db"
        self.master_key = directory / "master.key"
        self.url = f"sqlite:///{self.database}"

    def open(self) -> AbstractAsyncContextManager[Metadata]:
        return open_metadata(self.url, self.master_key)

    def run(self, *statements: str) -> None:
        """Change the database behind the gateway's back."""
        connection = sqlite3.connect(self.database)
        try:
            for statement in statements:
                connection.execute(statement)
            connection.commit()
        finally:
            connection.close()

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.database)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def tables(self) -> list[str]:
        return [name for (name,) in self.query("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]

    def contents(self) -> list[bytes]:
        """Its files, for a thief to look through."""
        found = [path.read_bytes() for path in self.directory.iterdir() if path.name.startswith("visor.db")]
        assert len(found) == 3  # database, write-ahead log, shared memory
        return found

    def leave_lease(self, attempt: Attempt, seconds: int) -> None:
        """What waiting until so much of its lease is left would do."""
        end = f"strftime('%Y-%m-%dT%H:%M:%f', 'now', '{seconds:+} seconds') || '000Z'"
        self.run(f"UPDATE attempts SET expires_at = {end} WHERE attempt_id = '{attempt.attempt_id}'")


class PostgresBackend:
    """A database of its own in a real PostgreSQL."""

    has_own_users = True

    def __init__(self, directory: Path, server: PostgreSQL, database: str) -> None:
        self.directory = directory
        self.master_key = directory / "master.key"
        self.server = server
        self.database = database
        self.url = server.url(database)

    def open(self) -> AbstractAsyncContextManager[Metadata]:
        return open_metadata(self.url, self.master_key)

    def run(self, *statements: str) -> None:
        """Change the database behind the gateway's back."""
        self.server.run(self.database, *statements)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        return self.server.query(self.database, statement)

    def tables(self) -> list[str]:
        return [
            name for (name,) in self.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        ]

    def contents(self) -> list[bytes]:
        """All that its tables hold, for a thief to look through."""
        rows = [row for table in self.tables() for row in self.query(f"SELECT * FROM {table}")]
        assert rows
        return [value if isinstance(value, bytes) else str(value).encode() for row in rows for value in row]

    def leave_lease(self, attempt: Attempt, seconds: int) -> None:
        """What waiting until so much of its lease is left would do."""
        moment = f"timezone('UTC', clock_timestamp()) + interval '{seconds} seconds'"
        end = f"""to_char({moment}, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
        self.run(f"UPDATE attempts SET expires_at = {end} WHERE attempt_id = '{attempt.attempt_id}'")


class VisorBackend(SqliteBackend):
    """A VISOR Meta server, and a SQLite database for what it can't keep. It is asked at every read."""

    def __init__(self, directory: Path, server: MetaServer | None, server_url: str) -> None:
        super().__init__(directory)
        self.server = server
        self.server_url = server_url

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[CatalogueMetadata, None]:
        async with open_catalogue(self.server_url, self.url, self.master_key) as metadata:
            metadata.catalogue.poll_seconds = 0
            yield metadata


class AuthBackend(SqliteBackend):
    """An Auth server of VISOR's, or another gateway's role, and a SQLite database. It is asked at every read."""

    has_own_users = False

    def __init__(self, directory: Path, server: AuthServer | None, server_url: str) -> None:
        super().__init__(directory)
        self.server = server
        self.server_url = server_url
        self.stale_if_error = 0.0
        self.users: Any = None  # what is known of the server's users, of the last that was opened

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Metadata, None]:
        async with (
            super().open() as metadata,
            open_accounts(self.server_url, metadata, stale_if_error=self.stale_if_error) as self.users,
        ):
            self.users.fresh_seconds = -1
            self.users.rest_seconds = 0
            self.users._server.document_seconds = 60.0
            yield metadata


Backend = SqliteBackend | PostgresBackend | VisorBackend


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    server = start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def sqlite_backend(tmp_path: Path) -> SqliteBackend:
    return SqliteBackend(tmp_path)


@pytest.fixture
def postgres_backend(tmp_path: Path, postgresql: PostgreSQL) -> Iterator[PostgresBackend]:
    with postgresql.database() as name:
        yield PostgresBackend(tmp_path, postgresql, name)


@pytest.fixture
def meta_server() -> Iterator[MetaServer]:
    with opened(MetaServer) as server:
        yield server


@pytest.fixture
def visor_backend(tmp_path: Path, meta_server: MetaServer, monkeypatch: pytest.MonkeyPatch) -> VisorBackend:
    monkeypatch.setattr("visor_gateway.meta.visor.images.TELL_SECONDS", 60.0)
    return VisorBackend(tmp_path, meta_server, meta_server.url)


@pytest.fixture(scope="session")
def meta_role(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    with serving(tmp_path_factory.mktemp("role"), "meta") as role:
        yield role


@pytest.fixture
def role_backend(tmp_path: Path, meta_role: Role, monkeypatch: pytest.MonkeyPatch) -> VisorBackend:
    """The same, with another gateway's role `meta` in the place of VISOR's server."""
    monkeypatch.setattr("visor_gateway.meta.visor.images.TELL_SECONDS", 60.0)
    assert meta_role.gateway.admin.delete("/all").status in {200, 404}
    return VisorBackend(tmp_path, None, meta_role.url.replace("http://", f"visor+http://:{KEY}@"))


@pytest.fixture
def auth_server() -> Iterator[AuthServer]:
    with opened(AuthServer) as server:
        yield server


@pytest.fixture
def auth_backend(tmp_path: Path, auth_server: AuthServer) -> AuthBackend:
    return AuthBackend(tmp_path, auth_server, auth_server.url)


@pytest.fixture(scope="session")
def auth_role(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Role, Path]]:
    directory = tmp_path_factory.mktemp("auth")
    with serving(directory, "auth") as role:
        yield role, directory


@pytest.fixture
def auth_role_backend(tmp_path: Path, auth_role: tuple[Role, Path]) -> AuthBackend:
    """The same, with another gateway's role `auth` in the place of VISOR's server. It forgets all former users."""
    role, directory = auth_role
    [database] = directory.glob("**/visor.sqlite3")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("DELETE FROM accounts WHERE access_key != 'admin'")
        connection.commit()
    return AuthBackend(tmp_path, None, role.url.replace("http://", f"visor+http://:{KEY}@"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames and not hasattr(metafunc.module, "backend"):
        shared = CATALOGUED.get(metafunc.module.__name__.rpartition(".")[2], ())
        metafunc.parametrize("backend", ("sqlite", "postgres", *shared), indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.getfixturevalue(f"{request.param}_backend")


@pytest.fixture
async def metadata(backend: Backend) -> AsyncGenerator[Metadata, None]:
    async with backend.open() as opened:
        yield opened


@pytest.fixture
def killed() -> Callable[..., Awaitable[bytes]]:
    """Runs a Python program that ends by SIGKILL, and returns what it printed before."""

    async def run(program: str, *arguments: str) -> bytes:
        environment = os.environ | {"PYTHONPATH": str(Path(visor_gateway.__file__).parents[1])}
        with trio.fail_after(60):
            child = await trio.run_process(
                [sys.executable, "-c", program, *arguments],
                env=environment,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        assert child.returncode == -signal.SIGKILL, child.stderr.decode()
        return child.stdout

    return run


class Gate:
    """Work that stays in its thread until it is let go."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._leave = threading.Event()

    def __call__(self, connection: sa.Connection) -> str:
        self._token.run_sync_soon(self.entered.set)
        assert self._leave.wait(60)
        connection.execute(sa.text("CREATE TABLE done (x integer)"))
        return "outcome"

    def open(self) -> None:
        self._leave.set()


@pytest.fixture
async def gate() -> Gate:
    return Gate()


@pytest.fixture
def make_image() -> Callable[..., Image]:
    def make(**fields: object) -> Image:
        values = {
            "id": str(uuid.uuid4()),
            "name": "Debian",
            "architecture": "x86_64",
            "owner": "alice",
            "created_at": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        }
        return Image(**{**values, **fields})  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_attempt() -> Callable[..., Attempt]:
    def make(image: Image, instance_id: str = "instance-1", **fields: object) -> Attempt:
        attempt_id = str(uuid.uuid4())
        values = {
            "image_id": image.id,
            "attempt_id": attempt_id,
            "instance_id": instance_id,
            "store": "file",
            "location": f"file:///images/{image.id}/{attempt_id}",
        }
        return Attempt(**{**values, **fields})  # type: ignore[arg-type]

    return make


@pytest.fixture
def written() -> Written:
    return Written(size=4096, checksum="c" * 64, sha256="c" * 64, validator="1-2-3")
