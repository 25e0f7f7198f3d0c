"""Stalls are told and slow clients cut by the time that was waited for them, and for nothing else."""

from __future__ import annotations

import pytest
import trio

from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.meter import Meter, WaitKind
from visor_gateway.transfer.stalls import Stalls
from visor_gateway.transfer.transfer import Kind, Transfer


class Setting:
    """One running transfer whose time is made up."""

    def __init__(self, *, min_bytes_per_s: int = 0, kind: Kind = "pull", client: str | None = "192.0.2.1") -> None:
        self.hub = Hub()
        self.told: list[str] = []
        self.hub.publish = lambda kind, _: self.told.append(kind)  # type: ignore[method-assign]
        self.stalls = Stalls(self.hub, stall_timeout=60, min_bytes_per_s=min_bytes_per_s)
        self.transfer = Transfer(id="t", kind=kind, image="i", store="file", client=client, user="anne", size=10**9)
        self.now = 0.0
        self.transfer.meter = Meter(now=lambda: self.now)
        self.hub.add(self.transfer)
        self.transfer.begin(trio.CancelScope())
        self.stalls.look()

    def wait(self, kind: WaitKind, seconds: float, *, bytes_per_s: int = 0) -> None:
        """Let time pass, second by second, waiting for `kind`."""
        for _ in range(round(seconds)):
            with self.transfer.meter.waiting(kind):
                self.now += 1
            self.transfer.meter.moved += bytes_per_s
            self.transfer.meter.sample()
            self.stalls.look()


@pytest.mark.parametrize("kind", ["pull", "push"])
async def test_a_client_that_takes_or_sends_nothing_is_told_of_and_its_return_too(kind: Kind) -> None:
    s = Setting(kind=kind)
    s.wait("client", 14)
    assert s.told == []
    s.wait("client", 2)
    assert s.told == ["stalled"]
    s.wait("client", 100)
    assert s.told == ["stalled"]
    s.wait("client", 1, bytes_per_s=1)
    assert s.told == ["stalled", "resumed"]
    assert s.transfer.cancel_reason is None  # without a minimum rate it is the socket's watcher that cuts


@pytest.mark.parametrize("kind", ["store", "limit", "disk"])
async def test_time_in_which_we_have_nothing_to_offer_is_not_the_clients(kind: WaitKind) -> None:
    s = Setting(min_bytes_per_s=1000)
    s.wait(kind, 500)
    s.wait("client", 10)
    assert s.told == []
    assert s.transfer.cancel_reason is None


async def test_a_slow_client_is_no_stalled_one() -> None:
    s = Setting()
    s.wait("client", 500, bytes_per_s=1000)
    assert s.told == []
    assert s.transfer.cancel_reason is None


@pytest.mark.parametrize(("bytes_per_s", "cut"), [(999, True), (1000, False)])
async def test_who_is_slower_than_the_minimum_over_the_stall_timeout_is_cut(bytes_per_s: int, cut: bool) -> None:
    s = Setting(min_bytes_per_s=1000)
    s.wait("client", 59, bytes_per_s=bytes_per_s)
    assert s.transfer.cancel_reason is None
    s.wait("client", 1, bytes_per_s=bytes_per_s)
    assert s.transfer.cancel_reason == ("stall" if cut else None)


async def test_a_fast_beginning_excuses_nobody_for_ever() -> None:
    s = Setting(min_bytes_per_s=1000)
    s.wait("client", 60, bytes_per_s=10**6)
    s.wait("client", 59)
    assert s.transfer.cancel_reason is None
    s.wait("client", 1)
    assert s.transfer.cancel_reason == "stall"


async def test_what_serves_no_client_and_what_ended_is_not_looked_at() -> None:
    s = Setting(min_bytes_per_s=1000, client=None)
    s.wait("client", 100)
    assert (s.told, s.transfer.cancel_reason) == ([], None)
    s = Setting(min_bytes_per_s=1000)
    s.transfer.settle("finished")
    s.wait("client", 100)
    assert (s.told, s.transfer.cancel_reason) == ([], None)


async def test_it_looks_by_itself(autojump_clock: trio.testing.MockClock) -> None:
    s = Setting(min_bytes_per_s=1000)
    with s.transfer.meter.waiting("client"):
        s.now += 100
    s.transfer.meter.sample()
    with trio.move_on_after(1.5):
        await s.stalls.serve()
    assert s.told == ["stalled"]
    assert s.transfer.cancel_reason == "stall"
