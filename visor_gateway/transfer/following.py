"""The fill of another process, as one sees it that serves its own readers from the same file."""

from __future__ import annotations

from typing import Final

import trio

from ..store.cachefiles import CacheFiles
from ..store.partial import Partial
from ..store.progress import Stage

FOLLOW_SECONDS: Final = 0.005  # between two looks
ADOPT_SECONDS: Final = 0.25  # without progress, after which it is asked whether that process still is there


class Following:
    """One fill that is followed.

    Args:
        partial: Its file. The caller ends it.

    Attributes:
        committed: Bytes in the file, when it was looked at last.
        is_adopted: Whether that process was found gone: what it began is this one's then.
    """

    def __init__(self, files: CacheFiles, partial: Partial) -> None:
        self.committed = 0
        self.is_adopted = False
        self._files = files
        self._partial = partial
        self._grew_at = trio.current_time()

    async def look(self) -> Stage:
        """What has become of it after a moment. `BROKEN` also where its files have become of no use.

        One caller at a time.
        """
        await trio.sleep(FOLLOW_SECONDS)
        try:
            return await self._look()
        except OSError:
            return Stage.BROKEN

    async def _look(self) -> Stage:
        told = self._partial.progress.look() if self._partial.progress is not None else None
        now = trio.current_time()
        if told is not None:
            if told.committed != self.committed:
                self.committed, self._grew_at = min(told.committed, self._partial.size), now
            if told.stage is not Stage.FILLING:
                return told.stage
        if now - self._grew_at > ADOPT_SECONDS:
            self._grew_at = now
            if await self._files.adopt(self._partial):
                self.committed, self.is_adopted = self._partial.written, True
            elif told is None:
                return Stage.BROKEN
        return Stage.FILLING
