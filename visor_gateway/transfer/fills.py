"""The fills of one daemon: at most one of each image, found by whoever wants it."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import structlog
import trio

from ..errors import Draining, GatewayError, ObjectChanged, StoreUnreachable
from ..image import Image
from ..meta.contract import ImageRepository
from ..metrics import Metrics
from ..store.cachedir import Refusal
from ..store.cachefiles import CacheFiles
from ..store.partial import CacheKey, Partial
from .engine import Engine
from .fill import Fill
from .filling import Open
from .pinning import pin
from .transfer import Transfer

CLOSE_SECONDS: Final = 30.0

_log: Final = structlog.get_logger("visor_gateway.cache")


class Fills:
    """The fills under way.

    Args:
        files: Where they are filled.
        engine: Runs them.
        images: Asked before an entry is made whether there still is such an image; keeps the digests that are found.
        finish_percent: A fill that nobody waits for any more goes on if so much of it is there.
        kept: Called after an entry was made, or not.
        nice: How much their threads stand back behind others.
    """

    def __init__(
        self,
        files: CacheFiles,
        engine: Engine,
        images: ImageRepository,
        metrics: Metrics,
        *,
        finish_percent: int,
        kept: Callable[[], Awaitable[None]],
        nice: int = 0,
    ) -> None:
        self._files = files
        self._engine = engine
        self._images = images
        self._metrics = metrics
        self._finish_percent = finish_percent
        self._kept = kept
        self._nice = nice
        self._fills: dict[str, Fill] = {}  # by image: an image's bytes never change

    def __iter__(self) -> Iterator[Fill]:
        return iter(list(self._fills.values()))

    def of(self, image: Image) -> Fill | None:
        """The fill of an image, if one is under way."""
        return self._fills.get(image.id)

    async def begin(self, image: Image, read: Open, *, wanted: bool = False) -> Fill:
        """Begin the fill of an image that has none. Others find it from now on.

        It may have been refused (`Fill.refusal`) when this returns. A cancellation leaves one that has begun, or none.
        """
        fill = self._fills[image.id] = Fill(
            image,
            read,
            agree=self.agree,
            keep=lambda sha256: self._keep(fill, sha256),
            adopted=lambda: self._adopt(fill),
            closed=lambda: self._forget(fill),
            count=self._metrics.cache_bytes_from_stores.inc,
            finish_share=self._finish_percent / 100,
            nice=self._nice,
        )
        fill.wanted = wanted
        begun: Partial | Refusal | None = None
        try:
            begun = await self._enter(fill, _key_of(image))
        except OSError as error:
            begun = "failed"
            _log.warning("cache can't be written", image=image.id, error=error.strerror)
        except Draining:
            begun = "failed"
        finally:
            if not isinstance(begun, Partial):
                fill.refusal = begun
                with trio.move_on_after(CLOSE_SECONDS, shield=True):
                    await fill.close()
        return fill

    async def _enter(self, fill: Fill, key: CacheKey) -> Partial | Refusal | None:
        """Make the file and start the transfer, or follow the process that has done so."""
        # A cancellation waits for the end of the call, and so loses no file.
        begun = await self._files.begin(key, fill.size)
        if isinstance(begun, Partial):
            fill.enter(self._files, begun)
            self._start(fill)
        elif begun == "busy":
            followed = await self._files.follow(key, fill.size)
            if followed is not None:
                fill.follow(self._files, followed)
            return followed
        return begun

    async def agree(self, image: Image, sha256: str) -> None:
        """Compare the digest of an image's bytes with the record's, or keep it where that has none yet.

        Raises:
            ObjectChanged: They differ.
            GatewayError: It can't be kept.
        """
        if image.sha256 is None:
            await pin(self._images, image, sha256, image.size or 0)
        elif not hmac.compare_digest(sha256, image.sha256):
            raise ObjectChanged("The bytes in the store are not those that the record describes: their digest differs")

    def _start(self, fill: Fill) -> None:
        """Raises `Draining`."""
        transfer = _transfer_of(fill.image)
        self._engine.start(transfer, lambda transfer: self._run(fill, transfer), unstarted=fill.close)

    def _adopt(self, fill: Fill) -> None:
        """Go on with the fill of a process that is gone."""
        try:
            self._start(fill)
        except Draining as error:
            fill.abandon(StoreUnreachable(error.message))

    @staticmethod
    async def _run(fill: Fill, transfer: Transfer) -> None:
        try:
            await fill.run(transfer)
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await fill.close()

    def _forget(self, fill: Fill) -> None:
        if self._fills.get(fill.image.id) is fill:
            del self._fills[fill.image.id]

    async def _keep(self, fill: Fill, sha256: str) -> None:
        """Make an entry of a fill, if there still is such an image. What fails here costs the entry alone."""
        try:
            if await self._images.get(fill.image.id) is not None and not await fill.publish(sha256):
                _log.info("cache fill was purged", image=fill.image.id)
        except OSError as error:
            _log.warning("cache can't be written", image=fill.image.id, error=error.strerror)
        except GatewayError as error:
            _log.warning("cache entry not made", image=fill.image.id, error=error.message)
        await self._kept()


def _key_of(image: Image) -> CacheKey:
    tag = image.sha256 or hashlib.sha256(f"validator {image.validator}".encode()).hexdigest()
    return CacheKey(image.id, tag)


def _transfer_of(image: Image) -> Transfer:
    """Nobody's in particular: a fill serves many, and none of them may cancel it for the others."""
    return Transfer(
        id=str(uuid.uuid4()), kind="fill", image=image.id, store=image.store, client=None, user=None, size=image.size
    )
