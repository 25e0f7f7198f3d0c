"""Writing an S3 object in one request, for services that know no other way. Its length has to be known before.

`StreamedPut` passes bytes on as they come, under the length that was announced. They can be sent only once, so a
request that fails ends the attempt. `SpooledPut` keeps them on disk until the length is known.
"""

from __future__ import annotations

from typing import Final

import structlog
import trio

from ..errors import StoreError
from ..outbound import RequestBody
from .attempt import Attempt
from .parts import Part, SpooledPart
from .s3_objects import S3Objects
from .s3_signing import UNSIGNED
from .spool import Spool

_NO_LIMIT: Final = 1 << 62  # bytes: the spool has its own

_log: Final = structlog.get_logger("visor_gateway.s3")


class StreamedPut:
    """One PUT under way.

    Args:
        attempt: Where the request runs.
        size: Bytes that were announced.
        first: The first bytes. They belong to the request from now on.
    """

    def __init__(self, objects: S3Objects, key: str, attempt: Attempt, size: int, first: Part) -> None:
        self.length = first.length
        self._objects = objects
        self._key = key
        self._attempt = attempt
        self._size = size
        self._first = first
        self._begun = False
        self._ended = trio.Event()
        self._send, self._receive = trio.open_memory_channel[memoryview](0)
        self._taken = trio.Event()

    async def add(self, data: memoryview) -> None:
        """Pass `data` on. Returns when the request has done with it.

        Raises:
            StoreError: The service failed, or there is more than was announced.
        """
        self.length += len(data)
        if self.length > self._size:
            raise StoreError("The image is larger than it was announced")
        if not self._begun:
            self._begun = True
            self._attempt.start(self._put)
        self._taken = trio.Event()
        try:
            await self._send.send(data)
            await self._taken.wait()
        except trio.BrokenResourceError:
            self._attempt.raise_failure()
            raise StoreError("The store ended the upload before its end") from None
        self._attempt.raise_failure()

    async def finish(self) -> None:
        """Wait for the answer.

        Raises:
            StoreError: The service failed, or there is less than was announced.
        """
        if self.length != self._size:
            raise StoreError("The image is smaller than it was announced")
        self._send.close()
        await self._attempt.run(self._ended.wait)
        self._attempt.raise_failure()

    async def discard(self) -> None:
        """Nothing is left of a request that did not end."""

    async def aclose(self) -> None:
        """Give the memory back. Safe twice."""
        await self._first.aclose()

    async def _put(self) -> None:
        try:
            body = _Passed(self._first.body(), self._receive, self._size, self)
            await self._objects.put(self._key, self._size, lambda: body, UNSIGNED, self._attempt.retried, tries=1)
        finally:
            self._receive.close()
            self._taken.set()
            self._ended.set()

    def taken(self) -> None:
        """The request has done with the block that it got last."""
        self._taken.set()


class _Passed:
    """A body that begins with bytes in memory and goes on with what `StreamedPut.add` gets."""

    def __init__(
        self, first: RequestBody, rest: trio.MemoryReceiveChannel[memoryview], size: int, put: StreamedPut
    ) -> None:
        self.length: int | None = size
        self._first = first
        self._rest = rest
        self._put = put
        self._handed = False

    async def receive_some(self) -> memoryview | bytes | bytearray:
        if data := await self._first.receive_some():
            return data
        if self._handed:
            self._put.taken()
        self._handed = True
        try:
            return await self._rest.receive()
        except trio.EndOfChannel:
            return b""


class SpooledPut:
    """One PUT of bytes that are collected first.

    Args:
        first: The first bytes. They belong to this object from now on.
    """

    def __init__(self, objects: S3Objects, key: str, attempt: Attempt, spool: Spool, first: Part) -> None:
        self.length = first.length
        self._objects = objects
        self._key = key
        self._attempt = attempt
        self._spool = spool
        self._first: Part = first
        self._whole: Part | None = None

    async def add(self, data: memoryview) -> None:
        """Write `data` to the spool.

        Raises:
            StoreFull: The spool is full.
        """
        whole = self._whole
        if whole is None:
            _log.info(
                "upload of unknown length is spooled: the store wants to know it", store=self._objects.bucket.name
            )
            whole = self._whole = SpooledPart(await self._spool.open(), _NO_LIMIT)
            await self._move_first(whole)
        await whole.append(data)
        self.length += len(data)

    async def finish(self) -> None:
        """Send it."""
        await self._attempt.run(self._put)

    async def discard(self) -> None:
        """Nothing: the service has seen nothing, or the whole."""

    async def aclose(self) -> None:
        """Give the space back. Safe twice."""
        await self._first.aclose()
        if self._whole is not None:
            await self._whole.aclose()

    async def _move_first(self, whole: Part) -> None:
        body = self._first.body()
        while data := await body.receive_some():
            with memoryview(data) as view:
                await whole.append(view)
        await self._first.aclose()

    async def _put(self) -> None:
        whole = self._whole or self._first
        digest = await whole.digest() if self._objects.bucket.signs_bodies else UNSIGNED
        await self._objects.put(self._key, self.length, whole.body, digest, self._attempt.retried)
