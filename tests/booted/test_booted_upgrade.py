"""Reload, upgrade in place and restart under a real systemd: not one pull fails, and nobody who connects is refused."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable

import pytest
from servers.systemd import Machine, configure, serving
from wire import Client, Reset, Short, eventually

pytestmark = pytest.mark.real

PULLS = 20
SECONDS = 30
RATE = 100_000  # bytes per second of each pull
LARGE = secrets.token_bytes(RATE * SECONDS)
SMALL = secrets.token_bytes(10_000)
CONFIG = f"[limits]\nbytes_per_s_per_transfer = {RATE}\n"
UPGRADE = ("/opt/visor-gateway/current/bin/visor-gateway", "upgrade")


class Pulls:
    """Threads that pull. Those that fail are remembered."""

    def __init__(self, machine: Machine, client: Client) -> None:
        self._machine, self._client = machine, client
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()
        self.done = 0
        self.failures: list[object] = []

    def _pull(self, path: str, data: bytes) -> None:
        try:
            with self._machine.network():
                answer = self._client.get(path)
            if answer.status != 200 or answer.body != data:
                self.failures.append((path, answer.status))
        except (OSError, Reset, Short) as error:
            self.failures.append((path, error))
        self.done += 1

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments)
        thread.start()
        self._threads.append(thread)

    def begin(self, path: str, data: bytes) -> None:
        self._start(self._pull, path, data)

    def go_on(self, path: str, data: bytes) -> None:
        """A new one every 100 ms, until the end."""

        def run() -> None:
            while not self._over.wait(0.1):
                self.begin(path, data)

        self._start(run)

    def end(self) -> None:
        """Wait for all of them; none may have failed."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        for thread in list(self._threads):
            thread.join()
        assert not self.failures


def running(client: Client) -> int:
    return len(client.get("/transfers?kind=pull").json()["transfers"])


def change(client: Client, wanted: dict[str, object]) -> None:
    for transfer in client.get("/transfers?kind=pull").json()["transfers"]:
        assert client.send_json("PATCH", f"/transfers/{transfer['id']}", wanted).status == 200


def test_reload_upgrade_and_restart_fail_no_pull_and_refuse_nobody(machine: Machine) -> None:
    with serving(machine, config=CONFIG) as gateway:
        admin = gateway.admin
        large = f"/images/{admin.add(LARGE).image['_id']}"
        small = f"/images/{admin.add(SMALL).image['_id']}"
        pulls = Pulls(machine, admin)
        began = time.monotonic()
        for _ in range(PULLS):
            pulls.begin(large, LARGE)
        eventually(lambda: running(admin) >= PULLS)
        pulls.go_on(small, SMALL)
        first = machine.main_pid()
        machine.systemctl("reload", "visor-gateway.service")
        assert machine.main_pid() == first
        configure(machine, "[nonsense]\n")
        machine.systemctl("reload", "visor-gateway.service", check=False)
        machine.wait_until(lambda: "nonsense" in machine.property("StatusText"), "the status to tell of it")
        assert "configuration refused, the old one stays" in machine.messages()
        configure(machine, CONFIG)
        machine.run(*UPGRADE)
        second = machine.main_pid()
        assert second not in {first, 0}
        eventually(lambda: running(admin) >= PULLS)
        assert machine.property("ActiveState") == "active"
        machine.systemctl("restart", "visor-gateway.service", timeout=300)
        assert machine.main_pid() not in {first, second, 0}
        pulls.end()
        assert time.monotonic() - began >= SECONDS / 2
        assert pulls.done > PULLS
        assert admin.get(small).body == SMALL


def test_a_new_process_that_is_killed_is_replaced_and_the_pulls_of_the_old_one_finish(machine: Machine) -> None:
    with serving(machine, config=CONFIG) as gateway:
        admin = gateway.admin
        large = f"/images/{admin.add(LARGE).image['_id']}"
        pulls = Pulls(machine, admin)
        for _ in range(2):
            pulls.begin(large, LARGE)
        eventually(lambda: running(admin) == 2)
        # So that they last as long as this does, on a machine of any speed.
        change(admin, {"paused": True})
        first = machine.main_pid()
        machine.run(*UPGRADE)
        second = machine.main_pid()
        os.kill(second, signal.SIGKILL)
        # Whoever connects meanwhile waits.
        assert admin.get("/ready").status == 200
        machine.wait_until(lambda: machine.main_pid() not in {first, second, 0}, "another process")
        eventually(lambda: running(admin) == 2)
        change(admin, {"paused": False, "limit_bytes_per_s": 1 << 30})
        pulls.end()
        machine.wait_until(lambda: machine.processes() == [machine.main_pid()], "the old process to end")
        assert machine.property("ActiveState") == "active"
