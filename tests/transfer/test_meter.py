"""The meter, on a clock of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visor_gateway.transfer.meter import QUIET_SECONDS, RATE_SECONDS, WAITS, Meter

seconds = st.floats(0.001, 5.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, by: float) -> None:
        self.now += by


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    return Meter(now=clock)


def move(meter: Meter, clock: Clock, count: int, by: float) -> None:
    clock.advance(by)
    meter.moved += count
    meter.sample()


# --- rate ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(intervals=st.lists(seconds, min_size=1, max_size=60), rate=st.integers(10**6, 10**10))
def test_a_constant_rate_is_reported_from_the_first_sample_on(intervals: list[float], rate: int) -> None:
    clock = Clock()
    meter = Meter(now=clock)
    for interval in intervals:
        move(meter, clock, round(rate * interval), interval)
        assert meter.rate == pytest.approx(rate, rel=1e-3)  # bytes are whole


@settings(deadline=None)
@given(steps=st.lists(st.tuples(seconds, st.integers(0, 10**10)), min_size=1, max_size=60))
def test_the_rate_is_never_outside_what_was_seen(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    meter = Meter(now=clock)
    seen: list[float] = []
    for interval, count in steps:
        before = clock.now
        move(meter, clock, count, interval)
        seen.append(count / (clock.now - before))
        assert min(seen) * 0.999 <= meter.rate <= max(seen) * 1.001 or meter.rate == 0


@settings(deadline=None)
@given(cuts=st.lists(st.integers(1, 40), min_size=1, max_size=40, unique=True))
def test_the_rate_does_not_depend_on_how_often_it_is_sampled(cuts: list[int]) -> None:
    """The sampler may be late, and subscribers may ask for more samples."""
    often, seldom = Clock(), Clock()
    one, other = Meter(now=often), Meter(now=seldom)
    for tick in range(1, 41):
        for clock, meter in ((often, one), (seldom, other)):
            clock.advance(0.1)
            meter.moved += 1_000_000 if tick <= 20 else 200_000
        one.sample()
        if tick in {*cuts, 20, 40}:
            other.sample()
    assert one.rate == pytest.approx(other.rate)


def test_the_rate_follows_a_change_within_seconds(meter: Meter, clock: Clock) -> None:
    for _ in range(80):
        move(meter, clock, 25_000_000, 0.25)
    for _ in range(round(RATE_SECONDS / 0.25)):
        move(meter, clock, 2_500_000, 0.25)
    assert 40_000_000 < meter.rate < 45_000_000  # 10 + 90/e


def test_the_rate_falls_to_zero_when_nothing_moves(meter: Meter, clock: Clock) -> None:
    for _ in range(40):
        move(meter, clock, 10**9, 0.25)
    rates = []
    for _ in range(round(QUIET_SECONDS / 0.25)):
        move(meter, clock, 0, 0.25)
        rates.append(meter.rate)
    assert rates == sorted(rates, reverse=True)
    assert meter.rate == 0


def test_after_a_long_pause_the_rate_is_right_at_once(meter: Meter, clock: Clock) -> None:
    move(meter, clock, 10**9, 0.25)
    for _ in range(200):
        move(meter, clock, 0, 0.25)
    move(meter, clock, 500, 0.5)
    assert meter.rate == pytest.approx(1000)


def test_time_in_a_queue_belongs_to_no_rate(meter: Meter, clock: Clock) -> None:
    for _ in range(40):
        move(meter, clock, 0, 0.25)
    meter.begin()
    move(meter, clock, 1000, 0.5)
    assert meter.rate == pytest.approx(2000)
    assert meter.rate_avg == pytest.approx(2000)
    assert meter.seconds == pytest.approx(0.5)


def test_two_samples_at_the_same_moment_are_one(meter: Meter, clock: Clock) -> None:
    move(meter, clock, 1000, 1.0)
    meter.moved += 1000
    meter.sample()
    assert meter.rate == pytest.approx(1000)
    move(meter, clock, 0, 1.0)
    assert meter.rate == pytest.approx(1000)


def test_the_average_counts_from_the_start_to_the_end(meter: Meter, clock: Clock) -> None:
    move(meter, clock, 3000, 3.0)
    meter.freeze(whole=True)
    clock.advance(60)
    assert meter.rate_avg == pytest.approx(1000)
    assert meter.seconds == pytest.approx(3.0)


def test_before_any_time_has_passed_there_is_no_rate(meter: Meter) -> None:
    meter.moved += 1000
    meter.sample()
    assert (meter.rate, meter.rate_avg) == (0, 0)


# --- bytes ---------------------------------------------------------------------------------------


def test_bytes_never_run_ahead_of_what_the_peer_acknowledged(meter: Meter) -> None:
    meter.unacknowledged = lambda: 700
    meter.moved = 1000
    assert meter.bytes == 300
    meter.unacknowledged = lambda: 2000  # the head of an answer before
    assert meter.bytes == 300


@settings(deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 3000)), max_size=50))
def test_bytes_never_fall(steps: list[tuple[int, int]]) -> None:
    meter = Meter(now=Clock())
    before = 0
    for moved, queued in steps:
        meter.moved += moved
        meter.unacknowledged = lambda queued=queued: queued  # type: ignore[misc]
        assert before <= meter.bytes <= meter.moved
        before = meter.bytes


def test_a_broken_transfer_ends_with_the_bytes_that_arrived(meter: Meter, clock: Clock) -> None:
    meter.unacknowledged = lambda: 400
    move(meter, clock, 1000, 1.0)
    meter.freeze(whole=False)
    assert meter.bytes == 600
    assert meter.moved == 600


def test_a_whole_transfer_ends_with_all_its_bytes(meter: Meter, clock: Clock) -> None:
    meter.unacknowledged = lambda: 400
    move(meter, clock, 1000, 1.0)
    meter.freeze(whole=True)
    assert meter.bytes == 1000


def test_a_frozen_meter_counts_no_more(meter: Meter, clock: Clock) -> None:
    move(meter, clock, 1000, 1.0)
    meter.unacknowledged = lambda: 400
    meter.freeze(whole=False)
    meter.freeze(whole=True)
    rate = meter.rate
    meter.begin()
    clock.advance(10)
    meter.sample()
    assert (meter.bytes, meter.rate, meter.seconds) == (1000, rate, 1.0)


def test_a_transfer_shorter_than_an_interval_has_a_rate(meter: Meter, clock: Clock) -> None:
    meter.moved += 1000
    clock.advance(0.01)
    meter.freeze(whole=True)
    assert meter.rate == pytest.approx(100_000)


# --- waits ---------------------------------------------------------------------------------------


def test_a_wait_that_spans_samples_is_booked_to_each_interval(meter: Meter, clock: Clock) -> None:
    clock.advance(0.1)
    with meter.waiting("client"):
        seen = []
        for _ in range(3):
            clock.advance(0.25)
            meter.sample()
            seen.append(meter.wait["client"])
        clock.advance(0.05)
    clock.advance(0.2)
    meter.sample()
    assert [*seen, meter.wait["client"]] == [250, 250, 250, 50]
    assert meter.waited["client"] == 800


def test_an_interval_without_a_wait_reports_none(meter: Meter, clock: Clock) -> None:
    with meter.waiting("disk"):
        clock.advance(0.25)
    meter.sample()
    clock.advance(0.25)
    meter.sample()
    assert meter.wait == dict.fromkeys(WAITS, 0)


def test_overlapping_waits_of_one_kind_count_once(meter: Meter, clock: Clock) -> None:
    first, second = meter.waiting("store"), meter.waiting("store")
    first.__enter__()
    clock.advance(0.1)
    second.__enter__()
    clock.advance(0.1)
    first.__exit__(None, None, None)
    clock.advance(0.1)
    second.__exit__(None, None, None)
    clock.advance(0.1)
    meter.sample()
    assert meter.wait["store"] == 300


def test_a_wait_that_fails_is_booked_and_ends(meter: Meter, clock: Clock) -> None:
    def fail() -> None:
        with meter.waiting("disk"):
            clock.advance(0.1)
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        fail()
    clock.advance(0.15)
    meter.sample()
    assert meter.wait["disk"] == 100


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["enter", "leave", "sample", "pass"]), st.sampled_from(WAITS), seconds), max_size=80
    )
)
def test_the_intervals_add_up_to_the_time_with_any_wait_under_way(
    steps: list[tuple[str, str, float]],
) -> None:
    clock = Clock()
    meter = Meter(now=clock)
    under_way: dict[str, list[Callable[..., object]]] = {kind: [] for kind in WAITS}
    expected, sums = dict.fromkeys(WAITS, 0.0), dict.fromkeys(WAITS, 0)
    sampled_at = clock.now
    for action, kind, interval in [*steps, ("sample", "disk", 1.0)]:
        before = clock.now
        clock.advance(interval)
        for waiting in WAITS:
            expected[waiting] += clock.now - before if under_way[waiting] else 0.0
        if action == "enter":
            wait = meter.waiting(kind)  # type: ignore[arg-type]
            wait.__enter__()
            under_way[kind].append(wait.__exit__)
        elif action == "leave" and under_way[kind]:
            under_way[kind].pop(0)(None, None, None)
        elif action == "sample":
            meter.sample()
            for waiting in WAITS:
                assert 0 <= meter.wait[waiting] <= (clock.now - sampled_at) * 1000 + 1
                sums[waiting] += meter.wait[waiting]
            sampled_at = clock.now
    for waiting in WAITS:
        assert sums[waiting] == meter.waited[waiting]
        assert sums[waiting] == pytest.approx(expected[waiting] * 1000, abs=1.1)


def test_the_kernel_is_asked_only_where_bytes_may_have_arrived(meter: Meter) -> None:
    asked = 0

    def unacknowledged() -> int:
        nonlocal asked
        asked += 1
        return 0

    meter.unacknowledged = unacknowledged
    meter.begin()
    assert (meter.bytes, asked) == (0, 0)
    meter.moved = 7
    assert (meter.bytes, meter.bytes, asked) == (7, 7, 1)
    meter.moved = 8
    assert (meter.bytes, asked) == (8, 2)
