"""`start`, `stop`, `restart`, `status` and `clean` with the real daemon in the background."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from visor_gateway.datadir import lock_holder

pytestmark = pytest.mark.real

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Iterator[Run]:
    """Run `visor-gateway COMMAND --data-dir data ...`; what still runs at the end is cut."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(command: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "visor_gateway", command, "--data-dir", str(data), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            cwd=tmp_path,
            env=environ | variables,
            check=False,
        )

    yield run
    assert run("stop", "--cut", "--timeout", "80").returncode == 0


@pytest.fixture
def bind() -> Iterator[tuple[str, str]]:
    """`--bind` with a port that stays ours: bound here, though not listening, while the daemon listens on it."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield "--bind", f"127.0.0.1:{reserved.getsockname()[1]}"


def status(run: Run) -> dict[str, object]:
    document = json.loads(run("status", "--json").stdout)
    assert isinstance(document, dict)
    return document


def test_start_returns_when_the_daemon_serves_and_stop_when_it_is_gone(
    run: Run, data: Path, bind: tuple[str, str]
) -> None:
    started = run("start", *bind, PYTHONWARNINGS="always::ResourceWarning")
    assert (started.returncode, started.stderr) == (0, "")
    pid = lock_holder(data)
    assert f"process {pid}" in started.stdout
    with urllib.request.urlopen(f"http://{bind[1]}/ready") as answer:
        assert answer.status == 200
    assert status(run) == {"running": True, "systemd": False, "pid": pid, "data_dir": str(data)}
    assert run("status").stdout == f"visor-gateway is running as process {pid}\n"

    stopped = run("stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"visor-gateway has ended, it was process {pid}\n")
    assert lock_holder(data) is None
    assert run("status").returncode == 1


def test_a_second_start_and_clean_leave_a_running_daemon_alone(run: Run, data: Path, bind: tuple[str, str]) -> None:
    assert run("start", *bind).returncode == 0
    pid = lock_holder(data)
    for command in ("start", "serve", "clean"):
        refused = run(command, *(bind if command != "clean" else ()))
        assert refused.returncode == 1
        assert f"is used by process {pid}" in refused.stderr
    assert lock_holder(data) == pid
    assert (data / "gateway.log").exists()


def test_restart_ends_one_daemon_and_starts_another(run: Run, data: Path, bind: tuple[str, str]) -> None:
    assert run("restart", *bind).returncode == 0
    first = lock_holder(data)
    assert run("restart", *bind).returncode == 0
    assert lock_holder(data) not in (None, first)


def test_restart_with_a_wrong_configuration_leaves_the_daemon_running(
    run: Run, data: Path, bind: tuple[str, str], tmp_path: Path
) -> None:
    assert run("start", *bind).returncode == 0
    pid = lock_holder(data)
    (tmp_path / "x.toml").write_text("[nonsense]")
    assert run("restart", "--config", "x.toml").returncode == 1
    assert lock_holder(data) == pid


def test_start_tells_why_the_daemon_did_not_start(run: Run, data: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = run("start", "--bind", f"127.0.0.1:{taken.getsockname()[1]}")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith("visor-gateway: did not start: ")
    assert str(taken) not in line
    assert "Traceback" not in (data / "gateway.log").read_text()
    assert lock_holder(data) is None


def test_clean_removes_logs_and_keeps_everything_else(run: Run, data: Path, bind: tuple[str, str]) -> None:
    assert run("start", *bind).returncode == 0
    assert run("stop").returncode == 0
    before = {path for path in data.rglob("*") if path.is_file()}
    assert data / "gateway.log" in before
    assert run("clean").stdout == f"{data / 'gateway.log'}: removed\n"
    assert {path for path in data.rglob("*") if path.is_file()} == before - {data / "gateway.log"}


def test_the_log_of_the_daemon_is_for_its_owner_alone(run: Run, data: Path, bind: tuple[str, str]) -> None:
    assert run("start", *bind).returncode == 0
    assert (data / "gateway.log").stat().st_mode & 0o077 == 0
    secret = next(line for line in (data / "admin.toml").read_text().splitlines() if line.startswith("secret_key"))
    assert secret.split('"')[1] not in (data / "gateway.log").read_text()
