"""Slots and the queue before them: nobody waits for a slot that is free, nobody overtakes, users are served in turn."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from visor_gateway.errors import QueueFull
from visor_gateway.transfer.admission import Admission, Place, Slots


class Taken:
    """A place that is held until `leave`."""

    def __init__(self, admission: Admission, user: str, store: str = "file") -> None:
        self._stack = ExitStack()
        self.place: Place = self._stack.enter_context(admission.place(user, store))

    @property
    def runs(self) -> bool:
        return not self.place.waits

    def leave(self) -> None:
        self._stack.close()


def running(taken: list[Taken]) -> list[int]:
    return [number for number, each in enumerate(taken) if each.runs]


def test_without_limits_everybody_runs() -> None:
    admission = Admission()
    taken = [Taken(admission, "foo") for _ in range(5000)]
    assert all(each.runs for each in taken)
    assert {each.place.position for each in taken} == {None}


def test_users_are_served_in_turn_and_each_in_the_order_of_arrival() -> None:
    admission = Admission(Slots(transfers=1))
    first = Taken(admission, "foo")
    many = [Taken(admission, "foo") for _ in range(3)]
    few = [Taken(admission, user) for user in ("bar", "baz", "bar")]
    waiting = [*many, *few]
    assert [each.place.position for each in waiting] == [1, 4, 6, 2, 3, 5]
    order = []
    served = first
    while waiting:
        served.leave()
        (served,) = [each for each in waiting if each.runs]
        assert served.place.position is None
        order.append(served)
        waiting.remove(served)
        assert sorted(each.place.position or 0 for each in waiting) == list(range(1, len(waiting) + 1))
    assert order == [many[0], few[0], few[1], many[1], few[2], many[2]]
    served.leave()
    assert admission.waiting == 0


def test_a_busy_store_keeps_nobody_from_a_free_one() -> None:
    admission = Admission(Slots(transfers=2, transfers_per_store=1))
    taken = [Taken(admission, "foo", store) for store in ("file", "file", "s3")]
    assert running(taken) == [0, 2]
    taken[2].leave()
    assert running(taken) == [0, 2]  # its slot is free, its store is not
    taken.append(Taken(admission, "foo", "s3"))
    assert running(taken[3:]) == [0]
    taken[0].leave()
    assert taken[1].runs


def test_a_user_has_no_more_than_their_slots_and_others_pass() -> None:
    admission = Admission(Slots(transfers_per_user=2))
    taken = [Taken(admission, user) for user in ("foo", "foo", "foo", "bar")]
    assert running(taken) == [0, 1, 3]
    taken[1].leave()
    assert taken[2].runs


def test_who_leaves_the_queue_gives_up_their_place_and_no_slot() -> None:
    admission = Admission(Slots(transfers=1))
    taken = [Taken(admission, "foo") for _ in range(3)]
    taken[1].leave()
    assert [each.place.position for each in (taken[0], taken[2])] == [None, 1]
    taken[0].leave()
    assert taken[2].runs
    assert not Taken(admission, "foo").runs


def test_a_full_queue_refuses_whoever_would_have_to_wait_and_nobody_else() -> None:
    admission = Admission(Slots(transfers_per_store=1, queue_limit=1))
    admission.check_room("foo", "file")
    taken = [Taken(admission, "foo"), Taken(admission, "foo")]
    with pytest.raises(QueueFull) as caught:
        admission.check_room("bar", "file")
    assert (caught.value.status, caught.value.retry_after) == (503, 5)
    admission.check_room("bar", "s3")
    taken[0].leave()
    admission.check_room("bar", "file")


def test_without_a_queue_one_more_is_refused() -> None:
    admission = Admission(Slots(transfers=1, queue_limit=0))
    admission.check_room("foo", "file")
    only = Taken(admission, "foo")
    with pytest.raises(QueueFull):
        admission.check_room("foo", "file")
    only.leave()


class AdmissionMachine(RuleBasedStateMachine):
    """Any order of coming and going."""

    places = Bundle("places")
    slots = Slots(transfers=4, transfers_per_store=3, transfers_per_user=2)

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(self.slots)
        self.taken: list[Taken] = []

    @rule(target=places, user=st.sampled_from("abc"), store=st.sampled_from(["file", "s3"]))
    def come(self, user: str, store: str) -> Taken:
        taken = Taken(self.admission, user, store)
        self.taken.append(taken)
        return taken

    @rule(taken=consumes(places))
    def go(self, taken: Taken) -> None:
        self.taken.remove(taken)
        taken.leave()

    def _could_run(self, place: Place) -> bool:
        runs = [each.place for each in self.taken if each.runs]
        return (
            len(runs) < self.slots.transfers
            and sum(each.store == place.store for each in runs) < self.slots.transfers_per_store
            and sum(each.user == place.user for each in runs) < self.slots.transfers_per_user
        )

    @invariant()
    def no_limit_is_exceeded_and_no_slot_is_left_to_nobody(self) -> None:
        runs = [each.place for each in self.taken if each.runs]
        assert len(runs) <= self.slots.transfers
        assert all(sum(each.store == s for each in runs) <= self.slots.transfers_per_store for s in ("file", "s3"))
        assert all(sum(each.user == u for each in runs) <= self.slots.transfers_per_user for u in "abc")
        waiting = [each.place for each in self.taken if not each.runs]
        assert not any(self._could_run(place) for place in waiting)
        assert sorted(place.position or 0 for place in waiting) == list(range(1, len(waiting) + 1))
        assert self.admission.waiting == len(waiting)

    @invariant()
    def nobody_overtakes_their_own(self) -> None:
        for number, earlier in enumerate(self.taken):
            for later in self.taken[number + 1 :]:
                if (earlier.place.user, earlier.place.store) == (later.place.user, later.place.store):
                    assert earlier.runs or not later.runs


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_other_slots_let_those_go_who_can_and_turn_nobody_away() -> None:
    admission = Admission(Slots(transfers=2))
    taken = [Taken(admission, "foo") for _ in range(4)]
    assert running(taken) == [0, 1]
    admission.change(Slots(transfers=3))
    assert running(taken) == [0, 1, 2]
    admission.change(Slots(transfers=1, queue_limit=0))
    assert running(taken) == [0, 1, 2]
    with pytest.raises(QueueFull):
        admission.check_room("bar", "file")
    for each in taken[:2]:
        each.leave()
    assert not taken[3].runs
    taken[2].leave()
    assert taken[3].runs


def test_a_store_may_have_slots_of_its_own() -> None:
    admission = Admission(Slots(transfers_per_store=2, of_store={"slow": 1, "fast": 3}))
    taken = [Taken(admission, "foo", store) for store in ("slow", "fast", "other") for _ in range(4)]
    assert running(taken) == [0, 4, 5, 6, 8, 9]
