"""Image bytes on their way to one client: opened, moved by the cheapest way there is, checked before the last block."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec
import trio

from ..errors import ObjectChanged
from ..image import Image
from ..store.contract import Block
from ..store.file import FileReadStream, FileStore
from ..transfer.contract import ClientConnection
from ..transfer.learning import demand_right, digests_for
from ..transfer.pinning import pin
from ..transfer.pump import Source, pump
from ..transfer.relay import Move, relay
from ..transfer.setbacks import Candidate
from ..transfer.transfer import Transfer
from ..transfer.upstream import Upstream
from ..transfer.verify import Hashed, Verified
from . import locations
from .entity import Layout
from .movement import Send
from .request import Services

CLOSE_SECONDS: Final = 5.0
ZERO_COPY_MIN: Final = 1 << 20  # bytes; below, handing over to a pump costs more than the copy

#: Bytes of a file that the kernel does not move: the last block, which waits for the last look at the file. Each pull
#: has memory for them, and many end at once.
LAST_BLOCK: Final = 4 << 10


class Delivery:
    """Sends what a `Layout` says of one image.

    Args:
        candidates: Where its bytes are, in the order in which these are to be read.

    Resource handling: it opens and closes the reads; `send` and the connection are the request's.
    Error handling: what goes wrong once the head was sent leaves the answer short of its last block and is raised; the
    caller resets the connection.
    """

    def __init__(
        self,
        image: Image,
        candidates: Sequence[Candidate],
        services: Services,
        connection: ClientConnection | None,
        send: Send,
    ) -> None:
        self._image = image
        self._candidates = candidates
        self._services = services
        self._connection = connection
        self._send = send

    async def run(self, transfer: Transfer, layout: Layout, headers: list[tuple[bytes, bytes]]) -> None:
        """Send head and body.

        Raises:
            StoreError: The bytes can't be had, or are no longer those that the record describes.
            OSError: The client is gone.
        """
        upstream = self._upstream(transfer, layout)
        try:
            await upstream.open()
            upstream.verified = self._image.sha256 is not None and self._is_hashed(
                upstream.candidate, whole=layout.whole
            )
            await self._send({"type": "http.response.start", "status": layout.status, "headers": headers})
            for number, part in enumerate(layout.parts):
                if number:
                    await upstream.turn_to(part.offset, part.length)
                if part.prefix:
                    await self._send_block(part.prefix)
                await self._move(upstream, part.length, transfer, whole=layout.whole)
            await self._send({"type": "http.response.body", "body": layout.suffix, "more_body": False})
        finally:
            await upstream.aclose()

    def _upstream(self, transfer: Transfer, layout: Layout) -> Upstream:
        first = layout.parts[0]
        return locations.upstream(self._services, self._candidates, transfer, first.offset, first.length)

    # --- moving ----------------------------------------------------------------------------------

    async def _move(self, upstream: Upstream, length: int | None, transfer: Transfer, *, whole: bool) -> None:
        stream = upstream.stream
        if self._is_hashed(upstream.candidate, whole=whole):
            await self._move_hashed(upstream, length, transfer)
        elif length is None:
            await self._pump(upstream, transfer)
        else:
            if isinstance(stream, FileReadStream):
                length -= await self._send_file(upstream, stream, length, transfer)
            source = Verified(upstream, length, partial(self._agree, upstream, transfer, whole=whole))
            await self._hand_over(source, length, transfer, self._services.splicer.splice)

    def _is_hashed(self, candidate: Candidate, *, whole: bool) -> bool:
        """Whether the bytes are hashed on their way: all of an image whose digest is to be compared, or found out.

        Bytes that were verified when they were written, in a file that nobody has touched, will do.
        """
        if not whole:
            return False
        if isinstance(candidate.store, FileStore):
            return candidate.store.always_verify
        return self._image.sha256 is None or self._services.settings.stores.verify_direct_pulls

    async def _move_hashed(self, upstream: Upstream, length: int | None, transfer: Transfer) -> None:
        hashed = Hashed(upstream, digests_for(self._image))
        if length is None:
            await self._pump(hashed, transfer)
            await self._agree_on_digest(upstream, hashed)
            return
        source = Verified(hashed, length, partial(self._agree_on_digest, upstream, hashed))
        await self._hand_over(source, length, transfer, partial(self._services.copier.copy, hashed.hashes))

    async def _hand_over(self, source: Verified, length: int, transfer: Transfer, move: Move) -> None:
        """Move `length` bytes by way of the client's socket, where that is to be had and worth it."""
        connection = self._connection
        if connection is None or not connection.lends or length < ZERO_COPY_MIN:
            await self._pump(source, transfer)
            return
        async with connection.lend(length) as sock:
            await relay(source, sock, move, transfer.meter, transfer.pace)

    async def _pump(self, source: Source, transfer: Transfer) -> None:
        await pump(source, self._send_block, transfer.meter, waits=("store", "client"), pace=transfer.pace)

    async def _agree(self, upstream: Upstream, transfer: Transfer, *, whole: bool) -> None:
        if isinstance(upstream.stream, FileReadStream):
            await upstream.stream.check()
        if len(upstream.sources) > 1 and self._image.sha256 is not None:
            for candidate in upstream.sources:
                if self._is_hashed(candidate, whole=whole):
                    await self._verify(candidate, transfer)
        self._services.scrub.demand_not_condemned(self._place(upstream))

    async def _verify(self, candidate: Candidate, transfer: Transfer) -> None:
        """Read a whole location and let none of it go: where a pull that began in a file went on elsewhere, nobody has
        hashed what came from there together with what was before."""
        source = locations.upstream(self._services, [candidate], transfer, verified=True)
        try:
            hashed = Hashed(source, digests_for(self._image))
            with transfer.meter.waiting("store"):
                while await hashed.receive_some():
                    pass
            await demand_right(self._services.images, self._image, await hashed.digests())
        finally:
            await source.aclose()

    def _place(self, upstream: Upstream) -> Image:
        """The record, as if the location that is read were its only one."""
        candidate = upstream.candidate
        if candidate.location == self._image.location:
            return self._image
        return msgspec.structs.replace(
            self._image,
            store=candidate.store.name,
            location=candidate.location,
            attempt_id=candidate.attempt_id,
            bad_since=None,
        )

    async def _agree_on_digest(self, upstream: Upstream, hashed: Hashed) -> None:
        if self._image.sha256 is None:
            await pin(self._services.images, self._image, await hashed.sha256(), upstream.position)
            return
        try:
            await demand_right(self._services.images, self._image, await hashed.digests())
        except ObjectChanged:
            # Of bytes that came from several places nobody can say which were wrong.
            if isinstance(upstream.candidate.store, FileStore) and not upstream.healed:
                with trio.move_on_after(CLOSE_SECONDS, shield=True):
                    await self._services.scrub.condemn(self._place(upstream))
            raise
        self._services.scrub.demand_not_condemned(self._place(upstream))

    async def _send_file(self, upstream: Upstream, stream: FileReadStream, length: int, transfer: Transfer) -> int:
        """Have the kernel move all but the last block, where it can. Returns how many bytes that were."""
        connection = self._connection
        if connection is None or not connection.lends or length < ZERO_COPY_MIN:
            return 0
        length -= LAST_BLOCK
        async with connection.lend(length) as sock:
            await self._services.zerocopy.send_file(
                sock, stream.file, stream.position, length, transfer.meter, transfer.pace
            )
        upstream.advance(length)
        return length

    async def _send_block(self, block: Block) -> None:
        await self._send({"type": "http.response.body", "body": block, "more_body": True})
