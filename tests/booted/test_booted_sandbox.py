"""What the service may do, as systemd judges it, and that all it needs works there."""

from __future__ import annotations

import re
import secrets
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import nginx
from servers.systemd import SERVICE, SOCKETS, Machine, serving, shipped_drop_in
from wire import eventually

# On a busy machine the start of a service alone takes tens of seconds.
pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

HIGHEST_EXPOSURE = 1.5
IMAGE = secrets.token_bytes(8 << 20)
WAYS = ("sendfile", "splice", "fallocate", "sync_file_range")


@contextmanager
def traced(pid: int, output: Path) -> Generator[None]:
    """Record how a process and its threads move bytes."""
    calls = ",".join((*WAYS, "setpriority", "prlimit64"))
    command = ["strace", "-f", "-o", str(output), "-e", f"trace={calls}", "-p", str(pid)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        assert "attached" in process.stderr.readline()
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_systemd_has_nothing_to_say_against_the_units_and_finds_them_sealed(machine: Machine) -> None:
    for name in ("limits", "fixed-user"):
        machine.drop_in(name, shipped_drop_in(name))
    places = [f"/etc/systemd/system/{name}" for name in (SERVICE, *SOCKETS)]
    # It exits with 0 whatever it finds.
    assert machine.run("systemd-analyze", "verify", *places).stderr == ""
    with serving(machine, drop_ins={"limits": shipped_drop_in("limits")}):
        assert machine.show("MemoryMax", "CPUWeight", "IOWeight") == {
            "MemoryMax": str(4 << 30),
            "CPUWeight": "50",
            "IOWeight": "50",
        }
        judged = machine.run("systemd-analyze", "security", "--offline=no", SERVICE).stdout
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", judged)
    assert exposure
    assert float(exposure[1]) <= HIGHEST_EXPOSURE, judged


@pytest.mark.parametrize("user", ["dynamic", "fixed"])
def test_bytes_take_the_shortest_ways_of_the_kernel_inside_the_sandbox(
    machine: Machine, user: str, tmp_path: Path
) -> None:
    config = '[locations]\nallow_hosts = ["127.0.0.1"]\n[stores]\nverify_direct_pulls = false\n'
    drop_ins = {}
    if user == "fixed":
        machine.run("systemd-sysusers", "--inline", "u visor-gateway - - /var/lib/visor-gateway")
        drop_ins["fixed-user"] = shipped_drop_in("fixed-user")
    with serving(machine, config=config, drop_ins=drop_ins) as gateway, nginx.start(tmp_path / "origin") as origin:
        assert machine.property("DynamicUser") == ("yes" if user == "dynamic" else "no")
        (origin.files / "image").write_bytes(IMAGE)
        reference = gateway.admin.add(location=f"{origin.url}/image", store="http").image
        # The first complete read pins its digest.
        assert gateway.admin.get(f"/images/{reference['_id']}").body == IMAGE
        with traced(machine.main_pid(), tmp_path / "calls"):
            # More than is written before the disk is told to begin.
            own = gateway.admin.add(IMAGE * 5).image
            assert gateway.admin.get(f"/images/{own['_id']}").body == IMAGE * 5
            assert gateway.admin.get(f"/images/{reference['_id']}").body == IMAGE
            eventually(lambda: not gateway.admin.get("/transfers").json()["transfers"])
        calls = (tmp_path / "calls").read_text()
        for way in WAYS:
            assert re.search(rf"{way}\(.* = \d", calls) or re.search(rf"{way} resumed>.* = \d", calls), (way, calls)
        assert "EPERM" not in calls


def test_a_state_directory_passes_to_a_fixed_user_and_back(machine: Machine) -> None:
    machine.run("systemd-sysusers", "--inline", "u visor-gateway - - /var/lib/visor-gateway")
    with serving(machine) as gateway:
        image = gateway.admin.add(IMAGE).image
        for text in (shipped_drop_in("fixed-user"), "[Service]\nDynamicUser=yes\n"):
            machine.drop_in("fixed-user", text)
            machine.systemctl("restart", SERVICE)
            assert gateway.admin.get(f"/images/{image['_id']}").body == IMAGE
            owner = machine.run("stat", "--format=%U", "--dereference", "/var/lib/visor-gateway").stdout.strip()
            assert owner == "visor-gateway"
