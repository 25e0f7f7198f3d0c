"""Listeners of several roles: each has its own application, whoever opened its socket."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from edge_peer import LAST_GET, hello

from visor_gateway.errors import ConfigError
from visor_gateway.metrics import Metrics
from visor_gateway.server.bind import tls_contexts
from visor_gateway.server.listen import Server, ServerSettings
from visor_gateway.server.listener import Inherited
from visor_gateway.server.settings import RoleSettings

META = RoleSettings(name="meta", bind=("127.0.0.1:0",))


async def meta(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"meta"})


@asynccontextmanager
async def serving(settings: ServerSettings, *inherited: Inherited) -> AsyncGenerator[Server]:
    server = Server(hello, settings, Metrics(), roles={role.name: meta for role in settings.roles}, inherited=inherited)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        try:
            yield server
        finally:
            with trio.move_on_after(10, shield=True):
                await server.drain(0)


def listening(name: str) -> Inherited:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    return Inherited(sock, name)


async def answers(server: Server) -> dict[str, str]:
    """What is served by role; nothing where the connection is reset."""
    found = {}
    for endpoint in server.endpoints:
        assert isinstance(endpoint.address, tuple)
        answer = b""
        with trio.fail_after(60):
            try:
                async with await trio.open_tcp_stream(*endpoint.address) as stream:
                    await stream.send_all(LAST_GET)
                    while data := await stream.receive_some(65536):
                        answer += data
            except (OSError, trio.BrokenResourceError):
                pass
        found[endpoint.role] = answer.rpartition(b"\r\n")[2].decode()
    return found


async def test_each_role_has_its_own_listeners() -> None:
    async with serving(ServerSettings(bind=("127.0.0.1:0",), roles=(META,))) as server:
        assert await answers(server) == {"image": "hello", "meta": "meta"}


async def test_without_images_nothing_else_is_opened() -> None:
    async with serving(ServerSettings(bind=(), serves_images=False, roles=(META,))) as server:
        assert await answers(server) == {"meta": "meta"}


async def test_an_inherited_socket_belongs_to_the_role_that_it_is_named_for() -> None:
    settings = ServerSettings(bind=("203.0.113.1:1",), roles=(RoleSettings(name="meta", bind=("203.0.113.1:2",)),))
    async with serving(settings, listening("http"), listening("meta")) as server:
        assert await answers(server) == {"image": "hello", "meta": "meta"}


@pytest.mark.parametrize(("name", "opened"), [("http", "meta"), ("meta", "image")])
async def test_a_role_without_inherited_sockets_opens_its_own(name: str, opened: str) -> None:
    settings = ServerSettings(bind=("127.0.0.1:0",), roles=(META,))
    inherited = listening(name)
    port = inherited.sock.getsockname()[1]
    async with serving(settings, inherited) as server:
        assert await answers(server) == {"image": "hello", "meta": "meta"}
        assert [endpoint.role for endpoint in server.endpoints if endpoint.address[1] != port] == [opened]


@pytest.mark.parametrize(
    ("settings", "served"),
    [
        (ServerSettings(bind=(), serves_images=False, roles=(META,)), {"image": "", "meta": "meta"}),
        (ServerSettings(bind=("203.0.113.1:1",)), {"image": "hello", "meta": ""}),
    ],
)
async def test_a_socket_of_a_role_that_is_not_served_is_reset(settings: ServerSettings, served: dict[str, str]) -> None:
    """Whoever passed it keeps it open: a client must not wait there."""
    async with serving(settings, listening(""), listening("meta")) as server:
        assert await answers(server) == served


async def test_sockets_are_passed_on_under_the_names_of_their_roles() -> None:
    async with serving(ServerSettings(bind=("127.0.0.1:0",), roles=(META,))) as server:
        passed = server.passed_on()
        assert sorted(passed.values()) == ["", "meta"]
        for fd in passed:
            socket.socket(fileno=fd).close()


async def test_names_of_unix_sockets_go_with_their_role(tmp_path: Path) -> None:
    path = tmp_path / "meta.sock"
    role = RoleSettings(name="meta", bind=(f"unix:{path}",))
    async with serving(ServerSettings(bind=("127.0.0.1:0",), roles=(role,))) as server:
        assert path.exists()
        assert server.endpoints[1].role == "meta"
    assert not path.exists()


async def test_an_address_of_a_role_that_is_taken_stops_the_start() -> None:
    taken = listening("")
    try:
        address = f"127.0.0.1:{taken.sock.getsockname()[1]}"
        settings = ServerSettings(bind=("127.0.0.1:0",), roles=(RoleSettings(name="meta", bind=(address,)),))
        with pytest.raises(ConfigError, match=f"Can't listen on {address}"):
            await Server(hello, settings, Metrics(), roles={"meta": meta}).serve()
    finally:
        taken.sock.close()


def test_files_of_a_role_that_cannot_be_used_are_named(tmp_path: Path, tls_files: Any) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing")
    role = RoleSettings(name="meta", bind=(), tls_certificate=wrong)
    with pytest.raises(ConfigError, match=r"meta_server\.tls_certificate, meta_server\.tls_key"):
        tls_contexts(ServerSettings(roles=(role,)))
    role = RoleSettings(name="meta", bind=(), client_ca=wrong, **tls_files.settings)
    with pytest.raises(ConfigError, match=r"meta_server\.client_ca"):
        tls_contexts(ServerSettings(roles=(role,)))
