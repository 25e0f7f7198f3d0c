"""The real daemon as a process of its own: start it, learn its address and first user, stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canary import canary
from wire import Client, Reset, Short, eventually, unique

START_SECONDS = 60.0
STOP_SECONDS = 60.0


@dataclass
class Defaults:
    """What a daemon is started with where the test says nothing else.

    Attributes:
        database: The URL of the database of the daemon on this directory; None for the daemon's own default.
        front: What clients reach a daemon of `running` through: from its directory and URL, the URL of a proxy.
    """

    workers: int = 1
    database: Callable[[Path], str] | None = None
    front: Callable[[Path, str], AbstractContextManager[str]] | None = None


defaults = Defaults()


def reserve_port() -> socket.socket:
    """A bound socket that never listens. It keeps its port from others, while a daemon may listen on it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would configure a gateway or its clients."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VISOR", "XDG_"))}
    for name in ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID"):
        kept.pop(name, None)
    return kept | {"PYTHONUNBUFFERED": "1"} | dict(extra or {})


@dataclass
class Gateway:
    """A gateway to test. `data_dir` and `process` are None for one that somebody else runs."""

    url: str
    access_key: str
    secret_key: str
    data_dir: Path | None = None
    log: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    command: list[str] = field(default_factory=list)
    tls: ssl.SSLContext | None = None

    def client(self, access_key: str | None = None, secret_key: str = "", scheme: str = "VISOR-HMAC-SHA256") -> Client:
        return Client(self.url, access_key, secret_key, scheme, self.tls)

    @property
    def admin(self) -> Client:
        return self.client(self.access_key, self.secret_key)

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def new_user(self, prefix: str = "user", role: str | None = None) -> Client:
        """Make an account and return its client."""
        key = unique(prefix)
        document = {"access_key": key, "email": f"{key}@example.org"} | ({"role": role} if role else {})
        answer = self.admin.send_json("POST", "/users", document)
        assert answer.status == 200, (answer.status, answer.body)
        return self.client(key, answer.json()["user"]["secret_key"])

    def logged(self) -> str:
        assert self.log
        return self.log.read_text("utf-8", "replace")

    def is_running(self) -> bool:
        assert self.process
        return self.process.poll() is None

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self.look_through()
        return code

    def kill(self) -> None:
        """SIGKILL: what a crash is like."""
        assert self.process
        self.process.kill()
        self.process.wait(STOP_SECONDS)
        self.look_through()

    def look_through(self) -> None:
        """Look for secrets in what the daemon has written."""
        if self.log:
            canary.look("a log", self.logged())
        if self.data_dir:
            canary.look_through_data(self.data_dir)


def serve_command(data_dir: Path, port: int, config: Path | None = None) -> list[str]:
    """The command line of a daemon."""
    command = [sys.executable, "-m", "visor_gateway", "serve", "--data-dir", str(data_dir)]
    command += ["--bind", f"127.0.0.1:{port}"]
    return command + (["--config", str(config)] if config else [])


def launch(
    directory: Path,
    *,
    config: str | None = None,
    prefix: Sequence[str] = (),
    program: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
    preexec: object = None,
    tls: ssl.SSLContext | None = None,
    workers: int | None = None,
    popen: Callable[..., Any] = subprocess.Popen,
    beside: Gateway | None = None,
) -> Gateway:
    """Start a daemon on `directory`/data and wait until it is ready. The caller stops or kills it.

    Args:
        config: Text of its configuration file.
        prefix: Words before the command, such as strace and its options.
        program: The command without its options, in place of `python -m visor_gateway`.
        preexec: Called in the child before the daemon begins.
        tls: How to speak to a daemon that is configured for TLS.
        workers: How many workers it has; None for what the test run was told.
        popen: What starts the process.
        beside: A gateway that has the same accounts, and so the first user's credentials.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data_dir = directory / "data"
    path = None
    if config is not None:
        path = directory / "visor-gateway.toml"
        path.write_text(config)
    # An environment variable would win over what a test's configuration says.
    count = workers if workers is not None else defaults.workers if defaults.workers > 1 else None
    asked = {} if count is None else {"VISOR_GATEWAY__SERVER__WORKERS": str(count)}
    if defaults.database is not None:
        asked["VISOR_GATEWAY__METADATA__URL"] = defaults.database(data_dir)
    if defaults.front is not None:
        asked["VISOR_GATEWAY__SERVER__TRUSTED_PROXIES"] = "127.0.0.1"
    with reserve_port() as reserved, open(directory / "daemon.log", "ab") as log:
        port = port or reserved.getsockname()[1]
        command = serve_command(data_dir, port, path)
        if program is not None:
            command[:3] = program
        process = popen(
            [*prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=clean_environment(asked | dict(environment or {})),
            cwd=directory,
            preexec_fn=preexec,
        )
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        gateway = Gateway(url, "", "", data_dir, directory / "daemon.log", process, command, tls)
        try:
            wait_ready(gateway)
            if beside is None:
                read_admin(gateway)
            else:
                gateway.access_key, gateway.secret_key = beside.access_key, beside.secret_key
        except BaseException:
            process.kill()
            process.wait()
            raise
    return gateway


def read_admin(gateway: Gateway) -> None:
    """Take the first user's keys from the file that the daemon wrote."""
    assert gateway.data_dir
    path = gateway.data_dir / "admin.toml"
    eventually(path.exists, START_SECONDS, "admin.toml")
    admin = tomllib.loads(path.read_text())
    gateway.access_key, gateway.secret_key = admin["access_key"], admin["secret_key"]
    canary.keep("the first user's secret key", gateway.secret_key)


def wait_ready(gateway: Gateway) -> None:
    """Return once GET /ready answers 200."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert gateway.process is None or gateway.is_running(), f"the daemon ended:\n{gateway.logged()[-4000:]}"
        with contextlib.suppress(OSError, Reset, Short):
            if gateway.client().get("/ready").status == 200:
                return
        assert time.monotonic() < deadline, f"not ready after {START_SECONDS} s:\n{gateway.logged()[-4000:]}"
        time.sleep(0.02)


@contextlib.contextmanager
def running(directory: Path, **options: object) -> Generator[Gateway, None, None]:
    """A daemon for the length of a block; it must then end by SIGTERM with exit code 0."""
    gateway = launch(directory, **options)  # type: ignore[arg-type]
    try:
        with contextlib.ExitStack() as stack:
            if defaults.front is not None and gateway.tls is None:
                gateway.url = stack.enter_context(defaults.front(directory, gateway.url))
            yield gateway
    except BaseException:
        gateway.kill()
        raise
    if gateway.is_running():
        code = gateway.stop()
        assert code == 0, f"exit code {code}:\n{gateway.logged()[-4000:]}"
    gateway.look_through()
    assert "Traceback" not in gateway.logged(), gateway.logged()[-6000:]
    canary.check()


def store_files(gateway: Gateway) -> list[Path]:
    """Every file that the file store holds, temporary ones too."""
    assert gateway.data_dir
    own = {"admin.toml", "master.key"}
    return sorted(
        path
        for path in gateway.data_dir.rglob("*")
        if path.is_file()
        and path.name not in own
        and not path.name.startswith((".lock", "lock"))
        and ".db" not in path.name
        and ".sqlite" not in path.name
        and path.suffix not in {".lock", ".pid"}
    )
