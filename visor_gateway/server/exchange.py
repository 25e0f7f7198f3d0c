"""One HTTP request and its answer, as ASGI (HTTP, spec version 2.4), at the application's pace.

A body with a Content-Length passes by h11, which would copy it four times; h11 parses what came with the head, and
chunked bodies. A request without a body has no need of h11 once its head is parsed.

There is no reader task and no queue. `receive()` reads the socket, so nothing of a body is read before the application
asks for it, `100 Continue` goes out when it first asks, and at most one block waits. The application runs in the
connection's task; it can never be blocked by an `http.disconnect` that nobody takes, because that is a
state and not a message.

How an exchange ends:
* answered, request whole: the connection can be used again;
* answered early, or with `Connection: close`: lingering close;
* nothing sent: a 500, or what was wrong with the body (400, 408), then a lingering close;
* answer begun and not finished: RST.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import unquote

import h11
import structlog
import trio

from ..transfer.contract import LentBody
from .answer import Answer
from .asgi import Application, Message, Scope
from .framing import IllegalAnswer
from .head import RequestHead
from .refusal import REASONS, Refusal
from .settings import ServerSettings
from .wire import ClientGone, Wire

BLOCK: Final = 256 * 1024  # bytes of a chunked request body that are read at a time
LARGE_BLOCK: Final = 1 << 20  # and of one of known length, which h11 does not see: for each, threads are woken twice
EVENTS_PER_TURN: Final = 64  # chunks parsed before other tasks get a turn: a block holds 43,000 chunks of one byte
FRAMING_ALLOWANCE: Final = 16 * 1024 + BLOCK  # bytes of chunk framing that any body may have
FRAMING_PER_BYTE: Final = 16  # and as many for each byte of body: one-byte chunks need five

_log = structlog.get_logger("visor_gateway.server")


class Exchange:
    """One request, one application call, one answer.

    Attributes:
        answer: The answer, for the connection and the access log.
        fault: What was wrong with the request's body, if anything.
        last: Whether the connection ends with this exchange.
    """

    def __init__(
        self, app: Application, wire: Wire, protocol: h11.Connection | None, head: RequestHead, settings: ServerSettings
    ) -> None:
        """`protocol` has parsed `head`, and has been fed what came behind it; without a body there may be none."""
        self._app = app
        self._wire = wire
        self._protocol = protocol
        self._head = head
        self._settings = settings
        self._inbox: list[Message] = []  # a deque takes 600 bytes, and there are a few at most
        self._parts: list[bytes] = []
        self._length = head.length
        self._whole = False
        self._over = trio.Event()
        self._reading: trio.CancelScope | None = None
        self._wire_bytes = self._body_bytes = 0
        self._waited = 0.0
        self.answer = Answer(head, wire)
        self.last = False
        self.fault: Refusal | None = None
        if head.length == 0:
            self._end_body()

    async def run(self, state: Scope) -> None:
        """Call the application and wait for it. Its exceptions end here, in the log.

        What was sent by then may be nothing, a part or all of the answer; `answer` tells.
        """
        scope = self._scope(state)
        try:
            await self._app(scope, self._receive, self._send)
        except* ClientGone:
            pass  # the application may let it pass
        except* Exception:
            _log.exception("request failed", request_id=state.get("request_id"), path=scope["path"])
        finally:
            self._finish()

    def _scope(self, state: Scope) -> Scope:
        head, wire = self._head, self._wire
        path, _, query = head.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"spec_version": "2.4", "version": "3.0"},
            "http_version": head.version,
            "method": head.method,
            "scheme": "https" if wire.encrypted else "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": list(head.headers),  # a head may be remembered, and is not the application's to change
            "client": wire.address,
            "server": wire.server,
            "state": state,
            "extensions": {},
        }

    @property
    def reusable(self) -> bool:
        """Whether request and answer are both complete and another request may follow."""
        return self._whole and self.answer.keeps_alive

    def abandon(self) -> None:
        """The connection is gone: let the application see `http.disconnect`."""
        self._finish()

    def _finish(self) -> None:
        self._over.set()
        if self._reading is not None:
            self._reading.cancel()

    # --- in ----------------------------------------------------------------------------------

    async def _receive(self) -> Message:
        while not self._inbox and not self._over.is_set():
            if self._whole:
                await self._over.wait()
            else:
                await self._parse()
        return self._inbox.pop(0) if self._inbox else {"type": "http.disconnect"}

    @asynccontextmanager
    async def lend_body(self) -> AsyncGenerator[LentBody, None]:
        """The read side of the wire for the rest of the body, which must have a Content-Length.

        What came with the head is the lead. Afterwards there is nothing to receive: either the borrower has read
        the body to its end, or it never ends.

        Raises:
            ClientGone: The client is gone, or the wire was reset meanwhile.
        """
        if self._length is None:
            raise RuntimeError("The length of a body that is lent must be known")
        await self._parse_received()
        lead = b"".join(message.get("body", b"") for message in self._inbox)
        self._inbox.clear()
        await self._continue()
        left = self._length - self._body_bytes
        limits = self._settings
        async with self._wire.lend_reading() as duplicate:
            body = LentBody(duplicate, lead, left, limits.stall_timeout, limits.min_body_rate)
            try:
                yield body
            finally:
                self._body_bytes = self._length - body.left
                self._whole = body.left == 0
                if not self._whole:
                    self._over.set()

    async def _parse(self) -> None:
        """Take what h11 has of the body, or read more for it. Cancellation loses nothing."""
        if await self._parse_received():
            await self._read()

    async def _parse_received(self) -> bool:
        """Take what h11 has of the body. Whether more has to be read before anything can be handed on."""
        if self._protocol is None:
            return False
        try:
            event = self._protocol.next_event()
            while isinstance(event, h11.Data):
                self._parts.append(event.data)
                if len(self._parts) % EVENTS_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
                event = self._protocol.next_event()
        except h11.RemoteProtocolError as exc:
            event = None  # what came before the fault is handed on first; h11 repeats the error
            if not self._parts:
                self._fail(Refusal(exc.error_status_hint, "The request body is malformed or incomplete"))
                return False
        if self._parts:
            self._hand_on()
        if isinstance(event, h11.EndOfMessage):
            self._end_body()
        return event is h11.NEED_DATA and not self._inbox

    def _hand_on(self) -> None:
        parts, self._parts = self._parts, []
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._body_bytes += len(data)
        self._inbox.append({"type": "http.request", "body": data, "more_body": True})
        if self._body_bytes == self._length:
            self._end_body()

    def _end_body(self) -> None:
        if not self._whole:
            self._whole = True
            self._inbox.append({"type": "http.request", "body": b"", "more_body": False})

    async def _read(self) -> None:
        """Read once from the socket into h11."""
        try:
            await self._continue()
            data = await self._read_in_time()
        except ClientGone:
            self._over.set()
            return
        if data is None:
            return
        self._wire_bytes += len(data)
        if self._length is None and self._protocol is not None:
            self._protocol.receive_data(data)
            self._check_framing()
        elif data:
            self._parts.append(data)
            self._hand_on()
        else:
            self._fail(Refusal(400, "The request body is shorter than its Content-Length"))

    async def _continue(self) -> None:
        """Send `100 Continue` to a client that waits for it."""
        # h11 does not learn of the answer; once there is one, the client waits for nothing else.
        protocol = self._protocol
        if protocol is not None and protocol.they_are_waiting_for_100_continue and self.answer.status is None:
            interim = h11.InformationalResponse(status_code=100, headers=[], reason=REASONS[100])
            await self._wire.send([protocol.send(interim) or b""])

    async def _read_in_time(self) -> bytes | None:
        """A block, or None if the client was too slow or the answer was complete before it came."""
        data = None
        began = trio.current_time()
        with trio.CancelScope(deadline=began + self._settings.stall_timeout) as self._reading:
            data = await self._wire.receive(self._room())
        self._reading = None
        # Only time spent here counts: an application that takes its time does not make the client slow.
        self._waited += trio.current_time() - began
        slow = self._waited >= self._settings.stall_timeout and (
            self._wire_bytes < self._waited * self._settings.min_body_rate
        )
        if not self._over.is_set() and (slow or data is None):
            self._fail(Refusal(408, "The request body did not arrive in time"))
            return None
        return data

    def _room(self) -> int:
        """How much to read at most: what follows a body of known length belongs to the next request."""
        return BLOCK if self._length is None else min(LARGE_BLOCK, self._length - self._body_bytes)

    def _check_framing(self) -> None:
        framing = self._wire_bytes - self._body_bytes
        if framing > FRAMING_ALLOWANCE + FRAMING_PER_BYTE * self._body_bytes:
            self._fail(Refusal(400, "The request body is mostly chunk framing"))

    def _fail(self, fault: Refusal) -> None:
        """Nothing more of the body can be had. The application may still answer; if it does not, `fault` is sent."""
        self.fault = fault
        self._over.set()

    # --- out ---------------------------------------------------------------------------------

    async def _send(self, message: Message) -> None:
        if self._wire.closed:
            raise ClientGone
        match message["type"]:
            case "http.response.start":  # the head waits for the first piece of the body
                last = self.last or not self._whole
                self.answer.begin(message["status"], message.get("headers", ()), last=last)
            case "http.response.body":
                self.answer.add(message.get("body", b""))
                if not message.get("more_body", False):
                    self.answer.end()
                await self.answer.flush()
            case other:
                raise IllegalAnswer(f"No answer has a message '{other}'")
        if self.answer.complete:
            self._finish()
