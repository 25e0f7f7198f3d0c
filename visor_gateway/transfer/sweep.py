"""Finishing what a crash, a lost lease or a store that was down left behind.

The sweep touches only what an expired lease or a tombstone names, or what lies under our own prefix, is old and has
neither record nor lease. Every step may be done twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
import trio

from ..errors import GatewayError, StoreError
from ..image import Image
from ..meta.contract import RENEW_SECONDS, Attempt, ImageRepository
from ..metrics import Metrics
from ..store.contract import Store
from .engine import Board
from .ingest import Ingest
from .transfer import WRITERS

SWEEP_SECONDS: Final = 30.0
LIST_SECONDS: Final = 3600.0  # between two listings of a whole store, which in HDFS cost a call for each image
LEFTOVER_SECONDS: Final = 24 * 3600.0  # an upload that runs longer than this without a lease is not ours to judge

_log: Final = structlog.get_logger("visor_gateway.sweep")


class Sweep:
    """Keeps leases alive, and removes bytes that no record will ever name."""

    def __init__(
        self,
        images: ImageRepository,
        stores: Mapping[str, Store],
        hub: Board,
        metrics: Metrics,
        ingest: Ingest,
        *,
        instance_id: str,
    ) -> None:
        self._images = images
        self._stores = stores
        self._hub = hub
        self._metrics = metrics
        self._ingest = ingest
        self._instance_id = instance_id

    async def at_start(self) -> None:
        """What an earlier run of this daemon left `uploading` becomes `error` now; its leases hold nobody."""
        await self._finish_attempts(ours=self._instance_id)
        await self._finish_deletes()

    async def after(self, instance_id: str) -> None:
        """Give up what an instance was writing that has ended; its leases hold nobody."""
        try:
            for attempt in await self._images.expired(ended=instance_id):
                await self._give_up(attempt)
        except GatewayError as error:
            _log.warning("sweep put off", error=error.message)

    async def serve(self) -> None:
        """Sweep every `SWEEP_SECONDS`, whole stores every `LIST_SECONDS`, until cancelled.

        A database that is away is waited for.
        """
        listed_at = float("-inf")
        while True:
            await trio.sleep(SWEEP_SECONDS)
            try:
                await self._finish_attempts(ours=None)
                await self._finish_deletes()
                if trio.current_time() - listed_at >= LIST_SECONDS:
                    await self._remove_leftovers()
                    listed_at = trio.current_time()
            except GatewayError as error:
                _log.warning("sweep put off", error=error.message)

    async def renew(self) -> None:
        """Renew the leases of what is being written, every `RENEW_SECONDS`, until cancelled."""
        while True:
            await trio.sleep(RENEW_SECONDS)
            try:
                await self._renew_once()
            except GatewayError as error:
                _log.warning("leases not renewed", error=error.message)

    async def _renew_once(self) -> None:
        writing = dict(self._ingest.writing)
        held = await self._images.renew(self._instance_id, writing=writing)
        for attempt_id in writing.keys() - held:
            # Another attempt or a delete has the image: every further byte is in vain.
            writing[attempt_id].cancel("lease")

    async def remove(self, image: Image) -> None:
        """Remove the bytes of an entombed image, then its tombstone. With the store down, a later sweep does it."""
        store = self._stores.get(image.store or "")
        try:
            for copy in await self._images.locations(image.id):
                if (place := self._stores.get(copy.store)) is not None:
                    await place.delete(copy.location)
            if store is not None:
                if image.location is not None:
                    await store.delete(image.location)
                elif image.attempt_id is not None:
                    await store.abandon(f"{image.id}/{image.attempt_id}")
            await self._images.bury(image.id)
        except StoreError as error:
            self._metrics.store_errors.labels(image.store).inc()
            _log.warning("delete left to the sweep", image=image.id, store=image.store, error=error.message)

    async def remove_location(self, image_id: str, store: str) -> None:
        """Forget that an image's bytes are in a store, and remove them there. With the store down, a later sweep does.

        Raises:
            NotFound, Conflict: As `ImageRepository.remove_location`; nothing was changed.
        """
        left = await self._images.remove_location(image_id, store, instance_id=self._instance_id)
        await self._give_up(left)

    async def _finish_attempts(self, *, ours: str | None) -> None:
        for attempt in await self._images.expired(ours=ours):
            await self._give_up(attempt)

    async def _give_up(self, attempt: Attempt) -> None:
        store = self._stores.get(attempt.store)
        if store is None:
            _log.warning("attempt in a store that is not configured", image=attempt.image_id, store=attempt.store)
            return
        try:
            await store.abandon(attempt.key)
            await self._images.fail(attempt)
        except StoreError as error:
            self._metrics.store_errors.labels(attempt.store).inc()
            _log.warning("attempt stays for the next sweep", image=attempt.image_id, error=error.message)
        else:
            _log.info("attempt given up", image=attempt.image_id, store=attempt.store)

    async def _finish_deletes(self) -> None:
        writing = {transfer.image for transfer in self._hub.live() if transfer.kind in WRITERS}
        for image in await self._images.entombed():
            if image.id not in writing:
                await self.remove(image)

    async def _remove_leftovers(self) -> None:
        for store in self._stores.values():
            try:
                candidates = await store.leftovers(LEFTOVER_SECONDS)
                if not candidates:
                    continue
                known = await self._images.known_keys()
                for key in candidates:
                    if key not in known:
                        await store.abandon(key)
            except StoreError as error:
                self._metrics.store_errors.labels(store.name).inc()
                _log.warning("leftovers stay", store=store.name, error=error.message)
