"""The ASGI entry of a role for other servers: VISOR's Meta or Auth API on listeners of its own.

Built as the application of images is: one table of routes, each with its access policy, one gate. It speaks as the
servers of 2012 do: JSON whatever `Accept` says, 404 for a known path with another method, GET's answer to HEAD.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import structlog

from ..errors import BodyIncomplete, GatewayError, InvalidRequest, MethodNotAllowed, NotFound, TooLarge
from ..visor_documents import NO_ROUTE
from . import auth_role, control_body, meta_role
from .app import HOST, Failure, Outgoing, Receive, Scope, Send
from .control_body import JSON_LIMIT
from .negotiate import COMMON_HEADERS, Head
from .peers import PeerGate
from .request import Answer, Services, Text
from .role_request import RoleRequest
from .table import Route, RouteTable

#: The routes of each role.
ROLE_ROUTES: Final[Mapping[str, tuple[Route, ...]]] = {"meta": meta_role.ROUTES, "auth": auth_role.ROUTES}

_log: Final = structlog.get_logger("visor_gateway.roles")


class RoleApplication:
    """One role as an ASGI application.

    Raises:
        TypeError: A route has no access policy.
    """

    def __init__(self, role: str, services: Services, routes: tuple[Route, ...] | None = None) -> None:
        self._role = role
        self._table = RouteTable(ROLE_ROUTES[role] if routes is None else routes)
        self.revise(services)

    def revise(self, services: Services) -> None:
        """Serve later requests with these; those under way keep what they began with."""
        self._services = services
        self._gate = PeerGate(services.settings.peer_servers()[self._role], services)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Errors become answers; one that comes after the answer began resets the connection."""
        outgoing = Outgoing(scope, send)
        is_head = scope.get("method") == "HEAD"
        try:
            head = await self._answer(scope, receive)
        except GatewayError as error:
            head = _error(error)
        except OSError as error:
            _log.info("client gone", error=str(error), path=scope["path"])
            outgoing.reset()
            return
        except Exception:
            _log.exception("request failed", path=scope["path"])
            head = _error(Failure("Internal error"))
        try:
            await outgoing.answer(_without_body(head) if is_head else head)
        except OSError:
            outgoing.reset()

    async def _answer(self, scope: Scope, receive: Receive) -> Head:
        if scope["type"] != "http":
            raise InvalidRequest("This route is not a WebSocket")
        services, gate = self._services, self._gate
        route, params = self._find(scope["method"], scope["path"])
        peer = await gate.admit(route, scope)
        request = RoleRequest(
            services=services,
            peer=peer,
            params=params,
            query_string=scope["query_string"],
            headers=[(name.lower(), value) for name, value in scope["headers"]],
            base_url=_base_url(scope, services),
        )
        if scope["method"] in ("POST", "PUT"):
            request.body = await _read(receive)
            await control_body.check(request.headers, request.body)
        return _rendered(await route.handler(request))

    def _find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        try:
            return self._table.find("GET" if method == "HEAD" else method, path)
        except (NotFound, MethodNotAllowed) as error:
            raise NotFound(NO_ROUTE) from error


async def _read(receive: Receive) -> bytes:
    """The body of a request.

    Raises:
        TooLarge: It is longer than `JSON_LIMIT`.
        BodyIncomplete: The peer is gone before its end.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BodyIncomplete("The body is not whole")
        body += message.get("body", b"")
        if len(body) > JSON_LIMIT:
            raise TooLarge(f"The body may have {JSON_LIMIT} bytes at most")
        if not message.get("more_body", False):
            return bytes(body)


def _base_url(scope: Scope, services: Services) -> str:
    """Where the images of a record are to be had.

    An image server of 2012 names itself at the end of `User-Agent`; the image is told to be there. For all others it is
    at this gateway.
    """
    headers = dict(reversed(scope["headers"]))
    _, dash, own = headers.get(b"user-agent", b"").rpartition(b" - ")
    if dash and own and HOST.fullmatch(own):
        return f"http://{own.decode('ascii')}"
    if services.settings.server.public_url is not None:
        return services.settings.server.public_url.rstrip("/")
    host = headers.get(b"host", b"")
    return f"{scope['scheme']}://{host.decode('ascii') if host and HOST.fullmatch(host) else 'localhost'}"


def _rendered(answer: Answer | Text) -> Head:
    if isinstance(answer, Text):
        body, content_type = answer.body, answer.content_type
    else:
        body, content_type = msgspec.json.encode(answer.payload), "application/json"
    headers = [
        *COMMON_HEADERS,
        (b"content-type", content_type.encode("ascii")),
        (b"content-length", str(len(body)).encode("ascii")),
        # Records that change, and secrets.
        (b"cache-control", b"no-store"),
        *((name.encode("ascii"), value.encode("utf-8")) for name, value in answer.headers),
    ]
    return answer.status, headers, body


def _error(error: GatewayError) -> Head:
    extra = error.headers
    if error.retry_after is not None:
        extra = (*extra, ("retry-after", str(error.retry_after)))
    return _rendered(Answer({"code": error.status, "message": error.message}, error.status, extra))


def _without_body(head: Head) -> Head:
    status, headers, _ = head
    return status, headers, b""
