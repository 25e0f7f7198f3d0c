"""The hub: what it knows, what it tells whom, and in which order."""

from __future__ import annotations

import json
import tracemalloc
import weakref
from contextlib import ExitStack
from typing import Any, NamedTuple

import live_messages as live
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from visor_gateway.errors import Conflict, Draining
from visor_gateway.transfer.hub import ENDED_LIMIT, ENDED_SECONDS, Hub
from visor_gateway.transfer.messages import EventKind
from visor_gateway.transfer.meter import Meter
from visor_gateway.transfer.subscription import QUEUED_EVENTS, Subscription
from visor_gateway.transfer.transfer import Outcome, Transfer
from visor_gateway.transfer.view import View, filters_of, totals


class Viewer(NamedTuple):
    access_key: str | None
    is_admin: bool = False
    own_only: bool = False


ADMIN = Viewer("root", is_admin=True)
ANNE, BOB = Viewer("anne"), Viewer("bob")


@pytest.fixture
async def hub(nursery: trio.Nursery) -> Hub:
    # Every test names the clock itself: pytest-trio takes it from nowhere else.
    hub = Hub()
    await nursery.start(hub.run)
    return hub


def transfer(id: str = "t", **fields: Any) -> Transfer:
    values = {"kind": "pull", "image": "i", "store": "file", "client": "192.0.2.1", "user": "anne", "size": 10**9}
    made = Transfer(id=id, **(values | fields))
    made.meter = Meter(now=trio.current_time)
    return made


def start(hub: Hub, *transfers: Transfer) -> None:
    for each in transfers:
        hub.add(each)
        each.begin(trio.CancelScope())
        hub.publish("started", each)


def end(hub: Hub, *transfers: Transfer, outcome: Outcome = "finished") -> None:
    for each in transfers:
        each.settle(outcome)
        hub.publish(outcome, each)


async def hear(subscription: Subscription, client: live.Client, seconds: float = 0.0) -> list[live.Message]:
    """What is there to be fetched now and in the next seconds."""
    heard: list[live.Message] = []
    with trio.move_on_after(seconds + 0.001):
        while (text := await subscription.next_text()) is not None:
            heard.append(client.hear(text))
    return heard


async def opened(subscription: Subscription) -> live.Client:
    client = live.Client()
    await hear(subscription, client)
    return client


# --- what the hub knows --------------------------------------------------------------------------


async def test_a_transfer_can_be_found_from_its_admission_until_long_after_its_end(
    autojump_clock: MockClock, hub: Hub
) -> None:
    one = transfer()
    start(hub, one)
    assert hub.find("t") is one
    assert hub.live() == (one,)
    end(hub, one)
    assert hub.live() == ()
    await trio.sleep(ENDED_SECONDS - 1)
    assert hub.find("t") is one
    assert hub.ended() == (one,)
    await trio.sleep(2)
    assert hub.find("t") is None


async def test_only_so_many_ended_transfers_are_kept(autojump_clock: MockClock, hub: Hub) -> None:
    await trio.testing.wait_all_tasks_blocked()
    made = [transfer(str(n)) for n in range(ENDED_LIMIT + 5)]
    start(hub, *made)
    end(hub, *made)
    assert len(hub.ended()) == ENDED_LIMIT
    assert hub.find("4") is None
    assert hub.find("5") is made[5]


async def test_an_id_under_way_can_not_be_taken(autojump_clock: MockClock, hub: Hub) -> None:
    await trio.testing.wait_all_tasks_blocked()
    one = transfer()
    start(hub, one)
    with pytest.raises(Conflict, match="taken"):
        hub.add(transfer())
    assert hub.live() == (one,)


async def test_the_id_of_anothers_ended_transfer_can_not_be_taken_while_it_is_kept(
    autojump_clock: MockClock, hub: Hub
) -> None:
    one, other = transfer(), transfer(user="bob")
    start(hub, one)
    end(hub, one)
    with pytest.raises(Conflict, match="taken"):
        hub.add(other)
    assert hub.find("t") is one
    await trio.sleep(ENDED_SECONDS + 1)
    hub.add(other)
    assert hub.find("t") is other


async def test_the_id_of_an_ended_transfer_can_be_used_again_by_its_user(autojump_clock: MockClock, hub: Hub) -> None:
    await trio.testing.wait_all_tasks_blocked()
    one, again = transfer(), transfer()
    start(hub, one)
    end(hub, one)
    start(hub, again)
    assert hub.find("t") is again
    end(hub, again)
    assert hub.ended() == (again,)


async def test_a_transfer_that_ends_before_it_starts_is_kept_too(autojump_clock: MockClock, hub: Hub) -> None:
    await trio.testing.wait_all_tasks_blocked()
    one = transfer()
    hub.add(one)
    end(hub, one, outcome="cancelled")
    assert hub.ended() == (one,)


async def test_meters_are_sampled_four_times_a_second_while_transfers_run(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    start(hub, one)
    await trio.sleep(1.01)
    with one.meter.waiting("store"):
        await trio.sleep(0.25)
    assert one.meter.wait["store"] > 0
    one.meter.moved += 10**6
    await trio.sleep(0.25)
    assert one.meter.rate > 0


async def test_totals_count_what_they_are_given(autojump_clock: MockClock, hub: Hub) -> None:
    await trio.testing.wait_all_tasks_blocked()
    one, other = transfer("1"), transfer("2", kind="push")
    start(hub, one)
    hub.add(other)
    one.meter.moved, other.meter.moved = 5, 7
    assert totals(hub.live()) == {
        "transfers": 2,
        "rate": 0,
        "bytes": 12,
        "by_state": {"running": 1, "queued": 1},
        "by_kind": {"pull": 1, "push": 1},
    }


# --- opening -------------------------------------------------------------------------------------


async def test_a_connection_begins_with_hello_and_snapshot(autojump_clock: MockClock, hub: Hub) -> None:
    start(hub, transfer("1"), transfer("2"))
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        hello, snapshot = client.messages
        assert isinstance(hello, live.Hello)
        assert (hello.epoch, hello.hz, hello.heartbeat_s) == (hub.epoch, 2, 10)
        assert isinstance(snapshot, live.Snapshot)
        assert [each.id for each in snapshot.transfers] == ["1", "2"]


async def test_without_transfers_the_snapshot_is_empty(autojump_clock: MockClock, hub: Hub) -> None:
    with hub.subscribe(ANNE) as subscription:
        client = await opened(subscription)
        assert client.of(live.Snapshot)[0].transfers == []


async def test_what_happens_before_the_first_snapshot_is_in_it_and_not_told_again(
    autojump_clock: MockClock, hub: Hub
) -> None:
    one, other = transfer("1"), transfer("2")
    with hub.subscribe(ADMIN) as subscription:
        client = live.Client()
        client.hear(str(await subscription.next_text()))
        start(hub, one, other)
        end(hub, one)
        await trio.sleep(1)
        await hear(subscription, client)
        assert [type(message) for message in client.messages] == [live.Hello, live.Snapshot]
        assert set(client.transfers) == {"2"}


async def test_each_start_has_an_epoch_of_its_own(autojump_clock: MockClock, hub: Hub) -> None:
    await trio.testing.wait_all_tasks_blocked()
    assert Hub().epoch != hub.epoch


# --- progress ------------------------------------------------------------------------------------


async def test_progress_comes_twice_a_second_unless_asked_otherwise(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        for _ in range(40):
            one.meter.moved += 1000
            await hear(subscription, client, 0.25)
        assert 19 <= len(client.of(live.Delta)) <= 21
        assert client.transfers["t"] == (client.of(live.Delta)[-1].u[0][1], "running")


@pytest.mark.parametrize(("asked", "given"), [(10, 10), (100, 10), (5, 5), (1, 1), (0.01, 0.2), (-3, 0.2), (1e300, 10)])
async def test_the_cadence_is_the_one_asked_for_within_bounds(
    autojump_clock: MockClock, hub: Hub, asked: float, given: float
) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        subscription.hear(json.dumps({"type": "subscribe", "hz": asked}))
        client = await opened(subscription)
        for _ in range(400):
            one.meter.moved += 1000
            await hear(subscription, client, 0.05)
        assert len(client.of(live.Delta)) == pytest.approx(20 * given, rel=0.06, abs=1)


async def test_what_does_not_change_is_not_told(autojump_clock: MockClock, hub: Hub) -> None:
    one, idle = transfer("1"), transfer("idle")
    start(hub, one, idle)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        await hear(subscription, client, 1)
        client.messages[:] = client.messages[:2]
        one.meter.moved += 1
        await hear(subscription, client, 0.5)
        assert [row[0] for delta in client.of(live.Delta) for row in delta.u] == ["1"]


async def test_waits_of_a_delta_reach_back_to_the_delta_before(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        await hear(subscription, client, 1)
        with one.meter.waiting("client"):
            for _ in range(12):
                one.meter.moved += 1000
                await hear(subscription, client, 0.25)
        await hear(subscription, client, 1.5)
        waits = [row[5].client for delta in client.of(live.Delta) for row in delta.u]
        assert waits.count(500) >= 5
        assert waits[-1] == 0
        assert sum(waits) == pytest.approx(3000, abs=20)


async def test_an_ended_transfer_is_removed_after_its_final_event(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        one.meter.moved += 1000
        await hear(subscription, client, 1)
        one.meter.moved += 234
        end(hub, one)
        heard = await hear(subscription, client, 1)
        event, delta = heard
        assert isinstance(event, live.Event)
        assert (event.kind, event.transfer.bytes) == ("finished", 1234)
        assert isinstance(delta, live.Delta)
        assert (delta.u, delta.removed) == ([], ["t"])
        assert client.transfers == {}


async def test_progress_not_fetched_is_overwritten_and_nothing_is_lost(autojump_clock: MockClock, hub: Hub) -> None:
    """Latest wins: after a minute without fetching there is one delta, and it tells all."""
    made = [transfer(str(n)) for n in range(4)]
    start(hub, *made)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        await hear(subscription, client, 1)
        client.messages[:] = client.messages[:2]
        for tick in range(60):
            for each in made:
                each.meter.moved += 100
            if tick in {0, 30}:
                end(hub, made[0 if tick else 3])
            await trio.sleep(1)
        await hear(subscription, client)
        assert len(client.of(live.Delta)) == 1
        assert [row[:2] for row in client.of(live.Delta)[0].u] == [("1", 6000), ("2", 6000)]
        assert set(client.of(live.Delta)[0].removed) == {"0", "3"}
        assert len(client.of(live.Heartbeat)) == 1


async def test_a_late_delta_is_not_older_than_the_event_before_it(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        for _ in range(10):
            one.meter.moved += 100
            await trio.sleep(0.5)
        one.meter.moved += 100
        hub.publish("stalled", one)
        await hear(subscription, client)
        assert [type(message) for message in client.messages[2:]] == [live.Event, live.Delta]
        assert client.transfers["t"] == (1100, "running")


async def test_a_snapshot_makes_up_for_missed_progress(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        for _ in range(10):
            one.meter.moved += 100
            await trio.sleep(0.5)
        subscription.hear('{"type":"subscribe"}')
        heard = await hear(subscription, client)
        assert [type(message) for message in heard] == [live.Snapshot]


async def test_an_idle_gateway_is_silent_but_for_heartbeats(autojump_clock: MockClock, hub: Hub) -> None:
    with hub.subscribe(ANNE) as subscription:
        client = await opened(subscription)
        await hear(subscription, client, 60.5)
        assert [type(message) for message in client.messages[2:]] == [live.Heartbeat] * 6


# --- events and order ----------------------------------------------------------------------------


async def test_every_kind_of_event_is_a_message_of_the_contract(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    kinds: list[EventKind] = ["stalled", "resumed", "paused", "resumed", "retrying", "verified"]
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        start(hub, one)
        for kind in kinds:
            hub.publish(kind, one)
        end(hub, one, outcome="failed")
        await hear(subscription, client)
        assert [event.kind for event in client.of(live.Event)] == ["started", *kinds, "failed"]


async def test_nothing_is_told_of_a_transfer_after_its_final_event(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        end(hub, one, outcome="cancelled")
        end(hub, one, outcome="failed")
        hub.publish("verified", one)
        await hear(subscription, client, 5)
        assert [event.kind for event in client.of(live.Event)] == ["cancelled"]
        assert one.state == "cancelled"


async def test_too_many_events_become_a_gap_and_a_snapshot(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        for _ in range(QUEUED_EVENTS + 1):
            hub.publish("stalled", one)
        one.meter.moved += 77
        await hear(subscription, client)
        assert [type(message) for message in client.messages[2:]] == [live.Gap, live.Snapshot]
        assert client.transfers == {"t": (77, "running")}
        hub.publish("resumed", one)
        await hear(subscription, client)
        assert [event.kind for event in client.of(live.Event)] == ["resumed"]


async def test_a_full_queue_loses_nothing(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        for _ in range(QUEUED_EVENTS):
            hub.publish("stalled", one)
        await hear(subscription, client)
        assert len(client.of(live.Event)) == QUEUED_EVENTS
        assert not client.of(live.Gap)


IDS = "abcd"
step = st.one_of(
    st.tuples(st.just("start"), st.sampled_from(IDS)),
    st.tuples(st.just("move"), st.sampled_from(IDS)),
    st.tuples(st.sampled_from(["stalled", "resumed", "retrying", "paused"]), st.sampled_from(IDS)),
    st.tuples(st.sampled_from(["finished", "failed", "cancelled"]), st.sampled_from(IDS)),
    st.tuples(st.just("burst"), st.sampled_from(IDS)),
    st.tuples(st.just("sleep"), st.sampled_from([0.01, 0.1, 0.3, 0.6, 3.0])),
    st.tuples(st.just("fetch"), st.tuples(st.integers(0, 3), st.sampled_from([1, 2, 5, 50, 1000]))),
    st.tuples(
        st.just("subscribe"),
        st.tuples(
            st.integers(0, 3),
            st.sampled_from([{}, {"state": "running"}, {"state": ["paused", "queued"]}, {"kind": "pull"}]),
            st.sampled_from([2, 10, 0.5]),
        ),
    ),
)


class Scenario:
    """Four watchers of different eagerness, and a sequence of things that happen."""

    def __init__(self, hub: Hub, subscriptions: list[Subscription]) -> None:
        self.hub = hub
        self.watchers = [(subscription, live.Client()) for subscription in subscriptions]
        self.wishes: list[dict[str, Any]] = [{} for _ in subscriptions]
        self.transfers: dict[str, Transfer] = {}
        self.started = 0

    async def open_eager_ones(self) -> None:
        for watcher in range(2):
            await self.fetch(watcher, 2)

    async def take(self, action: str, argument: Any) -> None:
        if action == "sleep":
            await trio.sleep(argument)
        elif action == "fetch":
            await self.fetch(*argument)
        elif action == "subscribe":
            watcher, wish, hz = argument
            self.wishes[watcher] = wish
            self.watchers[watcher][0].hear(json.dumps({"type": "subscribe", "filter": wish, "hz": hz}))
        elif action == "start":
            self.start(argument)
        elif argument in self.transfers:
            self.change(action, self.transfers[argument])

    def start(self, name: str) -> None:
        if name not in self.transfers:
            self.started += 1
            self.transfers[name] = transfer(f"{name}{self.started}", kind="pull" if name < "c" else "push")
            start(self.hub, self.transfers[name])

    def change(self, action: str, one: Transfer) -> None:
        if action == "move":
            one.meter.moved += 1000
        elif action == "burst":
            for _ in range(QUEUED_EVENTS // 2 + 1):
                self.hub.publish("retrying", one)
        elif action in live.FINAL:
            one.meter.moved += 1
            one.settle(action)  # type: ignore[arg-type]
            self.hub.publish(action, one)  # type: ignore[arg-type]
            self.transfers = {name: each for name, each in self.transfers.items() if each is not one}
        else:
            one.state = "paused" if action == "paused" else "running"
            self.hub.publish(action, one)  # type: ignore[arg-type]

    async def fetch(self, watcher: int, limit: int) -> None:
        subscription, client = self.watchers[watcher]
        with trio.move_on_after(0.0001):
            for _ in range(limit):
                client.hear(str(await subscription.next_text()))

    async def check_agreement(self) -> None:
        """Once all is fetched, every client knows what is, in its view, and nothing else."""
        await trio.sleep(5)
        for watcher, wish in enumerate(self.wishes):
            await self.fetch(watcher, 10**6)
            view = View.of(ADMIN, filters_of(wish.items()))
            seen = {each.id: (each.meter.bytes, each.state) for each in view.select(self.transfers.values())}
            assert self.watchers[watcher][1].transfers == seen


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(step, max_size=60))
@example(steps=[("subscribe", (0, {"kind": "pull"}, 2)), ("start", "c"), ("subscribe", (0, {}, 2))])
def test_whatever_happens_order_holds_and_clients_come_to_agree(steps: list[tuple[str, Any]]) -> None:
    async def main() -> None:
        hub = Hub()
        async with trio.open_nursery() as nursery:
            await nursery.start(hub.run)
            with ExitStack() as stack:
                scenario = Scenario(hub, [stack.enter_context(hub.subscribe(ADMIN)) for _ in range(4)])
                await scenario.open_eager_ones()
                for action, argument in steps:
                    await scenario.take(action, argument)
                await scenario.check_agreement()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


# --- who sees what -------------------------------------------------------------------------------


async def test_owners_see_their_own_transfers_and_admins_all(autojump_clock: MockClock, hub: Hub) -> None:
    secret = transfer("secret", user="bob", image="bobs-private-image")
    nobodys = transfer("anonymous", user=None)
    own = transfer("own")
    with hub.subscribe(ANNE) as hers, hub.subscribe(ADMIN) as all_, hub.subscribe(Viewer(None)) as nobody:
        clients = [await opened(each) for each in (hers, all_, nobody)]
        start(hub, secret, nobodys, own)
        for each in (secret, nobodys, own):
            each.meter.moved += 10
        for subscription, client in zip((hers, all_, nobody), clients, strict=True):
            await hear(subscription, client, 1)
        end(hub, secret, nobodys, own)
        for subscription, client in zip((hers, all_, nobody), clients, strict=True):
            await hear(subscription, client, 1)
        assert [set(client.ended) for client in clients] == [{"own"}, {"secret", "anonymous", "own"}, set()]


async def test_nothing_of_anothers_private_image_reaches_a_user_by_any_message(
    autojump_clock: MockClock, hub: Hub
) -> None:
    """The canary: every text that a user could make the gateway send is searched for it."""
    canary = "c4n4ry"
    secret = transfer(f"{canary}-id", user="bob", image=f"{canary}-image", store=canary, client=canary, size=424242)
    start(hub, secret)
    texts: list[str] = []
    wishes = [
        {"type": "subscribe", "filter": {"user": "bob"}},
        {"type": "subscribe", "filter": {"image": "another"}},
        {"type": "resume", "epoch": hub.epoch, "seq": 0},
        {"type": "resume", "epoch": "other", "seq": 0},
        {"type": "subscribe", "filter": {}, "hz": 10},
    ]
    with hub.subscribe(ANNE) as subscription:
        for wish in wishes:
            subscription.hear(json.dumps(wish))
            secret.meter.moved += 424242
            hub.publish("stalled", secret)
            with trio.move_on_after(2):
                while True:
                    texts.append(str(await subscription.next_text()))
        end(hub, secret)
        with trio.move_on_after(11):
            while True:
                texts.append(str(await subscription.next_text()))
    assert len(texts) >= 8
    assert not [text for text in texts if canary in text or "424242" in text]
    assert all('"transfers":[]' in text for text in texts if '"snapshot"' in text)


async def test_what_a_client_sends_is_not_repeated_to_it(autojump_clock: MockClock, hub: Hub) -> None:
    """A ticket or signature that is sent to the wrong place must not come back, where it might be logged."""
    with hub.subscribe(ANNE) as subscription:
        client = await opened(subscription)
        for message in (
            '{"type":"subscribe","filter":{"state":{"sig":"c4n4ry"}}}',
            '{"type":"c4n4ry"}',
            "c4n4ry",
            '{"type":"resume","epoch":7,"seq":"c4n4ry"}',
        ):
            subscription.hear(message)
            heard = await hear(subscription, client)
            assert [type(each) for each in heard] == [live.Error]
            assert "c4n4ry" not in str(heard)


# --- subscribe, resume ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "seen"),
    [
        ({}, {"1", "2", "3"}),
        ({"kind": "pull"}, {"1", "2"}),
        ({"kind": ["pull", "push"]}, {"1", "2", "3"}),
        ({"kind": "pull", "store": "s3"}, {"2"}),
        ({"image": "j"}, {"3"}),
        ({"user": "bob"}, {"3"}),
        ({"state": "running"}, {"1", "3"}),
        ({"state": "paused", "kind": "push"}, set()),
        ({"kind": []}, set()),
    ],
)
async def test_filters_choose_what_is_seen(
    autojump_clock: MockClock, hub: Hub, wish: dict[str, Any], seen: set[str]
) -> None:
    one, two = transfer("1"), transfer("2", store="s3")
    three = transfer("3", kind="push", image="j", user="bob")
    start(hub, one, two, three)
    two.state = "paused"
    hub.publish("paused", two)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        subscription.hear(json.dumps({"type": "subscribe", "filter": wish}))
        heard = await hear(subscription, client)
        assert [type(each) for each in heard] == [live.Snapshot]
        assert set(client.transfers) == seen
        for each in (one, two, three):
            each.meter.moved += 5
        await hear(subscription, client, 1)
        assert {row[0] for delta in client.of(live.Delta) for row in delta.u} == seen
        end(hub, one, two, three)
        await hear(subscription, client, 1)
        assert set(client.ended) == seen


async def test_a_transfer_that_leaves_a_state_is_told_of_and_removed(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        subscription.hear('{"type":"subscribe","filter":{"state":"running"}}')
        client = await opened(subscription)
        one.state = "paused"
        hub.publish("paused", one)
        heard = await hear(subscription, client, 1)
        assert [type(each) for each in heard] == [live.Event, live.Delta]
        assert client.transfers == {}
        hub.publish("stalled", one)
        assert not await hear(subscription, client, 1)
        one.state = "running"
        hub.publish("resumed", one)
        await hear(subscription, client, 1)
        assert set(client.transfers) == {"t"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"subscribe"',
        "{}",
        '{"type":"hello"}',
        '{"type":"subscribe","hz":"fast"}',
        '{"type":"subscribe","hz":NaN}',
        '{"type":"subscribe","filter":{"owner":"anne"}}',
        '{"type":"subscribe","filter":{"kind":7}}',
        '{"type":"subscribe","filter":{"kind":["\\ud800"]}}',
        '{"type":"subscribe","filter":"kind"}',
        '{"type":"resume"}',
        '{"type":"resume","epoch":"e","seq":1.5}',
        "[" * 100_000,
        json.dumps({"type": "subscribe", "filter": {"image": [str(n) for n in range(65)]}}),
    ],
)
async def test_a_message_that_is_not_understood_is_answered_and_changes_nothing(
    autojump_clock: MockClock, hub: Hub, text: str
) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        subscription.hear(text)
        heard = await hear(subscription, client)
        assert [type(each) for each in heard] == [live.Error]
        assert heard[0].code == 400  # type: ignore[union-attr]
        one.meter.moved += 5
        await hear(subscription, client, 1)
        assert client.transfers["t"][0] == 5


async def test_answers_to_a_flood_of_errors_are_bounded(autojump_clock: MockClock, hub: Hub) -> None:
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        for _ in range(10_000):
            subscription.hear("{")
        assert len(await hear(subscription, client)) == 16


def resume(hub: Hub, seq: int, epoch: str | None = None) -> str:
    return json.dumps({"type": "resume", "epoch": epoch or hub.epoch, "seq": seq})


async def events_after(subscription: Subscription, text: str) -> list[live.Message]:
    subscription.hear(text)
    heard = []
    with trio.move_on_after(0.001):
        while True:
            heard.append(live.parse(str(await subscription.next_text())))
    return heard


async def test_resume_brings_the_events_that_were_missed_once(autojump_clock: MockClock, hub: Hub) -> None:
    one, other = transfer("1"), transfer("2")
    start(hub, one, other)
    seen = hub.seq
    hub.publish("stalled", one)
    end(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        await opened(subscription)
        hub.publish("stalled", other)
        heard = await events_after(subscription, resume(hub, seen))
        assert [(m.transfer.id, m.kind) for m in heard if isinstance(m, live.Event)] == [
            ("1", "stalled"),
            ("1", "finished"),
            ("2", "stalled"),
        ]
        assert len(heard) == 3
        assert not await events_after(subscription, resume(hub, hub.seq))


async def test_events_that_can_be_resumed_keep_no_transfer_in_memory(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    kept = weakref.ref(one)
    start(hub, one)
    end(hub, one)
    del one
    await trio.sleep(ENDED_SECONDS + 1)
    assert not hub.ended()
    assert kept() is None
    assert len(hub.events_since(hub.epoch, 0) or []) == 2


async def test_resume_brings_only_what_the_viewer_may_see(autojump_clock: MockClock, hub: Hub) -> None:
    start(hub, transfer("1"), transfer("2", user="bob"))
    with hub.subscribe(BOB) as subscription:
        await opened(subscription)
        heard = await events_after(subscription, resume(hub, 0))
        assert [m.transfer.id for m in heard if isinstance(m, live.Event)] == ["2"]


@pytest.mark.parametrize("case", ["another epoch", "the future", "too long ago"])
async def test_resume_of_what_is_not_known_gets_a_gap_and_a_snapshot(
    autojump_clock: MockClock, hub: Hub, case: str
) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        await opened(subscription)
        if case == "too long ago":
            for _ in range(4096):
                hub.publish("stalled", one)
            await opened_again(subscription)
        texts = {
            "another epoch": resume(hub, hub.seq, "another"),
            "the future": resume(hub, hub.seq + 1000),
            "too long ago": resume(hub, 0),
        }
        heard = await events_after(subscription, texts[case])
        assert [type(each) for each in heard] == [live.Gap, live.Snapshot]


async def opened_again(subscription: Subscription) -> None:
    with trio.move_on_after(0.001):
        while True:
            await subscription.next_text()


async def test_the_last_4096_events_are_kept(autojump_clock: MockClock, hub: Hub) -> None:
    await trio.testing.wait_all_tasks_blocked()
    one = transfer()
    start(hub, one)  # seq 1
    for _ in range(4096):
        hub.publish("stalled", one)
    assert len(hub.events_since(hub.epoch, 1) or ()) == 4096
    assert hub.events_since(hub.epoch, 0) is None


# --- the end -------------------------------------------------------------------------------------


async def test_at_drain_every_subscriber_gets_its_events_and_bye_and_nobody_new_comes(
    autojump_clock: MockClock, hub: Hub
) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        end(hub, one)
        hub.close("drain")
        await hear(subscription, client)
        assert [type(each) for each in client.messages[2:]] == [live.Event, live.Bye]
        assert await subscription.next_text() is None
    with pytest.raises(Draining), hub.subscribe(ADMIN):
        pass


async def test_a_subscriber_that_is_waiting_hears_bye_at_once(autojump_clock: MockClock, hub: Hub) -> None:
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear, subscription, client, 5)
            await trio.testing.wait_all_tasks_blocked()
            before = trio.current_time()
            hub.close("drain")
        assert trio.current_time() == before
        assert client.of(live.Bye)[0].reason == "drain"


async def test_an_account_that_lost_its_rights_hears_no_more(autojump_clock: MockClock, hub: Hub) -> None:
    with hub.subscribe(ANNE) as hers, hub.subscribe(BOB) as his:
        clients = await opened(hers), await opened(his)
        hub.dismiss("anne")
        await hear(hers, clients[0])
        await hear(his, clients[1])
        assert [bye.reason for bye in clients[0].of(live.Bye)] == ["auth"]
        assert not clients[1].of(live.Bye)


async def test_a_subscriber_that_left_leaves_nothing_behind(autojump_clock: MockClock, hub: Hub) -> None:
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(3):
        with hub.subscribe(ANNE) as subscription:
            subscription.hear('{"type":"subscribe","filter":{"kind":"pull"},"hz":7}')
    assert not hub._subscriptions
    assert not hub._feeds


async def test_a_cancelled_fetch_loses_no_message(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    start(hub, one)
    with hub.subscribe(ADMIN) as subscription:
        client = await opened(subscription)
        hub.publish("stalled", one)
        with trio.CancelScope() as scope:
            scope.cancel()
            await subscription.next_text()
        await hear(subscription, client)
        assert len(client.of(live.Event)) == 1


# --- many ----------------------------------------------------------------------------------------


async def _fetch_all(subscription: Subscription) -> list[str]:
    texts = []
    with trio.move_on_after(0.0001):
        while True:
            texts.append(str(await subscription.next_text()))
    return texts


async def test_a_thousand_subscribers_share_every_frame(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    start(hub, one)
    with ExitStack() as stack:
        subscriptions = [stack.enter_context(hub.subscribe(ADMIN)) for _ in range(1000)]
        for subscription in subscriptions:
            assert len(await _fetch_all(subscription)) == 2
        await trio.sleep(0.4)
        one.meter.moved += 1000
        await trio.sleep(0.2)
        hub.publish("stalled", one)
        fetched = [await _fetch_all(subscription) for subscription in subscriptions]
        assert all([json.loads(text)["type"] for text in texts] == ["delta", "event"] for texts in fetched)
        # The very same text: it was encoded once.
        assert len({tuple(map(id, texts)) for texts in fetched}) == 1


async def test_a_thousand_subscribers_that_take_nothing_cost_little_memory(autojump_clock: MockClock, hub: Hub) -> None:
    one = transfer()
    start(hub, one)
    with ExitStack() as stack:
        subscriptions = [stack.enter_context(hub.subscribe(ADMIN)) for _ in range(1000)]
        for subscription in subscriptions:
            await _fetch_all(subscription)
        tracemalloc.start()
        try:
            for _ in range(300):
                hub.publish("stalled", one)
                one.meter.moved += 1
            await trio.sleep(3)
            used, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert used < 8 << 20


async def test_publishing_never_waits_for_a_subscriber(autojump_clock: MockClock, hub: Hub) -> None:
    """It is a plain function; what a subscriber fails to fetch changes nothing for the one who publishes."""
    await trio.testing.wait_all_tasks_blocked()
    one = transfer()
    with hub.subscribe(ADMIN):
        start(hub, one)
        for _ in range(5000):
            hub.publish("stalled", one)
        end(hub, one)
    assert hub.ended() == (one,)
