"""One attempt to write bytes into a store, of an upload, an import or a copy: whole and durable, or undone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio

from ..meta.contract import Attempt, ImageRepository
from ..store.contract import ObjectInfo, RetryingStream, Store, WriteStream
from .transfer import Transfer
from .undo import undo

CLEANUP_SECONDS: Final = 20.0  # for an abort during a cancellation; what it leaves, the sweep finishes


async def write_attempt(
    images: ImageRepository,
    attempt: Attempt,
    store: Store,
    transfer: Transfer,
    fill: Callable[[WriteStream], Awaitable[None]],
    *,
    size: int | None,
) -> tuple[Attempt, ObjectInfo]:
    """Have `fill` write the bytes of `attempt`, and commit them. The attempt's lease is in the repository.

    Args:
        transfer: Is told of every try of the store's own.
        fill: Writes all bytes, and raises unless they are those that are to be kept.
        size: Bytes; None where unknown.

    Returns:
        The attempt with the location of what was written, and what the store says of it. The caller makes it known.

    Raises:
        StoreError: The store failed.

    Failed or cancelled, it removes what it wrote and ends the attempt, within `CLEANUP_SECONDS`.
    """
    writer: WriteStream | None = None
    try:
        writer = await store.open_write(attempt.key, size=size)
        if isinstance(writer, RetryingStream):
            writer.on_retry = transfer.retrying
        await fill(writer)
        info = await writer.commit()
    except BaseException:
        with trio.move_on_after(CLEANUP_SECONDS, shield=True):
            await undo(images, attempt, store, writer)
        raise
    return msgspec.structs.replace(attempt, location=writer.location), info
