"""Pulls counted in memory and stored in steps: a pull never waits for the database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import structlog
import trio

from ..errors import MetadataUnavailable
from .contract import ImageRepository

FLUSH_SECONDS: Final = 5.0

_log: Final = structlog.get_logger("visor_gateway.meta")


class AccessCounts:
    """Counts of pulls that are not stored yet. A crash loses those of the last `FLUSH_SECONDS`."""

    def __init__(self, images: ImageRepository) -> None:
        self._images = images
        self._counts: dict[str, tuple[int, datetime]] = {}

    def add(self, image_id: str) -> None:
        """Count one pull of an image."""
        count, _ = self._counts.get(image_id, (0, None))
        self._counts[image_id] = (count + 1, datetime.now(UTC))

    async def flush(self) -> None:
        """Store what was counted. With the database away it is kept for the next time."""
        counts, self._counts = self._counts, {}
        try:
            await self._images.count_access(counts)
        except MetadataUnavailable as error:
            _log.warning("access counts kept", error=error.message)
            self._keep(counts)

    def _keep(self, counts: dict[str, tuple[int, datetime]]) -> None:
        for image_id, (count, moment) in counts.items():
            newer, latest = self._counts.get(image_id, (0, moment))
            self._counts[image_id] = (count + newer, max(moment, latest))

    async def serve(self) -> None:
        """Flush every `FLUSH_SECONDS` until cancelled; the caller flushes once more at the end."""
        while True:
            await trio.sleep(FLUSH_SECONDS)
            await self.flush()
