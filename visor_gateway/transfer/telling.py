"""Tells those who wait for a fill how it stands: tasks by an event, threads that send by a `Growth`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from .growth import Growth

#: They are told of new bytes at most so often, so that a crowd takes larger pieces less often: each message costs a
#: turn for every reader, and a wake-up of its client.
TOLD_SECONDS: Final = 0.002
TOLD_SECONDS_PER_READER: Final = 0.002
TOLD_SECONDS_MAX: Final = 0.02


class Telling:
    """What the readers of one fill are told. To be made in the event loop.

    Attributes:
        growth: For threads.
    """

    def __init__(self) -> None:
        self.growth = Growth()
        self._token = trio.lowlevel.current_trio_token()
        self._listens = False  # whether `serve` waits, or is about to
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

    def grown_in_thread(self) -> None:
        """The same, from any thread. Costs nothing while `serve` looks by itself."""
        if self._listens:
            self._listens = False
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self.grown)

    async def serve(self, note: Callable[[], bool], readers: Callable[[], int]) -> None:
        """Call `note` as soon as something was committed after a pause, and not too often otherwise, until cancelled.

        Args:
            note: Returns whether something was.
            readers: How many are told.
        """
        while True:
            self._listens = True  # first: what is committed after the look is told
            while not note():
                await self._grown.wait()
                self._grown = trio.Event()
                self._listens = True
            self._listens = False
            await trio.sleep(min(TOLD_SECONDS + readers() * TOLD_SECONDS_PER_READER, TOLD_SECONDS_MAX))
