"""Which targets may be asked: schemes, hosts and addresses (`[locations]` of the configuration). Sans-IO."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

import msgspec

# IANA's IPv4 special-purpose registry. A table of our own, because `is_global` of the standard library calls
# multicast global and differs between Python versions.
_DENIED_V4: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # "this network"; Linux connects 0.0.0.0 to itself
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers (CGNAT); clouds put metadata services there
        "127.0.0.0/8",
        "168.63.129.16/32",  # looks public, but is the host agent of every machine on Azure
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the limited broadcast
    )
)
# Everything in IPv6 that is not global unicast is denied by this one network: loopback, unspecified, IPv4-mapped and
# -compatible, NAT64 (64:ff9b::/96, 64:ff9b:1::/48), unique local, link-local, site-local, multicast.
_GLOBAL_V6: Final = IPv6Network("2000::/3")
_DENIED_V6: Final = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, among them Teredo, which embeds IPv4 addresses
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4 embeds IPv4 addresses
        "3fff::/20",  # documentation
    )
)


def is_globally_reachable(address: str) -> bool:
    """Whether an address, as the resolver writes it, is one that every host on the Internet could reach.

    False also for what is no address. An IPv6 address that embeds an IPv4 address is never reachable,
    whatever it embeds: the translator that would take it stands inside a private network.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return not any(parsed in network for network in _DENIED_V4)
    return _is_global_v6(parsed)


def _is_global_v6(address: IPv6Address) -> bool:
    return address in _GLOBAL_V6 and not any(address in network for network in _DENIED_V6)


class LocationPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What targets are admitted. The three fields are the keys of `[locations]`.

    Attributes:
        allow: Schemes.
        deny_private: Refuse a host of which any address is not globally reachable.
        allow_hosts: `host` or `host:port` entries, exempt from `deny_private`; IPv6 addresses in brackets where
            a port follows. An entry exempts the name or address as it is written in a URL, not what it resolves to.
    """

    allow: tuple[str, ...] = ("http", "https")
    deny_private: bool = True
    allow_hosts: tuple[str, ...] = ()

    def admits_scheme(self, scheme: str) -> bool:
        return scheme in self.allow

    def admits_every_address(self, host: str, port: int) -> bool:
        """Whether the addresses of this host need no check."""
        if not self.deny_private:
            return True
        wanted = _canonical(host)
        return any(name == wanted and number in {None, port} for name, number in map(_entry, self.allow_hosts))

    def admits_address(self, host: str, port: int, address: str) -> bool:
        """Whether a connection to `address`, which `host` resolved to, may be opened."""
        return self.admits_every_address(host, port) or is_globally_reachable(address)


#: For servers that the operator configured: they may stand in a private network.
CONFIGURED: Final = LocationPolicy(deny_private=False)


def _canonical(host: str) -> str:
    try:
        return ip_address(host.strip("[]")).compressed
    except ValueError:
        return host.lower().removesuffix(".")


def _entry(text: str) -> tuple[str, int | None]:
    """An entry of `allow_hosts` as canonical host and port; None for every port."""
    host, colon, port = text.rpartition(":")
    if colon and port.isdecimal() and (":" not in host or host.startswith("[")):
        return _canonical(host), int(port)
    return _canonical(text), None
