"""The center's end of watchers in other processes: what is for many of a member goes to it once.

A member says for which of its watchers it wants more. Until it does, their messages wait in their subscriptions, by the
rules of those. What a round of the courier gives to watchers of one member is one publication.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from ..errors import InvalidRequest
from .bus import Bus
from .hub import Hub
from .messages import ByeReason
from .reports import DELIVER, MORE, SAY, UNWATCH, WATCH, Delivery, Said
from .reports import Watcher as Newcomer
from .subscription import Subscription

PUBLISHED_AT_ONCE: Final = 256 * 1024  # characters of messages


class Watchers:
    """Subscriptions of those who watch through members of the bus."""

    def __init__(self, bus: Bus, hub: Hub) -> None:
        """To be made before members are attached to `bus`."""
        self._bus = bus
        self._hub = hub
        self._watchers: dict[tuple[str, int], _Watcher] = {}
        self._outboxes: dict[str, _Outbox] = {}
        hub.courier.then(self._send)
        bus.answer(WATCH, self._watch)
        bus.subscribe(MORE, self._deliver)
        bus.subscribe(SAY, self._say)
        bus.subscribe(UNWATCH, self._unwatch)

    def forget(self, member: str) -> None:
        """A member is gone, and with it those who watched through it."""
        for number in [number for owner, number in self._watchers if owner == member]:
            self._unwatch(member, number)
        self._outboxes.pop(member, None)

    def _watch(self, member: str, newcomer: Newcomer) -> None:
        with ExitStack() as stack:
            subscription = stack.enter_context(self._hub.subscribe(newcomer.viewer))
            outbox = self._outboxes.setdefault(member, _Outbox(self._bus, member))
            watcher = _Watcher(newcomer.number, subscription, outbox, stack.pop_all())
        subscription.attach(watcher, has_task=False)
        self._watchers[member, newcomer.number] = watcher

    def _deliver(self, member: str, numbers: list[int]) -> None:
        for number in numbers:
            if (watcher := self._watchers.get((member, number))) is not None:
                watcher.wants_more = True
                watcher.subscription.wake()
        self._send()

    def _say(self, member: str, said: Said) -> None:
        watcher = self._watchers.get((member, said.watch))
        if watcher is None:
            return
        if said.text is not None:
            watcher.subscription.hear(said.text)
        if said.complaint is not None:
            watcher.subscription.complain(InvalidRequest(said.complaint))
        watcher.subscription.wake()
        self._send()

    def _unwatch(self, member: str, number: int) -> None:
        watcher = self._watchers.pop((member, number), None)
        if watcher is not None:
            watcher.stack.close()

    def _send(self) -> None:
        for outbox in self._outboxes.values():
            outbox.send()


class _Watcher:
    """One watcher of a member: the `Sink` of its subscription."""

    def __init__(self, number: int, subscription: Subscription, outbox: _Outbox, stack: ExitStack) -> None:
        self.subscription = subscription
        self.stack = stack
        self.wants_more = False
        self._number = number
        self._outbox = outbox

    def ready(self) -> bool:
        return self.wants_more

    def put(self, texts: Sequence[str]) -> bool:
        self.wants_more = False
        self._outbox.add(self._number, texts, self.subscription.farewell if self.subscription.is_over else None)
        return True


class _Outbox:
    """What is to be published to one member next: the same messages once, with the numbers of all who get them."""

    def __init__(self, bus: Bus, member: str) -> None:
        self._bus = bus
        self._member = member
        self._deliveries: dict[tuple[tuple[str, ...], ByeReason | None], Delivery] = {}
        self._length = 0

    def add(self, number: int, texts: Sequence[str], farewell: ByeReason | None) -> None:
        key = (tuple(texts), farewell)
        known = self._deliveries.get(key)
        if known is not None:
            known.watches.append(number)
            return
        self._deliveries[key] = Delivery([number], list(texts), farewell)
        self._length += sum(map(len, texts))
        if self._length > PUBLISHED_AT_ONCE:
            self.send()

    def send(self) -> None:
        if self._deliveries:
            self._bus.publish(DELIVER, [*self._deliveries.values()], to=self._member)
            self._deliveries, self._length = {}, 0
