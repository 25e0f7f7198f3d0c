"""The gateway with its records in a PostgreSQL of its own, on the same host."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from .gateway import QuietGateway
from .machine import BOTH_CORES
from .peer import Absent
from .process import START_SECONDS, ServerFailed, ServerProcess, free_port

#: Debian keeps each version in a directory of its own, out of PATH.
_DEBIAN: Final = Path("/usr/lib/postgresql")


class PostgreSQL:
    """A server with an empty database, as it is by default but for durability, which small reads do not ask for.

    Resource handling: `close` ends it and removes what it stored.
    """

    def __init__(self) -> None:
        programs = _programs()
        self._directory = Path(tempfile.mkdtemp(prefix="visor-benchmarks-postgresql-"))
        self._port = free_port()
        self._process: ServerProcess | None = None
        try:
            if os.getuid() == 0:
                shutil.chown(self._directory, "postgres")
            data = self._directory / "data"
            _run(programs / "initdb", "-D", data, "-U", "visor", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
            command = [programs / "postgres", "-D", data, "-p", self._port, "-c", "fsync=off"]
            command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self._directory}"]
            self._process = ServerProcess(_as_owner(command), self._directory / "log", cores=BOTH_CORES)
            self._process.wait_listening(self._port)
            self._wait_ready(programs / "pg_isready")
        except BaseException:
            self.close()
            raise

    def _wait_ready(self, asking: Path) -> None:
        """It listens before it serves. Raises `ServerFailed`."""
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run([asking, "-h", "127.0.0.1", "-p", str(self._port)], capture_output=True).returncode:
            if time.monotonic() > deadline:
                raise ServerFailed("PostgreSQL does not answer")
            time.sleep(0.05)

    @property
    def url(self) -> str:
        return f"postgresql://visor@127.0.0.1:{self._port}/postgres"

    def close(self) -> None:
        if self._process is not None:
            self._process.stop()
        shutil.rmtree(self._directory, ignore_errors=True)


class PostgreSQLGateway(QuietGateway):
    """The gateway without a line in the log for every request, and with PostgreSQL, which may use both cores."""

    name = "gateway, PostgreSQL"

    def __init__(self, directory: Path) -> None:
        self._database = PostgreSQL()
        self.settings = f'{QuietGateway.settings}\n[metadata]\nurl = "{self._database.url}"'
        try:
            super().__init__(directory)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        super().close()
        self._database.close()


def _programs() -> Path:
    found = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        raise Absent("PostgreSQL is not installed (Debian: apt install postgresql)")
    return Path(on_path).resolve().parent


def _as_owner(command: Sequence[Any]) -> list[str]:
    """The command as one that root may run: PostgreSQL refuses to."""
    words = [str(word) for word in command]
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *words] if os.getuid() == 0 else words


def _run(*command: Any) -> None:
    subprocess.run(_as_owner(command), check=True, capture_output=True, cwd="/")
