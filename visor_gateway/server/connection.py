"""One client: the loop over its requests.

The connection owns socket, framing, limits and close; what a request means is the application's. Time limits sit on
the waits they bound (head, idle, body); what only the kernel knows, whether the client still takes bytes and whether
it is still there, is looked at once a second by the server's watcher through `watch`.
"""

from __future__ import annotations

import math
import os
import select
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final

import h11
import trio
from hypercorn.config import Config

from ..transfer.contract import LentBody
from .access import AccessLog
from .asgi import Application
from .exchange import Exchange
from .head import MAX_HEAD, RequestHead, cut_head, parse_head, parse_simple
from .refusal import Refusal, encode
from .settings import ServerSettings
from .websocket import WebSocketSession
from .wire import ClientGone, Wire

TLS_HANDSHAKE_SECONDS: Final = 10.0

#: How long a connection waits for a request, a new one for its first, that may be on its way while a drain closes it.
DRAIN_IDLE_SECONDS: Final = 5.0
MAX_LOGGED_METHOD: Final = 16
INTERNAL_ERROR: Final = Refusal(500, "The request could not be served because of an internal error")


class Connection:
    """One client's connection, from the accept to the close. `run` is its life, the rest may be called meanwhile.

    It is the `ClientConnection` of the transfer contract and stands in every scope as `scope["state"]["connection"]`.

    Attributes:
        lends: Whether `lend` is to be had: on plain TCP.
        trusted: Whether the client has shown a certificate of an authority that its listener accepts.
        cut_cause: Why we ended it, None while we have not.
    """

    def __init__(
        self, wire: Wire, app: Application, settings: ServerSettings, config: Config, access: AccessLog
    ) -> None:
        self._wire = wire
        self._app = app
        self._settings = settings
        self._config = config
        self._access = access
        self._buffer = bytearray()
        self._idle: trio.CancelScope | None = None
        self._idle_since = 0.0
        self._scope = trio.CancelScope()
        self._parting = trio.CancelScope()
        self._exchange: Exchange | WebSocketSession | None = None
        self._draining = False
        self._first = True
        self._client = wire.address[0] if wire.address is not None else None
        self._accepted_at = trio.current_time()
        self.lends = wire.lends
        self.trusted = False
        self.cut_cause: str | None = None

    # --- what others may ask and do; none of it blocks -------------------------------------------

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._wire.fileno()

    def unacknowledged(self) -> int:
        """Bytes handed to the kernel that the client's kernel has not acknowledged."""
        return self._wire.unacknowledged()

    def lend(self, length: int) -> AbstractAsyncContextManager[int]:
        """A duplicate of the socket for the next `length` bytes of the answer's body."""
        if not self.lends or not isinstance(self._exchange, Exchange):
            raise RuntimeError("Only a plain TCP connection that answers a request can be lent")
        return self._exchange.answer.lend(length)

    def lend_body(self) -> AbstractAsyncContextManager[LentBody]:
        """The read side, for what is left of the request's body."""
        if not self.lends or not isinstance(self._exchange, Exchange):
            raise RuntimeError("Only a plain TCP connection that answers a request can be lent")
        return self._exchange.lend_body()

    async def wait_gone(self) -> None:
        """Wait until the client has sent FIN or RST, or the connection was reset. Reads nothing."""
        if self._wire.closed:
            return
        # A descriptor of its own, which tells of the end alone: unread bytes would keep the socket itself readable.
        with select.epoll() as poll, trio.CancelScope() as self._parting:
            poll.register(self._wire.fileno(), select.EPOLLRDHUP)
            await trio.lowlevel.wait_readable(poll.fileno())

    async def send_texts(self, texts: Sequence[str], *, ping: bool = False) -> None:
        """Text messages over the WebSocket, in one write."""
        await self._websocket().send_texts(texts, ping=ping)

    @property
    def sends_now(self) -> bool:
        """Whether messages can be sent over the WebSocket without waiting."""
        return self._websocket().sends_now

    def send_texts_now(self, texts: Sequence[str], *, ping: bool = False) -> bool:
        """The same without waiting. Whether the kernel took all."""
        return self._websocket().send_texts_now(texts, ping=ping)

    @property
    def pinged_at(self) -> float | None:
        """When the ping was sent that the WebSocket's client has not answered."""
        return self._websocket().pinged_at

    def _websocket(self) -> WebSocketSession:
        if isinstance(self._exchange, WebSocketSession):
            return self._exchange
        raise RuntimeError("Only a WebSocket has messages and pings")

    def reset(self) -> None:
        """Cut with RST. The application sees `http.disconnect`, its `send` fails with an `OSError`."""
        self._parting.cancel()
        self._wire.reset()
        if self._exchange is not None:
            self._exchange.abandon()

    def cut(self, cause: str) -> None:
        """Reset, and cancel whatever runs."""
        self.cut_cause = self.cut_cause or cause
        self.reset()
        self._scope.cancel(reason=cause)

    def drain(self) -> None:
        """Have the next answer, or that of the request under way, be the last, and say `Connection: close`. Without a
        request, close once the connection has been idle for `DRAIN_IDLE_SECONDS`."""
        self._draining = True
        if self._idle is not None:
            self._idle.deadline = min(self._idle.deadline, self._idle_since + DRAIN_IDLE_SECONDS)
        if self._exchange is not None:
            self._exchange.last = True

    def go_away(self) -> None:
        """Close a WebSocket that its application leaves open; anything else goes on."""
        if isinstance(self._exchange, WebSocketSession):
            self._exchange.go_away()

    def watch(self, now: float, *, hung_up: bool) -> None:
        """Look at the client once: reset if it is gone (`hung_up`) or has stalled."""
        if self._wire.closed:
            return
        if hung_up:
            self.cut_cause = self.cut_cause or "vanished"
            self.reset()
        elif self._wire.stalled(now) >= self._settings.stall_timeout:
            self.cut_cause = self.cut_cause or "stall"
            self.reset()

    # --- its life --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the client until either side ends. Whatever happens, the socket is closed afterwards.

        Exceptions of the application and of the client do not leave; a cancellation resets the connection.
        """
        try:
            with self._scope:
                await self._serve()
        finally:
            self._wire.reset()  # does nothing after an orderly end

    async def _serve(self) -> None:
        with suppress(ClientGone):
            if self._wire.encrypted:
                with trio.move_on_after(TLS_HANDSHAKE_SECONDS) as handshake:
                    await self._wire.handshake()
                if handshake.cancelled_caught:
                    return
            self.trusted = self._wire.is_client_certified()
            while await self._serve_one():
                pass
            await self._wire.finish()

    async def _serve_one(self) -> bool:
        """Serve one request. Whether another may follow; if not, an orderly end is due."""
        raw = None
        protocol: h11.Connection | None = None
        try:
            raw = await self._read_head()
            if raw is None:
                self._wire.close()
                return False
            head = parse_simple(raw)
            if head is None:
                protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
                head = parse_head(protocol, raw)
        except Refusal as refusal:
            await self._refuse(refusal, bytes(self._buffer) if raw is None else raw)
            return False
        self._first = False
        if protocol is not None and self._buffer:  # an empty piece would mean the end of the stream
            protocol.receive_data(bytes(self._buffer))
            self._buffer.clear()
        reusable = await self._exchange_one(protocol, head)
        if protocol is not None:
            self._buffer += protocol.trailing_data[0]
        if self._buffer:
            await trio.lowlevel.checkpoint()  # requests that came together are answered without a wait between them
        return reusable

    async def _read_head(self) -> bytes | None:
        """One request head; None if the client left or waited too long without beginning one.

        Raises:
            Refusal: The head is too long (431), too slow (408) or ended in the middle (400).
        """
        now = trio.current_time()
        self._idle_since = now
        idle_until = now + (self._settings.head_timeout if self._first else self._settings.keep_alive_timeout)
        deadline = math.inf
        while (head := cut_head(self._buffer)) is None:
            began = bool(self._buffer)
            if began:
                started = self._accepted_at if self._first else trio.current_time()
                deadline = min(deadline, started + self._settings.head_timeout)
            data = await self._receive_until(deadline if began else idle_until, idle=not began)
            if not data and not began:
                return None
            if data is None:
                self.cut_cause = "head"
                raise Refusal(408, "The request head did not arrive in time")
            if not data:
                raise Refusal(400, "The request head is incomplete")
            self._buffer += data
        return head

    async def _receive_until(self, deadline: float, *, idle: bool) -> bytes | None:
        """What the client sends next; None if that is nothing before `deadline`, which a drain brings near for one
        that is `idle`."""
        if idle and self._draining:
            deadline = min(deadline, self._idle_since + DRAIN_IDLE_SECONDS)
        with trio.CancelScope(deadline=deadline) as scope:
            self._idle = scope if idle else None
            try:
                return await self._wire.receive(MAX_HEAD)
            finally:
                self._idle = None
        return None

    async def _exchange_one(self, protocol: h11.Connection | None, head: RequestHead) -> bool:
        """Let the application answer, and see that what went out is whole or can't be taken for it."""
        began = trio.current_time()
        request_id = os.urandom(8).hex()
        exchange: Exchange | WebSocketSession
        if head.websocket and protocol is not None:
            exchange = WebSocketSession(self._app, self._wire, protocol, head, self._config)
        else:
            exchange = Exchange(self._app, self._wire, protocol, head, self._settings)
        exchange.last = self._draining
        self._exchange = exchange
        try:
            await exchange.run({"connection": self, "request_id": request_id})
            return await self._conclude(exchange, head)
        finally:
            self._exchange = None
            answer = exchange.answer
            self._access.record(
                method=head.method,
                target=head.target,
                status=answer.status,
                complete=answer.complete,
                body_bytes=answer.body_bytes,
                seconds=trio.current_time() - began,
                client=self._client,
                request_id=request_id,
                transfer_id=answer.transfer_id,
                timed=answer.transfer_id is None and not answer.lives,
            )

    async def _conclude(self, exchange: Exchange | WebSocketSession, head: RequestHead) -> bool:
        answer = exchange.answer
        if self._wire.closed:
            return False
        if not answer.on_wire:
            await answer.replace(exchange.fault or INTERNAL_ERROR, head_only=head.method == "HEAD")
            return False
        if not answer.complete:
            self.cut_cause = "incomplete"
            self._wire.reset()
        return exchange.reusable

    async def _refuse(self, refusal: Refusal, raw: bytes) -> None:
        """Answer what can't become a request. `raw` is what there is of its head."""
        method, _, rest = raw.partition(b"\r\n")[0].partition(b" ")
        await self._wire.send([encode(refusal, head_only=method == b"HEAD")])
        self._access.record(
            method=method.decode("ascii", "replace") if len(method) <= MAX_LOGGED_METHOD else "-",
            target=rest.partition(b" ")[0],
            status=refusal.status,
            complete=True,
            body_bytes=0,
            seconds=0.0,
            client=self._client,
            request_id=None,
        )
