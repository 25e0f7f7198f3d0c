"""Image bytes of remote stores on their way to one client: from the cache, from a fill under way, or from the store."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ..errors import ObjectChanged
from ..image import Image
from ..store.contract import Block
from ..transfer.cachereader import CacheReader
from ..transfer.contract import ClientConnection
from ..transfer.filling import Open
from ..transfer.learning import demand_right, digests_for
from ..transfer.pump import pump
from ..transfer.relay import relay
from ..transfer.transfer import Transfer
from ..transfer.verify import Hashed
from .delivery import CLOSE_SECONDS, ZERO_COPY_MIN
from .entity import Headers, Layout, Part
from .movement import Send
from .request import Services

#: What a send raises where the file is at fault. Any other error is of the client, or of us: no descriptor is left.
_OF_FILE: Final = frozenset({
    errno.EIO, errno.ESTALE, errno.ENODATA, errno.EREMOTEIO, errno.EUCLEAN, errno.EBADMSG, errno.EILSEQ, errno.ENXIO,
    errno.ENODEV, errno.ENOLINK, errno.EACCES,
})  # fmt: skip

Deliver = Callable[[Transfer, Layout, Headers], Awaitable[None]]


class RemoteDelivery:
    """Sends what a `Layout` says of one image whose caller may read it.

    Args:
        read: How its store is read.
        direct: Sends the whole answer from the store, where the cache is of no use.

    Resource handling: it opens and closes what it reads; `send` and the connection are the request's.
    Error handling: what goes wrong once the head was sent leaves the answer short of its last block and is raised; the
    caller resets the connection.
    """

    def __init__(
        self,
        image: Image,
        read: Open,
        direct: Deliver,
        services: Services,
        connection: ClientConnection | None,
        send: Send,
    ) -> None:
        self._image = image
        self._read = read
        self._direct = direct
        self._services = services
        self._connection = connection
        self._send = send
        self._stream: CacheReader | None = None

    async def run(self, transfer: Transfer, layout: Layout, headers: Headers) -> None:
        """Send head and body.

        Raises:
            StoreError: The bytes can't be had, or are not those that the record describes.
            OSError: The client is gone.
        """
        try:
            self._stream = await self._cached(layout.parts[0], transfer)
            if self._stream is None:
                if layout.status == 206 and self._services.settings.cache.strict_ranges:
                    await self._demand_verified(transfer)
                await self._direct(transfer, layout, headers)
                return
            await self._send({"type": "http.response.start", "status": layout.status, "headers": headers})
            for number, part in enumerate(layout.parts):
                if number:
                    await self._stream.turn_to(part.offset, part.length or 0)
                if part.prefix:
                    await self._send_block(part.prefix)
                await self._move(self._stream, part.length or 0, transfer)
            await self._send({"type": "http.response.body", "body": layout.suffix, "more_body": False})
        finally:
            if self._stream is not None:
                self._services.metrics.cache_bytes_to_clients.inc(self._stream.served)
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._close()

    # --- reading ---------------------------------------------------------------------------------

    async def _cached(self, part: Part, transfer: Transfer) -> CacheReader | None:
        if part.length is None:
            return None
        return await self._services.cache.open(self._image, self._read, transfer, part.offset, part.length)

    async def _demand_verified(self, transfer: Transfer) -> None:
        """Read the whole once, and let none of it go, before a range is sent (`[cache] strict_ranges`)."""
        image = self._image
        if image.sha256 is None:
            return
        stream = await self._read(transfer, 0, image.size, True)
        try:
            hashed = Hashed(stream, digests_for(image))
            with transfer.meter.waiting("store"):
                while await hashed.receive_some():
                    pass
            await demand_right(self._services.images, image, await hashed.digests())
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await stream.aclose()

    async def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()

    # --- moving ----------------------------------------------------------------------------------

    async def _move(self, stream: CacheReader, length: int, transfer: Transfer) -> None:
        connection, meter, pace = self._connection, transfer.meter, transfer.pace
        if connection is None or not connection.lends or length < ZERO_COPY_MIN:
            await pump(stream, self._send_block, meter, waits=("store", "client"), pace=pace)
            return
        async with connection.lend(length) as sock:
            await self._send_file(sock, stream, transfer)
            # What is not in a file: nothing, or what a cache that failed leaves to the store.
            await relay(stream, sock, self._services.splicer.splice, meter, pace)

    async def _send_file(self, sock: int, stream: CacheReader, transfer: Transfer) -> None:
        """Have the kernel send from the file, which may grow meanwhile, as far as that goes."""
        zerocopy, meter, pace = self._services.zerocopy, transfer.meter, transfer.pace
        while (growing := stream.growing()) or (count := await stream.available()):
            before, position = meter.moved, stream.position
            failure: OSError | ObjectChanged | None = None
            try:
                if growing is not None:
                    growth, length = growing
                    await zerocopy.send_growing(sock, stream.file, position, length, growth, meter, pace)
                else:
                    await zerocopy.send_file(sock, stream.file, position, count, meter, pace)
            except (OSError, ObjectChanged) as error:
                if isinstance(error, OSError) and error.errno not in _OF_FILE:
                    raise
                failure = error
            stream.advance(meter.moved - before)
            if failure is not None:
                await stream.fall_back(failure)

    async def _send_block(self, block: Block) -> None:
        await self._send({"type": "http.response.body", "body": block, "more_body": True})
