"""Byte rates: one for the gateway, one for each transfer. Sans-IO; safe to call from any thread.

A token bucket fills at its rate and holds `BURST_SECONDS` of it. Whoever wants to move bytes claims a piece first. A
claim that the bucket can't pay yet takes its place in line: the bucket has counted it, and it is paid once enough has
come in. So claims are paid in the order in which they were made. A transfer has one claim at a time, pieces are of one
size, and therefore all who want more than their share get the same, while what one does not want goes to the others.

A claim passes the transfer's own bucket first and stands in line at the gateway's only after that, so that a transfer
with a low limit of its own never holds tokens that others could use. What was granted and not moved is given back; a
claim that is given up before it is paid leaves a gap in the line, which costs those behind it nothing and pays nobody
before it.

Tokens are spent before bytes move: what has moved since the start is never more than `rate * time + burst`.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable
from typing import Final
from weakref import WeakSet

BURST_SECONDS: Final = 0.25
PIECES: Final = 4  # of one burst, for smooth sending also where only one transfer runs
MIN_PIECE: Final = 16 * 1024  # bytes; smaller ones cost a system call for little, unless the burst itself is smaller
#: At most so long until a claim is asked for again: others may have given back, or the limit may have been changed.
ASK_AGAIN_SECONDS: Final = 0.25


class Bucket:
    """One rate. It knows no clock: every call says what time it is, in seconds that never go back.

    `_claimed` counts every byte that was ever claimed, `_paid` how far the bucket has paid. A claim's ticket is the
    count after it, and the claim is paid once `_paid` has reached it. `_gaps` are the parts of the line that nobody
    stands at any more, in order: begin and end of each. No two of them touch, so there are no more than claims.
    """

    __slots__ = ("_at", "_claimed", "_gaps", "_paid", "_rate")

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._claimed = 0
        self._gaps: list[tuple[int, int]] = []
        self._paid = self.burst
        self._at = now

    @property
    def rate(self) -> int:
        """Bytes per second; 0 for no limit."""
        return self._rate

    @property
    def burst(self) -> float:
        """Bytes that may move at once after a pause."""
        return self._rate * BURST_SECONDS

    def set_rate(self, rate: int, now: float) -> None:
        """Change the rate from now on; claims keep their places."""
        self._fill(now)
        self._rate = rate
        self._paid = min(self._paid, self._claimed + self.burst)

    def piece(self, waiting: int) -> int:
        """Bytes of one claim, while `waiting` others stand in line."""
        return max(int(min(self.burst / PIECES, self.burst / (waiting + 1))), min(int(self.burst), MIN_PIECE), 1)

    def claim(self, size: int, now: float) -> int:
        """Take a place in line for `size` bytes. Returns the ticket."""
        self._fill(now)
        self._claimed += size
        return self._claimed

    def missing(self, ticket: int, now: float) -> float:
        """Seconds until the ticket is paid if nobody gives anything back; 0 once it is."""
        self._fill(now)
        lack = ticket - self._paid
        # Part of a byte may stay owed: the time to it can be less than a clock can tell.
        return lack / self._rate if self._rate and lack >= 1 else 0.0

    def give_back(self, size: int, now: float) -> None:
        """Return what was paid and not moved; those in line are paid the sooner."""
        self._fill(now)
        self._pay(size)

    def withdraw(self, ticket: int, size: int, now: float) -> None:
        """Give up a claim of `size` bytes. What was paid of it goes to those in line, and nothing else does."""
        self._fill(now)
        begin = ticket - size
        if begin <= self._paid:
            self._pay(size)
        else:
            self._leave_gap(begin, ticket)

    def _fill(self, now: float) -> None:
        if self._rate:
            self._pay(self._rate * (now - self._at))
        else:
            self._paid = self._claimed
            self._gaps.clear()
        self._at = now

    def _pay(self, size: float) -> None:
        self._paid += size
        while self._gaps and self._gaps[0][0] <= self._paid:
            begin, end = self._gaps.pop(0)
            self._paid += end - begin
        self._paid = min(self._paid, self._claimed + self.burst)

    def _leave_gap(self, begin: int, end: int) -> None:
        place = bisect.bisect(self._gaps, (begin, end))
        if place < len(self._gaps) and self._gaps[place][0] == end:
            end = self._gaps.pop(place)[1]
        if place and self._gaps[place - 1][1] == begin:
            place -= 1
            begin = self._gaps.pop(place)[0]
        if end == self._claimed:
            self._claimed = begin  # the end of the line, where the next claim may stand
        else:
            self._gaps.insert(place, (begin, end))


class Rates:
    """The limits of one gateway, and the place where its transfers get theirs."""

    def __init__(
        self, bytes_per_s: int = 0, bytes_per_s_per_transfer: int = 0, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Both in bytes per second, 0 for no limit."""
        self.now = now
        self.lock = threading.Lock()
        self.shared = Bucket(bytes_per_s, now())
        self.waiting = 0  # claims in line at the shared bucket
        self._per_transfer = bytes_per_s_per_transfer
        self._paces: WeakSet[Pace] = WeakSet()

    @property
    def bytes_per_s(self) -> int:
        """The gateway's rate; 0 for no limit."""
        return self.shared.rate

    @property
    def bytes_per_s_per_transfer(self) -> int:
        """What a new transfer's own limit is; 0 for none."""
        return self._per_transfer

    def limit(self, bytes_per_s: int) -> None:
        """Change the gateway's rate; running transfers follow within `ASK_AGAIN_SECONDS`."""
        with self.lock:
            self.shared.set_rate(bytes_per_s, self.now())

    def limit_each(self, bytes_per_s: int) -> None:
        """Change the limit of each transfer, new or running, but for those that were given another one of their own."""
        for pace in tuple(self._paces):
            pace.follow(bytes_per_s)
        self._per_transfer = bytes_per_s

    def pace(self) -> Pace:
        """The pace of a new transfer."""
        pace = Pace(self, self._per_transfer)
        self.include(pace)
        return pace

    def include(self, pace: Pace) -> None:
        """Have a pace follow `limit_each`."""
        self._paces.add(pace)


class Pace:
    """How fast one transfer may go. One claim at a time: `claim` until it grants, move, then `give_back` the rest.

    Attributes:
        paused: Nothing is granted while this is set; heeded within `ASK_AGAIN_SECONDS`, and at the next claim.
    """

    __slots__ = ("__weakref__", "_default", "_held", "_in_line", "_own", "_rates", "_ticket", "paused")

    def __init__(self, rates: Rates, bytes_per_s: int) -> None:
        self.paused = False
        self._rates = rates
        self._default = bytes_per_s
        self._own = Bucket(bytes_per_s, rates.now())
        self._held = 0  # bytes of the claim under way
        self._ticket = 0
        self._in_line = False  # whether it has passed the transfer's own bucket

    @property
    def bytes_per_s(self) -> int:
        """The transfer's own limit; 0 for none."""
        return self._own.rate

    @property
    def default(self) -> int:
        """The limit that the gateway gave the transfer; 0 for none."""
        return self._default

    def limit(self, bytes_per_s: int) -> None:
        """Change the transfer's own limit; it follows within `ASK_AGAIN_SECONDS`."""
        with self._rates.lock:
            self._own.set_rate(bytes_per_s, self._rates.now())

    def follow(self, bytes_per_s: int) -> None:
        """Take over what the gateway gives each transfer now, unless this one was given something else since."""
        if self.bytes_per_s == self._default:
            self.limit(bytes_per_s)
        self._default = bytes_per_s

    def claim(self, want: int) -> tuple[int, float]:
        """Ask to move up to `want` bytes, more than 0.

        Returns:
            How many bytes may move now, and 0.0; or 0 and the seconds after which to ask again.
        """
        rates = self._rates
        if self.paused:
            self.release()  # what it held others can use
            return 0, ASK_AGAIN_SECONDS
        if not (self._held or self._own.rate or rates.shared.rate):
            return want, 0.0
        with rates.lock:
            now = rates.now()
            if not self._held:
                self._held = min(want, self._piece())
                self._ticket = self._own.claim(self._held, now)
            wait = self._missing(now)
            if wait > 0:
                return 0, min(wait, ASK_AGAIN_SECONDS)
            granted = min(self._held, want)
            self._refund(self._held - granted, now)
            self._leave_line()
            return granted, 0.0

    def give_back(self, size: int) -> None:
        """Return bytes that were granted and did not move."""
        if size and (self._own.rate or self._rates.shared.rate):
            with self._rates.lock:
                self._refund(size, self._rates.now())

    def release(self) -> None:
        """Give up the claim under way, if there is one: the transfer ends, or its client takes nothing."""
        if self._held:
            with self._rates.lock:
                now = self._rates.now()
                if self._in_line:
                    self._own.give_back(self._held, now)
                    self._rates.shared.withdraw(self._ticket, self._held, now)
                else:
                    self._own.withdraw(self._ticket, self._held, now)
                self._leave_line()

    def _piece(self) -> int:
        pieces = []
        if self._own.rate:
            pieces.append(self._own.piece(0))
        if self._rates.shared.rate:
            pieces.append(self._rates.shared.piece(self._rates.waiting))
        return min(pieces, default=MIN_PIECE)

    def _missing(self, now: float) -> float:
        """Seconds until the next step of the claim under way."""
        rates = self._rates
        if not self._in_line:
            if (wait := self._own.missing(self._ticket, now)) > 0:
                return wait
            self._in_line = True
            rates.waiting += 1
            self._ticket = rates.shared.claim(self._held, now)
        return rates.shared.missing(self._ticket, now)

    def _leave_line(self) -> None:
        self._rates.waiting -= self._in_line
        self._held, self._in_line = 0, False

    def _refund(self, size: int, now: float) -> None:
        self._own.give_back(size, now)
        self._rates.shared.give_back(size, now)
