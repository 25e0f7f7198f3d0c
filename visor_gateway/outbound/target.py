"""An absolute http or https URL, taken apart once and strictly, so that no two parsers can disagree. Sans-IO."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address
from typing import Final
from urllib.parse import quote_from_bytes, urljoin, urlsplit

import msgspec

from .errors import BadTarget

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_PRINTABLE: Final = re.compile(r"[\x21-\x7e]+\Z")
_REG_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,253}\Z")
_KEPT: Final = "".join(map(chr, range(0x21, 0x7F)))


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where one request goes.

    Attributes:
        host: Lower-case name or address, IPv6 without brackets.
        path: Path and query, as sent on the request line (RFC 9112, 3.2.1).
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: the border that credentials never cross (RFC 6454)."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """The value of `Host`: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    def redirected(self, location: bytes) -> Target:
        """The target that a `Location` value names, relative to this one.

        Raises:
            BadTarget: It names none.
        """
        try:
            return parse(urljoin(self.url, quote_from_bytes(location.strip(), safe=_KEPT)))
        except ValueError as exc:
            raise BadTarget("the redirect's location is no URL") from exc


def parse(url: str) -> Target:
    """Take a URL apart.

    Raises:
        BadTarget: It is not an absolute http or https URL of printable ASCII, or it carries credentials.
    """
    # Checked before splitting: `urlsplit` silently drops tabs, line breaks and leading blanks.
    if not _PRINTABLE.match(url):
        raise BadTarget("the URL has characters that no URL has")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise BadTarget("the URL is malformed") from exc
    if parts.scheme not in DEFAULT_PORTS:
        raise BadTarget("the URL's scheme is neither http nor https")
    if "@" in parts.netloc:
        raise BadTarget("the URL carries credentials")
    if "[" in parts.netloc and ":" not in (parts.hostname or ""):
        raise BadTarget("the URL's host is no IPv6 address")
    if port == 0:
        raise BadTarget("the URL names port 0")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(
        scheme=parts.scheme, host=_host(parts.hostname or ""), port=port or DEFAULT_PORTS[parts.scheme], path=path
    )


def _host(host: str) -> str:
    if ":" in host:
        if "%" in host:  # a zone is meaningful on one machine's links only
            raise BadTarget("the URL's host has a zone")
        try:
            return IPv6Address(host).compressed
        except AddressValueError as exc:
            raise BadTarget("the URL's host is no IPv6 address") from exc
    if not _REG_NAME.match(host):
        raise BadTarget("the URL's host is no host name")
    return host
