"""The answer to one request on its way out: what the application says in, framed bytes on the wire.

Head and first body piece leave together. Body bytes are passed on, never copied here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from .framing import SWITCHING_PROTOCOLS, Framing, Headers, Piece
from .head import RequestHead
from .refusal import Refusal, encode
from .wire import Wire

__all__ = ["SWITCHING_PROTOCOLS", "Answer"]


class Answer:
    """One answer under way.

    Attributes:
        status: Its status, None before there is one.
        transfer_id: Value of its `X-Transfer-Id` header.
        body_bytes: Body bytes that were sent.
        on_wire: Whether any of it may have left.
    """

    def __init__(self, request: RequestHead, wire: Wire) -> None:
        self._wire = wire
        self._framing = Framing(method=request.method, version=request.version, persistent=request.persistent)
        self._pieces: list[Piece] = []
        self._body_pending = 0
        self.status: int | None = None
        self.transfer_id: str | None = None
        self.body_bytes = 0
        self.on_wire = False
        self._replaced = False
        self._sending = False  # stays set when a send fails

    @property
    def complete(self) -> bool:
        """Whether all of it was sent."""
        if self._pieces or self._sending or self.status is None:
            return False
        return self._replaced or self.status == SWITCHING_PROTOCOLS or self._framing.ended

    @property
    def keeps_alive(self) -> bool:
        """Whether it is complete and neither side announced the end of the connection."""
        return self.complete and self._framing.persistent

    @property
    def lives(self) -> bool:
        """Whether it goes on for as long as its client stays: a WebSocket, or a stream of events."""
        return self.status == SWITCHING_PROTOCOLS or self._framing.named.get(b"content-type") == b"text/event-stream"

    def begin(self, status: int, headers: Headers, *, last: bool) -> None:
        """Frame the head; `last` announces `Connection: close`. Nothing is sent before `flush`; this and the following
        raise `IllegalAnswer`."""
        self._pieces.append(self._framing.begin(status, headers, last=last))
        self.status = status
        transfer_id = self._framing.named.get(b"x-transfer-id")
        self.transfer_id = None if transfer_id is None else transfer_id.decode("latin-1")

    def add(self, data: Piece) -> None:
        """Frame a piece of the body."""
        pieces = self._framing.body(data)
        if pieces:
            self._pieces += pieces
            self._body_pending += len(data)

    def end(self) -> None:
        """Frame the end."""
        self._pieces += self._framing.end()

    async def flush(self) -> None:
        """Send what was framed. Raises `ClientGone` if it can't all be sent."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            body, self._body_pending = self._body_pending, 0
            self.on_wire = self._sending = True
            await self._wire.send(pieces, last=self._framing.ended)
            self._sending = False
            self.body_bytes += body

    @asynccontextmanager
    async def lend(self, length: int) -> AsyncGenerator[int, None]:
        """The socket's duplicate (`Wire.lend`), for exactly `length` bytes of the body that the head announced.

        Raises:
            ClientGone: The client is gone, or the wire was reset meanwhile.
            IllegalAnswer: The head announced fewer bytes.
        """
        self._framing.pass_by(length)
        await self.flush()
        self._sending = True
        async with self._wire.lend() as duplicate:
            yield duplicate
        self._sending = False
        self.body_bytes += length

    async def replace(self, refusal: Refusal, *, head_only: bool) -> None:
        """Send `refusal` in place of an answer of which nothing has left. Raises `ClientGone`."""
        self._pieces.clear()
        self.status = refusal.status
        self.on_wire = self._sending = self._replaced = True
        await self._wire.send([encode(refusal, head_only=head_only)])
        self._sending = False
