"""What another gateway tells as a part of this one's view, also where it lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from visor_gateway.errors import Conflict, Forbidden, GatewayError, InvalidRequest, NotFound
from visor_gateway.transfer.control import Change
from visor_gateway.transfer.foreign import PeerUnavailable, Wish
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.peer_view import NotUnderstood, PeerView
from visor_gateway.transfer.plane import HubPlane
from visor_gateway.transfer.reports import Who
from visor_gateway.transfer.transfer import Transfer
from visor_gateway.transfer.view import EVERYTHING, filters_of

ADMIN, ANNE, BOB = Who("root", True), Who("anne", False), Who("bob", False)
#: What another gateway is.
NEIGHBOUR = Who(None, True, own_only=True)


class Other:
    """Another gateway, which does what a test has it do."""

    gateway = "other"

    def __init__(self) -> None:
        self.asked: list[Wish] = []
        self.answer: Callable[[Wish], list[dict[str, Any]]] = lambda wish: []

    async def ask(self, wish: Wish) -> list[dict[str, Any]]:
        self.asked.append(wish)
        return self.answer(wish)


def told(**fields: Any) -> dict[str, Any]:
    wait = dict.fromkeys(("client", "store", "limit", "disk"), 0)
    return {
        "id": str(uuid4()), "kind": "pull", "image": "i", "store": "file", "client": "192.0.2.1", "user": "anne",
        "state": "running", "bytes": 10, "size": 100, "offset": 0, "rate": 5, "rate_avg": 5, "eta_s": 18.0,
        "started_at": "2026-01-01T00:00:00.000000Z", "wait": wait, "waiters": 0, "attempt": 1,
        "limit_bytes_per_s": None, "error": None,
    } | fields  # fmt: skip


def own(**fields: Any) -> Transfer:
    defaults = {"kind": "pull", "image": "i", "store": "file", "client": None, "user": "anne", "size": None}
    transfer = Transfer(**{"id": str(uuid4()), **defaults, **fields})
    transfer.state = "running"
    return transfer


def text(type: str, **fields: Any) -> str:
    return json.dumps({"type": type, **fields})


def snapshot(*transfers: dict[str, Any]) -> str:
    return text("snapshot", seq=1, transfers=transfers, totals={})


def event(kind: str, transfer: dict[str, Any]) -> str:
    return text("event", seq=2, kind=kind, transfer=transfer)


def delta(*rows: list[Any], removed: tuple[str, ...] = ()) -> str:
    return text("delta", seq=3, u=rows, removed=removed)


@pytest.fixture
def hub() -> Hub:
    return Hub("this")


@pytest.fixture
def other() -> Other:
    return Other()


@pytest.fixture
def view(hub: Hub, other: Other) -> PeerView:
    return PeerView(hub, other)


def ids(hub: Hub) -> set[str]:
    return {transfer.id for transfer in hub.live_for(EVERYTHING)}


def found(hub: Hub, id: str) -> dict[str, Any]:
    transfer = hub.find(id)
    assert transfer is not None
    return transfer.shown()


async def test_what_is_told_is_shown_with_its_gateways_name(hub: Hub, view: PeerView) -> None:
    first = told(state="queued", position=3)
    view.take(text("hello", epoch="e", seq=0, hz=2, heartbeat_s=10))
    view.take(snapshot(first))
    assert found(hub, first["id"]) == {
        **{name: value for name, value in first.items() if name != "position"},
        "eta_s": None,
        "gateway": "other",
    }
    view.take(event("resumed", told(id=first["id"], bytes=20)))
    view.take(delta([first["id"], 60, 40, 1.0, "running", {"client": 7, "store": 0, "limit": 0, "disk": 0}]))
    shown = found(hub, first["id"])
    assert (shown["bytes"], shown["rate"], shown["eta_s"], shown["wait"]["client"]) == (60, 40, 1.0, 7)
    view.take(event("finished", told(id=first["id"], state="finished", bytes=100)))
    assert ids(hub) == set()
    assert found(hub, first["id"])["state"] == "finished"


async def test_this_gateways_own_transfers_are_those_that_it_steers_counts_and_waits_for(
    hub: Hub, view: PeerView
) -> None:
    mine, theirs = own(), told()
    hub.add(mine)
    view.take(snapshot(theirs))
    assert [transfer.id for transfer in hub.live()] == [mine.id]
    assert ids(hub) == {mine.id, theirs["id"]}


async def test_another_gateway_is_given_own_transfers_alone(hub: Hub, view: PeerView) -> None:
    mine, theirs = own(), told()
    plane = HubPlane(hub)
    with hub.subscribe(NEIGHBOUR) as neighbour, hub.subscribe(ADMIN) as admin:
        assert [json.loads(await each.next_text() or "")["type"] for each in (neighbour, admin)] == ["hello"] * 2
        await neighbour.next_text(), await admin.next_text()
        hub.add(mine)
        hub.publish("started", mine)
        view.take(snapshot(theirs))
        assert [json.loads(each)["transfer"]["id"] for each in neighbour.further_texts()] == [mine.id]
        assert [json.loads(each)["transfer"]["id"] for each in admin.further_texts()] == [mine.id, theirs["id"]]
    assert [each["id"] for each in (await plane.list(NEIGHBOUR, ())).transfers] == [mine.id]
    for ask in (plane.find, plane.cancel):
        with pytest.raises(NotFound):
            await ask(NEIGHBOUR, theirs["id"])


async def test_a_transfer_that_is_gone_from_a_snapshot_or_removed_leaves_the_view(hub: Hub, view: PeerView) -> None:
    first, second, third = told(), told(), told()
    view.take(snapshot(first, second, third))
    view.take(delta(removed=(first["id"], "unknown")))
    assert ids(hub) == {second["id"], third["id"]}
    # The first snapshot of a connection may be that of a process that has just succeeded another one.
    view.reconnected()
    view.take(snapshot(third))
    assert ids(hub) == {second["id"], third["id"]}
    view.take(snapshot(third))
    assert ids(hub) == {third["id"]}
    view.clear()
    assert ids(hub) == set()
    assert hub.find(third["id"]) is None


async def test_an_id_of_an_own_transfer_stays_its_own(hub: Hub, view: PeerView) -> None:
    mine, ended = own(), own()
    for each in (mine, ended):
        hub.add(each)
    ended.settle("finished")
    hub.publish("finished", ended)
    view.take(snapshot(told(id=mine.id, user="eve"), told(id=ended.id, user="eve")))
    view.take(event("cancelled", told(id=mine.id, state="cancelled")))
    assert found(hub, mine.id)["user"] == "anne"
    assert found(hub, mine.id)["state"] == "running"
    assert ids(hub) == {mine.id}


async def test_an_own_transfer_takes_its_id_from_another_gateways(hub: Hub, view: PeerView) -> None:
    theirs = told(user="eve")
    view.take(snapshot(theirs))
    mine = own(id=theirs["id"])
    hub.add(mine)
    view.take(delta([theirs["id"], 99, 1, None, "paused", {}]))
    view.take(event("failed", told(id=theirs["id"], state="failed", user="eve")))
    view.clear()
    assert hub.find(mine.id) is mine
    assert mine.shown()["gateway"] == "this"
    # And where it has ended there, too.
    over = told(user="eve")
    view.take(snapshot(over))
    view.take(event("finished", {**over, "state": "finished"}))
    hub.add(own(id=over["id"], user="anne"))
    with pytest.raises(Conflict):
        hub.add(own(id=over["id"], user="bob"))


@pytest.mark.parametrize(
    "message",
    [
        "", "[]", "{", '{"type": 1}', '{"type": "unknown"}', "[" * 100_000,
        snapshot(told(id="x")), snapshot(told(kind="theft")), snapshot(told(bytes=-1)), snapshot(told(bytes=2**64)),
        snapshot(told(user="u" * 300)), snapshot(told(wait={"fun": 1})), snapshot(told(started_at="yesterday")),
        snapshot(told(error="e" * 2000)), text("snapshot"), text("snapshot", transfers=None),
        text("delta", u=[["a"]], removed=[]), text("delta", u=[], removed=[1]),
        event("finished", told()), event("started", told(state="finished")), event("exploded", told()),
        event("failed", told(state="finished")),
    ],
)  # fmt: skip
async def test_what_contradicts_itself_or_has_another_form_is_refused_and_changes_nothing(
    hub: Hub, view: PeerView, message: str
) -> None:
    theirs = told()
    view.take(snapshot(theirs))
    before = hub.seq
    with pytest.raises(NotUnderstood):
        view.take(message)
    assert (ids(hub), hub.seq) == ({theirs["id"]}, before)


async def test_a_gateway_that_tells_of_very_many_is_shown_up_to_a_bound(hub: Hub, other: Other) -> None:
    view = PeerView(hub, other, limit=5)
    view.take(snapshot(*[told() for _ in range(9)]))
    for _ in range(9):
        view.take(event("started", told()))
    assert len(ids(hub)) == 5


async def test_an_end_that_a_delta_tells_is_none(hub: Hub, view: PeerView) -> None:
    theirs = told()
    view.take(snapshot(theirs))
    view.take(delta([theirs["id"], 50, 1, None, "finished", {}]))
    assert found(hub, theirs["id"])["state"] == "running"


# --- steering ------------------------------------------------------------------------------------


async def test_a_change_is_asked_of_the_gateway_on_behalf_of_the_client(hub: Hub, view: PeerView, other: Other) -> None:
    theirs, plane = told(), HubPlane(hub)
    view.take(snapshot(theirs))
    other.answer = lambda wish: [{**theirs, "state": "paused", "limit_bytes_per_s": 7, "gateway": "other"}]
    shown = await plane.change(ANNE, theirs["id"], Change(paused=True, limit_bytes_per_s=7))
    assert (shown["state"], shown["gateway"]) == ("paused", "other")
    assert other.asked == [
        Wish("anne", False, theirs["id"], change={"paused": True, "limit_bytes_per_s": 7}),
    ]
    assert found(hub, theirs["id"])["limit_bytes_per_s"] == 7
    with pytest.raises(NotFound):
        await plane.change(BOB, theirs["id"], Change(paused=True))
    assert len(other.asked) == 1


@pytest.mark.parametrize("error", [Conflict("c"), Forbidden("f"), NotFound("n"), PeerUnavailable("other")])
async def test_a_refusal_of_the_gateway_is_the_clients(
    hub: Hub, view: PeerView, other: Other, error: GatewayError
) -> None:
    theirs, plane = told(), HubPlane(hub)
    view.take(snapshot(theirs))

    def refuse(wish: Wish) -> list[dict[str, Any]]:
        raise error

    other.answer = refuse
    for call in (plane.cancel(ANNE, theirs["id"]), plane.cancel_all(ANNE, filters_of([("kind", "pull")]))):
        with pytest.raises(type(error)):
            await call
    # What a delete does of its own accord does not fail for it.
    await plane.cancel_writers("i", "delete")


async def test_an_answer_about_something_else_is_none(hub: Hub, view: PeerView, other: Other) -> None:
    theirs, plane = told(), HubPlane(hub)
    view.take(snapshot(theirs))
    for answer in ([], [told()], [theirs, theirs]):
        other.answer = lambda wish, answer=answer: answer  # type: ignore[misc]
        with pytest.raises(PeerUnavailable):
            await plane.change(ANNE, theirs["id"], Change(paused=True))


async def test_all_that_filters_name_are_steered_here_and_there(
    hub: Hub, view: PeerView, other: Other, autojump_clock: object
) -> None:
    mine, theirs, plane = own(), told(), HubPlane(hub)
    hub.add(mine)
    view.take(snapshot(theirs, told(user="bob")))
    other.answer = lambda wish: [{**theirs, "state": "cancelled", "gateway": "other"}]
    mine.pause()
    listing = await plane.cancel_all(ANNE, filters_of([("user", "anne")]))
    assert mine.cancel_reason == "request"
    assert other.asked == [Wish("anne", False, filters={"user": ["anne"]})]
    assert [each["id"] for each in listing.transfers] == [mine.id, theirs["id"]]
    assert listing.totals["transfers"] == 2
    assert listing.totals["by_state"] == {"paused": 1, "cancelled": 1}
    # Where no transfer of the other gateway is meant, it is not asked.
    await plane.change_all(ANNE, filters_of([("gateway", "this")]), Change(paused=True))
    assert len(other.asked) == 1


async def test_a_delete_has_what_writes_the_image_elsewhere_cancelled(hub: Hub, view: PeerView, other: Other) -> None:
    writer, reader = told(kind="push"), told()
    view.take(snapshot(writer, reader, told(kind="push", image="another")))
    await HubPlane(hub).cancel_writers("i", "delete")
    assert other.asked == [Wish(None, True, writer["id"])]


async def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="gateway, image"):
        filters_of([("color", "red")])
