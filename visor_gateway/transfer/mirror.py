"""A transfer whose bytes another process moves: it shows what that one reports, and hands on what is asked of it."""

from __future__ import annotations

from collections.abc import Callable

from .control import Change
from .limits import Pace, Rates
from .meter import Meter
from .reports import Adoption, Counts, Description, Steering, Step, named
from .transfer import ENDED, Ended, Transfer

Steer = Callable[[Steering], None]


class Mirror(Transfer):
    """What one process knows of another's transfer.

    Attributes:
        owner: Name of the member that moves its bytes.
    """

    def __init__(self, description: Description, owner: str, steer: Steer, rates: Rates) -> None:
        """`steer` reaches the process that moves the bytes, and does not wait for it."""
        super().__init__(
            id=description.id,
            kind=description.kind,
            image=description.image,
            store=description.store,
            client=description.client,
            user=description.user,
            size=description.size,
            offset=description.offset,
        )
        self.owner = owner
        self.started_at = description.started_at
        self.counted = ReportedMeter()
        self.meter = self.counted
        self.pace = _MirroredPace(rates, lambda limit: self._change(Change(limit_bytes_per_s=limit)))
        self._steer = steer

    # --- reports ---------------------------------------------------------------------------------

    def take(self, counts: Counts) -> None:
        """Show newer counts. After the end they change nothing."""
        if self.state not in ENDED:
            self._show(counts)

    def take_step(self, step: Step) -> None:
        """Show how it stands after a step of its life."""
        if self.state in ENDED:
            return
        self._show(step.counts)
        self.state, self.error = step.state, step.error

    def _show(self, counts: Counts) -> None:
        self.size, self.attempt, self.waiters = counts.size, counts.attempt, counts.waiters
        self.counted.show(counts)

    def adopt(self, adoption: Adoption) -> None:
        """Begin as the transfer stands where its bytes move."""
        self._show(adoption.counts)
        self.state = adoption.state
        self.pace.paused = adoption.state == "paused"
        Pace.limit(self.pace, adoption.limit)

    # --- what is asked of it ---------------------------------------------------------------------

    def cancel(self, reason: str) -> None:
        if self.cancel_reason is None and not self.ended.is_set():
            self.cancel_reason = reason
            self._steer(Steering(self.id, cancel=reason))

    def pause(self) -> bool:
        self._change(Change(paused=True))
        return super().pause()

    def resume(self) -> bool:
        self._change(Change(paused=False))
        return super().resume()

    def _change(self, change: Change) -> None:
        self._steer(Steering(self.id, change=change))

    def settle(self, state: Ended, error: str | None = None) -> None:
        """Make the outcome final where its process can't tell it any more."""
        if self.state not in ENDED:
            self.counted.stop()
            self.state, self.error = state, error


class ReportedMeter(Meter):
    """Counts that were made elsewhere."""

    def __init__(self) -> None:
        self._bytes = 0
        self._rate_avg = 0.0
        self._seconds = 0.0
        super().__init__()

    @property
    def bytes(self) -> int:
        return self._bytes

    @property
    def rate_avg(self) -> float:
        return self._rate_avg

    @property
    def seconds(self) -> float:
        return self._seconds

    def show(self, counts: Counts) -> None:
        """Take over what was reported."""
        self._bytes, self.rate, self._rate_avg = counts.bytes, counts.rate, counts.rate_avg
        self._seconds = counts.seconds
        self.wait, self.waited = named(counts.wait), named(counts.waited)

    def sample(self) -> None:
        """Nothing: reports come as they come."""

    def stop(self) -> None:
        """Nothing more is reported: nothing moves, and nothing is waited for."""
        self.rate = 0.0
        self.wait = dict.fromkeys(self.wait, 0)


class _MirroredPace(Pace):
    """Limits that are kept elsewhere."""

    __slots__ = ("_hand_on",)

    def __init__(self, rates: Rates, hand_on: Callable[[int], None]) -> None:
        super().__init__(rates, rates.bytes_per_s_per_transfer)
        self._hand_on = hand_on
        rates.include(self)

    def limit(self, bytes_per_s: int) -> None:
        super().limit(bytes_per_s)
        self._hand_on(bytes_per_s)
