"""A member's end of its watchers: what the center has for many of them comes once, and is sent to each from here."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..errors import InvalidRequest
from .bus import Bus
from .courier import WOKEN_AT_ONCE, Courier
from .messages import ByeReason
from .reports import CENTER, DELIVER, MORE, SAY, Delivery, Said
from .sink import Handover, Sink


class RemoteWatches:
    """All who watch through this process."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._courier = Courier()
        self._courier.then(self._say_who_wants_more)
        self._has_courier = False
        self._watches: dict[int, RemoteWatch] = {}
        self._wanting: list[int] = []
        bus.subscribe(DELIVER, self._take)

    async def serve(self) -> None:
        """Put messages into the sinks of watchers, until cancelled. Without it their tasks are woken for each."""
        self._has_courier = True
        try:
            await self._courier.run()
        finally:
            self._has_courier = False

    def add(self, number: int) -> RemoteWatch:
        """The watch of that number, which the center knows."""
        watch = self._watches[number] = RemoteWatch(self, self._bus, number)
        return watch

    def forget(self, number: int) -> None:
        """That watcher is gone."""
        watch = self._watches.pop(number, None)
        if watch is not None:
            self._courier.forget(watch)

    def want_more(self, number: int) -> None:
        """Have the center send what there is for a watcher whose client was sent all that came."""
        self._wanting.append(number)
        if not (self._has_courier and self._courier.is_going_round):
            self._say_who_wants_more()

    def _say_who_wants_more(self) -> None:
        if self._wanting:
            self._bus.publish(MORE, self._wanting, to=CENTER)
            self._wanting = []

    def _take(self, member: str, deliveries: list[Delivery]) -> None:
        # What is for a few, such as the answer to what a client asked for, need not wait for a round.
        few = sum(len(delivery.watches) for delivery in deliveries) <= WOKEN_AT_ONCE
        for delivery in deliveries:
            for number in delivery.watches:
                watch = self._watches.get(number)
                if watch is None:
                    continue
                watch.take(delivery.texts, delivery.farewell)
                if self._has_courier and not few:
                    self._courier.call(watch)
                else:
                    watch.wake()


class RemoteWatch:
    """`Watch` over the bus: wants more once its client was sent all that came, so that the center makes none for one
    that is slow.

    Attributes:
        farewell: Why the gateway ended it; None while it has not.
    """

    def __init__(self, watches: RemoteWatches, bus: Bus, number: int) -> None:
        self.farewell: ByeReason | None = None
        self._watches = watches
        self._bus = bus
        self._number = number
        self._handover = Handover()
        self._wants_more = False
        self._arrived: deque[str | None] = deque()

    # --- for what comes over the bus: never blocks ---

    def take(self, texts: Sequence[str], farewell: ByeReason | None) -> None:
        """Keep what has come, until `wake`."""
        self._wants_more = False
        self._arrived.extend(texts)
        if farewell is not None and self.farewell is None:
            self.farewell = farewell
            self._arrived.append(None)

    def wake(self) -> None:
        """Put what has come into the sink, or let a fetch that waits look for it."""
        if self._handover.is_open():
            self._handover.put(self.further_texts())
            if not (self._handover.is_stuck or self._arrived):
                self._want_more()
                return
        self._handover.wake()

    async def end_with_center(self) -> None:
        """Say that the gateway drains once the center is gone."""
        await self._bus.wait_gone(CENTER)
        self.take([], "drain")
        self.wake()

    # --- for the watcher ---

    def attach(self, sink: Sink) -> None:
        self._handover.attach(sink)

    async def next_text(self) -> str | None:
        while not (self._arrived or self._handover.is_stuck):
            self._want_more()
            await self._handover.wait()
        if self._handover.unstick():
            return ""
        text = self._arrived[0]
        if text is not None:  # the end stays
            self._arrived.popleft()
        return text

    def further_texts(self) -> Sequence[str]:
        texts = [text for text in self._arrived if text is not None]
        self._arrived = deque(text for text in self._arrived if text is None)
        return texts

    def hear(self, text: str) -> None:
        self._bus.publish(SAY, Said(self._number, text=text), to=CENTER)

    def complain(self, error: InvalidRequest) -> None:
        self._bus.publish(SAY, Said(self._number, complaint=error.message), to=CENTER)

    def _want_more(self) -> None:
        if not self._wants_more:
            self._wants_more = True
            self._watches.want_more(self._number)
