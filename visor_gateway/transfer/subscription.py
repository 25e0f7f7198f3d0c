"""What one subscriber is still to be sent. Nothing here waits for it, and nothing grows with its slowness.

Rules of order, which make `seq` rise strictly on a connection and a transfer's last delta precede its final event:

* `hello` and `snapshot` go first; after an overflow, `gap` and `snapshot`. Whatever happened before the snapshot is
  made is in the snapshot, so until then events and deltas are dropped.
* Events wait in a queue. The newest delta waits in a slot, and of both the one with the smaller `seq` goes first.
* A delta that was not fetched before the next one came is made up for by one with every row, built when it is
  fetched: after all queued events, and without any transfer that has ended.
* The only messages that go back in `seq` are events replayed by `resume`, which keep their numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

import trio

from ..errors import InvalidRequest
from .eventlog import LoggedEvent
from .feed import Feed
from .messages import (
    Bye,
    ByeReason,
    Error,
    Frame,
    Gap,
    Hello,
    Resume,
    Snapshot,
    Subscribe,
    encode,
    parse,
)
from .sink import Handover, Sink
from .view import View, Viewer, totals

if TYPE_CHECKING:
    from .hub import Hub

QUEUED_EVENTS: Final = 256
QUEUED_ERRORS: Final = 16
SENT_AT_ONCE: Final = 64 * 1024  # characters after which no more messages are joined to those of one write


class Subscription:
    """One subscriber's messages. One task fetches them with `next_text`; made and ended by `Hub.subscribe`.

    While that task waits, the courier puts messages into the subscriber's sink, if there is one that is ready: then a
    message costs no switch of tasks. The task is woken for what the sink does not take. A sink may be all there is,
    without a task; then whoever attached it calls `wake` when it has become ready.

    Attributes:
        farewell: Why the hub ended the subscription; None while it has not.
    """

    def __init__(self, hub: Hub, viewer: Viewer, feed: Feed) -> None:
        self.viewer = viewer
        self.feed = feed
        self.farewell: ByeReason | None = None
        self._hub = hub
        self._handover = Handover()
        self._has_task = True
        self._pending = True  # whether there may be something to take, so that waiting for it may be no checkpoint
        self._restart: deque[Callable[[], str]] = deque((self._hello, self._snapshot))
        self._restarted_at: int | None = None
        self._resumed: Resume | None = None
        self._events: deque[LoggedEvent] = deque()
        self._replay: deque[LoggedEvent] = deque()
        self._errors: deque[str] = deque(maxlen=QUEUED_ERRORS)
        self._delta: Frame | None = None
        self._delta_removed: Collection[str] = ()
        self._missed: dict[str, None] | None = None  # after an overwritten delta: what it and later ones removed
        self._snapshot_due = False
        self._heartbeat_due = False
        self._said_bye = False

    # --- called by the hub and the feed: never blocks ---

    def offer(self, event: LoggedEvent) -> None:
        """Queue an event; too many of them become a gap."""
        if not self._restart:
            self._events.append(event)
            if len(self._events) > QUEUED_EVENTS:
                self._lose()
            self._call()

    def progress(self, delta: Frame, removed: Collection[str]) -> None:
        """Take the newest delta in place of one that was not fetched."""
        if self._restart or self._snapshot_due:
            return  # the snapshot is made later, and tells as much
        if self._delta is None and self._missed is None:
            self._delta, self._delta_removed = delta, removed
        else:
            self._catch_up(removed)
        self._call()

    def beat(self) -> None:
        """Let a heartbeat be sent."""
        self._heartbeat_due = True
        self._call()

    def end(self, reason: ByeReason) -> None:
        """Let `bye` be the last message, after the queued events. The first reason stands."""
        self.farewell = self.farewell or reason
        self._look()

    def wake(self) -> None:
        """Put what there is into the sink, or let a fetch that waits look for it."""
        if self._handover.is_open():
            self._handover.put(self.further_texts())
            if not (self._handover.is_stuck or self._pending or self._said_bye):
                return
        self._pending = True
        self._handover.wake()

    def _look(self) -> None:
        """Let a fetch that waits look again."""
        self._pending = True
        if self._has_task:
            self._handover.wake()
        else:
            self._hub.courier.call(self)

    def _call(self) -> None:
        self._pending = True
        self._hub.courier.call(self)

    # --- called for the subscriber ---

    @property
    def is_over(self) -> bool:
        """Whether `bye` was taken."""
        return self._said_bye

    def attach(self, sink: Sink, *, has_task: bool = True) -> None:
        """Have messages put into `sink` where a fetch would have to be woken for them; without a task, all of them."""
        self._handover.attach(sink, has_task=has_task)
        self._has_task = has_task

    async def next_text(self) -> str | None:
        """The next message, encoded; empty where the sink did not take all, None after `bye`. Cancelling it loses no
        message."""
        if self._pending:
            await trio.lowlevel.checkpoint()
        while not self._said_bye:
            text = "" if self._handover.unstick() else self._take()
            if text is not None:
                return text
            self._pending = False
            await self._handover.wait()
        return None

    def further_texts(self) -> list[str]:
        """The messages that can be sent together with the one that was fetched, without waiting."""
        texts: list[str] = []
        length = 0
        while length < SENT_AT_ONCE and not self._said_bye:
            text = self._take()
            if text is None:
                self._pending = False
                break
            texts.append(text)
            length += len(text)
        return texts

    def hear(self, text: str) -> None:
        """Act on a message of the client; one that can't be understood is answered by an `error`."""
        try:
            message = parse(text)
            if isinstance(message, Resume):
                self.resume(message)
            else:
                self.follow(message)
        except InvalidRequest as error:
            self.complain(error)

    def complain(self, error: InvalidRequest) -> None:
        """Answer with an `error`."""
        self._errors.append(encode(Error(error.status, error.message)))
        self._look()

    def follow(self, wish: Subscribe) -> None:
        """Show what the client wishes from now on, beginning with a snapshot. Raises `InvalidRequest` for an unknown
        filter."""
        self._hub.move(self, self._hub.feed(View.of(self.viewer, wish.filters), wish.period))
        self._snapshot_due = True
        self._look()

    def _catch_up(self, removed: Collection[str]) -> None:
        unsent = () if self._delta is None else self._delta_removed
        self._missed = (self._missed or {}) | dict.fromkeys((*unsent, *removed))
        self._delta = None
        if len(self._missed) > QUEUED_EVENTS:
            self._lose()

    def resume(self, wish: Resume) -> None:
        """Send the events that the client missed; where they are not known, a gap and a snapshot."""
        self._look()
        if self._hub.events_since(wish.epoch, wish.seq) is None:
            self._lose()
        elif self._restart:
            # What happens until the snapshot is made is not queued, so it belongs to what is missed.
            self._resumed = wish
        else:
            self._replay_since(wish)

    def _replay_since(self, wish: Resume) -> None:
        events = self._hub.events_since(wish.epoch, wish.seq)
        if events is None:
            self._lose()
            return
        # Later ones were queued on this connection itself.
        end = self._restarted_at
        missed = (event for event in events if end is None or event.frame.seq < end)
        self._replay = deque(event for event in missed if event.seen_by(self.feed.view))

    def _lose(self) -> None:
        opening = (self._hello,) if self._hello in self._restart else ()
        self._restart = deque((*opening, self._gap, self._snapshot))
        self._restarted_at = self._resumed = None
        self._events.clear()
        self._replay.clear()
        self._delta = self._missed = None

    def _take(self) -> str | None:
        """The next message, and forget it."""
        if self._restart:
            return self._take_restart()
        if self._errors:
            return self._errors.popleft()
        if self._replay:
            return self._replay.popleft().frame.text
        return self._take_ordered() or self._take_latest()

    def _take_restart(self) -> str:
        text = self._restart.popleft()()
        if not self._restart:
            self._restarted_at = self._hub.seq
            wish, self._resumed = self._resumed, None
            if wish is not None:
                self._replay_since(wish)
        return text

    def _take_ordered(self) -> str | None:
        """The first of what has its number already."""
        if self._delta is not None and (not self._events or self._delta.seq < self._events[0].frame.seq):
            frame, self._delta = self._delta, None
            return frame.text
        return self._events.popleft().frame.text if self._events else None

    def _take_latest(self) -> str | None:
        """What is made at the moment of sending, from what holds then."""
        if self.farewell is not None:
            self._said_bye = True
            return encode(Bye(self.farewell))
        if self._snapshot_due:
            self._missed = None
            return self._snapshot()
        if self._missed is not None:
            removed, self._missed = tuple(self._missed), None
            frame = self._hub.whole_delta(self.feed, removed)
            if frame is not None:
                return frame.text
        if self._heartbeat_due:
            self._heartbeat_due = False
            return self._hub.heartbeat().text
        return None

    def _hello(self) -> str:
        return encode(Hello(self._hub.epoch, self._hub.next_seq()))

    def _gap(self) -> str:
        return encode(Gap())

    def _snapshot(self) -> str:
        self._snapshot_due = False
        seen = self.feed.view.select(self._hub.live_for(self.feed.view))
        return encode(Snapshot(self._hub.next_seq(), [transfer.shown() for transfer in seen], totals(seen)))
