"""`visor-gateway` without a daemon: configuration, usage, exit codes, one line for each failure."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from visor_gateway.config import sample

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `visor-gateway` in an empty directory, with a home of its own."""
    (tmp_path / "work").mkdir()
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")}

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "visor_gateway", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path / "work",
            env=environ | variables,
            check=False,
        )

    return run


def failed(result: subprocess.CompletedProcess[str], *expected: str) -> None:
    """It failed with exit code 1 and one line that holds what was expected."""
    assert result.returncode == 1, result
    (line,) = result.stderr.splitlines()
    assert line.startswith("visor-gateway: ")
    for text in expected:
        assert text in line


def test_help_names_every_command(run: Run) -> None:
    result = run("--help")
    assert result.returncode == 0
    for command in ["serve", "init", "check-config", "start", "stop", "restart", "status", "clean", "completion"]:
        assert f"  {command} " in result.stdout
        assert run(command, "--help").returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ("serv",),
        ("serve", "--port", "1"),
        ("serve", "--bind", "nowhere"),
        ("serve", "--bind", "127.0.0.1:99999"),
        ("start", "--timeout", "-1"),
        ("completion",),
        ("completion", "tcsh"),
        ("init", "a", "--config", "b"),
    ],
)
def test_wrong_usage_is_exit_code_2(run: Run, words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.returncode == 2
    assert "Error: " in result.stderr


def test_init_writes_the_sample_for_its_owner_alone_and_check_config_takes_it(run: Run, tmp_path: Path) -> None:
    assert run("init").returncode == 0
    written = tmp_path / "work" / "visor-gateway.toml"
    assert written.read_text() == sample(tmp_path / "home/.local/state/visor-gateway")
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    result = run("check-config", "--config", "visor-gateway.toml")
    assert (result.returncode, result.stdout) == (0, f"{written}: valid\n")


def test_init_refuses_to_overwrite(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("mine")
    for words in (("init", "../mine.toml"), ("init", "--config", "../mine.toml")):
        failed(run(*words), "mine.toml: exists and is not overwritten")
    assert (tmp_path / "mine.toml").read_text() == "mine"


def test_init_tells_where_it_can_not_write(run: Run) -> None:
    failed(run("init", "nowhere/x.toml"), "nowhere/x.toml: can't be written: No such file or directory")


def test_init_prints_to_standard_output(run: Run, tmp_path: Path) -> None:
    assert run("init", "-", "--data-dir", "/var/lib/x").stdout == sample(Path("/var/lib/x"))
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("command", ["check-config", "serve", "start", "restart"])
def test_a_wrong_configuration_ends_every_command_that_reads_it(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "x.toml").write_text('[server]\nmax_connections = "many"')
    result = run(command, "--config", "../x.toml", "--data-dir", "data")
    failed(result, "x.toml: server.max_connections: expected a whole number")
    assert list((tmp_path / "work").iterdir()) == []


def test_check_config_shows_settings_to_machines_without_secrets(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('[metadata]\nurl = "postgresql://u:canary@h/n"')
    result = run(
        "check-config", "--config", "../x.toml", "--json", "--bind", "[::1]:1", VISOR_GATEWAY__LOG__LEVEL="debug"
    )
    document = json.loads(result.stdout)
    assert document["data_dir"] == str(tmp_path / "home/.local/state/visor-gateway")
    assert document["settings"]["server"]["bind"] == ["[::1]:1"]
    assert document["settings"]["log"]["level"] == "debug"
    assert "canary" not in result.stdout + result.stderr


def test_the_configuration_directory_of_the_service_is_looked_into(run: Run, tmp_path: Path) -> None:
    directory = tmp_path / "etc"
    directory.mkdir()
    assert run("check-config", CONFIGURATION_DIRECTORY=str(directory)).stdout == "The configuration: valid\n"
    (directory / "visor-gateway.toml").write_text("[nonsense]")
    failed(run("check-config", CONFIGURATION_DIRECTORY=str(directory)), "visor-gateway.toml: nonsense")
    # A file that is named comes first.
    (tmp_path / "x.toml").write_text("")
    assert run("check-config", "--config", "../x.toml", CONFIGURATION_DIRECTORY=str(directory)).returncode == 0


def test_nothing_runs_in_a_directory_that_nobody_has_used(run: Run, tmp_path: Path) -> None:
    failed(run("status"), "not running on")
    result = run("status", "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["running"] is False
    assert run("stop").returncode == 0
    assert run("clean").stdout == "Nothing to remove\n"
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.returncode == 0
    assert "_VISOR_GATEWAY_COMPLETE" in result.stdout


@pytest.mark.parametrize("command", ["start", "stop", "restart", "clean"])
def test_where_the_unit_is_active_nothing_is_changed(run: Run, tmp_path: Path, command: str) -> None:
    pretend_active(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    (data / "gateway.log").write_text("kept")
    result = run(command, "--data-dir", str(data), PATH=f"{tmp_path}:{os.environ['PATH']}")
    failed(result, "systemd runs the unit visor-gateway: nothing was changed")
    assert [file.name for file in data.iterdir()] == ["gateway.log"]


def test_status_tells_of_the_active_unit(run: Run, tmp_path: Path) -> None:
    pretend_active(tmp_path)
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = run("status", PATH=path)
    assert (result.returncode, "systemd" in result.stdout) == (0, True)
    assert json.loads(run("status", "--json", PATH=path).stdout)["systemd"] is True


def pretend_active(directory: Path) -> None:
    """A `systemctl` that knows one active unit."""
    program = directory / "systemctl"
    program.write_text('#!/bin/sh\n[ "$*" = "is-active --quiet visor-gateway" ]\n')
    program.chmod(0o755)
