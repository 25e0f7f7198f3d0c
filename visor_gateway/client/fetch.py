"""One GET on a connection of its own, whose body is read straight off the socket.

A pooled HTTP client hands a body out in small pieces, through several layers: four times the work for a large image.
Here h11 reads the head, and chunks where there are any; a body of known length is only counted.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager

import h11
import httpcore2

from .credentials import Header
from .errors import refusal
from .network import dial, translated
from .session import ERROR_LIMIT, Session
from .wire import READ_BYTES, Wire


class Fetched:
    """A successful answer, its body still to be read.

    Attributes:
        headers: As received; names in lower case.
    """

    def __init__(self, stream: httpcore2.AsyncNetworkStream, stall: float) -> None:
        self._wire = Wire(stream)
        self._stall = stall
        self._left: int | None = None
        self._held = b""
        self.status = 0
        self.headers: Sequence[Header] = ()

    async def begin(self, request: h11.Request) -> None:
        """Send the request and read the head of the answer.

        Raises:
            VisorError: As its classes say; a refusal as what it is.
        """
        await self._wire.send(request, h11.EndOfMessage(), within=self._stall)
        while not isinstance(event := await self._next_event(), h11.Response):
            pass
        self.status, self.headers = event.status_code, list(event.headers)
        if not 200 <= self.status < 300:
            raise refusal(self.status, _named(self.headers), await self._read_error())
        lengths = [value for name, value in self.headers if name == b"content-length"]
        if lengths and not any(name == b"transfer-encoding" for name, _ in self.headers):
            self._left = int(lengths[0])
            self._held = self._wire.held[: self._left]

    async def receive_some(self) -> bytes:
        """The next bytes of the body; empty at its end.

        Raises:
            ConnectionBroken: It ended or stalled before that.
            ProtocolViolation: What came is no HTTP.
        """
        if self._left is None:
            event = await self._next_event()
            return bytes(event.data) if isinstance(event, h11.Data) else b""
        if not self._left:
            return b""
        data = self._held or await self._wire.read(min(READ_BYTES, self._left), within=self._stall)
        self._held = b""
        self._left -= len(data)
        return data

    async def _read_error(self) -> bytes:
        content = bytearray()
        while len(content) < ERROR_LIMIT and isinstance(event := await self._next_event(), h11.Data):
            content += event.data
        return bytes(content)

    async def _next_event(self) -> object:
        return await self._wire.next_event(within=self._stall)


@asynccontextmanager
async def fetched(session: Session, path: str, headers: Iterable[Header]) -> AsyncGenerator[Fetched]:
    """GET a quoted path. Leaving closes the connection, read or not.

    Raises:
        VisorError: As its classes say.
    """
    target = session.target(path)
    sent = session.headers("GET", target, [(b"connection", b"close"), *headers])
    stream = await dial(session.origin, session.tls, session.timing.connect)
    try:
        answer = Fetched(stream, session.timing.stall)
        with translated(session.origin):
            await answer.begin(h11.Request(method="GET", target=target, headers=sent))
        yield answer
    finally:
        await stream.aclose()


def _named(headers: Sequence[Header]) -> dict[str, str]:
    return {name.decode("ascii"): value.decode("utf-8", "replace") for name, value in headers}
