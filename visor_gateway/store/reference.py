"""Reading a range of an HTTP reference, over one connection. `transfer.upstream` continues a read that breaks."""

from __future__ import annotations

from typing import Final

from ..errors import ObjectChanged, ObjectMissing, StoreError, StoreUnreachable
from ..outbound import BadResponse, BodyBroken, Outbound, OutboundError, Response
from .contract import Direct, ObjectInfo
from .direct import direct
from .representation import Representation, describe

_CHANGED: Final = "The image file at its location has changed"
_OUTSIDE: Final = "The range is outside the image file"


class ReferenceStream:
    """Bytes `offset` to `offset + length` of a location; `DirectReadStream` of the store contract.

    Attributes:
        info: Size and validator (the strong ETag, quotes included), as expected, else as the answer told them.

    Resource handling: whoever called `open` closes it. A cancelled `receive_some` leaves nothing to do but `aclose`.
    """

    def __init__(
        self, outbound: Outbound, location: str, offset: int, length: int | None, expected: ObjectInfo | None
    ) -> None:
        self.info = expected or ObjectInfo(size=None)
        self._outbound = outbound
        self._location = location
        self._position = offset
        self._length = length
        self._end = None if length is None else offset + length
        self._response: Response | None = None
        self._skip = 0  # bytes to drop: the origin ignored `Range`
        self._to_the_end = False  # the range ends with the object, whose size the answers do not tell

    async def open(self) -> None:
        """Ask for the first byte.

        Raises:
            ObjectChanged: Size or strong validator is not what was expected.
            ObjectMissing: The origin says that it has none.
            StoreError: The range is outside the object.
            OutboundError: No usable answer.
        """
        self._settle_end()
        if self._end is None or self._position < self._end:
            await self._connect()

    async def receive_some(self) -> bytes:
        """Up to a block of bytes; b"" at the end of the range.

        Raises:
            ObjectChanged: The object is another one now.
            StoreUnreachable: The read broke off or stalled.
        """
        try:
            return await self._next_block()
        except OutboundError as exc:
            raise StoreUnreachable(f"The read from the origin broke off at byte {self._position}") from exc

    def direct(self) -> Direct | None:
        """The origin's socket, where bytes of the range come next."""
        if self._response is None or self._skip or self._end is None:
            return None
        return direct(self._response.stream, self._end - self._position)

    def advance(self, count: int) -> None:
        """Book bytes that were taken from the socket."""
        if self._response is not None:
            self._response.stream.advance(count)
            self._position += count

    async def aclose(self) -> None:
        """Leave the origin. Safe at any time and twice."""
        response, self._response = self._response, None
        if response is not None:
            await response.aclose()

    async def _next_block(self) -> bytes:
        while self._end is None or self._position < self._end:
            if self._response is None:
                raise BodyBroken("the answer was closed")
            data = await self._response.stream.receive_some()
            if not data:
                return self._ended()
            if kept := self._kept(data):
                if self._to_the_end and self._position + len(kept) == self._end:
                    await self._demand_end(self._response, surplus=len(data) > len(kept))
                self._position += len(kept)
                return kept
        return b""

    def _kept(self, data: bytes) -> bytes:
        """The part of a block that lies in the range."""
        dropped = min(self._skip, len(data))
        self._skip -= dropped
        until = None if self._end is None else dropped + self._end - self._position
        return data[dropped:until] if dropped or until is not None else data

    def _ended(self) -> bytes:
        """The body is over before the range is; that is fine where nobody knew the size."""
        if self._end is not None or self._skip:
            raise BodyBroken(f"the body ended at byte {self._position}")
        self._end = self._position
        return b""

    async def _demand_end(self, response: Response, *, surplus: bool) -> None:
        """Hold the last block back until the body has ended where the expected size says."""
        if surplus or await response.stream.receive_some():
            raise ObjectChanged(_CHANGED)

    async def _connect(self) -> None:
        response = await self._outbound.open("GET", self._location, self._headers())
        try:
            self._admit(response)
        except BaseException:
            await response.aclose()
            raise
        self._response = response

    def _headers(self) -> dict[str, str]:
        headers = {}
        if self._position or self._end is not None:
            last = "" if self._end is None else self._end - 1
            headers["Range"] = f"bytes={self._position}-{last}"
        if self.info.validator is not None:
            headers["If-Match"] = self.info.validator
        return headers

    def _admit(self, response: Response) -> None:
        """Take an answer, if it has bytes of the object that this stream reads."""
        if response.status in {404, 410}:
            raise ObjectMissing(f"No image file found at {self._location}")
        if response.status == 412:
            raise ObjectChanged(_CHANGED)
        if response.status == 416:
            raise self._unsatisfiable()
        part = describe(response)
        self._learn(part)
        if part.first != self._position and response.status == 206:
            raise BadResponse("a 206 that begins elsewhere")
        self._skip = self._position - part.first
        self._to_the_end = part.size is None and self._end is not None and self._end == self.info.size
        if not response.stream.framed and self._end is None:
            raise BadResponse("neither size nor end of the body can be known")

    def _learn(self, part: Representation) -> None:
        """Raises ObjectChanged where an answer contradicts what is known of the object."""
        known = self.info
        other_size = known.size is not None and part.size is not None and known.size != part.size
        other_bytes = known.validator is not None and known.validator != part.validator
        if other_size or other_bytes:
            raise ObjectChanged(_CHANGED)
        self.info = ObjectInfo(
            size=known.size if part.size is None else part.size, validator=known.validator or part.validator
        )
        self._settle_end()

    def _settle_end(self) -> None:
        """Raises StoreError where the range is outside the object."""
        size = self.info.size
        if size is None:
            return
        if self._end is None:
            self._end = size
        if self._position > size or self._end > size:
            raise StoreError(_OUTSIDE)

    def _unsatisfiable(self) -> StoreError:
        """What a 416 means: the object shrank, if the range was inside it before."""
        if self.info.size is not None and self._position < self.info.size:
            return ObjectChanged(_CHANGED)
        return StoreError(_OUTSIDE)
