"""What is installed, what starts it, and what stands in the tree."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from visor_gateway import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNITS = tuple(sorted(path.name for kind in ("service", "socket") for path in (ROOT / "systemd").glob(f"*.{kind}")))


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


@pytest.mark.parametrize("program", ["visor-gateway", "visor", "visor-admin"])
def test_each_console_script_leads_to_a_command_with_its_name_and_version(program: str, tmp_path: Path) -> None:
    module, _, function = PROJECT["scripts"][program].partition(":")
    code = f"import sys, {module}; sys.argv[0] = {program!r}; {module}.{function}()"
    shown = subprocess.run(
        [sys.executable, "-c", code, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout == f"{program}, version {__version__}\n"


def test_what_is_installed_is_this_version() -> None:
    assert importlib.metadata.version("visor-gateway") == __version__


def test_hypercorn_is_pinned_to_the_minor_whose_streams_we_drive() -> None:
    (pin,) = (requirement for requirement in PROJECT["dependencies"] if requirement.startswith("hypercorn"))
    assert re.fullmatch(r"hypercorn~=\d+\.\d+\.\d+", pin)
    assert importlib.metadata.version("hypercorn").split(".")[:2] == pin.partition("~=")[2].split(".")[:2]


def test_make_alone_lists_what_there_is() -> None:
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert [line.split()[1] for line in listed.splitlines()][:2] == ["help", "run"]


def test_make_tells_where_there_is_no_fitting_python(tmp_path: Path) -> None:
    command = ["make", "-s", f"VENV={tmp_path}/venv", f"PYTHON={tmp_path}/python", "lint"]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert failed.returncode != 0
    assert "Python 3.11 or later" in failed.stderr


@pytest.mark.parametrize("path", [".ci/run"])
def test_scripts_are_valid_and_can_be_run(path: str) -> None:
    script = ROOT / path
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True, timeout=60)


# --- systemd ---------------------------------------------------------------------------------------


def test_systemd_has_nothing_to_say_against_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for name in UNITS:
        text = (ROOT / "systemd" / name).read_text()
        # The program that the unit starts must be there, which it is where the unit is used.
        (tmp_path / name).write_text(text.replace("/opt/visor-gateway/current/bin/visor-gateway", "/bin/true"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", *(tmp_path / name for name in UNITS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    # It exits with 0 whatever it finds.
    assert (checked.returncode, checked.stderr) == (0, "")


def unit(name: str) -> dict[str, str]:
    lines = (ROOT / "systemd" / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_units_keep_what_the_daemon_relies_on() -> None:
    service = unit("visor-gateway.service")
    assert service["Type"] == "notify"
    assert service["DynamicUser"] == "yes"
    assert (
        service["StateDirectory"] == service["CacheDirectory"] == service["ConfigurationDirectory"] == "visor-gateway"
    )
    assert service["StateDirectoryMode"] == "0700"
    assert int(service["LimitNOFILE"]) >= 4096 * 3 + 128
    assert int(service["WatchdogSec"]) > 0
    listening = {}
    for name in service["Sockets"].split():
        socket = unit(name)
        assert (socket["Backlog"], socket["Service"]) == ("4096", "visor-gateway.service")
        listening[socket["FileDescriptorName"]] = socket["ListenStream"]
    assert listening == {"http": "127.0.0.1:4568", "tls": "127.0.0.1:4569", "unix": "/run/visor-gateway.sock"}
