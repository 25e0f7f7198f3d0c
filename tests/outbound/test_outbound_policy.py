"""Which addresses, hosts and schemes the policy admits."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visor_gateway.outbound import CONFIGURED, LocationPolicy, is_globally_reachable

DENIED_V4 = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32", "168.63.129.16/32",
]  # fmt: skip
DENIED_V6 = [
    "::/128", "::1/128", "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/32",
    "2001:2::/48", "2001:10::/28", "2001:20::/28", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7",
    "fe80::/10", "fec0::/10", "ff00::/8",
]  # fmt: skip


def inside(networks: list[str]) -> st.SearchStrategy[str]:
    """Addresses in any of the networks, in the resolver's spelling."""
    spans = [(network, network.num_addresses) for network in map(_network, networks)]
    return st.sampled_from(spans).flatmap(lambda span: st.integers(0, span[1] - 1).map(lambda n: str(span[0][n])))


def _network(text: str) -> IPv4Network | IPv6Network:
    return IPv6Network(text) if ":" in text else IPv4Network(text)


@pytest.mark.parametrize("network", DENIED_V4 + DENIED_V6)
def test_first_and_last_address_of_every_special_network_are_denied(network: str) -> None:
    assert not is_globally_reachable(str(_network(network)[0]))
    assert not is_globally_reachable(str(_network(network)[-1]))


@given(inside(DENIED_V4 + DENIED_V6))
def test_no_address_of_a_special_network_is_reachable(address: str) -> None:
    assert not is_globally_reachable(address)


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_no_ipv6_form_of_an_ipv4_address_is_reachable(address: IPv4Address) -> None:
    number = int(address)
    embedded = [
        int(IPv6Address("::ffff:0:0")) + number,
        number,  # IPv4-compatible
        int(IPv6Address("64:ff9b::")) + number,
        int(IPv6Address("64:ff9b:1::")) + number,
        int(IPv6Address("2002::")) + (number << 80),
        int(IPv6Address("2001::")) + (number ^ 0xFFFFFFFF),
    ]
    assert not any(is_globally_reachable(str(IPv6Address(each))) for each in embedded)


@given(st.one_of(st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**128 - 1).map(IPv6Address)))
def test_nothing_is_reachable_that_the_standard_library_calls_private(address: IPv4Address | IPv6Address) -> None:
    if is_globally_reachable(str(address)):
        known = ip_address(address)
        assert not known.is_private
        assert not known.is_multicast
        assert not known.is_reserved
        assert not known.is_loopback
        assert not known.is_link_local
        assert not known.is_unspecified


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "93.184.215.14", "172.15.255.255", "172.32.0.0",
                                     "100.63.255.255", "100.128.0.0", "223.255.255.255", "2606:4700::1111",
                                     "2a00:1450:4001::200e"])  # fmt: skip
def test_public_addresses_are_reachable(address: str) -> None:
    assert is_globally_reachable(address)


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "0x7f000001", "2130706433", "1.2.3.4.5", "::1%lo", "1.2.3"])
def test_what_is_no_plain_address_is_not_reachable(text: str) -> None:
    assert not is_globally_reachable(text)


@pytest.mark.parametrize(
    ("entry", "host", "port", "admitted"),
    [
        ("mirror.lan", "mirror.lan", 80, True),
        ("mirror.lan", "mirror.lan", 8080, True),
        ("MIRROR.lan.", "mirror.lan", 80, True),
        ("mirror.lan", "mirror.lan.", 80, True),
        ("mirror.lan:8080", "mirror.lan", 8080, True),
        ("mirror.lan:8080", "mirror.lan", 80, False),
        ("mirror.lan", "evil.mirror.lan", 80, False),
        ("mirror.lan", "mirror.lan.evil", 80, False),
        ("127.0.0.1:9000", "127.0.0.1", 9000, True),
        ("127.0.0.1:9000", "127.0.0.1", 9001, False),
        ("127.0.0.1", "127.1", 80, False),
        ("::1", "::1", 80, True),
        ("[::1]", "::1", 80, True),
        ("[::1]:8080", "::1", 8080, True),
        ("[::1]:8080", "::1", 80, False),
        ("0:0:0:0:0:0:0:1", "::1", 80, True),
        ("fd00::1:8080", "fd00::1", 8080, False),
    ],
)
def test_an_entry_exempts_exactly_its_host_and_port(entry: str, host: str, port: int, admitted: bool) -> None:
    assert LocationPolicy(allow_hosts=(entry,)).admits_every_address(host, port) is admitted


def test_without_deny_private_every_address_is_admitted() -> None:
    assert CONFIGURED.admits_address("store.lan", 80, "127.0.0.1")
    assert not LocationPolicy().admits_address("store.lan", 80, "127.0.0.1")
