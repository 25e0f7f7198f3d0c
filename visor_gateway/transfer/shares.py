"""Sharing out the gateway's byte rate among the processes that move bytes, so that together they never exceed it.

Each has a share, by which its own token bucket fills. Who has to wait for its share gets more, who leaves some of it
gets less. Shares are taken back before they are given to others: at no moment does the sum of those in force exceed the
rate, not even where a process does not answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec
import trio

from ..errors import GatewayError
from .bus import Bus
from .hub import Hub
from .limits import Rates
from .mirror import Mirror
from .reports import CENTER, SHARE
from .transfer import Transfer

DEAL_SECONDS: Final = 0.25
ANSWER_SECONDS: Final = 1.0
NEW_SECONDS: Final = 2.0  # nobody knows yet what a transfer that is younger would take
HEADROOM: Final = 1.5  # of what a process moves: enough to notice that it would move more
IDLE_PART: Final = 16  # all idle processes together have one of so many parts, to begin with
WORTH_IT: Final = 0.02  # of the rate: smaller gains are not dealt out


class Demand(msgspec.Struct, frozen=True):
    """What one process would take.

    Attributes:
        weight: How many of its transfers run.
        most: Bytes per second beyond which it has no use for more.
    """

    weight: int = 0
    most: float = 0.0


def deal(rate: int, demands: Mapping[str, Demand]) -> dict[str, int]:
    """The shares in bytes per second: every transfer counts alike, none gets more than it has use for, and what is left
    then is headroom for all. Never 0, which would be no limit at all. Sans-IO."""
    least = max(1.0, rate / (IDLE_PART * max(1, len(demands))))
    shares = dict.fromkeys(demands, least)
    left = rate - sum(shares.values())
    hungry = {name for name, demand in demands.items() if demand.weight and demand.most > least}
    while hungry and left > 0:
        part = left / sum(demands[name].weight for name in hungry)
        sated = {name for name in hungry if demands[name].most - shares[name] <= part * demands[name].weight}
        for name in sated or hungry:
            gain = demands[name].most - shares[name] if sated else part * demands[name].weight
            shares[name] += gain
            left -= gain
        hungry -= sated or hungry
    headroom = max(0.0, left) / max(1, len(demands))
    return {name: max(1, math.floor(share + headroom)) for name, share in shares.items()}


class RateShares:
    """Keeps the members' shares to what they need, within the rate of `rates`."""

    def __init__(self, bus: Bus, hub: Hub, rates: Rates, *, moves: bool = False, held: bool = False) -> None:
        """`rates` has the gateway's rate.

        Args:
            moves: This process moves bytes itself, by `rates`, and has a share like the members.
            held: Nothing is dealt out before `open`: who has how much is not known yet.
        """
        self._bus = bus
        self._hub = hub
        self._rates = rates
        self._rate = rates.bytes_per_s
        self._in_force: dict[str, int] = {}
        self._due = trio.Event()
        self._opened = trio.Event()
        if not held:
            self._opened.set()
        if moves:
            rates.limit(min(1, self._rate))
            self._in_force[CENTER] = min(1, self._rate)

    @property
    def bytes_per_s(self) -> int:
        """The gateway's rate; 0 for no limit."""
        return self._rate

    def open(self) -> None:
        """Begin to deal."""
        self._opened.set()

    def limit(self, bytes_per_s: int) -> None:
        """Change the gateway's rate. Members follow as soon as they answer."""
        self._rate = bytes_per_s
        if CENTER not in self._in_force:
            self._rates.limit(bytes_per_s)
        self._due.set()

    def enrol(self, member: str, in_force: int | None = None) -> int:
        """The share with which a new member is to begin; `in_force` for one that has a share already."""
        share = in_force if in_force is not None else 1 if self.bytes_per_s else 0
        self._in_force[member] = share
        self._due.set()
        return share

    def forget(self, member: str) -> None:
        """A member is gone, and its share is free."""
        self._in_force.pop(member, None)
        self._due.set()

    async def run(self) -> None:
        """Deal the shares out, every `DEAL_SECONDS` while there is a rate, until cancelled."""
        await self._opened.wait()
        while True:
            self._due = trio.Event()
            await self.deal()
            with trio.move_on_after(DEAL_SECONDS if self.bytes_per_s else math.inf):
                await self._due.wait()

    async def deal(self) -> None:
        """Deal the shares out once, as things stand now."""
        rate = self.bytes_per_s
        wanted = deal(rate, self._demands()) if rate else dict.fromkeys(self._in_force, 0)
        await self._set({name: share for name, share in wanted.items() if _less(share, self._in_force[name])})
        gains = {name: share for name, share in wanted.items() if _less(self._in_force.get(name, share), share)}
        if rate:
            # Who did not answer keeps what it has, and nobody else can have it.
            over = sum(self._in_force.values()) + sum(gains[name] - self._in_force[name] for name in gains) - rate
            if over > len(self._in_force):
                return
            gains = {name: share for name, share in gains.items() if share - self._in_force[name] > WORTH_IT * rate}
        await self._set(gains)

    async def _set(self, shares: Mapping[str, int]) -> None:
        async with trio.open_nursery() as nursery:
            for name, share in shares.items():
                nursery.start_soon(self._set_one, name, share)

    async def _set_one(self, name: str, share: int) -> None:
        if name == CENTER:
            self._rates.limit(share)
            self._in_force[name] = share
            return
        try:
            with trio.fail_after(ANSWER_SECONDS):
                await self._bus.command(name, SHARE, share)
        except (GatewayError, trio.TooSlowError):
            return
        if name in self._in_force:
            self._in_force[name] = share

    def _demands(self) -> dict[str, Demand]:
        running: dict[str, list[Transfer]] = {name: [] for name in self._in_force}
        for transfer in self._hub.live():
            owner = transfer.owner if isinstance(transfer, Mirror) else CENTER
            if transfer.state == "running" and owner in running:
                running[owner].append(transfer)
        return {name: _demand(transfers) for name, transfers in running.items()}


def _demand(transfers: list[Transfer]) -> Demand:
    hungry = any(each.meter.wait["limit"] or each.meter.seconds < NEW_SECONDS for each in transfers)
    return Demand(len(transfers), math.inf if hungry else HEADROOM * sum(each.meter.rate for each in transfers))


def _less(one: int, other: int) -> bool:
    """Whether one share is less than another; 0 is no limit."""
    return (one or math.inf) < (other or math.inf)
