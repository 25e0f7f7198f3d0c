"""What is done when an attempt to write bytes has failed: nothing of it stays, or the sweep knows of it."""

from __future__ import annotations

from typing import Final

import structlog

from ..errors import GatewayError, StoreError
from ..meta.contract import Attempt, ImageRepository
from ..store.contract import Store, WriteStream

_log: Final = structlog.get_logger("visor_gateway.transfer")


async def undo(images: ImageRepository, attempt: Attempt, store: Store, writer: WriteStream | None) -> None:
    """Remove what an attempt has written, then end it. Shield it with a deadline when called during a cancellation.

    Args:
        writer: What it wrote with; None once that was committed, or was never there.
    """
    bytes_left = False
    try:
        if writer is not None:
            await writer.abort()
        else:
            await store.abandon(attempt.key)
    except StoreError as error:
        bytes_left = True
        _log.warning("bytes left to the sweep", image=attempt.image_id, store=store.name, error=error.message)
    try:
        await images.fail(attempt, bytes_left=bytes_left)
    except GatewayError as error:
        # The lease runs out, and the sweep does it again.
        _log.warning("attempt left to the sweep", image=attempt.image_id, store=store.name, error=error.message)
