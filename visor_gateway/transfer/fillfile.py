"""The file of one fill, as the fill has it: its own or that of another process, open or closed already."""

from __future__ import annotations

from contextlib import suppress

from ..store.cachefiles import CacheFiles
from ..store.file import FileReadStream
from ..store.partial import Partial
from ..store.progress import Stage


class FillFile:
    """One file.

    Resource handling: `close` ends it. Descriptors of readers (`growing`) are theirs.

    Attributes:
        files: Where it is.
        partial: The file itself; None once it is closed.
    """

    def __init__(self, files: CacheFiles, partial: Partial) -> None:
        self.files = files
        self.partial: Partial | None = partial
        self._sealed: int | None = None  # when the whole file was written to last

    @property
    def is_followed(self) -> bool:
        """Whether other processes serve readers from it."""
        return self.partial is not None and self.partial.is_followed()

    def growing(self) -> FileReadStream | None:
        """A reader's own descriptor; None where it is closed. The caller closes the stream. Raises `OSError`."""
        return None if self.partial is None else self.files.growing(self.partial)

    def tell(self, committed: int, stage: Stage) -> None:
        """Let other processes know how far it is. Where that can't be written they find out by themselves."""
        if self.partial is not None and self.partial.progress is not None:
            with suppress(OSError):
                self.partial.progress.tell(committed, stage)

    async def seal(self) -> None:
        """Note when the whole file was written to last. Raises `OSError` where it is not as it was written."""
        if self.partial is not None:
            await self.files.seal(self.partial)
            self._sealed = self.partial.sealed

    async def demand_untouched(self, inner: FileReadStream) -> None:
        """Raises `ObjectChanged` where somebody has written to it since it was sealed; `inner` is a reader's."""
        if self._sealed is not None:
            await self.files.demand_sealed(inner, self._sealed)

    async def publish(self, sha256: str) -> bool:
        """Make an entry of it. False where it was purged meanwhile. Raises `OSError`."""
        return self.partial is not None and await self.files.publish(self.partial, sha256)

    async def disown(self) -> None:
        """Take its names, so that it becomes no entry and another fill may begin. Never raises."""
        if self.partial is not None:
            with suppress(OSError):
                await self.files.disown(self.partial)

    async def close(self, *, ours: bool, resumable: bool) -> None:
        """Let go of it; `CacheDirectory.end` says what stays. To be shielded with a deadline."""
        partial, self.partial = self.partial, None
        if partial is not None:
            await self.files.end(partial, ours=ours, resumable=resumable)
