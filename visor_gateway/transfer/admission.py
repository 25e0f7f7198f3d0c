"""Who may move bytes now, and who waits: slots and the queue before them. Sans-IO but for the event that a waiting
transfer sleeps on; all of it runs in the thread of the event loop.

There are slots for the gateway, for each store and for each user. A transfer that does not find all three free waits.
What is freed goes to the users in turn, and within one user to whoever has waited longest; one whose store or user
has no slot is passed over, so that no free slot waits for a busy one. Nobody overtakes: after every change all
who can go have gone, hence a newcomer that finds its slots free takes them from nobody.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Final

import msgspec
import trio

from ..errors import QueueFull

QUEUE_LIMIT: Final = 1000


class Slots(msgspec.Struct, frozen=True, kw_only=True):
    """How many transfers may run at a time; 0 for any number.

    Attributes:
        of_store: Those of stores, by name, for which `transfers_per_store` does not hold.
        queue_limit: How many may wait.
    """

    transfers: int = 0
    transfers_per_store: int = 0
    transfers_per_user: int = 0
    of_store: Mapping[str, int] = {}
    queue_limit: int = QUEUE_LIMIT


def turn_of(user: str | None, client: str | None) -> str:
    """Whose turn in the queue a transfer counts as: its user's; anonymous ones count by address."""
    return f"user {user}" if user is not None else f"address {client}"


class Place:
    """One transfer's place, in the queue or at a slot.

    Attributes:
        user: Whose turn it counts as.
        store: Name of the store it needs.
    """

    def __init__(self, admission: Admission, user: str, store: str) -> None:
        self.user = user
        self.store = store
        self._admission = admission
        self._granted = trio.Event()

    @property
    def waits(self) -> bool:
        """Whether it has no slot yet."""
        return not self._granted.is_set()

    @property
    def position(self) -> int | None:
        """Its position in the queue, 1 for the one that is served next; None at a slot."""
        return self._admission.position(self) if self.waits else None

    async def turn(self) -> None:
        """Wait for the slot."""
        await self._granted.wait()

    def grant(self) -> None:
        """Called by the admission, which has counted the slot."""
        self._granted.set()


class Admission:
    """Slots and queue of one daemon."""

    def __init__(self, slots: Slots | None = None) -> None:
        self._slots = slots or Slots()
        self._running = 0
        self._running_of_store: Counter[str] = Counter()
        self._running_of_user: Counter[str] = Counter()
        # Users in the order of their turns, each with its places in the order of their arrival.
        self._queue: dict[str, dict[Place, None]] = {}
        self._waiting = 0
        self._positions: dict[Place, int] | None = None
        self._yielded = False

    @property
    def waiting(self) -> int:
        """How many transfers wait for a slot."""
        return self._waiting

    def change(self, slots: Slots) -> None:
        """Have other slots from now on. Who can go now goes; who runs, or waits already, is not turned away."""
        self._slots = slots
        self._serve()

    def yield_slots(self) -> None:
        """Give no slot from now on: who wants one waits for `let`. Another process has the slots, or is about to tell
        which of them are taken."""
        self._yielded = True

    def resume_slots(self) -> None:
        """Give slots again."""
        self._yielded = False
        self._serve()

    def let(self, place: Place) -> None:
        """Give a place that waits a slot that was counted elsewhere."""
        if place.waits and place in self._queue.get(place.user, ()):
            self._forget(place)
            self._take(place)

    def check_room(self, user: str, store: str) -> None:
        """Look whether a newcomer may take a place.

        Raises:
            QueueFull: It would have to wait, and the queue is full.
        """
        if self._waiting >= self._slots.queue_limit and not self._is_free(user, store):
            raise QueueFull

    @contextmanager
    def place(
        self, user: str, store: str, *, counted: bool = True, running: bool = False
    ) -> Generator[Place, None, None]:
        """Take a place; it is given up when the block ends, queued or not. Whether there is room for it is the
        caller's question: what was promised to a client already is not refused any more.

        Args:
            counted: False for what others at a slot wait for: it takes none, and never waits.
            running: It runs already and has its slot, though there may be none to give.
        """
        place = Place(self, user, store)
        if not counted:
            place.grant()
            yield place
            return
        if running or self._is_free(user, store):
            self._take(place)
        else:
            self._queue.setdefault(user, {})[place] = None
            self._waiting += 1
            self._positions = None
        try:
            yield place
        finally:
            self._leave(place)

    def position(self, place: Place) -> int:
        """Where a waiting place stands, if slots of every kind were freed one by one."""
        if self._positions is None:
            self._positions = {each: number for number, each in enumerate(self._in_turn(), 1)}
        return self._positions[place]

    def _in_turn(self) -> Generator[Place, None, None]:
        """The queue in the order of the turns."""
        lines = [list(places) for places in self._queue.values()]
        for turn in range(max(map(len, lines), default=0)):
            yield from (line[turn] for line in lines if turn < len(line))

    # --- slots -----------------------------------------------------------------------------------

    def _is_free(self, user: str, store: str) -> bool:
        slots = self._slots
        return (
            not self._yielded
            and self._running < (slots.transfers or math.inf)
            and self._running_of_store[store] < (slots.of_store.get(store, slots.transfers_per_store) or math.inf)
            and self._running_of_user[user] < (slots.transfers_per_user or math.inf)
        )

    def _take(self, place: Place) -> None:
        self._count(place, 1)
        place.grant()

    def _count(self, place: Place, change: int) -> None:
        self._running += change
        for running, key in ((self._running_of_store, place.store), (self._running_of_user, place.user)):
            running[key] += change
            if not running[key]:
                del running[key]

    def _leave(self, place: Place) -> None:
        if place.waits:
            self._forget(place)
        else:
            self._count(place, -1)
            self._serve()

    def _forget(self, place: Place) -> None:
        """Take a place out of the queue."""
        places = self._queue[place.user]
        del places[place]
        if not places:
            del self._queue[place.user]
        self._waiting -= 1
        self._positions = None

    def _serve(self) -> None:
        """Give free slots to those in the queue until nobody in it can go."""
        while (place := self._next()) is not None:
            self._forget(place)
            if place.user in self._queue:
                self._queue[place.user] = self._queue.pop(place.user)  # to the end of the turns
            self._take(place)

    def _next(self) -> Place | None:
        if self._yielded or self._running >= (self._slots.transfers or math.inf):
            return None
        for user, places in self._queue.items():
            busy: set[str] = set()
            for place in places:
                if place.store not in busy:
                    if self._is_free(user, place.store):
                        return place
                    busy.add(place.store)
        return None
