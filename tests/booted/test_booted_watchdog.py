"""A process whose event loop no longer runs is replaced: the gateway by systemd, a worker by its supervisor."""

from __future__ import annotations

import os
import signal

import pytest
from servers.systemd import Machine, serving

# On a busy machine the start of a service alone takes tens of seconds.
pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

IMAGE = b"an image of a machine" * 5000
#: Seconds: short for a test, and long enough for a machine that is busy.
WATCHDOG = {"watchdog": "[Service]\nWatchdogSec=5\n"}


def test_a_gateway_whose_loop_is_blocked_is_started_again(machine: Machine) -> None:
    with serving(machine, drop_ins=WATCHDOG) as gateway:
        image = gateway.admin.add(IMAGE).image
        pid = machine.main_pid()
        os.kill(pid, signal.SIGUSR1)
        machine.wait_until(lambda: machine.main_pid() not in {pid, 0}, "another process")
        assert gateway.admin.get(f"/images/{image['_id']}").body == IMAGE
        words = ("visor-gateway.service", "_PID=1")
        machine.wait_until(lambda: "Watchdog timeout" in machine.messages(*words), "the line of the watchdog")


def test_a_worker_whose_loop_is_blocked_is_replaced_alone(machine: Machine) -> None:
    with serving(machine, config="[server]\nworkers = 2\n", drop_ins=WATCHDOG) as gateway:
        image = gateway.admin.add(IMAGE).image
        pid = machine.main_pid()
        blocked, other = [process for process in machine.processes() if process != pid]
        os.kill(blocked, signal.SIGUSR1)

        def is_replaced() -> bool:
            processes = machine.processes()
            return blocked not in processes and len(processes) == 3

        machine.wait_until(is_replaced, "another worker")
        machine.wait_until(lambda: machine.messages().count("worker serves") == 3, "that worker to serve")
        assert {pid, other} < set(machine.processes())
        assert machine.show("MainPID", "NRestarts")["NRestarts"] == "0"
        (entry,) = machine.journal("visor-gateway.service", "VISOR_EVENT=worker replaced")
        assert (entry["VISOR_ENDED_BY"], entry["PRIORITY"]) == ("SIGABRT", "3")
        assert gateway.admin.get(f"/images/{image['_id']}").body == IMAGE
