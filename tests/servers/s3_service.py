"""What the starters of S3 servers share: free ports, processes that end with the tests, and one running service."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from visor_gateway.store.s3_answers import children, parse, text
from visor_gateway.store.s3_signing import UNSIGNED, Signer

START_SECONDS = 60.0
STOP_SECONDS = 60.0


@dataclass
class S3Service:
    """A running S3 server.

    Attributes:
        endpoint: Its URL.
        access_key, secret_key: Of the account whose buckets are used.
        log: What its processes said.
    """

    name: str
    endpoint: str
    access_key: str
    secret_key: str
    directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    started: list[tuple[tuple[object, ...], Mapping[str, str] | None]] = field(default_factory=list)

    def run(self, *command: object, environ: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a process of the service."""
        self.started.append((command, environ))
        log = self.directory / f"log{len(self.processes)}"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environ or {})},
                cwd=self.directory,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def until(self, ready: Callable[[], bool], what: str) -> None:
        """Wait for `ready`; the log of a server that never is tells why."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            ended = [process for process in self.processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(log.read_text("utf-8", "replace")[-1500:] for log in self.directory.glob("log*"))
                self.stop()
                raise AssertionError(f"{self.name}: {what}: never\n{logs}")
            time.sleep(0.05)

    def make_bucket(self, name: str) -> None:
        """Make a bucket as soon as the server can. One that is there already is as good."""
        self.until(lambda: self._makes(name), f"makes the bucket {name}")

    def objects(self, bucket: str) -> list[str]:
        """Keys of the objects in a bucket, and of the uploads under way."""
        signer = Signer("v4", self.access_key, self.secret_key, "us-east-1")
        found = []
        for query, kind in (("", "Contents"), ("?uploads", "Upload")):
            answer = self.ask(signer, "GET", f"/{bucket}{query}")
            found += [text(item, "Key") for item in children(parse(answer), kind)]
        return [key for key in found if not key.endswith("/")]

    def ask(self, signer: Signer, method: str, path: str, data: bytes | None = None) -> bytes:
        """A signed request. Raises HTTPError, closed, for any status but 2xx."""
        headers = signer.sign(method, self.endpoint + path, {"Content-Type": "text/plain"}, UNSIGNED)
        request = urllib.request.Request(self.endpoint + path, method=method, headers=headers, data=data)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            raise

    def _makes(self, name: str) -> bool:
        try:
            self.ask(Signer("v4", self.access_key, self.secret_key, "us-east-1"), "PUT", f"/{name}", b"")
        except urllib.error.HTTPError as error:
            return error.code == 409
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to all processes; what they wrote stays, for `restart`."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait(STOP_SECONDS)
        self.processes.clear()

    def restart(self) -> None:
        """Start again what was killed. Does not wait until it answers."""
        commands, self.started = self.started, []
        for command, environ in commands:
            self.run(*command, environ=environ)

    def stop(self) -> None:
        """End all processes, and remove what they wrote."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def service(name: str, port: int, access_key: str, secret_key: str) -> S3Service:
    """A service in a throw-away directory; nothing runs yet."""
    directory = Path(tempfile.mkdtemp(prefix=f"visor-{name}-"))
    return S3Service(name, f"http://127.0.0.1:{port}", access_key, secret_key, directory)


def program(name: str, *, places: Sequence[Path] = ()) -> Path:
    """Where a program is; a test that needs one that is not installed is skipped."""
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=os.pathsep.join([*map(str, places), str(beside), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return Path(found)


def free_base(*offsets: int) -> int:
    """A port of which those at the given offsets are free, too: below those that the kernel gives to clients."""
    for base in range(21000 + os.getpid() % 300 * 37, 32700, 23):
        if all(_is_free(base + offset) for offset in offsets):
            return base
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def listens(port: int) -> bool:
    """Whether somebody accepts connections."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0
