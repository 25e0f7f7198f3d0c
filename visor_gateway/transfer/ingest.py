"""Bytes into a store and, once they are durable, into the record: one attempt, whole or not at all.

The order is what makes it safe. The lease is recorded first, so that a crash at any later point leaves something
that the sweep can find. Then bytes, then their durability, then the one statement that makes the image available. On
the way back: bytes first, record last. So a record never leads its bytes, and an image that is not `available` has
none.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Final, TypeGuard

import msgspec
import structlog
import trio

from ..errors import AttemptLost, BodyIncomplete
from ..image import Image
from ..meta.contract import Attempt, ImageRepository, Written
from ..store.contract import DirectWriteStream, ObjectInfo, Store, WriteStream
from .deposit import Deposit
from .digest import Digests
from .inspect import FormatInspector, open_inspector
from .intake import Intake, LendingSource
from .pump import Source, pump
from .transfer import Transfer
from .writing import write_attempt

COMMIT_SECONDS: Final = 60.0

_log: Final = structlog.get_logger("visor_gateway.ingest")


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the bytes before they come.

    Attributes:
        size: Bytes, None where unknown.
        digests: Raw digests by hashlib name that the bytes must have.
    """

    size: int | None = None
    digests: Mapping[str, bytes] = {}


class Ingest:
    """Writes images' bytes on behalf of one daemon.

    Attributes:
        intake: The threads that move uploads, and what imports and copies bring.
    """

    def __init__(
        self,
        images: ImageRepository,
        *,
        instance_id: str,
        visor_md5: bool,
        max_size: int,
        keep_unsafe: bool = False,
        nice: int = 0,
    ) -> None:
        """
        Args:
            keep_unsafe: Images that contradict their format or refer outside themselves are kept, and logged.
            nice: How much threads that move uploads stand back behind others.
        """
        self._images = images
        self._instance_id = instance_id
        self._visor_md5 = visor_md5
        self._max_size = max_size
        self._keep_unsafe = keep_unsafe
        self._writing: dict[str, Transfer] = {}
        self.intake = Intake(nice=nice)

    @property
    def writing(self) -> Mapping[str, Transfer]:
        """The transfers that write now, by attempt id: the leases that have to be renewed."""
        return self._writing

    def revise(self, *, visor_md5: bool, max_size: int, keep_unsafe: bool) -> None:
        """Have other settings from now on."""
        self._visor_md5, self._max_size, self._keep_unsafe = visor_md5, max_size, keep_unsafe

    def hold(self, attempt: Attempt, transfer: Transfer) -> None:
        """Have the lease of an attempt renewed; `transfer` is cancelled if it is lost."""
        self._writing[attempt.attempt_id] = transfer

    def release(self, attempt: Attempt) -> None:
        """Let the lease run out by itself, if it was not ended."""
        self._writing.pop(attempt.attempt_id, None)

    async def promise(self, transfer: Transfer, image: Image, store: Store, *, new: bool = False) -> Attempt:
        """Announce that `transfer` will write an image. Its lease is renewed until `write` or `give_up` ends it; if
        this daemon dies before, the sweep makes the image `error`.

        Args:
            new: The record is not in the repository yet; it is added together with the lease.

        Raises:
            Conflict: The image is not `locked` or `error`; nothing was changed.
        """
        attempt = self._attempt(image, store)
        await self._images.promise(attempt, new=image if new else None)
        self._writing[attempt.attempt_id] = transfer
        return attempt

    async def write(
        self,
        transfer: Transfer,
        image: Image,
        store: Store,
        source: Source,
        declared: Declared,
        *,
        new: bool = False,
        promised: Attempt | None = None,
    ) -> Image:
        """Move the bytes of `source` into `store` and make the image available.

        Args:
            new: The record is not in the repository yet; it is added together with the lease.
            promised: What `promise` returned, if it was called.

        Returns:
            The available record.

        Raises:
            Conflict: The image is not `locked` or `error`; nothing was changed.
            AttemptLost: A delete or another attempt took the image; no bytes are left.
            ClientError, StoreError: The bytes did not come, or may not be kept; the image is `error`, without bytes.

        Cancelled, it removes the bytes and sets `error`, within `writing.CLEANUP_SECONDS`.
        """
        attempt = promised or self._attempt(image, store)
        try:
            await self._images.begin(attempt, new=image if new else None)
            self._writing[attempt.attempt_id] = transfer
            return await self._write(transfer, image, store, source, declared, attempt)
        finally:
            # From here on the lease runs out by itself, if what failed could not end it.
            self._writing.pop(attempt.attempt_id, None)

    async def give_up(self, promised: Attempt) -> None:
        """Make an image `error` to which bytes were promised, of which none will come. In place of `write`.

        Raises:
            MetadataUnavailable: The database can't be used; the sweep does it when the lease is over.
        """
        self._writing.pop(promised.attempt_id, None)
        await self._images.fail(promised)

    async def _write(
        self, transfer: Transfer, image: Image, store: Store, source: Source, declared: Declared, attempt: Attempt
    ) -> Image:
        digests = Digests({"sha256", *declared.digests, *(("md5",) if self._visor_md5 else ())})

        async def fill(writer: WriteStream) -> None:
            await self._fill(transfer, writer, source, declared, digests, image)

        attempt, info = await write_attempt(self._images, attempt, store, transfer, fill, size=declared.size)
        return await self._publish(attempt, store, self._written(info, digests, transfer.meter.moved))

    async def refer(self, image: Image, origin: Store, info: ObjectInfo, *, checksum: str | None, new: bool) -> Image:
        """Make an image available whose bytes stay at its `location`, as `origin` describes them.

        Raises:
            Conflict: The image is not `locked` or `error`; nothing was changed.
        """
        attempt = self._attempt(image, origin)
        location = image.location or ""
        await self._images.begin(attempt, new=msgspec.structs.replace(image, location=None) if new else None)
        written = Written(size=info.size, checksum=checksum, sha256=None, validator=info.validator)
        return await self._images.commit(msgspec.structs.replace(attempt, location=location), written)

    def _attempt(self, image: Image, store: Store) -> Attempt:
        return Attempt(
            image_id=image.id,
            attempt_id=str(uuid.uuid4()),
            instance_id=self._instance_id,
            store=store.name,
            location="",
        )

    async def _fill(
        self,
        transfer: Transfer,
        writer: WriteStream,
        source: Source,
        declared: Declared,
        digests: Digests,
        image: Image,
    ) -> None:
        inspector = self._inspector(image)
        deposit = Deposit(transfer, writer, digests, self.intake, examiner=inspector, max_size=self._max_size)
        if transfer.kind != "push":
            await deposit.fetch(source)
        else:
            with self.intake.slot() as free:
                if free and self._lends(source, declared) and isinstance(writer, DirectWriteStream):
                    await self._take_in(transfer, writer, source, digests, inspector)
                else:
                    await pump(source, deposit.take, transfer.meter, waits=("client", "disk"), pace=transfer.pace)
        if declared.size is not None and transfer.meter.moved != declared.size:
            raise BodyIncomplete(
                f"The body has {transfer.meter.moved} bytes, not the {declared.size} that were announced"
            )
        inspector.finish()
        digests.check(declared.digests)

    def _inspector(self, image: Image) -> FormatInspector:
        def warn(finding: str) -> None:
            _log.warning("unsafe image is kept", image=image.id, format=image.format, finding=finding)

        return open_inspector(image.format, warn if self._keep_unsafe else None)

    def _lends(self, source: Source, declared: Declared) -> TypeGuard[LendingSource]:
        known = declared.size is not None and declared.size <= self._max_size
        return known and isinstance(source, LendingSource) and source.lends

    async def _take_in(
        self,
        transfer: Transfer,
        writer: DirectWriteStream,
        source: LendingSource,
        digests: Digests,
        inspector: FormatInspector,
    ) -> None:
        """Move a body in threads."""
        try:
            async with source.lend() as body:
                await self.intake.move(body, writer, digests.running(), inspector, transfer.meter, transfer.pace)
        except ConnectionError as exc:
            raise BodyIncomplete("The client is gone, and the body is not whole") from exc

    def _written(self, info: ObjectInfo, digests: Digests, size: int) -> Written:
        sha256 = digests.hex("sha256")
        checksum = digests.hex("md5") if self._visor_md5 else sha256
        return Written(size=size, checksum=checksum, sha256=sha256, validator=info.validator)

    async def _publish(self, attempt: Attempt, store: Store, written: Written) -> Image:
        """The bytes are durable: whatever is cancelled now, the record is brought to agree with them."""
        with trio.move_on_after(COMMIT_SECONDS, shield=True):
            lost: AttemptLost | None = None
            try:
                return await self._images.commit(attempt, written)
            except AttemptLost as error:
                # Any other error leaves the outcome unknown: the lease, if it still stands, tells the sweep.
                lost = error
            await store.abandon(attempt.key)
            raise lost
        raise AttemptLost("The record could not be written in time")
