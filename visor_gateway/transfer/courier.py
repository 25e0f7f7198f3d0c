"""Wakes subscribers that have something to fetch: not each for each event, and never all of them at once.

A subscriber that is woken sends all there is for it, in one write: mostly there and then, so that the courier's task
writes to one socket after the other. What comes while others are still being woken waits
for the next round. So a burst of events, such as many transfers that start together, costs one write for each
subscriber and not one for each event; and after every few of them, whatever else is ready runs, so that the bursts of
a thousand subscribers delay no transfer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import trio

WOKEN_AT_ONCE: Final = 32  # subscribers between two looks at other tasks: about 1 ms
REST_SECONDS: Final = 0.05  # between two rounds
#: Rounds that take long are followed by a rest of so many times as long, so that subscribers leave most of the loop to
#: others, however many they are and however much happens; but queues of events must not overflow meanwhile.
REST_SHARE: Final = 3
LONGEST_REST_SECONDS: Final = 0.25


class Sleeper(Protocol):
    """Somebody who may be waiting for something to fetch."""

    def wake(self) -> None:
        """Have it look. Never waits."""
        ...


class Courier:
    """Those who are to be woken, each once a round.

    Attributes:
        is_going_round: Whether some of a round are still to be woken.
    """

    def __init__(self) -> None:
        self.is_going_round = False
        self._due: dict[Sleeper, None] = {}
        self._afterwards: list[Callable[[], None]] = []
        self._stir = trio.Event()

    def call(self, sleeper: Sleeper) -> None:
        """Wake somebody in the next round: at once, if the last one is long enough ago."""
        self._due[sleeper] = None
        self._stir.set()

    def forget(self, sleeper: Sleeper) -> None:
        """Somebody is gone."""
        self._due.pop(sleeper, None)

    def then(self, call: Callable[[], None]) -> None:
        """Have something called after every round, too. It must not wait."""
        self._afterwards.append(call)

    async def run(self) -> None:
        """Wake them, until cancelled."""
        while True:
            await self._stir.wait()
            began = trio.current_time()
            await self._round()
            rest = REST_SHARE * (trio.current_time() - began)
            await trio.sleep(min(max(REST_SECONDS, rest), LONGEST_REST_SECONDS))

    async def _round(self) -> None:
        self._stir = trio.Event()
        due, self._due = self._due, {}
        self.is_going_round = True
        for count, sleeper in enumerate(due, 1):
            sleeper.wake()
            if count % WOKEN_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        self.is_going_round = False
        for call in self._afterwards:
            call()
        await trio.lowlevel.checkpoint()
