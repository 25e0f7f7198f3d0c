"""A further location for an image's bytes: one attempt, whole or not at all.

The order is that of `ingest`: the lease, the bytes, their digest, their durability, then the one statement that makes
the location known. The record is not touched, and pulls go on meanwhile.
"""

from __future__ import annotations

import uuid

import trio

from ..errors import AttemptLost, ObjectChanged
from ..image import Image
from ..meta.contract import Attempt, ImageRepository, Location
from ..store.contract import ObjectInfo, Store, WriteStream
from .deposit import Deposit
from .digest import Digests
from .ingest import COMMIT_SECONDS, Ingest
from .pump import Source
from .transfer import Transfer
from .undo import undo
from .writing import write_attempt


class Copying:
    """Writes copies on behalf of one daemon.

    Args:
        ingest: Its leases are renewed together with those of copies, and its threads move their bytes.
    """

    def __init__(self, images: ImageRepository, ingest: Ingest, *, instance_id: str) -> None:
        self._images = images
        self._ingest = ingest
        self._instance_id = instance_id

    async def promise(self, transfer: Transfer, image: Image, store: Store) -> Attempt:
        """Announce that `transfer` will copy an image into `store`. Its lease is renewed until `copy` or `give_up`.

        Raises:
            NotFound: The image is gone.
            Conflict: It has other bytes now or none, or a copy is there already or under way.
        """
        attempt = Attempt(
            image_id=image.id,
            attempt_id=str(uuid.uuid4()),
            instance_id=self._instance_id,
            store=store.name,
            location="",
            copies=image.attempt_id,
        )
        await self._images.begin_copy(attempt)
        self._ingest.hold(attempt, transfer)
        return attempt

    async def copy(self, promised: Attempt, transfer: Transfer, image: Image, store: Store, source: Source) -> Location:
        """Move the bytes of `source` into `store`, and add the location to the image's.

        Raises:
            AttemptLost: The image was deleted meanwhile, or has other bytes; nothing is left.
            ObjectChanged: The bytes are not those of the record; nothing is left.
            StoreError: They did not come, or could not be written; nothing is left.

        Cancelled, it removes what it wrote, within `writing.CLEANUP_SECONDS`.
        """
        try:
            return await self._copy(promised, transfer, image, store, source)
        finally:
            self._ingest.release(promised)

    async def give_up(self, promised: Attempt) -> None:
        """End a promise of which nothing will come. In place of `copy`. Raises `MetadataUnavailable`."""
        self._ingest.release(promised)
        await self._images.fail(promised)

    async def _copy(self, attempt: Attempt, transfer: Transfer, image: Image, store: Store, source: Source) -> Location:
        async def fill(writer: WriteStream) -> None:
            digests = Digests(("sha256",))
            await Deposit(transfer, writer, digests, self._ingest.intake).fetch(source)
            _compare(image, transfer, digests)

        attempt, info = await write_attempt(self._images, attempt, store, transfer, fill, size=image.size)
        return await self._publish(attempt, store, info)

    async def _publish(self, attempt: Attempt, store: Store, info: ObjectInfo) -> Location:
        """The bytes are durable: whatever is cancelled now, the record is brought to agree with them."""
        with trio.move_on_after(COMMIT_SECONDS, shield=True):
            lost: AttemptLost | None = None
            try:
                return await self._images.commit_copy(attempt, info.validator)
            except AttemptLost as error:
                # Any other error leaves the outcome unknown: the lease, if it still stands, tells the sweep.
                lost = error
            await undo(self._images, attempt, store, None)
            raise lost
        raise AttemptLost("The location could not be recorded in time")


def _compare(image: Image, transfer: Transfer, digests: Digests) -> None:
    """Raises ObjectChanged unless all bytes came, and they are the record's."""
    if image.sha256 is None or transfer.meter.moved != image.size:
        raise ObjectChanged("The bytes in the store are not those that the record describes: their size differs")
    if digests.hex("sha256") != image.sha256:
        raise ObjectChanged("The bytes in the store are not those that the record describes: their digest differs")
