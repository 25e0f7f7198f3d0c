"""The hub knows all transfers and tells those who watch. The engine calls it and never waits for it.

Two things are told. Life-cycle events are published by the engine and queued for each subscriber. Progress is read off
the meters by one sampler, made into one delta for all who share a view, and never queued.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

import trio

from ..errors import Conflict, Draining
from .courier import Courier
from .eventlog import EventLog, LoggedEvent, Subject
from .feed import Feed
from .messages import DEFAULT_HZ, HEARTBEAT_SECONDS, ByeReason, Delta, Event, EventKind, Frame, Heartbeat, encode
from .subscription import Subscription
from .transfer import ENDED, State, Transfer
from .view import View, Viewer

SAMPLE_SECONDS: Final = 0.25
SAMPLED_AT_ONCE: Final = 100  # transfers between two looks at other tasks: about 1 ms
ENDED_SECONDS: Final = 600.0  # how long an ended transfer can still be asked for
ENDED_LIMIT: Final = 1000


class Scribe(Protocol):
    """Who tells another process what a hub is told."""

    def added(self, transfer: Transfer) -> None:
        """A transfer was taken in. Does not wait."""
        ...

    def told(self, kind: EventKind, transfer: Transfer) -> None:
        """A step in a transfer's life was published. Does not wait."""
        ...


class Hub:
    """All transfers of this daemon, and everybody who watches them.

    All of it runs in the thread of the event loop. No method but `run` waits for anything.

    Attributes:
        epoch: Names this start of the daemon; `seq` rises strictly within it.
        seq: The number that was given to a message last.
        gateway: This gateway's name among others that it shares a view with; None without such.
        scribe: Told of every transfer and step, while there is one.
        courier: Wakes the subscribers.
    """

    def __init__(self, gateway: str | None = None) -> None:
        self.gateway = gateway
        self.epoch = secrets.token_hex(8)
        self.seq = 0
        self.scribe: Scribe | None = None
        self.courier = Courier()
        self._live: dict[str, Transfer] = {}
        self._own: dict[str, Transfer] = {}  # of these, the ones that are no other gateway's
        self._live_of: dict[str | None, dict[str, Transfer]] = {}  # by user
        self._states: dict[str, State] = {}  # of live transfers, as last published
        self._ended: dict[str, tuple[float, Transfer]] = {}
        self._log = EventLog()
        self._feeds: dict[tuple[View, float], Feed] = {}
        self._subscriptions: dict[Subscription, None] = {}
        self._farewell: ByeReason | None = None
        self._heartbeat: Frame | None = None
        self._stir = trio.Event()

    # --- for the engine ---

    def add(self, transfer: Transfer) -> None:
        """Take in a transfer that was admitted.

        Raises:
            Conflict: Its id is that of a transfer under way, or of another user's that ended not long ago.
        """
        self._expire()
        _, known = self._ended.get(transfer.id, (0.0, None))
        if transfer.id in self._own or (known is not None and not known.foreign and known.user != transfer.user):
            raise Conflict(f"The transfer id '{transfer.id}' is taken")
        if transfer.id in self._live:
            self.drop(self._live[transfer.id])  # another gateway's claim on an id counts for nothing here
        transfer.gateway = self.gateway
        self._own[transfer.id] = transfer
        self._take_in(transfer)
        if self.scribe is not None:
            self.scribe.added(transfer)

    def show(self, transfer: Transfer) -> bool:
        """Take in a transfer of another gateway. False where its id is known here already: that stands."""
        _, known = self._ended.get(transfer.id, (0.0, None))
        if transfer.id in self._live or (known is not None and not known.foreign):
            return False
        self._take_in(transfer)
        return True

    def _take_in(self, transfer: Transfer) -> None:
        self._ended.pop(transfer.id, None)
        self._live[transfer.id] = transfer
        self._live_of.setdefault(transfer.user, {})[transfer.id] = transfer
        self._states[transfer.id] = transfer.state
        self._stir.set()

    def publish(self, kind: EventKind, transfer: Transfer) -> None:
        """Tell of a step in a transfer's life. The transfer is in its new state already, and settled if that is final.

        Nothing is told of a transfer that was not added or has ended: a final event is the last one.
        """
        if self._live.get(transfer.id) is not transfer:
            return
        states = (self._states[transfer.id], transfer.state)
        self._states[transfer.id] = transfer.state
        seq = self.next_seq()
        event = LoggedEvent(Frame(seq, encode(Event(seq, kind, transfer.shown()))), Subject.of(transfer), states)
        self._log.append(event)
        for feed in self._feeds.values():
            feed.announce(event)
        if kind in ENDED:
            self._retire(transfer)
        if self.scribe is not None and not transfer.foreign:
            self.scribe.told(kind, transfer)

    def drop(self, transfer: Transfer) -> None:
        """Forget a transfer that goes on, and that another hub tells of. Nobody is told but by the next delta."""
        if self._live.get(transfer.id) is transfer:
            self._retire(transfer)
            del self._ended[transfer.id]

    def _retire(self, transfer: Transfer) -> None:
        del self._live[transfer.id], self._states[transfer.id]
        self._own.pop(transfer.id, None)
        del self._live_of[transfer.user][transfer.id]
        if not self._live_of[transfer.user]:
            del self._live_of[transfer.user]
        self._ended[transfer.id] = (trio.current_time(), transfer)
        self._expire()
        if self._farewell is not None and not self._own:
            self.close(self._farewell)

    def _expire(self) -> None:
        horizon = trio.current_time() - ENDED_SECONDS
        while self._ended:
            id, (ended_at, _) = next(iter(self._ended.items()))
            if ended_at >= horizon and len(self._ended) <= ENDED_LIMIT:
                break
            del self._ended[id]

    # --- for whoever asks once ---

    def find(self, id: str) -> Transfer | None:
        """A transfer that is under way, or ended not long ago."""
        self._expire()
        if id in self._live:
            return self._live[id]
        return self._ended[id][1] if id in self._ended else None

    def live(self) -> Sequence[Transfer]:
        """This gateway's transfers that are under way, the oldest first."""
        return tuple(self._own.values())

    def ended(self) -> Sequence[Transfer]:
        """The transfers that ended not long ago, in the order of their ends."""
        self._expire()
        return tuple(transfer for _, transfer in self._ended.values())

    def live_for(self, view: View) -> Iterable[Transfer]:
        """Those under way among which a view has to look, other gateways' too, the oldest first. Not to be kept across
        an await."""
        return (self._live if view.user is None else self._live_of.get(view.user, {})).values()

    # --- for subscribers ---

    @contextmanager
    def subscribe(self, viewer: Viewer) -> Generator[Subscription, None, None]:
        """Watch all that `viewer` may see; the subscription is forgotten on exit.

        Raises:
            Draining: The gateway is stopping.
        """
        if self._farewell is not None:
            raise Draining("The gateway is stopping")
        subscription = Subscription(self, viewer, self.feed(View.of(viewer), 1 / DEFAULT_HZ))
        subscription.feed.members[subscription] = None
        self._subscriptions[subscription] = None
        try:
            yield subscription
        finally:
            del self._subscriptions[subscription]
            self.courier.forget(subscription)
            self._leave(subscription)

    def close(self, reason: ByeReason, *, outlast: bool = False) -> None:
        """Say bye to every subscriber and take no new ones. Does not wait for them to go.

        Args:
            outlast: Other gateways may watch until this one's last transfer has ended.
        """
        self._farewell = reason
        for subscription in self._subscriptions:
            if not (outlast and self._own and subscription.viewer.own_only):
                subscription.end(reason)

    def dismiss(self, access_key: str, rights: str | None = None) -> None:
        """Say bye to the subscribers of an account that lost its rights: to all, or to those who came by these."""
        for subscription in self._subscriptions:
            viewer = subscription.viewer
            if viewer.access_key == access_key and (rights is None or viewer.rights == rights):
                subscription.end("auth")

    def watching(self) -> set[tuple[str, str]]:
        """The access keys of those who watch, each with the rights that it came by."""
        viewers = (subscription.viewer for subscription in self._subscriptions if subscription.farewell is None)
        return {
            (who.access_key, who.rights) for who in viewers if who.access_key is not None and who.rights is not None
        }

    def next_seq(self) -> int:
        """A number for a message."""
        self.seq += 1
        return self.seq

    def heartbeat(self) -> Frame:
        """A heartbeat as of now: one for all, for as long as nothing else gets a number."""
        if self._heartbeat is None or self._heartbeat.seq != self.seq:
            seq = self.next_seq()
            self._heartbeat = Frame(seq, encode(Heartbeat(seq)))
        return self._heartbeat

    def whole_delta(self, feed: Feed, removed: tuple[str, ...]) -> Frame | None:
        """A delta with every row of a feed as of now, for members that missed some; None where it would say nothing.
        One for all that missed the same, for as long as nothing else gets a number."""
        known = feed.whole
        if known is None or known[0].seq != self.seq or known[1] != removed:
            rows = feed.rows(self.live_for(feed.view))
            if not rows and not removed:
                return None
            seq = self.next_seq()
            feed.whole = known = Frame(seq, encode(Delta(seq, rows, removed))), removed
        return known[0]

    def events_since(self, epoch: str, seq: int) -> list[LoggedEvent] | None:
        """The events after `seq`; None where they are not known: another epoch, the future, or too long ago."""
        if epoch != self.epoch or seq > self.seq:
            return None
        return self._log.since(seq)

    def feed(self, view: View, period: float) -> Feed:
        """The feed of a view at a cadence; a new one goes with its first member."""
        key = (view, period)
        if key not in self._feeds:
            self._feeds[key] = Feed(view, period, trio.current_time() + period)
        return self._feeds[key]

    def move(self, subscription: Subscription, feed: Feed) -> None:
        """Let a subscription follow another feed."""
        self._leave(subscription)
        self._feeds[feed.view, feed.period] = subscription.feed = feed
        feed.members[subscription] = None

    def _leave(self, subscription: Subscription) -> None:
        feed = subscription.feed
        del feed.members[subscription]
        if not feed.members:
            del self._feeds[feed.view, feed.period]

    # --- the service ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sample the live transfers, make deltas and heartbeats, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sample)
            nursery.start_soon(self._beat)
            nursery.start_soon(self.courier.run)
            task_status.started()

    async def _beat(self) -> None:
        while True:
            await trio.sleep(HEARTBEAT_SECONDS)
            self._heartbeat = None  # on an idle gateway the last one still has the newest number
            for subscription in self._subscriptions:
                subscription.beat()

    async def _sample(self) -> None:
        due = trio.current_time()
        while True:
            await self._stir.wait()
            # Ticks that were missed are not made up for.
            due = max(due + self.tick_seconds, trio.current_time())
            await trio.sleep_until(due)
            await self._tick(due)
            if not self._live and all(feed.settled for feed in self._feeds.values()):
                self._stir = trio.Event()

    @property
    def tick_seconds(self) -> float:
        """How often counts have to be brought up to now, for those who watch now."""
        return min((SAMPLE_SECONDS, *(feed.period for feed in self._feeds.values())))

    async def _tick(self, now: float) -> None:
        for count, transfer in enumerate(self.live(), 1):
            transfer.meter.sample()
            if count % SAMPLED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        for feed in list(self._feeds.values()):
            if feed.due <= now:
                overdue = feed.due + feed.period <= now
                feed.due = (now if overdue else feed.due) + feed.period
                feed.refresh(self.live_for(feed.view), self.next_seq)
                await trio.lowlevel.checkpoint()
