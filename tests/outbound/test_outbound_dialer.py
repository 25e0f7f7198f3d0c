"""No denied address is ever connected to."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from faulty_origin import PUBLIC, Network, Origin
from hypothesis import given
from hypothesis import strategies as st
from test_outbound_policy import DENIED_V4, DENIED_V6, inside

from visor_gateway.outbound import AddressDenied, LocationPolicy, Outbound, Unreachable
from visor_gateway.outbound.dialer import CONNECT_SECONDS, Dialer

OTHER = "93.184.215.15"
PRIVATE = "10.0.0.5"


@pytest.fixture
def network(nursery: trio.Nursery) -> Network:
    return Network(nursery)


def dialer(network: Network, policy: LocationPolicy | None = None) -> Dialer:
    return Dialer(policy or LocationPolicy(), resolver=network.resolve, connector=network.connect)


async def test_a_public_name_is_connected_to(network: Network) -> None:
    network.place(Origin())
    stream = await dialer(network).dial("images.example", 80)
    await stream.aclose()
    assert network.connected == [(PUBLIC, 80)]


@given(inside(DENIED_V4 + DENIED_V6))
def test_a_name_with_a_special_address_is_never_connected_to(address: str) -> None:
    assert _attempts([address]) == []


@given(inside(DENIED_V4 + DENIED_V6), st.permutations([PUBLIC, OTHER]), st.integers(0, 2))
def test_one_private_address_among_public_ones_refuses_them_all(address: str, public: list[str], at: int) -> None:
    assert _attempts([*public[:at], address, *public[at:]]) == []


def _attempts(addresses: Sequence[str]) -> list[str]:
    """Addresses that were connected to for a name with these; it must have been denied."""
    connected: list[str] = []

    async def resolver(host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return addresses

    async def connector(address: str, port: int) -> trio.abc.Stream:
        connected.append(address)
        await trio.lowlevel.checkpoint()
        raise ConnectionRefusedError

    async def main() -> None:
        with pytest.raises(AddressDenied):
            await Dialer(LocationPolicy(), resolver=resolver, connector=connector).dial("images.example", 80)

    trio.run(main)
    return connected


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "127.0.1", "0x7f000001", "0x7f.1", "2130706433", "017700000001", "0177.0.0.1", "0",
        "0.0.0.0", "10.1", "0xa9fea9fe", "169.254.169.254", "::1", "::", "::ffff:127.0.0.1", "::127.0.0.1",
        "::ffff:7f00:1", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1", "fd00:ec2::254", "255.255.255.255",
    ],
)  # fmt: skip
async def test_no_spelling_of_a_special_address_slips_through(network: Network, host: str) -> None:
    with pytest.raises(AddressDenied):
        await dialer(network).dial(host, 80)
    assert network.connected == []
    assert network.looked_up == []


async def test_localhost_of_the_system_resolver_is_denied(network: Network) -> None:
    with pytest.raises(AddressDenied):
        await Dialer(LocationPolicy(), connector=network.connect).dial("localhost", 80)
    assert network.connected == []


async def test_a_rebinding_name_is_looked_up_once_and_its_checked_address_is_used(network: Network) -> None:
    network.place(Origin())
    network.names["images.example"] = [[PUBLIC], [PRIVATE]]
    stream = await dialer(network).dial("images.example", 80)
    await stream.aclose()
    assert network.looked_up == ["images.example"]
    assert network.connected == [(PUBLIC, 80)]


async def test_each_new_connection_is_checked_anew(network: Network) -> None:
    network.place(Origin())
    network.names["images.example"] = [[PUBLIC], [PRIVATE]]
    stream = await dialer(network).dial("images.example", 80)
    await stream.aclose()
    with pytest.raises(AddressDenied):
        await dialer(network).dial("images.example", 80)
    assert network.connected == [(PUBLIC, 80)]


async def test_an_allowed_host_may_be_private(network: Network) -> None:
    network.place(Origin(), "mirror.lan", PRIVATE, 8080)
    stream = await dialer(network, LocationPolicy(allow_hosts=("mirror.lan:8080",))).dial("mirror.lan", 8080)
    await stream.aclose()
    assert network.connected == [(PRIVATE, 8080)]


async def test_an_allowed_host_allows_no_other_name_of_its_address(network: Network) -> None:
    network.add("alias.example", PRIVATE)
    with pytest.raises(AddressDenied):
        await dialer(network, LocationPolicy(allow_hosts=("mirror.lan",))).dial("alias.example", 80)
    assert network.connected == []


async def test_a_refusing_address_gives_way_to_the_next(network: Network) -> None:
    network.add("images.example", OTHER, PUBLIC)
    network.servers[PUBLIC, 80] = Origin()
    stream = await dialer(network).dial("images.example", 80)
    await stream.aclose()
    assert network.connected == [(OTHER, 80), (PUBLIC, 80)]


async def test_a_silent_address_gives_way_to_the_next(network: Network, autojump_clock: trio.testing.MockClock) -> None:
    network.add("images.example", OTHER, PUBLIC)
    network.servers[PUBLIC, 80] = Origin()

    async def connector(address: str, port: int) -> trio.abc.Stream:
        if address == OTHER:
            await trio.sleep_forever()
        return await network.connect(address, port)

    stream = await Dialer(LocationPolicy(), resolver=network.resolve, connector=connector).dial("images.example", 80)
    await stream.aclose()
    assert trio.current_time() < CONNECT_SECONDS


@pytest.mark.parametrize("host", ["unknown.example", "a" * 64 + ".example"])
async def test_an_unknown_name_is_unreachable(host: str) -> None:
    async def resolver(name: str, port: int) -> list[str]:
        await trio.lowlevel.checkpoint()
        name.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    with pytest.raises(Unreachable):
        await Dialer(LocationPolicy(), resolver=resolver).dial(host, 80)


async def test_a_silent_resolver_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        await trio.sleep_forever()
        return []

    with pytest.raises(Unreachable):
        await Outbound(LocationPolicy(), resolver=resolver).open("GET", "http://images.example/")
    assert trio.current_time() == pytest.approx(CONNECT_SECONDS)


async def test_every_address_silent_is_given_up(network: Network, autojump_clock: trio.testing.MockClock) -> None:
    network.add("images.example", PUBLIC, OTHER)

    async def connector(address: str, port: int) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    outbound = Outbound(LocationPolicy(), resolver=network.resolve, connector=connector)
    with pytest.raises(Unreachable):
        await outbound.open("GET", "http://images.example/")
    assert trio.current_time() == pytest.approx(CONNECT_SECONDS)
