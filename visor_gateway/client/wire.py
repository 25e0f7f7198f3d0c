"""HTTP/1.1 on one connection, as the client's side of it: h11 and the stream that it speaks on."""

from __future__ import annotations

from typing import Final

import h11
import httpcore2

from .errors import ConnectionBroken, ProtocolViolation
from .network import broken

READ_BYTES: Final = 512 * 1024  # larger reads cost as much in fresh memory as they save in calls


class Wire:
    """One exchange's connection. The caller closes the stream.

    Sending and receiving may go on at once, in a task each.
    """

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def send(self, *events: h11.Event, within: float | None = None) -> None:
        """Send events in one piece.

        Args:
            within: Seconds until the kernel must have taken all of it.

        Raises:
            h11.LocalProtocolError: They do not go together: the caller's mistake.
            httpcore2.WriteError, httpcore2.WriteTimeout: The connection is of no more use for sending.
        """
        await self._stream.write(b"".join(self._http.send(event) or b"" for event in events), timeout=within)

    async def next_event(self, *, within: float | None = None) -> object:
        """The next event of the answer.

        Args:
            within: Seconds until the next bytes must have come.

        Raises:
            ConnectionBroken: It ended or stalled before the answer was whole.
            ProtocolViolation: What came is no HTTP.
        """
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self.read(READ_BYTES, within=within))
        except h11.RemoteProtocolError as exc:
            raise ProtocolViolation("The gateway's answer is not valid HTTP") from exc
        return event

    async def read(self, count: int, *, within: float | None = None) -> bytes:
        """Bytes of a body past h11, at least one. First take what h11 holds already: `held`.

        Raises:
            ConnectionBroken: The connection ended or stalled.
        """
        try:
            data = await self._stream.read(count, timeout=within)
        except (httpcore2.ReadError, httpcore2.ReadTimeout) as exc:
            raise ConnectionBroken(broken(exc)) from exc
        if not data:
            raise ConnectionBroken("The gateway closed the connection before its answer was whole")
        return data

    @property
    def held(self) -> bytes:
        """Bytes that came and were not made into events yet."""
        data, _ = self._http.trailing_data
        return data
