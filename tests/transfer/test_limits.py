"""Byte rates: never more than the limit and one burst, nothing wasted, and the same for all who want it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from visor_gateway.transfer.limits import ASK_AGAIN_SECONDS, BURST_SECONDS, Pace, Rates

RATES = st.one_of(st.integers(1, 200), st.integers(1, 10**10))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Mover:
    """A transfer that moves what it is granted. `takes`: how much of a grant its client takes, told the grant."""

    def __init__(self, pace: Pace, takes: Callable[[int], int] = lambda granted: granted, want: int = 4 << 20) -> None:
        self.pace = pace
        self.moved = 0
        self.due = 0.0
        self._takes = takes
        self._want = want

    def go(self, now: float) -> None:
        """Move what may be moved now; `due` is when to go on."""
        while self.due <= now:
            granted, again = self.pace.claim(self._want)
            if not granted:
                self.due = now + again
                return
            took = self._takes(granted)
            self.moved += took
            self.pace.give_back(granted - took)
            if not took:
                self.due = now + ASK_AGAIN_SECONDS


def run(clock: Clock, movers: list[Mover], seconds: float) -> None:
    """Let all of them move for a while, each as soon as it may."""
    end = clock.now + seconds
    while (now := min(mover.due for mover in movers)) <= end:
        clock.now = max(clock.now, now)
        for mover in movers:
            mover.go(clock.now)
    clock.now = end


def total(movers: list[Mover]) -> int:
    return sum(mover.moved for mover in movers)


# --- never above -------------------------------------------------------------------------------------


@given(
    rate=RATES,
    own=st.one_of(st.just(0), RATES),
    steps=st.lists(
        st.tuples(
            st.integers(0, 3),  # which transfer
            st.sampled_from(["claim", "half", "none", "release", "wait"]),
            st.integers(1, 8 << 20),
            st.floats(0, 2),
        ),
        max_size=60,
    ),
)
@example(
    # A claim that was given up unpaid once paid the one before it.
    rate=1,
    own=0,
    steps=[(0, "claim", 1, 0), (0, "claim", 1, 0), (1, "claim", 1, 0), (1, "release", 1, 0), (0, "claim", 1, 0)],
)
def test_whatever_is_asked_no_more_moves_than_rate_and_burst_allow(
    rate: int, own: int, steps: list[tuple[int, str, int, float]]
) -> None:
    clock = Clock()
    rates = Rates(rate, own, now=clock)
    began = clock.now
    paces = [rates.pace() for _ in range(4)]
    moved = [0] * 4
    for who, what, want, seconds in steps:
        if what == "wait":
            clock.now += seconds
        elif what == "release":
            paces[who].release()
        else:
            granted, again = paces[who].claim(want)
            assert 0 <= granted <= want
            assert (granted == 0) == (again > 0)
            assert again <= ASK_AGAIN_SECONDS
            took = {"claim": granted, "half": granted // 2, "none": 0}[what]
            moved[who] += took
            paces[who].give_back(granted - took)
        elapsed = clock.now - began + BURST_SECONDS
        assert sum(moved) <= rate * elapsed * (1 + 1e-9) + 1
        assert not own or max(moved) <= own * elapsed * (1 + 1e-9) + 1


def test_without_limits_everything_is_granted_at_once() -> None:
    pace = Rates().pace()
    assert pace.claim(1 << 40) == (1 << 40, 0.0)
    pace.give_back(1 << 39)
    pace.release()
    assert pace.claim(1) == (1, 0.0)


# --- nothing wasted ----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(rate=st.integers(1000, 10**8), number=st.integers(1, 12))
def test_what_is_allowed_moves(rate: int, number: int) -> None:
    clock = Clock()
    rates = Rates(rate, now=clock)
    movers = [Mover(rates.pace()) for _ in range(number)]
    run(clock, movers, 10)
    # Up to one piece of each is in line at the end.
    assert 0.95 * rate * 10 <= total(movers) <= rate * (10 + BURST_SECONDS)


def test_a_client_that_takes_little_leaves_its_share_to_the_others() -> None:
    clock = Clock()
    rates = Rates(10_000_000, now=clock)
    slow, fast = Mover(rates.pace(), lambda _: 0), Mover(rates.pace())
    run(clock, [slow, fast], 10)
    assert slow.moved == 0
    assert fast.moved >= 0.95 * 10_000_000 * 10


def test_a_transfer_with_a_low_limit_of_its_own_holds_nothing_of_the_gateways() -> None:
    clock = Clock()
    rates = Rates(1_000_000, now=clock)
    low, others = Mover(rates.pace()), [Mover(rates.pace()) for _ in range(3)]
    low.pace.limit(10_000)
    run(clock, [low, *others], 20)
    assert 190_000 <= low.moved <= 10_000 * (20 + BURST_SECONDS)
    for other in others:
        assert other.moved == pytest.approx(990_000 * 20 / 3, rel=0.1)


def test_claims_given_up_unpaid_pay_nobody_and_delay_nobody() -> None:
    clock = Clock()
    rates = Rates(1000, now=clock)
    spent = rates.pace()
    while spent.claim(1000)[0]:
        pass
    leaving, last = [rates.pace() for _ in range(5)], rates.pace()
    waits = [pace.claim(1000)[1] for pace in leaving]
    assert waits == sorted(waits)
    size = last._piece()
    assert last.claim(1000)[0] == 0
    for number in (1, 0, 4, 2, 3):  # inside the line, beside one another, and each order of neighbours
        leaving[number].release()
    assert spent.claim(1000)[0] == 0
    clock.now += spent.claim(1000)[1]
    assert spent.claim(1000)[0] > 0
    clock.now += size / 1000
    assert last.claim(1000)[0] == size
    assert rates.waiting == 0


def test_a_line_that_nobody_stays_in_keeps_no_memory_of_it() -> None:
    clock = Clock()
    rates = Rates(1, now=clock)
    paces = [rates.pace() for _ in range(3)]
    while paces[0].claim(1)[0]:
        pass
    for step in range(1000):
        leaving, staying = paces[1 + step % 2], paces[1 + (step + 1) % 2]
        assert staying.claim(1)[0] == 0
        leaving.release()
    assert len(rates.shared._gaps) <= len(paces)


def test_a_claim_that_is_given_up_frees_its_place_in_line() -> None:
    clock = Clock()
    rates = Rates(1_000_000, now=clock)
    leaving, staying = rates.pace(), Mover(rates.pace())
    run(clock, [staying], 1)
    assert leaving.claim(1 << 20)[0] == 0
    leaving.release()
    leaving.release()
    assert rates.waiting == 1  # the one that stays
    before = staying.moved
    run(clock, [staying], 10)
    assert staying.moved - before >= 0.95 * 10_000_000


# --- fair --------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(rate=st.integers(100_000, 10**8), number=st.integers(2, 12), quantum=st.integers(64 << 10, 4 << 20))
def test_all_who_want_more_than_their_share_get_the_same(rate: int, number: int, quantum: int) -> None:
    clock = Clock()
    rates = Rates(rate, now=clock)
    movers = [Mover(rates.pace(), want=quantum) for _ in range(number)]
    run(clock, movers, 2)
    before = [mover.moved for mover in movers]
    run(clock, movers, 30)
    shares = [mover.moved - old for mover, old in zip(movers, before, strict=True)]
    assert min(shares) >= 0.9 * max(shares)


def test_a_newcomer_gets_its_share_at_once() -> None:
    clock = Clock()
    rates = Rates(10_000_000, now=clock)
    old = [Mover(rates.pace()) for _ in range(4)]
    run(clock, old, 5)
    new = Mover(rates.pace())
    new.due = clock.now
    run(clock, [*old, new], 5)
    assert new.moved == pytest.approx(10_000_000, rel=0.1)


def test_a_low_rate_flows_in_small_pieces() -> None:
    clock = Clock()
    rates = Rates(1000, now=clock)
    mover = Mover(rates.pace())
    for _ in range(20):
        before = mover.moved
        run(clock, [mover], 0.5)
        assert mover.moved > before


# --- changed while they run --------------------------------------------------------------------------


def test_a_limit_can_be_set_changed_and_lifted_under_a_running_transfer() -> None:
    clock = Clock()
    rates = Rates(now=clock)
    mover = Mover(rates.pace(), want=1000)
    assert mover.pace.claim(1000) == (1000, 0.0)
    for limit in (mover.pace.limit, rates.limit):
        limit(10_000)
        before = mover.moved
        run(clock, [mover], 10)
        assert mover.moved - before == pytest.approx(100_000, rel=0.1)
        limit(1_000_000)
        before = mover.moved
        run(clock, [mover], 10)
        assert mover.moved - before == pytest.approx(10_000_000, rel=0.1)
        limit(0)
        mover.pace.release()
        assert mover.pace.claim(1000) == (1000, 0.0)
        mover.due = clock.now


def test_what_the_gateway_gives_each_transfer_can_change_and_spares_what_has_its_own() -> None:
    rates = Rates(0, 1000)
    running, chosen = rates.pace(), rates.pace()
    chosen.limit(5)
    rates.limit_each(2000)
    assert [pace.bytes_per_s for pace in (running, chosen, rates.pace())] == [2000, 5, 2000]
    assert (rates.bytes_per_s_per_transfer, running.default, chosen.default) == (2000, 2000, 2000)
    del running
    rates.limit_each(0)
    assert rates.pace().bytes_per_s == 0


def test_a_claim_that_waits_is_paid_when_the_limit_is_lifted() -> None:
    clock = Clock()
    rates = Rates(1, now=clock)
    pace = rates.pace()
    while pace.claim(100)[0]:
        pass
    rates.limit(0)
    assert pace.claim(100)[0] > 0
    assert pace.claim(100) == (100, 0.0)


def test_a_rate_that_was_unlimited_begins_with_an_empty_bucket() -> None:
    clock = Clock()
    rates = Rates(now=clock)
    pace = rates.pace()
    rates.limit(1000)
    assert (rates.bytes_per_s, pace.bytes_per_s) == (1000, 0)
    assert pace.claim(1000)[0] == 0
