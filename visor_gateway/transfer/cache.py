"""The cache: local copies of images that live in remote stores. One read of a store serves all who want the image.

What is asked for is an entry (whole, verified), or is being filled, or is not here: then a pull of much of it starts a
fill, and any other is direct. Whether the caller may read the image was decided before. The cache is an aid: where it
can't be used (off, full, read-only, broken), a pull is direct, and no client sees an error because of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, Literal

import msgspec
import structlog
import trio

from ..errors import Conflict, StoreUnreachable
from ..image import Image
from ..meta.contract import ImageRepository
from ..metrics import Metrics
from ..store.cacheentries import Entry
from ..store.cachefiles import CacheFiles
from ..store.file import FileReadStream
from ..store.partial import CacheKey
from .cachereader import CacheReader, EntryReader, FillReader
from .engine import Engine
from .fill import Fill
from .filling import Open
from .fills import Fills
from .transfer import Transfer

CLOSE_SECONDS: Final = 30.0

Outcome = Literal["hit", "miss", "coalesced", "bypass"]

_log: Final = structlog.get_logger("visor_gateway.cache")


class CacheState(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the cache. Bytes are those of the entries."""

    max_bytes: int
    bytes: int
    entries: Sequence[Entry]


class Cache:
    """The cache of one daemon.

    Args:
        files: Its files; None turns it off.
        engine: Runs the fills.
        images: Asked before an entry is made whether there still is such an image; keeps the digests that are found.
        finish_percent: A fill that nobody waits for any more goes on if so much of it is there.
        strict_ranges: Whether ranges wait until the whole is verified.
        nice: How much the threads of fills stand back behind others.
    """

    def __init__(
        self,
        files: CacheFiles | None,
        engine: Engine,
        images: ImageRepository,
        metrics: Metrics,
        *,
        finish_percent: int = 50,
        strict_ranges: bool = False,
        nice: int = 0,
    ) -> None:
        self._metrics = metrics
        self._strict_ranges = strict_ranges
        self._files = files
        self._fills: Fills | None = None
        if files is not None:
            self._fills = Fills(
                files, engine, images, metrics, finish_percent=finish_percent, kept=self.count, nice=nice
            )

    def revise(self, *, finish_percent: int, strict_ranges: bool) -> None:
        """Have other settings from now on."""
        self._finish_percent, self._strict_ranges = finish_percent, strict_ranges

    async def prepare(self) -> None:
        """Make the directory, and remove what a crash left. A directory that can't be used is logged."""
        if self._files is not None:
            try:
                await self._files.prepare()
            except OSError as error:
                _log.warning("cache can't be used", error=error.strerror)
            await self.count()

    # --- readers ---------------------------------------------------------------------------------

    async def open(self, image: Image, read: Open, transfer: Transfer, offset: int, length: int) -> CacheReader | None:
        """Open `length` bytes of an image from `offset`, for a caller who may read it.

        Args:
            read: How its store is read.
            transfer: Of the client that is served.

        Returns:
            A stream, for the caller to close; None where the bytes are to be read from the store.

        Raises:
            StoreError: The store could not be read, or what it has is not what the record says.
        """
        if self._files is None or self._fills is None or not self._may_hold(image):
            return None
        outcome, stream = await self._find(self._files, self._fills, image, read, transfer, offset, length)
        self._metrics.cache_requests.labels(outcome).inc()
        if stream is not None:
            stream.narrow(offset, length)
        return stream

    async def _find(
        self,
        files: CacheFiles,
        fills: Fills,
        image: Image,
        read: Open,
        transfer: Transfer,
        offset: int,
        length: int,
    ) -> tuple[Outcome, CacheReader | None]:
        outcome: Outcome = "coalesced"
        while True:
            fill = fills.of(image)
            if fill is None and (entry := await self._entry(files, image)) is not None:
                return "hit", EntryReader(image, entry, read, fills.agree, transfer, partial(self._lose, files, image))
            # Others may have begun while the entry was looked for.
            fill = fills.of(image)
            if fill is None:
                # A small range is not worth a read of the whole.
                if 2 * length < (image.size or 0) and not self._strict_ranges:
                    return "bypass", None
                outcome = "miss"
                fill = await fills.begin(image, read)
            elif fill.is_leaving:
                await fill.ended.wait()
                continue
            inner = await self._join(fill, offset, whole=length == image.size)
            if inner is not None:
                lost = partial(self._lose_fill, fill)
                return outcome, FillReader(fill, inner, read, fills.agree, transfer, lost)
            if fill.broken or not fill.is_over:
                return "bypass", None
            await fill.ended.wait()
            if fill.refusal is not None:
                return "bypass", None

    async def _entry(self, files: CacheFiles, image: Image) -> FileReadStream | None:
        if image.sha256 is None:
            return None
        try:
            return await files.open(CacheKey(image.id, image.sha256), image.size or 0)
        except OSError as error:
            _log.warning("cache entry can't be read", image=image.id, error=error.strerror)
            return None

    async def _join(self, fill: Fill, offset: int, *, whole: bool) -> FileReadStream | None:
        """The growing file, for a reader that was counted; None where it has to do without, or the fill is over."""
        fill.join()
        inner: FileReadStream | None = None
        try:
            await fill.wait_opened()
            if not whole and self._strict_ranges:
                await fill.wait_settled()
            # What a broken fill has is not verified.
            if whole or not (fill.is_far(offset) or (self._strict_ranges and fill.broken)):
                inner = fill.growing()
        except OSError as error:
            _log.warning("cache file can't be read", image=fill.image.id, error=error.strerror)
        finally:
            if inner is None:
                with trio.move_on_after(CLOSE_SECONDS, shield=True):
                    await fill.leave()
        return inner

    def _may_hold(self, image: Image) -> bool:
        """Whether size and digest are known, or a validator that stands for the digest until a fill finds it."""
        return bool(image.size) and (image.sha256 is not None or image.validator is not None)

    async def _lose(self, files: CacheFiles, image: Image, entry: FileReadStream) -> None:
        """An entry can't be read any more, or is not what it was: the next pull fills it anew."""
        self._metrics.cache_failures.inc()
        _log.warning("cache entry failed under a pull", image=image.id)
        try:
            if image.sha256 is not None and await files.discard(CacheKey(image.id, image.sha256), entry):
                await self.count()
        except OSError as error:
            _log.warning("cache can't be written", image=image.id, error=error.strerror)

    async def _lose_fill(self, fill: Fill, file: FileReadStream) -> None:
        self._metrics.cache_failures.inc()
        _log.warning("cache file failed under a pull", image=fill.image.id)
        await fill.lose()

    # --- what admins ask -------------------------------------------------------------------------

    async def state(self) -> CacheState:
        """What is in the cache. Raises `StoreUnreachable` where its directory can't be read."""
        if self._files is None:
            return CacheState(max_bytes=0, bytes=0, entries=())
        try:
            entries = await self._files.entries()
        except FileNotFoundError:
            entries = []
        except OSError as error:
            raise _unusable(error) from error
        return CacheState(
            max_bytes=self._files.max_bytes, bytes=sum(entry.size for entry in entries), entries=tuple(entries)
        )

    async def warm(self, image: Image, read: Open) -> None:
        """Have an image cached, ahead of those who will ask for it. Does not wait for the fill.

        Raises:
            Conflict: That can't be: the cache is off or has no room, or images like this one are not cached.
        """
        files, fills = self._files, self._fills
        if files is None or fills is None:
            raise Conflict("The cache is off")
        if not self._may_hold(image):
            raise Conflict(f"Image '{image.id}' can't be cached: its size or digest is not known")
        while (fill := fills.of(image)) is not None and fill.is_leaving:
            await fill.ended.wait()
        if fill is None and (entry := await self._entry(files, image)) is not None:
            await entry.aclose()
            return
        fill = fills.of(image) or await fills.begin(image, read, wanted=True)
        fill.wanted = True
        if fill.refusal is not None:
            reasons = {"full": "there is no room for it", "busy": "another process fills it", "failed": "see the log"}
            raise Conflict(f"Image '{image.id}' can't be cached: {reasons[fill.refusal]}")

    async def forget(self, image_id: str | None = None) -> Sequence[Entry]:
        """Remove an image's entry, or all. Who reads it reads on; a fill goes on for its readers, and is not kept.

        Returns:
            The entries that were removed.

        Raises:
            StoreUnreachable: The directory can't be used.
        """
        if self._files is None or self._fills is None:
            return ()
        for fill in self._fills:
            if image_id in {None, fill.image.id}:
                fill.give_up()
        try:
            gone = await self._files.remove(image_id)
        except FileNotFoundError:
            gone = ()
        except OSError as error:
            raise _unusable(error) from error
        await self.count()
        return gone

    async def count(self) -> None:
        """Bring the metric of what is in the cache up to now: other processes fill and evict too."""
        try:
            self._metrics.cache_bytes.set((await self.state()).bytes)
        except StoreUnreachable:
            self._metrics.cache_bytes.set(0)


def _unusable(error: OSError) -> StoreUnreachable:
    return StoreUnreachable(f"The cache can't be used: {error.strerror}")
