"""The protocol with the service manager: notifications, inherited sockets, the watchdog."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import trio
from edge_peer import LAST_GET, hello

from visor_gateway.metrics import Metrics
from visor_gateway.server import systemd
from visor_gateway.server.listen import Server, ServerSettings
from visor_gateway.server.listener import Inherited


@pytest.fixture(params=["path", "abstract"])
def manager(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"\0visor-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        yield sock


def test_notifications_reach_the_manager(manager: socket.socket) -> None:
    assert systemd.is_listening()
    assert systemd.notify(systemd.READY, "STATUS=serving on 127.0.0.1:4568")
    assert systemd.alive()
    assert systemd.extend_timeout(1.5)
    assert systemd.notify(*systemd.reloading())
    received = [manager.recv(4096).decode() for _ in range(4)]
    assert received[:3] == [
        "READY=1\nSTATUS=serving on 127.0.0.1:4568",
        "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=1500000",
    ]
    assert received[3].startswith("RELOADING=1\nMONOTONIC_USEC=")


def test_a_full_or_missing_manager_stops_nothing(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    while systemd.alive():
        pass
    for address in ("", "/nonexistent/notify", "vsock:2:1"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert not systemd.alive()
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not systemd.is_listening()
    assert not systemd.notify(systemd.READY)


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("30000000", "ours", 30.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog_interval(
    usec: str | None, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert systemd.watchdog_interval() == seconds


@pytest.mark.parametrize(("pid", "count"), [("1", "1"), ("", "1"), ("ours", ""), ("ours", "x")])
def test_sockets_of_another_process_are_not_taken(pid: str, count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "ours" else pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_FDNAMES", "a:b")
    assert systemd.listen_fds() == []
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & set(os.environ)


INHERITING = """
import os, socket
os.environ["LISTEN_PID"] = str(os.getpid())
from visor_gateway.server import systemd
try:
    sockets = systemd.listen_fds()
    print([(s.fileno(), s.get_inheritable(), s.getblocking(), name) for s, name in sockets], "LISTEN_FDS" in os.environ)
except OSError as exc:
    print(exc)
"""


@pytest.mark.parametrize(("listening", "names"), [(True, ""), (True, "tls"), (True, "http:more"), (False, "")])
def test_inherited_sockets_are_taken_over_and_checked(listening: bool, names: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        if listening:
            sock.listen()

        def place() -> None:
            os.dup2(sock.fileno(), 3)

        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", INHERITING],
            preexec_fn=place,
            pass_fds=(3,),
            close_fds=True,
            env={**os.environ, "LISTEN_FDS": "1", **({"LISTEN_FDNAMES": names} if names else {})},
            capture_output=True,
            text=True,
            check=False,
        )
    taken = f"[(3, False, False, {names.partition(':')[0]!r})] False"
    expected = taken if listening else "Inherited descriptor 3 is not a listening stream socket"
    assert result.stdout.strip() == expected


async def test_a_server_serves_inherited_sockets_instead_of_its_own() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    port = sock.getsockname()[1]
    server = Server(hello, ServerSettings(bind=("203.0.113.1:1",)), Metrics(), inherited=[Inherited(sock)])
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        assert server.addresses == (("127.0.0.1", port),)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(LAST_GET)
            assert (await stream.receive_some(65536)).endswith(b"hello")
        await server.drain(0)
    assert sock.fileno() == -1
