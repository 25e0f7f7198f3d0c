"""Requests to other servers: redirects followed by hand, each hop checked like the first."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import h11
import httpcore2
import trio

from .. import __version__
from .body import Body
from .connection import HEAD_SECONDS, Connection
from .dialer import Connector, Dialer, Resolver, connect, resolve
from .errors import BadResponse, RedirectRefused, SchemeRefused, StaleConnection
from .policy import LocationPolicy
from .sending import RequestBody, framing
from .target import Target, parse
from .upload import Upload

MAX_REDIRECTS: Final = 5
OPEN_SECONDS: Final = 60.0  # for an answer's head, all redirects together
CLOSE_SECONDS: Final = 10.0  # for all connections, at the end of the block
IDLE_LIMIT: Final = 64  # connections above which the pool keeps no idle ones
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: Request headers that say nothing about who asks, so another origin may see them.
_PORTABLE: Final = frozenset({"range", "if-match", "if-range", "if-none-match", "accept"})


class Response:
    """The head of an answer, and its body.

    Attributes:
        status: HTTP status.
        url: Where the answer came from, after redirects.
        stream: The body.

    The opener closes it with `aclose`, at any time; that closes the body, too.
    """

    def __init__(self, response: httpcore2.Response, url: str) -> None:
        self.status = response.status
        self.url = url
        self.stream: Body = response.extensions["body"]
        self._response = response
        self.stream.closed_by(self.aclose)

    def header(self, name: str) -> str | None:
        """A header's value, several of them joined by commas (RFC 9110, 5.3); None where it is not there."""
        wanted = name.lower().encode("ascii")
        values = [value.decode("latin-1") for each, value in self._response.headers if each.lower() == wanted]
        return ", ".join(values) if values else None

    async def aclose(self) -> None:
        await self._response.aclose()


class Outbound:
    """The way to servers that one policy admits. One object per policy: connections of its pool were dialed under it.

    It sends no credentials of its own, uses no proxy of the environment, and asks for unencoded bodies.

    Args:
        policy: Which schemes, hosts and addresses are admitted.
        resolver: Replaces the system's resolver.
        connector: Replaces the TCP socket; it sees only addresses that were checked.
        ssl_context: Replaces the default one, which verifies against the system's authorities.
        stall_timeout: Seconds after which a silent body is given up.

    Resource handling: closed by `aclose`, or at the end of its block, cancelled or not.
    """

    def __init__(
        self,
        policy: LocationPolicy,
        *,
        resolver: Resolver = resolve,
        connector: Connector = connect,
        ssl_context: ssl.SSLContext | None = None,
        stall_timeout: float = 60.0,
    ) -> None:
        self.policy = policy
        dialer = Dialer(policy, resolver=resolver, connector=connector)
        self._stall_timeout = stall_timeout
        self._pool = _Pool(dialer, ssl_context or ssl.create_default_context(), stall_timeout)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        body: RequestBody | None = None,
        follow: bool = True,
        head_seconds: float = HEAD_SECONDS,
    ) -> AsyncGenerator[Response]:
        """`open`, and the answer is closed at the end of the block."""
        response = await self.open(method, url, headers, body=body, follow=follow, head_seconds=head_seconds)
        try:
            yield response
        finally:
            await response.aclose()

    async def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        body: RequestBody | None = None,
        follow: bool = True,
        head_seconds: float = HEAD_SECONDS,
    ) -> Response:
        """Ask, and follow redirects of GET and HEAD. The caller closes the answer.

        Args:
            method: The request's method.
            url: An absolute http or https URL.
            headers: What is sent beside `Host`, `User-Agent`, `Accept`, `Accept-Encoding` and the body's length.
            body: What is sent; each MiB of it has `stall_timeout` to leave, all of it any time. It is read once.
            follow: Whether redirects are followed; if not, they are answers like others.
            head_seconds: Seconds from the end of the request to the end of the answer's head.

        Raises:
            BadTarget: `url` is no absolute http or https URL, or has credentials in it.
            SchemeRefused: The policy does not allow the scheme of `url`.
            StaleConnection: An idle connection broke, and the request is none that may be repeated without asking.
            OutboundError: The exchange failed.
        """
        target = self._admitted(url)
        sent = framing(method, body) | dict(headers or {})
        extensions = {"body": body, "head_seconds": head_seconds}
        if body is not None:
            return await self._send(method, target, sent, extensions)
        seconds = max(OPEN_SECONDS, head_seconds)
        try:
            with trio.fail_after(seconds):
                return await self._follow(method, target, sent, extensions, redirects=MAX_REDIRECTS if follow else 0)
        except trio.TooSlowError as exc:
            raise BadResponse(f"no answer within {seconds:g} s") from exc

    async def upload(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> Upload:
        """Connect for a request whose body the caller sends. Nothing is sent yet; the caller closes it.

        Raises:
            BadTarget, SchemeRefused: As of `open`.
            OutboundError: No connection.
        """
        target = self._admitted(url)
        fields = _fields(target, {"Transfer-Encoding": "chunked", **(headers or {})})
        request = h11.Request(method=method, target=target.path, headers=list(fields.items()))
        stream = await self._pool.create_connection(_url(target).origin).connect()
        return Upload(stream, request, stall_timeout=self._stall_timeout)

    async def aclose(self) -> None:
        """Close every connection. Answers that are still open break."""
        await self._pool.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await self.aclose()

    async def _follow(
        self, method: str, target: Target, sent: Mapping[str, str], extensions: Mapping[str, Any], *, redirects: int
    ) -> Response:
        for _ in range(redirects + 1):
            response = await self._send(method, target, sent, extensions)
            if not redirects or method not in {"GET", "HEAD"} or response.status not in _REDIRECTS:
                return response
            location = response.header("location")
            await response.aclose()
            following = self._redirected(target, location)
            if following.origin != target.origin:
                sent = {name: value for name, value in sent.items() if name.lower() in _PORTABLE}
            target = following
        raise RedirectRefused(f"more than {MAX_REDIRECTS} redirects")

    def _admitted(self, url: str) -> Target:
        target = parse(url)
        if not self.policy.admits_scheme(target.scheme):
            raise SchemeRefused(f"the scheme {target.scheme} is not allowed")
        return target

    def _redirected(self, target: Target, location: str | None) -> Target:
        if location is None:
            raise RedirectRefused("a redirect without a location")
        following = target.redirected(location.encode("latin-1"))
        if not self.policy.admits_scheme(following.scheme):
            raise RedirectRefused(f"a redirect to the scheme {following.scheme}")
        if (target.scheme, following.scheme) == ("https", "http"):
            raise RedirectRefused("a redirect from https to http")
        return following

    async def _send(
        self, method: str, target: Target, headers: Mapping[str, str], extensions: Mapping[str, Any]
    ) -> Response:
        fields, url = _fields(target, headers), _url(target)
        while True:
            try:
                response = await self._pool.handle_async_request(
                    httpcore2.Request(method, url, headers=list(fields.items()), extensions=dict(extensions))
                )
            except StaleConnection:
                if method not in {"GET", "HEAD"}:
                    raise
                # Ends: each turn uses up one idle connection of the pool.
                continue
            except httpcore2.LocalProtocolError as exc:
                raise BadResponse("the request can't be sent") from exc
            return Response(response, target.url)


def _fields(target: Target, headers: Mapping[str, str]) -> dict[str, str]:
    return {
        "Host": target.authority,
        "User-Agent": f"visor-gateway/{__version__}",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        **headers,
    }


def _url(target: Target) -> httpcore2.URL:
    return httpcore2.URL(
        scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
    )


class _Pool(httpcore2.AsyncConnectionPool):
    """httpcore2's pool, filled with our connections.

    It has no limit of connections: whoever asks is admitted elsewhere.
    """

    def __init__(self, dialer: Dialer, ssl_context: ssl.SSLContext, stall_timeout: float) -> None:
        super().__init__(max_connections=None, max_keepalive_connections=IDLE_LIMIT)
        self._dialer = dialer
        self._context = ssl_context
        self._stall_timeout = stall_timeout

    def create_connection(self, origin: httpcore2.Origin) -> Connection:
        return Connection(origin, dialer=self._dialer, ssl_context=self._context, stall_timeout=self._stall_timeout)
