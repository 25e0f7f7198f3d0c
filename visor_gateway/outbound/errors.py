"""Why an exchange with another server failed.

None of these is a `GatewayError`, on purpose: they tell refused, closed, filtered and denied apart, which a
client must not learn (it would make the gateway a port scanner). Whoever calls `Outbound` translates them into
one error of its own and keeps the text for the debug log. A message names no path, no query and no header value.
"""

from __future__ import annotations


class OutboundError(Exception):
    """An exchange failed. Whether another try may help is the caller's to judge."""


class BadTarget(OutboundError):
    """The URL can't be asked for: not absolute, malformed, or with credentials in it."""


class SchemeRefused(OutboundError):
    """The policy does not allow the URL's scheme."""


class AddressDenied(OutboundError):
    """The host has an address that is not globally reachable. Nothing was connected to."""


class Unreachable(OutboundError):
    """No connection: the name is unknown, every address refused or kept silent, or the TLS handshake failed."""


class Untrusted(Unreachable):
    """The server's certificate is not trusted for its name. `reason` says why, and names no host."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"the certificate of {host} is not trusted: {reason}")
        self.reason = reason


class StaleConnection(Unreachable):
    """A connection of the pool was closed, or held leftovers. Repeating an idempotent request is safe."""


class BadResponse(OutboundError):
    """What came back is no usable answer: malformed, too large, too late, or not what was asked for."""


class RedirectRefused(BadResponse):
    """A redirect that leads nowhere acceptable: too many, to plain HTTP, or without a usable `Location`."""


class BodyBroken(OutboundError):
    """The body ended before it was whole, or stalled."""
