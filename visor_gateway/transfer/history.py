"""What became of transfers: gathered in memory as they end, and stored in steps, so that none waits for a database."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import Final

import structlog
import trio

from ..errors import MetadataUnavailable
from ..meta.contract import EndedTransfer, HistoryQuery, HistoryRepository
from .transfer import Transfer

FLUSH_SECONDS: Final = 5.0
GATHERED: Final = 10_000  # transfers that wait for a database that is away; older ones are forgotten

_log: Final = structlog.get_logger("visor_gateway.transfer")


class History:
    """The transfers that this process ended. A crash loses those of the last `FLUSH_SECONDS`.

    Attributes:
        recording: Whether those that end are taken in; false while another process does.
    """

    def __init__(self, repository: HistoryRepository, *, keep: int) -> None:
        """`keep`: how many transfers the repository remembers, 0 for none."""
        self._repository = repository
        self._keep = keep
        self._gathered: deque[EndedTransfer] = deque(maxlen=GATHERED)
        self.recording = True

    def revise(self, *, keep: int) -> None:
        """Remember another number of transfers from now on."""
        self._keep = keep

    def add(self, transfer: Transfer) -> None:
        """Remember a transfer, which has just been settled."""
        if self._keep and self.recording:
            self._gathered.append(_ended(transfer))

    async def find(self, query: HistoryQuery) -> list[EndedTransfer]:
        """What is remembered, the newest first. Raises `MetadataUnavailable`."""
        await self.flush()
        return await self._repository.find(query)

    async def flush(self) -> None:
        """Store what was gathered. With the database away it is kept for the next time."""
        if not self._gathered:
            return
        ended, self._gathered = self._gathered, deque(maxlen=GATHERED)
        try:
            await self._repository.add(tuple(ended), keep=self._keep)
        except MetadataUnavailable as error:
            _log.warning("history kept in memory", error=error.message)
            self._gathered = deque((*ended, *self._gathered), maxlen=GATHERED)

    async def serve(self) -> None:
        """Flush every `FLUSH_SECONDS` until cancelled; the caller flushes once more at the end."""
        while True:
            await trio.sleep(FLUSH_SECONDS)
            await self.flush()


def _ended(transfer: Transfer) -> EndedTransfer:
    meter = transfer.meter
    return EndedTransfer(
        id=transfer.id,
        kind=transfer.kind,
        image=transfer.image,
        store=transfer.store,
        client=transfer.client,
        user=transfer.user,
        state=transfer.state,
        bytes=meter.bytes,
        size=transfer.size,
        offset=transfer.offset,
        rate_avg=round(meter.rate_avg),
        started_at=transfer.started_at,
        ended_at=datetime.now(UTC),
        duration_ms=round(meter.seconds * 1000),
        wait_client=meter.waited["client"],
        wait_store=meter.waited["store"],
        wait_limit=meter.waited["limit"],
        wait_disk=meter.waited["disk"],
        attempt=transfer.attempt,
        error=transfer.error,
    )
