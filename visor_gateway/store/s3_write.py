"""Writing an S3 object: small ones by one request from memory, large ones as their service takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ..errors import ObjectExists, StoreError, StoreUnreachable
from .attempt import Attempt
from .contract import Block, ObjectInfo
from .multipart import MultipartUpload
from .parts import FIRST_BYTES, MemoryPart, PartSizes
from .s3_signing import UNSIGNED
from .single_put import SpooledPut, StreamedPut

if TYPE_CHECKING:
    from .s3 import S3Store

ABORT_SECONDS: Final = 16.0  # within what the engine gives an abort; what it leaves, the sweep finishes
CLOSE_SECONDS: Final = 2.0  # for what is given back here


class Large(Protocol):
    """A way to write an object that is too large for one request from memory."""

    length: int

    async def add(self, data: memoryview) -> None:
        """Append bytes."""
        ...

    async def finish(self) -> None:
        """Make the object visible. Raises ObjectExists, StoreError."""
        ...

    async def discard(self) -> None:
        """Remove what the service has of it, once no request of the attempt runs any more."""
        ...

    async def aclose(self) -> None:
        """Give back what waits here. Safe twice."""
        ...


class S3WriteStream:
    """One attempt at one object. Nothing is sent before the first 8 MiB are full, or `commit`.

    Attributes:
        location: Where the object will be.
    """

    def __init__(self, store: S3Store, key: str, size: int | None, attempt: Attempt) -> None:
        self.location = store.location(key)
        self._store = store
        self._objects = store.objects
        self._key = key
        self._size = size
        self._attempt = attempt
        self._first = MemoryPart(FIRST_BYTES)
        self._large: Large | None = None
        self._usable = True
        self._published = False  # whether a request was sent that may have made the object visible
        self._committed = False

    @property
    def on_retry(self) -> Callable[[], None]:
        """Called before the pause of each further try of a request."""
        return self._attempt.on_retry

    @on_retry.setter
    def on_retry(self, call: Callable[[], None]) -> None:
        self._attempt.on_retry = call

    async def write(self, data: Block) -> None:
        """Append all of `data`, which is copied or sent when this returns."""
        self._begin_step()
        with memoryview(data) as whole, whole.cast("B") as view:
            room = self._first.room if self._large is None else 0
            if room:
                with view[:room] as piece:
                    await self._first.append(piece)
            if len(view) > room:
                with view[room:] as rest:
                    await self._add(rest)
        await trio.lowlevel.checkpoint()
        self._usable = True

    async def commit(self) -> ObjectInfo:
        """Make the object visible. Cancelled, it waits a while for the request that does so."""
        self._begin_step()
        length = self._first.length if self._large is None else self._large.length
        taken = await self._publish()
        if taken is not None:
            # What is there is somebody else's.
            self._published = False
            await self.abort()
            raise taken
        info = await self._objects.head(self._key)
        if info is None or info.size != length:
            raise StoreError(f"The store '{self._store.name}' has not kept what was written")
        await self._end()
        self._committed = True
        return info

    async def _publish(self) -> ObjectExists | None:
        """Make the object visible. Returns why not, where the key is taken."""
        try:
            if not isinstance(self._large, StreamedPut):
                await self._require_new()
            self._published = True
            if self._large is not None:
                await self._large.finish()
            else:
                await self._attempt.run(self._put_first)
        except ObjectExists as error:
            return error
        return None

    async def abort(self) -> None:
        """Remove every trace of the attempt. Does nothing after a `commit` that returned.

        Raises:
            StoreError: Something may be left, for `abandon` to remove.
        """
        self._usable = False
        with trio.move_on_after(ABORT_SECONDS, shield=True) as scope:
            await self._attempt.stop()
            if not self._committed:
                await self._remove()
        if scope.cancelled_caught:
            raise StoreUnreachable(f"The store '{self._store.name}' does not answer")

    async def _remove(self) -> None:
        try:
            if self._large is not None:
                await self._large.discard()
            if self._published:
                await self._objects.remove(self._key)
            self._published = False
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._end()

    async def stop(self) -> None:
        """Keep the attempt from ever making an object visible: somebody has abandoned it."""
        self._usable = False
        await self._attempt.stop()

    def _begin_step(self) -> None:
        """Only a step that ends well makes the attempt usable again."""
        if not self._usable:
            raise StoreError("The attempt has failed or ended; nothing can be written to it")
        self._usable = False
        self._attempt.raise_failure()

    async def _add(self, data: memoryview) -> None:
        if self._large is None:
            await self._require_new()
            self._large = self._open_large()
            self._published = isinstance(self._large, StreamedPut)
        await self._large.add(data)

    def _open_large(self) -> Large:
        store = self._store
        if store.dialect.multipart:
            sizes = PartSizes(self._size, store.max_size, store.max_parts)
            return MultipartUpload(self._objects, self._key, self._attempt, store.spool, sizes, self._first)
        if self._size is not None:
            return StreamedPut(self._objects, self._key, self._attempt, self._size, self._first)
        return SpooledPut(self._objects, self._key, self._attempt, store.spool, self._first)

    async def _require_new(self) -> None:
        """Not every service heeds `If-None-Match`."""
        if await self._objects.head(self._key) is not None:
            raise ObjectExists(f"The store '{self._store.name}' has an object of that key already")

    async def _put_first(self) -> None:
        part = self._first
        digest = await part.digest() if self._objects.bucket.signs_bodies else UNSIGNED
        await self._objects.put(self._key, part.length, part.body, digest, self._attempt.retried)

    async def _end(self) -> None:
        """Give back what the attempt holds here."""
        self._store.ended(self._key)
        await self._first.aclose()
        if self._large is not None:
            await self._large.aclose()
