"""Who is calling, and what may he do (docs/protocol.md). Every refusal of credentials looks the same."""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from .. import image as images
from .. import signature
from ..config import Settings
from ..errors import CredentialsRefused, Forbidden, NotFound
from ..image import Image
from ..meta.contract import AccountRepository, User
from .request import ANONYMOUS, Caller, Peering
from .table import Kind, Policy, Route

#: Methods that change nothing.
SAFE: Final = ("GET", "HEAD")
#: What says that a request came through a proxy.
FORWARDING: Final = (b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip")

Headers = Sequence[tuple[bytes, bytes]]

#: Routes that may last; Server-Sent Events are carried as bytes are.
_LASTING: Final = (Kind.LIVE, Kind.BYTES)


class Gatekeeper:
    """Turns the credentials of a request into a `Caller`, or refuses."""

    def __init__(self, accounts: AccountRepository, settings: Settings, peering: Peering | None = None) -> None:
        """Without `peering` no other gateway is let in."""
        self._accounts = accounts
        self._peering = peering
        self._auth = settings.auth
        self._origins = _origins(settings)
        self._metrics_networks = settings.metrics.allow
        self._proxies = settings.server.trusted_proxies

    async def admit(self, route: Route, params: Mapping[str, str], scope: Mapping[str, Any]) -> Caller:
        """The caller of a request to `route`.

        Raises:
            InvalidRequest: A signed header is sent twice, or an x-image-meta header has no valid form.
            CredentialsRefused: Credentials are missing or wrong.
            Forbidden: They are right and not enough.
        """
        headers: Headers = scope["headers"]
        method = scope.get("method", "GET")
        if route.kind is Kind.LIVE:
            self._check_origin(headers)
        # Looked at before anything else: two values of a signed header must never be told apart by what refuses them.
        found = signature.signed_headers(headers)
        images.from_headers(headers)
        caller = await self._identify(route, params, scope, method, found)
        if caller is None:
            caller = self._without_credentials(route, scope)
        if route.policy is Policy.ADMIN and not caller.is_admin:
            raise Forbidden("Only an admin may do this")
        return caller

    def client_address(self, scope: Mapping[str, Any]) -> str | None:
        """The peer's address; behind trusted proxies, the nearest one that is not a proxy."""
        client = scope.get("client")
        if not client:
            return None
        address: str = client[0]
        if not self._proxies:
            return address
        chain = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
        hops = [hop.strip() for hop in chain.decode("latin-1").split(",") if hop.strip()]
        while hops and within(address, self._proxies):
            address = hops.pop()
        return address if _address(address) is not None or not hops else str(client[0])

    def from_proxy(self, scope: Mapping[str, Any]) -> bool:
        """Whether the peer is a trusted proxy, so that its word on scheme and host counts."""
        client = scope.get("client") or ("",)
        return within(client[0], self._proxies)

    def _without_credentials(self, route: Route, scope: Mapping[str, Any]) -> Caller:
        if route.policy is Policy.OPEN:
            return ANONYMOUS
        if route.policy is Policy.READ and self._auth.anonymous_pull:
            return ANONYMOUS
        if route.policy is Policy.NETWORK and self._network_allowed(scope):
            return ANONYMOUS
        raise CredentialsRefused

    def _network_allowed(self, scope: Mapping[str, Any]) -> bool:
        # A proxy on this host speaks from loopback for the whole world.
        if any(name in FORWARDING for name, _ in scope["headers"]):
            return False
        client = scope.get("client") or ("",)
        return within(client[0], self._metrics_networks)

    def _check_origin(self, headers: Headers) -> None:
        """A browser names the page's origin; one that is not listed is another site's page. Never compared with
        `Host`, which a rebound name makes equal."""
        for name, value in headers:
            if name == b"origin" and value.decode("latin-1").lower() not in self._origins:
                raise CredentialsRefused

    async def _identify(
        self,
        route: Route,
        params: Mapping[str, str],
        scope: Mapping[str, Any],
        method: str,
        found: Mapping[bytes, bytes],
    ) -> Caller | None:
        authorization = found.get(b"authorization")
        if route.policy is Policy.GATEWAY:
            return await self._by_peer((authorization or b"").decode("latin-1"), params["name"], method, scope, found)
        if authorization is not None:
            return _caller(await self._by_header(authorization.decode("latin-1"), method, scope, found), route)
        if not scope["query_string"]:
            return None
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        if "ticket" in query and route.kind is Kind.LIVE:
            return _caller(await self._accounts.redeem_ticket(query["ticket"], route.path), route)
        if "sig" in query and route.path == "/images/{id}" and method in SAFE:
            return await self._by_link(params["id"], query)
        return None

    async def _by_header(
        self, authorization: str, method: str, scope: Mapping[str, Any], found: Mapping[bytes, bytes]
    ) -> User | None:
        scheme, _, rest = authorization.strip().partition(" ")
        if scheme.lower() == "bearer":
            return await self._by_token(rest.strip(), method)
        credentials = signature.parse(authorization)
        if credentials is None:
            raise CredentialsRefused
        return await self._by_signature(credentials, method, scope, found)

    async def _by_token(self, text: str, method: str) -> User:
        found = await self._accounts.find_token(text)
        if found is None:
            raise CredentialsRefused
        token, user = found
        if token.read_only and method not in SAFE:
            raise CredentialsRefused
        return user

    async def _by_signature(
        self, credentials: signature.Credentials, method: str, scope: Mapping[str, Any], found: Mapping[bytes, bytes]
    ) -> User | None:
        self._check_form(credentials, method, scope, found)
        user = await self._accounts.get(credentials.access_key)
        await self._verify(credentials, method, scope, found, user.secret_key if user is not None else None)
        return user

    async def _by_peer(
        self, authorization: str, name: str, method: str, scope: Mapping[str, Any], found: Mapping[bytes, bytes]
    ) -> Caller:
        """Another gateway, which signs under a key that is derived from the common master key. The path that it signs
        names the gateway that is asked, so that what one was sent is of no use at another."""
        credentials = signature.parse(authorization)
        if self._peering is None or name != self._peering.name or credentials is None:
            raise CredentialsRefused
        if credentials.scheme != signature.SHA256:
            raise CredentialsRefused
        self._check_form(credentials, method, scope, found)
        secret = await self._peering.keys.secret(credentials.access_key)
        await self._verify(credentials, method, scope, found, secret)
        return Caller(is_admin=True, own_only=True)

    def _check_form(
        self, credentials: signature.Credentials, method: str, scope: Mapping[str, Any], found: Mapping[bytes, bytes]
    ) -> None:
        changing = method not in SAFE
        if credentials.scheme == signature.SHA1:
            self._check_sha1(method, scope["raw_path"], scope["query_string"], changing)
        elif changing and len(found.get(b"x-visor-nonce", b"")) not in signature.NONCE_LENGTH:
            raise CredentialsRefused
        date = signature.date_seconds(signature.date_line(credentials.scheme, found))
        if date is None or abs(time.time() - date) > self._auth.clock_skew:
            raise CredentialsRefused

    async def _verify(
        self,
        credentials: signature.Credentials,
        method: str,
        scope: Mapping[str, Any],
        found: Mapping[bytes, bytes],
        secret: str | None,
    ) -> None:
        """Look at the signature; without a secret there is nobody who could have made it."""
        path, query = scope["raw_path"], scope["query_string"]
        target = path + (b"?" + query if query else b"")
        # An unknown key takes as long as a wrong signature.
        if not signature.verify(credentials, method, target, found.items(), secret or "unknown") or secret is None:
            raise CredentialsRefused
        date = signature.date_seconds(signature.date_line(credentials.scheme, found))
        if method not in SAFE and date is not None:
            await self._use_once(credentials, date)

    def _check_sha1(self, method: str, path: bytes, query: bytes, changing: bool) -> None:
        """The old scheme signs neither query nor body: it opens no more than VISOR 2012's own routes."""
        theirs = (
            path == b"/images" or path.startswith(b"/images/") or (method == "DELETE" and path.rstrip(b"/") == b"/all")
        )
        if not self._auth.visor_sha1 or not theirs or (changing and query):
            raise CredentialsRefused

    async def _use_once(self, credentials: signature.Credentials, date: float) -> None:
        value = f"{credentials.scheme} {credentials.access_key}:{credentials.signature}"
        expires_at = datetime.fromtimestamp(date + self._auth.clock_skew + 1, UTC)
        if not await self._accounts.use_once("signature", value, expires_at):
            raise CredentialsRefused

    async def _by_link(self, image_id: str, query: Mapping[str, str]) -> Caller:
        expires, access_key = query.get("expires", ""), query.get("key", "")
        if not (expires.isascii() and expires.isdigit() and len(expires) <= 12) or int(expires) < time.time():
            raise CredentialsRefused
        user = await self._accounts.get(access_key)
        secret = user.secret_key if user is not None else "unknown"
        made = signature.link_signature(secret, image_id, access_key, int(expires))
        if not hmac.compare_digest(made.encode(), query["sig"].encode("utf-8", "replace")) or user is None:
            raise CredentialsRefused
        return Caller(access_key=user.access_key, is_admin=user.role == "admin", only_image=image_id)


def _caller(user: User | None, route: Route) -> Caller:
    if user is None:
        raise CredentialsRefused
    # A hash, which those need who may watch: small requests, which are many, do not.
    rights = user.rights if route.kind in _LASTING else None
    return Caller(access_key=user.access_key, is_admin=user.role == "admin", rights=rights)


def visible(image: Image | None, image_id: str, caller: Caller) -> Image:
    """The image, if it exists for this caller.

    Raises:
        NotFound: It does not, whatever the reason.
    """
    image = existing(image, image_id)
    return existing(image if _may_read(image, caller) else None, image_id)


def existing(image: Image | None, image_id: str) -> Image:
    """The image, if there is one. Raises `NotFound`, which must not differ from that of `visible`."""
    if image is None:
        raise NotFound(f"No image found with id '{image_id}'.")
    return image


def changeable(image: Image | None, image_id: str, caller: Caller) -> Image:
    """The image, if this caller may change or delete it.

    Raises:
        NotFound: It does not exist for this caller.
        Forbidden: It is public and another one's.
    """
    image = visible(image, image_id, caller)
    if not caller.is_admin and image.owner != caller.access_key:
        raise Forbidden("Only its owner or an admin may change this image")
    return image


def _may_read(image: Image, caller: Caller) -> bool:
    if caller.only_image is not None and caller.only_image != image.id:
        return False
    return image.access == "public" or caller.is_admin or image.owner == caller.access_key


def _origins(settings: Settings) -> set[str]:
    listed = {origin.lower().rstrip("/") for origin in settings.server.origins}
    if settings.server.public_url is not None:
        parts = urlsplit(settings.server.public_url)
        listed.add(f"{parts.scheme}://{parts.netloc}".lower())
    return listed


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def within(text: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """Whether an address, as text, is in one of the networks. Text that is none is in no network."""
    if not networks:
        return False
    address = _address(text)
    return address is not None and any(address in network for network in networks)
