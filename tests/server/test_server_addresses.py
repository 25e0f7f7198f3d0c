"""Where the server listens, and what stops its start."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from edge_peer import hello, open_descriptors, serving

from visor_gateway.errors import ConfigError
from visor_gateway.metrics import Metrics
from visor_gateway.server.bind import open_listeners, split_address
from visor_gateway.server.listen import Server, ServerSettings


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:4568", "127.0.0.1", 4568),
        ("[::1]:0", "::1", 0),
        ("localhost:80", "localhost", 80),
        (":80", None, 80),
    ],
)
def test_addresses_are_host_and_port(address: str, host: str | None, port: int) -> None:
    assert split_address(address) == (host, port)


@pytest.mark.parametrize("address", ["", "localhost", "::1:80", "h:port", "h:65536", "h:-1", "[::1]"])
def test_anything_else_is_a_configuration_error(address: str) -> None:
    with pytest.raises(ConfigError, match="Can't listen on"):
        split_address(address)


async def test_an_address_in_use_stops_the_start_and_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = open_descriptors()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=address):
            await open_listeners(ServerSettings(bind=("127.0.0.1:0", address)))
        assert open_descriptors() == before


async def test_every_address_is_served() -> None:
    async with serving(hello, bind=("127.0.0.1:0", "[::1]:0")) as edge:
        assert [address[0] for address in edge.server.addresses] == ["127.0.0.1", "::1"]
        assert (await edge.ask()).status == 200


async def test_a_socket_that_a_crash_left_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    settings = ServerSettings(bind=(f"unix:{path}",))
    async with serving(hello, bind=settings.bind):
        with pytest.raises(ConfigError):
            await Server(hello, settings, Metrics()).serve()
        assert path.exists()


async def test_a_file_in_the_way_of_a_unix_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="in use"):
        await open_listeners(ServerSettings(bind=(f"unix:{path}",)))
    assert path.read_text() == "precious"
