"""Scrub: images of the file stores are read and hashed again in the background, so that rot is found before a client is
given it.

An image whose SHA-256 is no longer its record's is marked bad, and never leaves whole from then on. One that is right
loses such a mark, and its file's present state becomes the record's: after a restore from a backup, which gives files
other inodes and times, a scrub makes the images available again.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec
import structlog
import trio

from ..errors import GatewayError, ObjectChanged, StoreUnreachable
from ..image import Image
from ..meta.contract import ImageRepository
from ..metrics import Metrics
from ..store.contract import ObjectInfo
from ..store.file import FileReadStream, FileStore
from .digest import Digests

PASS_SECONDS: Final = 3600.0  # how often it is looked for images whose time has come
CLOSE_SECONDS: Final = 5.0
CATCH_UP_SECONDS: Final = 1.0  # of a rate that could not be had no more than this is made up for

Outcome = Literal["good", "bad", "failed"]

_log: Final = structlog.get_logger("visor_gateway.scrub")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How one store is scrubbed.

    Attributes:
        interval: Seconds after which an image is scrubbed again; 0 for never, unless it is asked for.
        bytes_per_s: How fast its files are read.
    """

    interval: float
    bytes_per_s: int


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What the scrub does now.

    Attributes:
        image: `_id` of the image under way, or None.
        bytes: How much of it was read.
        size: Its size.
        waiting: How many images were asked for and come later.
    """

    image: str | None = None
    bytes: int = 0
    size: int | None = None
    waiting: int = 0


class Scrub:
    """The scrub of one daemon: one image at a time, those that were asked for first.

    Args:
        stores: The file stores by name, each with its plan.
    """

    def __init__(
        self,
        images: ImageRepository,
        stores: Mapping[str, tuple[FileStore, Plan]],
        metrics: Metrics,
        *,
        tell: Callable[[str, bool], None] | None = None,
    ) -> None:
        """`tell` is called with the attempt id of bytes that were found bad, and whether they are good again."""
        self._images = images
        self._stores = stores
        self._metrics = metrics
        self._tell = tell or (lambda attempt_id, good: None)
        self._asked: dict[str, None] = {}
        self._wake = trio.Event()
        self._under_way: Image | None = None
        self._read = 0
        self._condemned: set[str] = set()

    # --- what others ask; none of it blocks ------------------------------------------------------

    @property
    def stores(self) -> Collection[str]:
        """Names of the stores that are scrubbed."""
        return self._stores.keys()

    def revise(self, stores: Mapping[str, tuple[FileStore, Plan]]) -> None:
        """Have other stores, or other plans, from the next image on."""
        self._stores = stores
        self._wake.set()

    @property
    def progress(self) -> Progress:
        """What it does now."""
        image = self._under_way
        if image is None:
            return Progress(waiting=len(self._asked))
        return Progress(image=image.id, bytes=self._read, size=image.size, waiting=len(self._asked))

    def ask(self, image_ids: Iterable[str]) -> None:
        """Scrub these images next, in this order. One that waits already keeps its place."""
        self._asked.update(dict.fromkeys(image_ids))
        self._wake.set()

    def demand_not_condemned(self, image: Image) -> None:
        """Raises `ObjectChanged` if these bytes were found bad, also after `image` was read from the database."""
        if self.is_condemned(image):
            raise ObjectChanged(f"Image '{image.id}' is damaged: its bytes are no longer those that were stored")

    def is_condemned(self, image: Image) -> bool:
        """Whether the bytes at the location that the record names were found bad; `Location.of` asks of a copy."""
        return image.bad_since is not None or image.attempt_id in self._condemned

    @property
    def condemned(self) -> Collection[str]:
        """Attempt ids of what was found bad since the start."""
        return self._condemned

    def learn(self, attempt_id: str, good: bool) -> None:
        """Take over what another process found."""
        (self._condemned.discard if good else self._condemned.add)(attempt_id)

    # --- the service -----------------------------------------------------------------------------

    async def serve(self) -> None:
        """Scrub what is due, every `PASS_SECONDS`, and what is asked for, until cancelled."""
        while True:
            self._wake = trio.Event()
            for image_id in await self._due():
                await self._scrub_asked()
                await self.scrub(image_id)
            await self._scrub_asked()
            with trio.move_on_after(PASS_SECONDS):
                await self._wake.wait()

    async def _due(self) -> list[str]:
        due: list[str] = []
        try:
            for name, (_, plan) in self._stores.items():
                if plan.interval > 0:
                    before = datetime.now(UTC) - timedelta(seconds=plan.interval)
                    due += await self._images.scrubbed_before(name, before)
        except GatewayError as error:
            _log.warning("scrub put off", error=error.message)
        return due

    async def _scrub_asked(self) -> None:
        while self._asked:
            image_id = next(iter(self._asked))
            del self._asked[image_id]
            await self.scrub(image_id)

    async def scrub(self, image_id: str) -> Outcome | None:
        """Scrub one image now, its copies in file stores too, and record what was found.

        Returns:
            What was found of the first of its files. None where there is nothing to scrub: the image is gone, has no
            bytes, or they are not in a file store.
        """
        outcomes: list[Outcome] = []
        try:
            image = await self._images.get(image_id)
            if image is None or image.status != "available":
                return None
            copies = await self._images.locations(image_id)
        except GatewayError as error:
            _log.warning("scrub failed", image=image_id, error=error.message)
            self._metrics.scrubbed_images.labels("failed").inc()
            return "failed"
        for place in (image, *(copy.of(image) for copy in copies)):
            if (found := self._stores.get(place.store or "")) is not None:
                outcomes.append(await self._scrub_place(place, *found))
        return outcomes[0] if outcomes else None

    async def _scrub_place(self, image: Image, store: FileStore, plan: Plan) -> Outcome:
        """Scrub one location of an image: that which the record names."""
        try:
            self._under_way, self._read = image, 0
            outcome = await self._judge(image, store, plan)
        except GatewayError as error:
            # Neither good nor bad: the mark stays as it is, and a later pass tries again.
            outcome = "failed"
            _log.warning("scrub failed", image=image.id, store=store.name, error=error.message)
        finally:
            self._under_way = None
        self._metrics.scrubbed_images.labels(outcome).inc()
        return outcome

    async def _judge(self, image: Image, store: FileStore, plan: Plan) -> Outcome:
        info = await self._examine(image, store, plan)
        if info is None:
            await self.condemn(image)
            return "bad"
        await self._images.judge(image, good=True, validator=info.validator)
        self._acquit(image.attempt_id or "")
        return "good"

    def _acquit(self, attempt_id: str) -> None:
        if attempt_id in self._condemned:
            self._condemned.discard(attempt_id)
            self._tell(attempt_id, True)

    async def condemn(self, image: Image) -> None:
        """Mark the bytes of an image as bad: from now on they never leave whole. Raises `MetadataUnavailable`; this
        daemon keeps the mark in mind even then."""
        self._condemned.add(image.attempt_id or "")
        self._tell(image.attempt_id or "", False)
        _log.error("image is damaged", image=image.id, store=image.store)
        await self._images.judge(image, good=False)

    async def _examine(self, image: Image, store: FileStore, plan: Plan) -> ObjectInfo | None:
        """Read the whole image. Returns what the file is like; None where the bytes are not the record's.

        Raises:
            StoreError: It can't be read, or somebody writes to it.
        """
        if image.location is None or image.sha256 is None:
            raise StoreUnreachable("The bytes of this image can't be found")
        stream = await store.open_read(image.location)
        try:
            if stream.info.size != image.size:
                return None
            stream.read_once()
            sha256 = await self._hash(stream, plan.bytes_per_s)
            if sha256 is None or not hmac.compare_digest(sha256, image.sha256):
                return None
            await stream.check()
            return stream.info
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await stream.aclose()

    async def _hash(self, stream: FileReadStream, bytes_per_s: int) -> str | None:
        """The hex SHA-256; None where the file ends too early."""
        digests = Digests(("sha256",))
        due = trio.current_time()
        try:
            while block := await stream.receive_some():
                await digests.update(block)
                self._read += len(block)
                due = max(due, trio.current_time() - CATCH_UP_SECONDS) + len(block) / bytes_per_s
                await trio.sleep_until(due)
        except ObjectChanged:
            return None
        return digests.hex("sha256")
