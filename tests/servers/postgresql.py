"""PostgreSQL (Debian `postgresql`): one server for the tests of a run, and databases in it that are theirs alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest
from servers.s3_service import free_base

START_SECONDS = 60.0
#: Debian keeps each version in a directory of its own, out of PATH.
DEBIAN = Path("/usr/lib/postgresql")


class PostgreSQL:
    """A server that listens on a Unix socket and on a loopback port. Whoever starts it stops it."""

    def __init__(self, programs: Path, directory: Path, port: int) -> None:
        self._programs = programs
        self.directory = directory
        self.port = port
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, also again after `kill`, and wait until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.directory,
            "fsync": "off",
            "shared_buffers": "32MB",
            "max_connections": 200,
            "log_min_messages": "fatal",
        }
        self._server = subprocess.Popen(
            [
                self._programs / "postgres", "-D", self.directory / "data", "-p", str(self.port),
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_user(),
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.run("postgres", "SELECT 1")
            except psycopg.OperationalError:
                assert self._server.poll() is None, "PostgreSQL did not start"
                assert time.monotonic() < deadline, "PostgreSQL does not answer"
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """End it at once, as a crash does: without a word to those who are connected."""
        assert self._server is not None
        # Its children see that it is gone and end; `start` waits until they have let go of the data.
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(START_SECONDS)

    def stop(self) -> None:
        if self._server is not None and self._server.poll() is None:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def url(self, database: str) -> str:
        return f"postgresql://visor@127.0.0.1:{self.port}/{database}"

    def run(self, database: str, *statements: str) -> None:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def query(self, database: str, statement: str) -> list[tuple]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            return connection.execute(statement).fetchall()

    def url_for(self, directory: Path) -> str:
        """The URL of the database of whoever works in that directory; it is made the first time."""
        name = f"visor_{uuid.uuid5(uuid.NAMESPACE_URL, directory.absolute().as_uri()).hex}"
        with contextlib.suppress(psycopg.errors.DuplicateDatabase):
            self.run("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    @contextlib.contextmanager
    def database(self) -> Generator[str, None, None]:
        """The name of a new, empty database. Its order of text is not that of code points, as is usual."""
        name = f"visor_{uuid.uuid4().hex[:12]}"
        self.run("postgres", f"CREATE DATABASE {name}")
        try:
            yield name
        finally:
            self.run("postgres", f"DROP DATABASE {name} WITH (FORCE)")


def start() -> PostgreSQL:
    """Make a cluster in a directory of its own, and start it. One that is not installed skips the test."""
    programs = _programs()
    directory = Path(tempfile.mkdtemp(prefix="visor-pg"))
    if os.getuid() == 0:
        shutil.chown(directory, "postgres")
    subprocess.run(
        [programs / "initdb", "-D", directory / "data", "-U", "visor", "-A", "trust", "--no-sync", "-E", "UTF8",
         "--locale-provider=icu", "--icu-locale=en", "--locale=C.UTF-8"],
        check=True, capture_output=True, timeout=START_SECONDS, **as_user(),
    )  # fmt: skip
    server = PostgreSQL(programs, directory, free_base(0))
    server.start()
    return server


def as_user() -> dict[str, object]:
    """PostgreSQL refuses to run as root."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}


def _programs() -> Path:
    found = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        pytest.skip("PostgreSQL is not installed")
    return Path(on_path).resolve().parent
