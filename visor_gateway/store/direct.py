"""Bodies of other servers, offered for moving from socket to socket."""

from __future__ import annotations

from ..outbound import Body, Response
from .contract import Direct


def direct(body: Body, length: int | None = None) -> Direct | None:
    """What `DirectReadStream.direct` offers of a body: at most `length` of its next bytes, all of them if None."""
    sock = body.socket
    if sock is None or body.length is None or length == 0:
        return None
    left = body.length - body.received
    return Direct(sock=sock, length=left if length is None else min(left, length), stall_timeout=body.stall_timeout)


class BodyReadStream:
    """What streams over the body of one answer share; `left` bytes of it belong to the range.

    Resource handling: whoever opened it closes it. A body read whole leaves its connection to the next request.
    """

    def __init__(self, response: Response | None, left: int) -> None:
        self._response = response
        self._left = left
        self._closed = False

    def direct(self) -> Direct | None:
        """The server's socket, where bytes of the range come next."""
        return None if self._response is None else direct(self._response.stream, self._left)

    def advance(self, count: int) -> None:
        """Book bytes that were taken from the socket."""
        if self._response is not None:
            self._response.stream.advance(count)
            self._left -= count

    async def aclose(self) -> None:
        """Leave the answer. Safe at any time and twice."""
        self._closed = True
        response, self._response = self._response, None
        if response is not None:
            await response.aclose()
