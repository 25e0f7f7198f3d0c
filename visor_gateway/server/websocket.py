"""One WebSocket: drives Hypercorn's `WSStream`, from the handshake to the closing handshake.

A reader task feeds the stream, so pings are answered and a close is seen while the application sends. Messages
wait for the application one at a time; that the client is gone is a state, which no application can block by not
looking. Nothing is read before the application has accepted: what the client sends too early waits in the kernel.

How it ends: the application closes or returns (1000), raises (1011), or is told to go away (1001); the client's
closing frame is then awaited for `CLOSE_SECONDS`. Or the client closes first, breaks the protocol (1002), sends
too long a message (1009) or vanishes (1006 for the application).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any, Final

import h11
import structlog
import trio
from hypercorn.config import Config
from hypercorn.protocol.events import Body, Data, EndBody, Event, Request, Response, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Pong
from wsproto.events import Event as WebSocketEvent
from wsproto.frame_protocol import CloseReason, FrameProtocol

from .answer import SWITCHING_PROTOCOLS, Answer
from .asgi import CONTEXT, STREAM_ID, AppLauncher, Application, Message
from .head import RequestHead
from .refusal import Refusal
from .websocket_frames import is_one_frame, pong_payload
from .wire import ClientGone, Wire

BLOCK: Final = 64 * 1024
CLOSE_SECONDS: Final = 5.0
PING_PAYLOAD: Final = b"visor"  # a pong without it answers nothing that we sent
SHARED_FRAMES: Final = 64  # messages that many clients get at the same time are few
SHARED_LENGTH: Final = 32 * 1024  # characters up to which they are kept: a snapshot is one client's, and long

#: Frames of a server have no mask, so one frame is good for every client. It frames whole messages, and keeps no state
#: between them.
_framing: Final = FrameProtocol(client=False, extensions=[])
_PING: Final = bytes(_framing.ping(PING_PAYLOAD))

_log = structlog.get_logger("visor_gateway.server")


class WebSocketSession:
    """One WebSocket handshake and what follows it; to the connection it is an exchange like `Exchange`.

    Attributes:
        answer: The answer to the handshake.
        fault: Always None: a handshake has no body that could be wrong.
        last: Unused: a connection that was asked for a WebSocket always ends with it.
        pinged_at: When the ping was sent that the client has not answered, on Trio's clock; None where it has.
    """

    def __init__(
        self, app: Application, wire: Wire, protocol: h11.Connection, head: RequestHead, config: Config
    ) -> None:
        """`protocol` has parsed `head`, and has been fed what came behind it."""
        self._head = head
        self._app = app
        self._wire = wire
        self._protocol = protocol
        self._scope = trio.CancelScope()
        self._connect: list[Message] = []
        self._to_app, self._from_client = trio.open_memory_channel[Message](0)
        self._accepted = trio.Event()
        self._peer_done = trio.Event()
        self._over = False
        self._in_frames = True  # whether each read so far brought one whole frame
        self.pinged_at: float | None = None
        self.answer = Answer(head, wire)
        self.fault: Refusal | None = None
        self.last = True
        self._launcher = AppLauncher(self._put)
        self._stream = WSStream(
            app,  # type: ignore[arg-type]
            config,
            CONTEXT,
            self._launcher,
            wire.encrypted,
            wire.address,  # type: ignore[arg-type]
            wire.server,  # type: ignore[arg-type]
            self._take,
            STREAM_ID,
        )

    async def run(self, state: dict[str, Any]) -> None:
        """Call the application, and end the WebSocket when it returns. Its exceptions end here, in the log."""
        head = self._head
        await self._stream.handle(Request(STREAM_ID, head.headers, head.version, head.method, head.target, state))  # type: ignore[arg-type]
        # No permessage-deflate: a few bytes could unpack to a thousand times their length before any limit is asked.
        self._stream.handshake.extensions = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read)
            code = await self._call(state)
            self._from_client.close()
            await self._close(code)
            nursery.cancel_scope.cancel()

    @property
    def reusable(self) -> bool:
        """Never: the connection ends with the WebSocket, or with its refusal."""
        return False

    def abandon(self) -> None:
        """The connection is gone: let the application see `websocket.disconnect`."""
        self._end()

    def go_away(self) -> None:
        """End the application and close with 1001."""
        self._scope.cancel(reason="going away")

    async def _call(self, state: dict[str, Any]) -> CloseReason:
        code = CloseReason.NORMAL_CLOSURE
        with self._scope:
            try:
                await self._app(self._launcher.scope, self._receive, self._send)
            except* ClientGone:
                pass  # the application may let it pass
            except* Exception:
                code = CloseReason.INTERNAL_ERROR
                _log.exception("websocket failed", request_id=state.get("request_id"))
        return CloseReason.GOING_AWAY if self._scope.cancelled_caught else code

    async def _close(self, code: CloseReason) -> None:
        """Say `code` if nothing was said, and wait for the client to agree."""
        if not self._accepted.is_set():
            return
        with trio.move_on_after(CLOSE_SECONDS):
            try:
                if self._stream.state is ASGIWebsocketState.CONNECTED and not self._over:
                    await self._stream.app_send({"type": "websocket.close", "code": int(code), "reason": None})
                await self._peer_done.wait()
            except ClientGone:
                pass

    # --- in ----------------------------------------------------------------------------------

    async def _receive(self) -> Message:
        if self._connect:
            return self._connect.pop()
        try:
            return await self._from_client.receive()
        except trio.EndOfChannel:
            closed = self._accepted.is_set() and self._stream.connection.state is ConnectionState.CLOSED
            code = CloseReason.NORMAL_CLOSURE if closed else CloseReason.ABNORMAL_CLOSURE
            return {"type": "websocket.disconnect", "code": int(code), "reason": None}

    async def _put(self, message: Message) -> None:
        if message["type"] == "websocket.connect":
            self._connect.append(message)
            return
        # It fails when the application has ended, or was told that the client has.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._to_app.send(message)

    async def _read(self) -> None:
        await self._accepted.wait()
        try:
            data: bytes = self._protocol.trailing_data[0]
            while True:
                if data and not self._is_answer(data):
                    await self._stream.handle(Data(STREAM_ID, data))
                    self._look_for_end()
                if self._peer_done.is_set():
                    break
                data = await self._wire.receive(BLOCK)
                if not data:
                    break
        except ClientGone:
            pass
        finally:
            self._end()
            self._peer_done.set()

    def _is_answer(self, data: bytes) -> bool:
        """Whether that is all there is of it: the pong to our ping, which is most of what clients of the live channel
        send. So long as every frame came in one piece it can't be the middle of another one."""
        self._in_frames = self._in_frames and is_one_frame(data)
        if not self._in_frames or (payload := pong_payload(data)) is None:
            return False
        self._take_pong(payload)
        return True

    def _look_for_end(self) -> None:
        """The stream has closed on its own (1009): the application is told now, not when the client agrees."""
        closing = self._stream.connection.state is ConnectionState.LOCAL_CLOSING
        if closing and self._stream.state is ASGIWebsocketState.CONNECTED:
            self._end()

    def _end(self) -> None:
        self._over = True
        self._to_app.close()

    # --- out ---------------------------------------------------------------------------------

    async def _send(self, message: Message) -> None:
        if self._over or self._wire.closed:
            if message["type"] == "websocket.close":
                return  # both sides may close
            raise ClientGone
        if message["type"] == "websocket.close" and not self.answer.on_wire:
            self._over = True
            await self.answer.replace(Refusal(403, "The WebSocket was refused"), head_only=False)
            return
        await self._stream.app_send(message)  # type: ignore[arg-type]
        await self.answer.flush()
        if self.answer.status == SWITCHING_PROTOCOLS and not self._accepted.is_set():
            # Nothing was read yet. Extensions were refused, so a connection without any takes its place.
            self._stream.connection = _Connection(self._take_pong)
            self._accepted.set()

    async def send_texts(self, texts: Sequence[str], *, ping: bool) -> None:
        """Send text messages in one write, and a ping with them unless one is unanswered.

        Raises:
            ClientGone: The client is gone, or the WebSocket is closing.
        """
        if self._over or self._wire.closed or self._stream.state is not ASGIWebsocketState.CONNECTED:
            raise ClientGone
        await self._wire.send([self._framed(texts, ping)], last=True)

    @property
    def sends_now(self) -> bool:
        """Whether `send_texts_now` is to be had."""
        return not self._over and self._stream.state is ASGIWebsocketState.CONNECTED and self._wire.sends_now

    def send_texts_now(self, texts: Sequence[str], *, ping: bool) -> bool:
        """Send as `send_texts` does, without waiting. Only where `sends_now`.

        Returns:
            Whether the kernel took all; what it did not take goes out before whatever is sent next.
        """
        return self._wire.send_now(self._framed(texts, ping))

    def _framed(self, texts: Sequence[str], ping: bool) -> bytes:
        """Messages as frames, after a ping where none is unanswered.

        The ping comes first: a client that says goodbye to the message before it would find one that it may not answer
        any more, and libraries fail there (trio-websocket 0.12).
        """
        pieces = [_shared_frame(text) if len(text) <= SHARED_LENGTH else _frame(text) for text in texts]
        if ping and self.pinged_at is None:
            self.pinged_at = trio.current_time()
            pieces.insert(0, _PING)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.answer.body_bytes += len(data)
        return data

    def _take_pong(self, payload: bytes) -> None:
        if payload == PING_PAYLOAD:
            self.pinged_at = None

    async def _take(self, event: Event) -> None:
        if isinstance(event, Data):
            await self._wire.send([event.data])
            self.answer.body_bytes += len(event.data)
        elif isinstance(event, StreamClosed):
            await self._say_protocol_error()
            self._peer_done.set()
        elif isinstance(event, Response):
            self.answer.begin(event.status_code, list(event.headers), last=True)
        elif isinstance(event, Body):
            self.answer.add(event.data)
        elif isinstance(event, EndBody):
            self.answer.end()

    async def _say_protocol_error(self) -> None:
        """The stream ends on frames that are none without a closing frame of its own."""
        connection = self._stream.connection
        if connection.state is ConnectionState.OPEN:
            await self._wire.send([connection.send(CloseConnection(code=CloseReason.PROTOCOL_ERROR))])


class _Connection(Connection):
    """A server's side without extensions, which tells of pongs: Hypercorn's stream looks at none."""

    def __init__(self, heard: Callable[[bytes], None]) -> None:
        super().__init__(ConnectionType.SERVER)
        self._heard = heard

    def events(self) -> Generator[WebSocketEvent, None, None]:
        for event in super().events():
            if isinstance(event, Pong):
                self._heard(bytes(event.payload))
            yield event


def _frame(text: str) -> bytes:
    return bytes(_framing.send_data(text))


_shared_frame: Final = functools.lru_cache(maxsize=SHARED_FRAMES)(_frame)
