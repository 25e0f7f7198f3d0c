"""Signals of the daemon as a process: SIGHUP reads the configuration again, SIGTERM drains."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from gateway_process import Gateway, launch, running
from wire import Wire, eventually

pytestmark = pytest.mark.real

CONFIG = '[log]\nlevel = "warning"\n'


def hang_up(gateway: Gateway, text: str) -> None:
    assert gateway.log
    (gateway.log.parent / "visor-gateway.toml").write_text(text)
    os.kill(gateway.pid, signal.SIGHUP)


def test_sighup_applies_the_log_level_and_names_what_waits_for_a_start(tmp_path: Path) -> None:
    with running(tmp_path, config=CONFIG) as gateway:
        assert "serving" not in gateway.logged()
        hang_up(gateway, '[log]\nlevel = "info"\n[cache]\nmax_bytes = 1000000000\n')
        eventually(lambda: "configuration read again" in gateway.logged())
        assert "changes_at_next_start=cache.max_bytes" in gateway.logged()
        assert gateway.client().get("/status").status == 200
        eventually(lambda: "path=/status" in gateway.logged())


def test_sighup_applies_limits_to_what_runs_and_waits(tmp_path: Path) -> None:
    limits = '[log]\nlevel = "info"\n[limits]\nqueue_limit = {}\ntransfers = {}\nbytes_per_s_per_transfer = {}\n'
    with running(tmp_path, config=limits.format(1, 1, 1000)) as gateway:
        admin, size = gateway.admin, 300_000
        head = {"x-image-meta-name": "n", "x-image-meta-architecture": "i386"}
        head |= {"content-type": "application/octet-stream", "content-length": str(size)}

        def upload(wire: Wire) -> None:
            signed = admin.signed("POST", "/images", list(head.items()))
            lines = [b"POST /images HTTP/1.1", *(f"{name}: {value}".encode() for name, value in signed)]
            wire.send(b"\r\n".join([*lines, b"", b""]) + bytes(size))

        with admin.connect() as first, admin.connect() as second:
            upload(first)
            eventually(lambda: admin.get("/transfers").json()["transfers"])
            upload(second)
            eventually(lambda: [t.get("position") for t in admin.get("/transfers").json()["transfers"]] == [None, 1])
            hang_up(gateway, limits.format(1, 2, 0))
            eventually(lambda: not admin.get("/transfers").json()["transfers"])
        assert len(admin.get("/images").json()["images"]) == 2


@pytest.mark.parametrize("bad", ["[log]\nlevel = 7\n", "[nonsense]\n", "not toml"])
def test_a_configuration_that_is_wrong_changes_nothing_and_is_named(tmp_path: Path, bad: str) -> None:
    with running(tmp_path, config=CONFIG) as gateway:
        hang_up(gateway, bad)
        eventually(lambda: "configuration refused, the old one stays" in gateway.logged())
        assert "visor-gateway.toml" in gateway.logged()
        assert gateway.client().get("/status").status == 200


def test_a_second_sigterm_ends_what_the_first_one_lets_finish(tmp_path: Path) -> None:
    gateway = launch(tmp_path)
    size = 16 << 20
    head = {"x-image-meta-name": "n", "x-image-meta-architecture": "i386", "content-type": "application/octet-stream"}
    admin = gateway.admin
    signed = admin.signed("POST", "/images", [*head.items(), ("content-length", str(size))])
    with admin.connect() as wire:
        lines = [b"POST /images HTTP/1.1", *(f"{name}: {value}".encode() for name, value in signed)]
        wire.send(b"\r\n".join([*lines, b"", b""]) + b"x" * 1000)
        eventually(lambda: admin.get("/transfers").json()["transfers"])
        os.kill(gateway.pid, signal.SIGTERM)
        eventually(lambda: "stopping" in gateway.logged())
        assert gateway.is_running()
        assert gateway.stop() == 0
        assert wire.ends() == "reset"


def test_sigterm_again_and_again_ends_with_exit_code_0(tmp_path: Path) -> None:
    """Also one that comes when the drain is over and the process is about to end."""
    gateway = launch(tmp_path)
    assert gateway.process
    code = None
    while code is None:
        os.kill(gateway.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = gateway.process.wait(0.005)
    assert code == 0, gateway.logged()
