"""Which servers a role for other servers lets in (docs/protocol.md, Roles). Every refusal looks the same."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from .. import signature
from ..config import PeerServer
from ..errors import CredentialsRefused
from .access import FORWARDING, SAFE, within
from .request import Services
from .table import Policy, Route

#: What browsers say of themselves. A page that is open on an allowed network must not act by that.
_BROWSERS: Final = (b"origin", b"sec-fetch-mode", b"sec-fetch-site")


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks.

    Attributes:
        is_known: Whether it has shown a key or a certificate; else it is let in by its network, or asks for what is
            open to all.
    """

    is_known: bool


class PeerGate:
    """Turns what a request to a role shows into a `Peer`, or refuses it."""

    def __init__(self, peers: PeerServer, services: Services) -> None:
        self._key = peers.shared_key.reveal() if peers.shared_key is not None else None
        self._networks = peers.allow
        self._accounts = services.accounts
        self._clock_skew = services.settings.auth.clock_skew

    async def admit(self, route: Route, scope: Mapping[str, Any]) -> Peer:
        """Who asks for `route`.

        Raises:
            InvalidRequest: A signed header is sent twice.
            CredentialsRefused: What it takes is missing or wrong.
        """
        if route.policy is Policy.OPEN:
            return Peer(is_known=False)
        found = signature.signed_headers(scope["headers"])
        authorization = found.get(b"authorization")
        if authorization is not None:
            # A wrong one is never outweighed by a network or certificate.
            await self._check(authorization.decode("latin-1"), scope, found)
            return Peer(is_known=True)
        connection = scope["state"].get("connection")
        if connection is not None and connection.trusted:
            return Peer(is_known=True)
        if route.policy is Policy.PEER and self._is_network_allowed(scope):
            return Peer(is_known=False)
        raise CredentialsRefused

    async def _check(self, authorization: str, scope: Mapping[str, Any], found: Mapping[bytes, bytes]) -> None:
        scheme, _, rest = authorization.strip().partition(" ")
        if self._key is None:
            raise CredentialsRefused
        if scheme.lower() == "bearer":
            if not hmac.compare_digest(rest.strip().encode("utf-8", "replace"), self._key.encode()):
                raise CredentialsRefused
            return
        await self._check_signature(self._key, authorization, scope, found)

    async def _check_signature(
        self, key: str, authorization: str, scope: Mapping[str, Any], found: Mapping[bytes, bytes]
    ) -> None:
        credentials = signature.parse(authorization)
        if credentials is None or credentials.scheme != signature.SHA256:
            raise CredentialsRefused
        is_changing = scope["method"] not in SAFE
        if is_changing and len(found.get(b"x-visor-nonce", b"")) not in signature.NONCE_LENGTH:
            raise CredentialsRefused
        date = signature.date_seconds(signature.date_line(credentials.scheme, found))
        if date is None or abs(time.time() - date) > self._clock_skew:
            raise CredentialsRefused
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        if not signature.verify(credentials, scope["method"], target, found.items(), key):
            raise CredentialsRefused
        if is_changing:
            # The text that is signed does not name the role: with one key for both, a request is good for one.
            expires_at = datetime.fromtimestamp(date + self._clock_skew + 1, UTC)
            if not await self._accounts.use_once("peer", credentials.signature, expires_at):
                raise CredentialsRefused

    def _is_network_allowed(self, scope: Mapping[str, Any]) -> bool:
        # A proxy speaks from its own network for the whole world, and a browser for any page.
        if any(name.lower() in (*FORWARDING, *_BROWSERS) for name, _ in scope["headers"]):
            return False
        client = scope.get("client") or ("",)
        return within(client[0], self._networks)
