"""Reading a range of an S3 object, from one answer."""

from __future__ import annotations

from ..errors import ObjectChanged, StoreError, StoreUnreachable
from ..outbound import OutboundError, Response
from .contract import Direct, ObjectInfo
from .direct import BodyReadStream


class S3ReadStream(BodyReadStream):
    """`left` bytes of an answer's body, after `skip` that come before the range.

    Attributes:
        info: The object as the answer described it.
    """

    def __init__(self, response: Response | None, info: ObjectInfo, *, skip: int, left: int, store: str) -> None:
        super().__init__(response, left)
        self.info = info
        self._skip = skip
        self._store = store

    async def receive_some(self) -> bytes:
        """Up to a block of bytes; b"" at the end of the range.

        Raises:
            ObjectChanged: The object ended before the range.
            StoreUnreachable: The connection broke, or stalled.
        """
        if self._closed:
            raise StoreError("The stream is closed")
        while self._left and self._response is not None:
            data = await self._received(self._response)
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            kept = data[dropped : dropped + self._left] if dropped or len(data) > self._left else data
            self._left -= len(kept)
            if kept:
                return kept
        return b""

    def direct(self) -> Direct | None:
        """The store's socket, where bytes of the range come next."""
        return None if self._skip else super().direct()

    async def _received(self, response: Response) -> bytes:
        try:
            data = await response.stream.receive_some()
        except OutboundError as exc:
            raise StoreUnreachable(f"The read from the store '{self._store}' broke off") from exc
        if not data:
            raise ObjectChanged("The object is shorter than it was when it was opened")
        return data
