"""Counting one transfer. Sans-IO: the data path adds to integers, a sampler reads them.

`bytes` of a pull is what was sent minus what the client's kernel has not acknowledged, so that progress never runs
ahead of the client.

The rate is an exponentially weighted mean over time, so that it does not depend on how often it is sampled. Two sums
are kept, of the rates and of their weights; their quotient is a weighted mean of what was really seen, from the first
sample on. A mean that started at zero would report a third of the true rate after the first second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, Literal

WaitKind = Literal["client", "store", "limit", "disk"]
WAITS: Final[tuple[WaitKind, ...]] = ("client", "store", "limit", "disk")

#: Of those who wait no more. Read only: it is that of every transfer that has ended.
NO_WAIT: Final[dict[WaitKind, int]] = dict.fromkeys(WAITS, 0)

RATE_SECONDS: Final = 3.0  # the time constant of the mean: a rate "over the last seconds"
#: After so long without a byte the rate is zero, and what comes next is measured afresh. The mean alone would take a
#: minute to forget a fast transfer.
QUIET_SECONDS: Final = 4 * RATE_SECONDS


def _nothing() -> int:
    return 0


class _Stopwatch:
    """Time during which at least one of several overlapping waits was under way."""

    __slots__ = ("_depth", "_since", "_total")

    def __init__(self) -> None:
        self._depth = 0
        self._since = 0.0
        self._total = 0.0

    @property
    def untouched(self) -> bool:
        """Whether nobody has waited yet."""
        return not (self._depth or self._total)

    def start(self, now: float) -> None:
        if self._depth == 0:
            self._since = now
        self._depth += 1

    def stop(self, now: float) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._total += now - self._since

    def seconds(self, now: float) -> float:
        """The time so far, with what is still running."""
        return self._total + (now - self._since if self._depth else 0.0)


class _Stopped(_Stopwatch):
    """That of whatever has ended. It has no time, and is shared by all."""

    __slots__ = ()

    def start(self, now: float) -> None:
        pass

    def stop(self, now: float) -> None:
        pass


class _Waiting:
    """A block whose time is booked. A generator would cost twice as much, and there are half a dozen in each pull."""

    __slots__ = ("_kind", "_meter")

    def __init__(self, meter: Meter, kind: WaitKind) -> None:
        self._meter = meter
        self._kind = kind

    def __enter__(self) -> None:
        self._meter.begin_wait(self._kind)

    def __exit__(self, *_: object) -> None:
        self._meter.end_wait(self._kind)


_STOPPED: Final[dict[WaitKind, _Stopwatch]] = dict.fromkeys(WAITS, _Stopped())


class Meter:
    """Bytes, rates and waits of one transfer.

    The data path adds to `moved` and enters `waiting`, one thread at a time; all else belongs to the thread of the
    event loop.

    Attributes:
        moved: Bytes handed on so far. Added to after the kernel took them, never before, or `bytes` would run ahead.
        unacknowledged: Tells how many of `moved` the peer's kernel has not acknowledged.
        rate: Bytes per second over the last seconds.
        wait: Milliseconds that the interval between the last two samples was spent waiting, per kind.
        waited: The same since the start.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self.moved = 0
        self.unacknowledged: Callable[[], int] = _nothing
        self.rate = 0.0
        self.wait: dict[WaitKind, int] = dict.fromkeys(WAITS, 0)
        self.waited: dict[WaitKind, int] = dict.fromkeys(WAITS, 0)
        self._now = now
        self._arrived = 0
        self._booked = 0
        self._ended: float | None = None
        self._watches: dict[WaitKind, _Stopwatch] = {kind: _Stopwatch() for kind in WAITS}
        self._start_clock()

    def begin(self) -> None:
        """Start the clock: time before this, spent in a queue, belongs to no rate."""
        if self._ended is None:
            self._start_clock()
            self._sample_waits(self._began)

    def _start_clock(self) -> None:
        self._began = self._sampled_at = self._moved_at = self._now()
        self._sampled_bytes = self.bytes
        self._level = self._weight = 0.0

    @property
    def bytes(self) -> int:
        """Bytes that have arrived, as far as the kernel knows. It never falls: `moved` may lag behind the kernel for a
        moment, while what the kernel holds is counted already."""
        moved = self.moved
        if moved != self._arrived:  # else nothing can have arrived since, and the kernel need not be asked
            self._arrived = max(self._arrived, moved - self.unacknowledged())
        return self._arrived

    def unbooked(self) -> int:
        """Bytes that were not told by a call before: for sums over many transfers, while they run and at their ends."""
        before, self._booked = self._booked, self.bytes
        return self._booked - before

    @property
    def seconds(self) -> float:
        """How long the transfer has taken, or took."""
        return (self._now() if self._ended is None else self._ended) - self._began

    @property
    def rate_avg(self) -> float:
        """Bytes per second since the start."""
        seconds = self.seconds
        return self.bytes / seconds if seconds > 0 else 0.0

    def waiting(self, kind: WaitKind) -> _Waiting:
        """Book the time inside as waiting for `kind`. Waits of one kind may overlap; their time counts once."""
        return _Waiting(self, kind)

    def begin_wait(self, kind: WaitKind) -> None:
        """Book from now on, up to an `end_wait`: `waiting` for those who can't use a block."""
        self._watches[kind].start(self._now())

    def end_wait(self, kind: WaitKind) -> None:
        """End what `begin_wait` began."""
        self._watches[kind].stop(self._now())

    def sample(self) -> None:
        """Bring `rate`, `wait` and `waited` up to now. Called by one sampler, at any interval."""
        now = self._now()
        elapsed = now - self._sampled_at
        if elapsed <= 0 or self._ended is not None:
            return
        self._sample_rate(now, elapsed)
        self._sample_waits(now)
        self._sampled_at = now

    def _sample_rate(self, now: float, elapsed: float) -> None:
        gained = self.bytes - self._sampled_bytes
        self._sampled_bytes += gained
        if gained:
            self._moved_at = now
        elif now - self._moved_at >= QUIET_SECONDS:
            self._level = self._weight = self.rate = 0.0
            return
        added = -math.expm1(-elapsed / RATE_SECONDS)
        self._level += added * (gained / elapsed - self._level)
        self._weight += added * (1 - self._weight)
        self.rate = self._level / self._weight

    def _sample_waits(self, now: float) -> None:
        # Whole milliseconds of the running total, so that what rounding leaves counts in the next interval. A wait that
        # ends in another thread at this very moment may look shorter than it did before: never a negative interval.
        wait, waited = self.wait, self.waited
        for kind, watch in self._watches.items():
            before = waited[kind]
            if watch.untouched:
                wait[kind] = 0
            else:
                waited[kind] = total = max(before, round(watch.seconds(now) * 1000))
                wait[kind] = total - before

    def freeze(self, *, whole: bool) -> None:
        """Stop counting. A second call changes nothing.

        To be called before a broken connection is closed: a closed one knows nothing of unacknowledged bytes any more.

        Args:
            whole: Everything was taken, and what is unacknowledged will still be given to the client. Otherwise the
                bytes that never arrived are taken off for good.
        """
        if self._ended is not None:
            return
        if not whole:
            self.moved = self.bytes
        self.unacknowledged = _nothing
        self.sample()
        self._ended = self._now()
        self.wait, self._watches = NO_WAIT, _STOPPED
