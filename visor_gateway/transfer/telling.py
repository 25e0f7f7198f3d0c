"""Tells those who wait for a fill how it stands: tasks by an event, threads that send by a `Growth`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from .growth import Growth

#: They are told of new bytes at most so often, so that a crowd behind a slow store takes larger pieces less often.
TOLD_SECONDS: Final = 0.002
TOLD_SECONDS_PER_READER: Final = 0.00005
TOLD_SECONDS_MAX: Final = 0.02


class Telling:
    """What the readers of one fill are told.

    Attributes:
        growth: For threads.
    """

    def __init__(self) -> None:
        self.growth = Growth()
        self._told = trio.Event()  # set, and replaced, each time that tasks are told
        self._grown = trio.Event()  # something was committed that nobody was told of

    async def wait(self) -> None:
        """Wait until something may have changed."""
        await self._told.wait()

    def wake(self) -> None:
        """Have tasks look for themselves."""
        told, self._told = self._told, trio.Event()
        told.set()

    def grown(self) -> None:
        """Something was committed: `serve` is to note it soon."""
        self._grown.set()

    async def serve(self, note: Callable[[], None], is_live: Callable[[], bool], readers: Callable[[], int]) -> None:
        """Call `note` when something was committed, and not too often, until cancelled.

        Args:
            is_live: Whether bytes are committed without a word.
            readers: How many are told.
        """
        while True:
            if not is_live():
                await self._grown.wait()
                self._grown = trio.Event()
            note()
            await trio.sleep(min(TOLD_SECONDS + readers() * TOLD_SECONDS_PER_READER, TOLD_SECONDS_MAX))
