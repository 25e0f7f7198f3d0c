"""The ASGI entry: finds the route, asks the gate, and hands on. Image bytes, the live channel and what is asked for
most go straight to their modules; everything else goes through Quart-Trio, which sees no request that was not admitted.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

import quart
import structlog
import werkzeug.exceptions
from quart_trio import QuartTrio

from ..errors import GatewayError, InvalidRequest, TooLarge, TransferCancelled
from ..transfer.turns import Turns
from . import control_body
from .access import Gatekeeper
from .control_body import JSON_LIMIT
from .negotiate import Head, render, render_error
from .request import Answer, Caller, Request, Services, Text
from .routes import ROUTES
from .table import Kind, Route, RouteTable

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

#: An authority, as `Host` has it.
HOST: Final = re.compile(rb"[A-Za-z0-9.\-_~]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?")

_log: Final = structlog.get_logger("visor_gateway.routes")


class Failure(GatewayError):
    """What a client is told of a fault of ours."""


class Application:
    """The gateway as an ASGI application.

    Raises:
        TypeError: A route has no access policy.
    """

    def __init__(self, services: Services, routes: tuple[Route, ...] = ROUTES) -> None:
        self._services = services
        self._gate = Gatekeeper(services.accounts, services.settings, services.peering)
        self._table = RouteTable(routes)
        self._turns = Turns()
        self._quart = self._control_routes()

    def revise(self, services: Services) -> None:
        """Serve later requests with these; those under way keep what they began with."""
        self._services = services
        self._gate = Gatekeeper(services.accounts, services.settings, services.peering)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Errors become answers; one that comes after the answer began resets the connection."""
        outgoing = Outgoing(scope, send)
        accept = _accept(scope)
        head = scope.get("method") == "HEAD"
        try:
            route, params = self._table.find(scope.get("method", "GET"), scope["path"])
            if route.kind is Kind.BYTES and not head:
                await self._turns.take()  # a transfer's start holds the event loop for a millisecond
            caller = await self._gate.admit(route, params, scope)
            await self._hand_on(route, self._request(scope, caller, params, accept), receive, outgoing)
        except TransferCancelled:
            # Whoever cancelled it has reset the connection: there is nobody to answer.
            return
        except GatewayError as error:
            await outgoing.refuse(error, accept, head)
        except OSError as error:
            _log.info("client gone", error=str(error), path=scope["path"])
            outgoing.reset()
        except Exception:
            _log.exception("request failed", path=scope["path"])
            await outgoing.refuse(Failure("Internal error"), accept, head)

    async def _hand_on(self, route: Route, request: Request, receive: Receive, outgoing: Outgoing) -> None:
        scope = request.scope
        if route.kind is Kind.LIVE:
            if scope["type"] != "websocket":
                raise _UpgradeRequired
            await route.handler(dict(scope), receive, outgoing.send, request.caller, request.services)
        elif scope["type"] == "websocket":
            raise InvalidRequest("This route is not a WebSocket")
        elif route.kind in (Kind.HOT, Kind.PAGE):
            answer = await route.handler(request)
            await outgoing.answer(render(answer, accept=request.accept))
        elif route.kind is Kind.BYTES:
            answer = await route.handler(request, receive, outgoing.send)
            if answer is not None:
                await outgoing.answer(render(answer, accept=request.accept, head=request.method == "HEAD"))
        else:
            path, state = scope["path"].rstrip("/") or "/", {**scope["state"], "request": request}
            scope = {**scope, "path": path, "state": state}
            try:
                await self._quart(cast(Any, scope), cast(Any, receive), cast(Any, outgoing.send))
            except ExceptionGroup as group:
                raise _only(group) from None

    def _request(self, scope: Scope, caller: Caller, params: dict[str, str], accept: str | None) -> Request:
        return Request(
            method=scope.get("method", "GET"),
            caller=caller,
            params=params,
            headers=[(name.lower(), value) for name, value in scope["headers"]],
            services=self._services,
            client=self._gate.client_address(scope),
            base_url=self._base_url(scope),
            scope=scope,
            accept=accept,
        )

    def _base_url(self, scope: Scope) -> str:
        public_url = self._services.settings.server.public_url
        if public_url is not None:
            return public_url.rstrip("/")
        headers = dict(reversed(scope["headers"]))
        scheme, host = scope["scheme"], headers.get(b"host", b"")
        if self._gate.from_proxy(scope):
            host = headers.get(b"x-forwarded-host", host)
            scheme = "https" if headers.get(b"x-forwarded-proto") == b"https" else scheme
        if not HOST.fullmatch(host):
            name, port = scope["server"] or ("localhost", None)
            host = f"{name}:{port}".encode() if port else name.encode()
        return f"{scheme}://{host.decode('ascii')}"

    def _control_routes(self) -> QuartTrio:
        app = QuartTrio(__name__)
        app.config.update(MAX_CONTENT_LENGTH=JSON_LIMIT, RESPONSE_TIMEOUT=None, BODY_TIMEOUT=None)
        for route in self._table.routes:
            if route.kind is Kind.CONTROL:
                app.add_url_rule(
                    re.sub(r"\{(\w+)\}", r"<\1>", route.path),
                    endpoint=f"{route.method} {route.path}",
                    view_func=_view(route),
                    methods=[route.method],
                    provide_automatic_options=False,
                )
        return app


def _view(route: Route) -> Callable[..., Awaitable[quart.Response]]:
    async def view(**params: str) -> quart.Response:
        request: Request = quart.request.scope["state"]["request"]
        accept = request.accept
        try:
            request.body = await _read_body(request)
            answer: Answer | Text = await route.handler(request)
            status, headers, body = render(answer, accept=accept)
        except GatewayError as error:
            status, headers, body = render_error(error, accept=accept)
        except Exception:
            _log.exception("request failed", path=request.scope["path"])
            status, headers, body = render_error(Failure("Internal error"), accept=accept)
        response = quart.Response(body, status)
        response.headers.clear()
        for name, value in headers:
            response.headers.add(name.decode("ascii"), value.decode("latin-1"))
        return response

    return view


async def _read_body(request: Request) -> bytes:
    """The body of a control request, checked against the digests that came with it.

    Raises:
        TooLarge: It is longer than `JSON_LIMIT`.
        InvalidRequest, DigestMismatch: As `control_body.check`.
    """
    try:
        body = bytes(await quart.request.get_data(cache=False, as_text=False))  # type: ignore[arg-type]
    except werkzeug.exceptions.RequestEntityTooLarge as exc:
        raise TooLarge(f"The body may have {JSON_LIMIT} bytes at most") from exc
    if body:
        await control_body.check(request.headers, body)
    return body


class _UpgradeRequired(InvalidRequest):
    status = 426

    def __init__(self) -> None:
        super().__init__("This route is a WebSocket", headers=(("upgrade", "websocket"), ("connection", "upgrade")))


class Outgoing:
    """The sending side of one request: knows whether an answer has begun, and speaks HTTP before an upgrade."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._begun = False

    async def send(self, message: dict[str, Any]) -> None:
        self._begun = True
        await self._send(message)

    async def answer(self, head: Head) -> None:
        status, headers, body = head
        prefix = "websocket.http" if self._scope["type"] == "websocket" else "http"
        await self.send({"type": f"{prefix}.response.start", "status": status, "headers": headers})
        await self.send({"type": f"{prefix}.response.body", "body": body, "more_body": False})

    async def refuse(self, error: GatewayError, accept: str | None, head: bool) -> None:
        if self._begun:
            # Part of an answer is out: a reset is the only end that nobody takes for a success.
            _log.warning("answer cut", error=error.message, path=self._scope["path"])
            self.reset()
            return
        try:
            await self.answer(render_error(error, accept=accept, head=head))
        except OSError:
            self.reset()

    def reset(self) -> None:
        connection = self._scope["state"].get("connection")
        if connection is not None:
            connection.reset()


def _only(group: Exception) -> Exception:
    """What Quart-Trio's nursery has wrapped: a client that is gone has to be told from a fault of ours."""
    while isinstance(group, ExceptionGroup) and len(group.exceptions) == 1:
        group = group.exceptions[0]
    return group


def _accept(scope: Mapping[str, Any]) -> str | None:
    values = [value for name, value in scope["headers"] if name.lower() == b"accept"]
    return b",".join(values).decode("latin-1") if values else None
