"""What the service manager hears of the gateway, and when."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from visor_gateway.announcer import PATIENCE_SECONDS, REFRESH_SECONDS, Announcer


class Manager:
    """A service manager's socket, and the status line of the gateway that speaks to it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.status = "starting"

    def heard(self) -> list[str]:
        """All assignments since the last call."""
        found: list[str] = []
        while True:
            try:
                found += self._sock.recv(4096).decode().split("\n")
            except BlockingIOError:
                return found


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield Manager(sock)


async def test_it_asks_for_patience_until_it_is_ready_and_while_it_drains(
    manager: Manager, autojump_clock: MockClock
) -> None:
    announcer = Announcer(lambda: manager.status)
    patience = f"EXTEND_TIMEOUT_USEC={PATIENCE_SECONDS * 1e6:.0f}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.serve)
        await trio.sleep(0.1)
        assert manager.heard() == ["WATCHDOG=1", patience, "STATUS=starting"]
        manager.status = "serving"
        announcer.ready()
        assert manager.heard() == ["READY=1", "STATUS=serving"]
        # Half of the watchdog's interval, which is shorter here than that of the status line.
        await trio.sleep(1.5)
        assert manager.heard() == ["WATCHDOG=1"]
        manager.status = "draining\nREADY=1"
        announcer.stopping()
        assert manager.heard() == ["STOPPING=1", "STATUS=draining READY=1", patience]
        await trio.sleep(1.5)
        assert manager.heard() == ["WATCHDOG=1", patience]
        nursery.cancel_scope.cancel()


async def test_a_status_that_has_changed_is_told_with_the_next_look(
    manager: Manager, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")
    announcer = Announcer(lambda: manager.status)
    announcer.ready()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.serve)
        await trio.sleep(REFRESH_SECONDS / 2)
        manager.heard()
        manager.status = "serving 2 transfers"
        await trio.sleep(REFRESH_SECONDS)
        assert manager.heard() == ["WATCHDOG=1", "STATUS=serving 2 transfers"]
        nursery.cancel_scope.cancel()


async def test_what_a_full_queue_did_not_take_is_said_again(manager: Manager, autojump_clock: MockClock) -> None:
    announcer = Announcer(lambda: manager.status)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.serve)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    filler.sendto(b"X=1", os.environ["NOTIFY_SOCKET"])
        announcer.ready()
        assert "READY=1" not in manager.heard()
        await trio.sleep(2)
        assert "READY=1" in manager.heard()
        await trio.sleep(2)
        assert "READY=1" not in manager.heard()
        nursery.cancel_scope.cancel()


async def test_a_reload_is_told_with_its_moment(manager: Manager) -> None:
    announcer = Announcer(lambda: manager.status)
    announcer.reloading()
    reloading, moment, status = manager.heard()
    assert (reloading, status) == ("RELOADING=1", "STATUS=starting")
    assert int(moment.removeprefix("MONOTONIC_USEC=")) > 0


async def test_without_a_manager_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    announcer = Announcer(lambda: "serving")
    announcer.ready()
    await announcer.serve()
