"""Contract section 8, first form: transfers over HTTP and over the live channel."""

from __future__ import annotations

import itertools
import json
import random
import re
import uuid
from collections.abc import Generator
from contextlib import contextmanager

import jsonschema
import pytest
import trio
import trio_websocket
from live import PROTOCOL, Live, refusal, subscribed
from wire import (
    OCTETS,
    Client,
    Reset,
    Response,
    Stored,
    Wire,
    eventually,
    head_bytes,
    meta,
    store_image,
    unique,
    upgrade_headers,
)

pytestmark = pytest.mark.one_gateway

FIELDS = {
    "id", "kind", "image", "store", "client", "user", "state", "bytes", "size", "offset", "rate", "rate_avg", "eta_s",
    "started_at", "wait", "waiters", "attempt", "limit_bytes_per_s", "error",
}  # fmt: skip
BIG = 24 << 20


@pytest.fixture(scope="module")
def big(alice: Client) -> Stored:
    """An image that does not fit into the buffers between two processes."""
    return store_image(alice, random.Random(8).randbytes(BIG))


@contextmanager
def pulling(client: Client, image: Stored) -> Generator[tuple[str, Wire]]:
    """A pull that has begun and whose client reads no further: (transfer id, connection)."""
    with client.start("GET", image.path, receive_buffer=65536) as wire:
        head = wire.read_head()
        assert head.status == 200
        wire.read_exactly(1000)
        yield head.header("x-transfer-id") or "", wire


@contextmanager
def pushing(client: Client, name: str | None = None) -> Generator[tuple[str, Wire]]:
    """A push that has begun and sent half: (transfer id, connection)."""
    chosen = str(uuid.uuid4())
    headers = [*meta(name=name or unique("pushed"), architecture="i386"), OCTETS, ("Content-Length", "2000")]
    with client.start("POST", "/images", [*headers, ("X-Transfer-Id", chosen)]) as wire:
        wire.send(b"x" * 1000)
        eventually(lambda: client.get(f"/transfers/{chosen}").status == 200, what="the transfer")
        yield chosen, wire


def shown(client: Client, transfer_id: str) -> dict:
    answer = client.get(f"/transfers/{transfer_id}")
    assert answer.status == 200, answer.body
    assert list(answer.json()) == ["transfer"]
    return answer.json()["transfer"]


def listed(client: Client, query: str = "") -> list[dict]:
    answer = client.get(f"/transfers{query}")
    assert answer.status == 200
    return answer.json()["transfers"]


# --- the routes --------------------------------------------------------------------------------


def test_without_transfers_the_lists_are_empty(make_user) -> None:
    answer = make_user("idle").get("/transfers")
    assert answer.status == 200
    document = answer.json()
    assert set(document) == {"transfers", "totals"}
    assert document["transfers"] == []
    assert isinstance(document["totals"], dict)


def test_a_running_pull_is_shown_with_every_field(alice: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, _):
        (transfer,) = [entry for entry in listed(alice) if entry["id"] == transfer_id]
        assert set(transfer) == FIELDS
        assert (transfer["kind"], transfer["image"], transfer["store"]) == ("pull", big.id, "file")
        assert (transfer["user"], transfer["state"], transfer["size"]) == (alice.access_key, "running", BIG)
        assert transfer["offset"] == 0
        assert 0 <= transfer["bytes"] < BIG
        assert set(transfer["wait"]) == {"client", "store", "limit", "disk"}
        assert "127.0.0.1" in transfer["client"]
        assert re.match(r"\d{4}-\d\d-\d\dT.*(Z|\+00:00)$", transfer["started_at"])
        assert transfer["error"] is None
        assert shown(alice, transfer_id)["id"] == transfer_id


def test_a_running_push_is_shown(alice: Client) -> None:
    with pushing(alice) as (transfer_id, wire):
        transfer = eventually(lambda: (t := shown(alice, transfer_id))["bytes"] == 1000 and t)
        assert (transfer["kind"], transfer["state"], transfer["size"]) == ("push", "running", 2000)
        wire.send(b"x" * 1000)
        image = wire.read_response().image
        assert transfer["image"] == image["_id"]


def test_bytes_of_a_pull_are_not_ahead_of_what_the_client_has_or_can_still_be_given(alice: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, _):
        # The client's kernel acknowledges what fits its small buffer, not what ours has queued.
        first = eventually(lambda: shown(alice, transfer_id)["bytes"])
        assert first < 4 << 20
        assert shown(alice, transfer_id)["bytes"] < 4 << 20


def test_the_range_of_a_pull_is_shown_as_offset_and_size(alice: Client, stored) -> None:
    answer = alice.get(stored.path, ("Range", "bytes=1000-2999"))
    transfer = eventually(lambda: (t := shown(alice, answer.header("x-transfer-id")))["state"] == "finished" and t)
    assert (transfer["offset"], transfer["size"], transfer["bytes"]) == (1000, 2000, 2000)


def test_a_finished_transfer_is_shown_for_a_while(alice: Client, stored) -> None:
    pulled = alice.get(stored.path).header("x-transfer-id")
    pushed = alice.add(b"12345").header("x-transfer-id")
    for transfer_id, size in ((pulled, len(stored.data)), (pushed, 5)):
        transfer = eventually(lambda t=transfer_id: (s := shown(alice, t))["state"] == "finished" and s)
        assert (transfer["bytes"], transfer["size"], transfer["error"]) == (size, size, None)


def test_a_failed_transfer_says_why(alice: Client) -> None:
    chosen = str(uuid.uuid4())
    answer = alice.add(b"bytes", [("Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA=="), ("X-Transfer-Id", chosen)])
    assert answer.status == 400
    transfer = eventually(lambda: (t := shown(alice, chosen))["state"] == "failed" and t)
    assert transfer["error"]


def test_a_pull_whose_client_leaves_did_not_finish(alice: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, wire):
        wire.cut()
        transfer = eventually(lambda: (t := shown(alice, transfer_id))["state"] != "running" and t)
    assert transfer["state"] in ("failed", "cancelled")
    assert transfer["bytes"] < BIG


def test_an_unknown_transfer_is_404(alice: Client) -> None:
    for transfer_id in (str(uuid.uuid4()), "fake"):
        for method in ("GET", "DELETE"):
            answer = alice.request(method, f"/transfers/{transfer_id}")
            assert answer.status == 404
            assert answer.message


def test_transfers_filter_by_image_kind_state_store_and_user(alice: Client, admin: Client, big: Stored) -> None:
    with pulling(alice, big) as (pull, _), pushing(alice) as (push, _):
        for client in (alice, admin):
            ids = {entry["id"] for entry in listed(client, f"?user={alice.access_key}")}
            assert {pull, push} <= ids
            for query, inside, outside in (
                (f"?image={big.id}", pull, push),
                ("?kind=pull", pull, push),
                ("?kind=push", push, pull),
                (f"?kind=push&user={alice.access_key}&store=file&state=running", push, pull),
            ):
                ids = {entry["id"] for entry in listed(client, query)}
                assert inside in ids, query
                assert outside not in ids, query
            for query in ("?state=paused", "?store=s3", "?user=nobody-has-this-key", f"?image={uuid.uuid4()}"):
                assert not {pull, push} & {entry["id"] for entry in listed(client, query)}, query


def test_owners_see_their_own_transfers_and_admins_all(alice: Client, bob: Client, admin: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, _):
        assert transfer_id in {entry["id"] for entry in listed(admin)}
        assert transfer_id in {entry["id"] for entry in listed(alice)}
        assert transfer_id not in {entry["id"] for entry in listed(bob)}
        assert shown(admin, transfer_id)["user"] == alice.access_key
        assert bob.get(f"/transfers/{transfer_id}").status == 404
        refused, missing = bob.get(f"/transfers/{transfer_id}"), str(uuid.uuid4())
        assert refused.message.replace(transfer_id, missing) == bob.get(f"/transfers/{missing}").message


def test_totals_are_of_what_the_caller_may_see(make_user, alice: Client, big: Stored) -> None:
    idle = make_user("idle")
    before = idle.get("/transfers").json()["totals"]
    with pulling(alice, big):
        assert idle.get("/transfers").json()["totals"].keys() == before.keys()
        assert idle.get("/transfers").json()["totals"] == before


def test_transfers_come_as_xml_too(alice: Client, stored) -> None:
    transfer_id = alice.get(stored.path).header("x-transfer-id")
    root = alice.get(f"/transfers/{transfer_id}", ("Accept", "application/xml")).xml()
    assert root.findtext("transfer/id") == transfer_id


# --- cancel ------------------------------------------------------------------------------------


@pytest.mark.direct("where a gateway resets a connection the proxy ends its own with FIN")
def test_cancelling_a_pull_resets_its_client(alice: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, wire):
        answer = alice.delete(f"/transfers/{transfer_id}")
        assert answer.status == 200
        with pytest.raises(Reset):
            wire.read_to_end()
    transfer = eventually(lambda: (t := shown(alice, transfer_id))["state"] == "cancelled" and t)
    assert transfer["error"]
    assert alice.head(big.path).status == 200


@pytest.mark.direct("where a gateway resets a connection the proxy ends its own with FIN")
def test_cancelling_a_push_resets_its_client_and_keeps_no_bytes(alice: Client) -> None:
    name = unique("cancelled")
    with pushing(alice, name) as (transfer_id, wire):
        assert alice.delete(f"/transfers/{transfer_id}").status == 200
        with pytest.raises(Reset):
            wire.read_to_end()
    eventually(lambda: shown(alice, transfer_id)["state"] == "cancelled")
    image = eventually(lambda: (i := alice.named(name)) and i["status"] == "error" and i)
    assert image["size"] is None
    assert alice.get(f"/images/{image['_id']}").status == 409


@pytest.mark.direct("where a gateway resets a connection the proxy ends its own with FIN")
def test_an_admin_cancels_anyones_transfer(alice: Client, admin: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, wire):
        assert admin.delete(f"/transfers/{transfer_id}").status == 200
        with pytest.raises(Reset):
            wire.read_to_end()


def test_nobody_cancels_anothers_transfer(alice: Client, bob: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, wire):
        assert bob.delete(f"/transfers/{transfer_id}").status == 404
        assert shown(alice, transfer_id)["state"] == "running"
        assert len(wire.read_exactly(BIG - 1000)) == BIG - 1000


def test_cancelling_one_pull_leaves_another_of_the_same_image_alone(alice: Client, big: Stored) -> None:
    with pulling(alice, big) as (first, _), pulling(alice, big) as (_, other):
        assert alice.delete(f"/transfers/{first}").status == 200
        assert other.read_exactly(BIG - 1000) == big.data[1000:]


def test_cancelling_what_has_ended_changes_nothing(alice: Client, stored) -> None:
    transfer_id = alice.get(stored.path).header("x-transfer-id")
    eventually(lambda: shown(alice, transfer_id)["state"] == "finished")
    assert alice.delete(f"/transfers/{transfer_id}").status in (200, 404, 409)
    assert shown(alice, transfer_id)["state"] == "finished"


# --- pause and limit -----------------------------------------------------------------------------


def steered(client: Client, target: str, **change: object) -> Response:
    return client.send_json("PATCH", target, change)


def test_a_paused_pull_moves_nothing_and_goes_on_whole(alice: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, wire):
        path = f"/transfers/{transfer_id}"
        answer = steered(alice, path, paused=True)
        assert (answer.status, answer.json()["transfer"]["state"]) == (200, "paused")
        assert transfer_id in {entry["id"] for entry in listed(alice, "?state=paused")}
        held = wire.read_until_quiet(1.0)
        assert len(held) < BIG // 2
        assert shown(alice, transfer_id)["state"] == "paused"
        assert steered(alice, path, paused=False).json()["transfer"]["state"] == "running"
        assert held + wire.read_exactly(BIG - 1000 - len(held)) == big.data[1000:]
    eventually(lambda: shown(alice, transfer_id)["state"] == "finished")


def test_a_paused_push_goes_on_and_is_stored_whole(alice: Client) -> None:
    data = random.Random(3).randbytes(3 << 20)
    name, transfer_id = unique("paused"), str(uuid.uuid4())
    headers = [*meta(name=name, architecture="x86_64"), OCTETS, ("X-Transfer-Id", transfer_id)]
    with alice.start("POST", "/images", [*headers, ("Content-Length", str(len(data)))]) as wire:
        wire.send(data[:1000])
        eventually(lambda: alice.get(f"/transfers/{transfer_id}").status == 200)
        assert steered(alice, f"/transfers/{transfer_id}", paused=True).status == 200
        assert shown(alice, transfer_id)["state"] == "paused"
        assert steered(alice, f"/transfers/{transfer_id}", paused=False).status == 200
        wire.send(data[1000:])
        assert wire.read_response("POST").image["size"] == len(data)


@pytest.mark.direct("where a gateway resets a connection the proxy ends its own with FIN")
def test_a_paused_pull_can_be_cancelled(alice: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, wire):
        steered(alice, f"/transfers/{transfer_id}", paused=True)
        assert alice.delete(f"/transfers/{transfer_id}").status == 200
        with pytest.raises(Reset):
            wire.read_to_end()
    assert shown(alice, transfer_id)["state"] == "cancelled"


def test_a_limit_is_shown_and_taken_off_again(alice: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, wire):
        path = f"/transfers/{transfer_id}"
        assert steered(alice, path, limit_bytes_per_s=1000).json()["transfer"]["limit_bytes_per_s"] == 1000
        assert shown(alice, transfer_id)["limit_bytes_per_s"] == 1000
        assert steered(alice, path, limit_bytes_per_s=None).json()["transfer"]["limit_bytes_per_s"] is None
        assert wire.read_exactly(BIG - 1000) == big.data[1000:]


def test_all_transfers_of_an_image_are_steered_at_once_and_no_others(alice: Client, big: Stored) -> None:
    with pulling(alice, big) as (first, _), pulling(alice, big) as (second, _), pushing(alice) as (push, _):
        answer = steered(alice, f"/transfers?image={big.id}", paused=True)
        assert {first, second} <= {entry["id"] for entry in answer.json()["transfers"]}
        assert {shown(alice, each)["state"] for each in (first, second)} == {"paused"}
        assert shown(alice, push)["state"] == "running"
        gone = alice.delete(f"/transfers?image={big.id}")
        assert {first, second} <= {entry["id"] for entry in gone.json()["transfers"]}
        assert {shown(alice, each)["state"] for each in (first, second)} == {"cancelled"}
        assert shown(alice, push)["state"] == "running"


def test_without_a_filter_nothing_is_steered(alice: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, _):
        assert steered(alice, "/transfers", paused=True).status == 400
        assert alice.delete("/transfers").status == 400
        assert steered(alice, "/transfers?nonsense=1", paused=True).status == 400
        assert shown(alice, transfer_id)["state"] == "running"


def test_nobody_steers_anothers_transfer(alice: Client, bob: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, _):
        assert steered(bob, f"/transfers/{transfer_id}", paused=True).status == 404
        assert steered(bob, f"/transfers?image={big.id}", paused=True).json()["transfers"] == []
        assert bob.delete(f"/transfers?image={big.id}").json()["transfers"] == []
        assert shown(alice, transfer_id)["state"] == "running"


def test_wrong_changes_are_400_and_what_has_ended_is_409(alice: Client, stored, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, _):
        path = f"/transfers/{transfer_id}"
        for change in (
            {},
            {"paused": "yes"},
            {"limit_bytes_per_s": -1},
            {"limit_bytes_per_s": 1.5},
            {"state": "paused"},
        ):
            assert steered(alice, path, **change).status == 400, change
        assert alice.request("PATCH", path, [("Content-Type", "application/json")]).status == 400
        assert shown(alice, transfer_id)["state"] == "running"
    ended = alice.get(stored.path).header("x-transfer-id")
    eventually(lambda: shown(alice, ended)["state"] == "finished")
    assert steered(alice, f"/transfers/{ended}", paused=True).status == 409


def test_an_unknown_transfer_can_not_be_steered(alice: Client) -> None:
    assert steered(alice, f"/transfers/{uuid.uuid4()}", paused=True).status == 404


def test_only_admins_see_and_change_the_limit_of_the_gateway(alice: Client, admin: Client) -> None:
    assert alice.get("/limits").status == 403
    assert steered(alice, "/limits", limit_bytes_per_s=10**12).status == 403
    before = admin.get("/limits").json()
    try:
        answer = steered(admin, "/limits", limit_bytes_per_s=10**12)
        assert (answer.status, answer.json()) == (200, {"limits": {"limit_bytes_per_s": 10**12}})
        assert admin.get("/limits").json() == answer.json()
        for change in ({}, {"limit_bytes_per_s": -1}, {"limit_bytes_per_s": "x"}, {"rate": 1}):
            assert steered(admin, "/limits", **change).status == 400, change
        assert admin.get("/limits").json() == answer.json()
    finally:
        steered(admin, "/limits", **before["limits"])


# --- the live channel --------------------------------------------------------------------------


async def in_thread(call, *args):
    return await trio.to_thread.run_sync(lambda: call(*args))


async def opened(live: Live) -> tuple[dict, dict]:
    """The first two messages."""
    return await live.next(), await live.next()


async def test_a_connection_begins_with_hello_and_snapshot(alice: Client) -> None:
    async with subscribed(alice) as live:
        hello, snapshot = await opened(live)
        assert live.socket.subprotocol == PROTOCOL
    assert set(hello) == {"type", "epoch", "seq", "hz", "heartbeat_s"}
    assert (hello["type"], hello["hz"], hello["heartbeat_s"]) == ("hello", 2, 10)
    assert isinstance(hello["epoch"], str)
    assert set(snapshot) == {"type", "seq", "transfers", "totals"}
    assert snapshot["type"] == "snapshot"
    assert snapshot["seq"] >= hello["seq"]


async def test_the_epoch_is_the_same_for_all_connections_of_one_start(alice: Client, bob: Client) -> None:
    epochs = []
    for client in (alice, bob):
        async with subscribed(client) as live:
            epochs.append((await live.next())["epoch"])
    assert epochs[0] == epochs[1]


async def test_the_snapshot_shows_what_runs(alice: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, _):
        async with subscribed(alice) as live:
            _, snapshot = await opened(live)
        (transfer,) = [entry for entry in snapshot["transfers"] if entry["id"] == transfer_id]
        assert set(transfer) == FIELDS


@pytest.mark.parametrize("kind", ["pull", "push"])
async def test_a_transfer_is_told_from_start_to_end(alice: Client, stored, kind) -> None:
    async with subscribed(alice) as live:
        await opened(live)
        if kind == "pull":
            answer = await in_thread(alice.get, stored.path)
        else:
            answer = await in_thread(alice.add, stored.data)
        transfer_id = answer.header("x-transfer-id")
        started = await live.event("started", transfer_id)
        finished = await live.event("finished", transfer_id)
    assert set(started) == set(finished) == {"type", "seq", "kind", "transfer"}
    assert set(started["transfer"]) == FIELDS
    assert started["transfer"]["kind"] == kind
    assert finished["transfer"]["bytes"] == len(stored.data)
    assert finished["transfer"]["state"] == "finished"


async def test_progress_comes_as_deltas_before_the_final_event(alice: Client, big: Stored) -> None:
    with pulling(alice, big) as (transfer_id, wire):
        async with subscribed(alice) as live:
            await opened(live)
            done = 1000
            for step in (6 << 20, 6 << 20):
                await in_thread(wire.read_exactly, step)
                done += step
                await live.until(
                    lambda m, done=done: (
                        m["type"] == "delta" and any(r[0] == transfer_id and r[1] >= done for r in m["u"])
                    )
                )
            await in_thread(wire.read_exactly, BIG - done)
            await live.event("finished", transfer_id)
            with trio.move_on_after(1.5):
                while True:
                    await live.next()
    rows = [row for m in live.seen if m["type"] == "delta" for row in m["u"] if row[0] == transfer_id]
    for row in rows:
        assert len(row) == 6
        assert isinstance(row[1], int)
        assert isinstance(row[2], int | float)
        assert row[4] == "running"
        assert set(row[5]) <= {"client", "store", "limit", "disk"}
    counts = [row[1] for row in rows]
    assert counts == sorted(counts)
    finals = [m["type"] == "event" and (m["kind"], m["transfer"]["id"]) == ("finished", transfer_id) for m in live.seen]
    end = finals.index(True)
    assert live.seen[end]["transfer"]["bytes"] == BIG
    later = [m for m in live.seen[end + 1 :] if m["type"] == "delta"]
    assert not any(row[0] == transfer_id for m in later for row in m["u"])


async def test_seq_rises_strictly(alice: Client, stored) -> None:
    async with subscribed(alice) as live:
        await opened(live)
        for _ in range(5):
            answer = await in_thread(alice.get, stored.path)
            await live.event("finished", answer.header("x-transfer-id"))
    numbers = [m["seq"] for m in live.seen if "seq" in m]
    assert all(first < second for first, second in itertools.pairwise(numbers[1:]))
    assert numbers[0] <= numbers[1]


async def test_failed_and_cancelled_transfers_end_with_such_an_event(alice: Client, big: Stored) -> None:
    async with subscribed(alice) as live:
        await opened(live)
        with pulling(alice, big) as (transfer_id, _):
            await in_thread(alice.delete, f"/transfers/{transfer_id}")
            event = await live.event("cancelled", transfer_id)
        assert event["transfer"]["state"] == "cancelled"
        chosen = str(uuid.uuid4())
        headers = [("Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA=="), ("X-Transfer-Id", chosen)]
        await in_thread(alice.add, b"bytes", headers)
        event = await live.event("failed", chosen)
        assert event["transfer"]["state"] == "failed"
        assert event["transfer"]["error"]


async def test_a_gone_transfer_is_removed_from_the_view(alice: Client, big: Stored) -> None:
    async with subscribed(alice) as live:
        with pulling(alice, big) as (transfer_id, wire):
            await live.until(lambda m: m["type"] == "delta" and any(row[0] == transfer_id for row in m["u"]))
            wire.cut()
            await live.until(lambda m: m["type"] == "delta" and transfer_id in m["removed"])


async def test_heartbeats_come_without_transfers(make_user) -> None:
    async with subscribed(make_user("quiet")) as live:
        await opened(live)
        beat = await live.until(lambda m: m["type"] == "heartbeat")
        assert set(beat) == {"type", "seq"}


async def test_an_owner_is_told_of_his_own_transfers_only(alice: Client, bob: Client, admin: Client, stored) -> None:
    async with subscribed(bob) as his, subscribed(admin) as all_of_them:
        await opened(his)
        await opened(all_of_them)
        other = (await in_thread(alice.get, stored.path)).header("x-transfer-id")
        own = (await in_thread(bob.get, stored.path)).header("x-transfer-id")
        await his.event("finished", own)
        await all_of_them.event("finished", other)
        await all_of_them.event("finished", own) if own not in str(all_of_them.seen) else None
    assert other not in str(his.seen)


async def test_subscribe_filters(alice: Client, big: Stored) -> None:
    async with subscribed(alice) as live:
        await opened(live)
        await live.say(type="subscribe", filter={"kind": "push"})
        await live.until(lambda m: m["type"] == "snapshot")
        mark = len(live.seen)
        pulled = (await in_thread(alice.get, f"/images/{big.id}", ("Range", "bytes=0-9"))).header("x-transfer-id")
        pushed = (await in_thread(alice.add, b"bytes")).header("x-transfer-id")
        await live.event("finished", pushed)
    assert pulled not in str(live.seen[mark:])


def deltas(live: Live) -> int:
    return sum(message["type"] == "delta" for message in live.seen)


async def test_subscribe_chooses_the_cadence(alice: Client, big: Stored) -> None:
    """Told apart from a subscriber that chose none, whatever else the machine does."""
    with pulling(alice, big) as (transfer_id, _):
        change = {"limit_bytes_per_s": 1 << 20}
        await in_thread(alice.send_json, "PATCH", f"/transfers/{transfer_id}", change)
        async with subscribed(alice) as often, subscribed(alice) as seldom, trio.open_nursery() as nursery:
            await often.say(type="subscribe", hz=10)

            async def receive(live: Live) -> None:
                while deltas(often) < deltas(seldom) + 8:
                    await live.next()
                nursery.cancel_scope.cancel()

            nursery.start_soon(receive, often)
            nursery.start_soon(receive, seldom)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"type": "nonsense"}',
        '{"type": "subscribe", "hz": "fast"}',
        '{"no": "type"}',
        "[" * 5000,
    ],
)
async def test_a_message_that_is_none_gets_an_error_and_the_channel_goes_on(alice: Client, stored, text) -> None:
    async with subscribed(alice) as live:
        await opened(live)
        await live.socket.send_message(text)
        error = await live.until(lambda m: m["type"] == "error")
        assert set(error) == {"type", "code", "message"}
        assert isinstance(error["code"], int)
        transfer_id = (await in_thread(alice.get, stored.path)).header("x-transfer-id")
        await live.event("finished", transfer_id)


async def test_a_resume_of_another_epoch_gets_a_gap_and_a_snapshot(alice: Client) -> None:
    async with subscribed(alice) as live:
        await opened(live)
        await live.say(type="resume", epoch="another", seq=5)
        await live.until(lambda m: m["type"] == "gap")
        assert (await live.next())["type"] == "snapshot"


async def test_subscribers_that_read_nothing_do_not_slow_a_transfer(alice: Client, big: Stored) -> None:
    wires = []
    try:
        for _ in range(20):
            wires.append(alice.start("GET", "/transfers/ws", upgrade_headers(), receive_buffer=2048))
            assert wires[-1].read_head().status == 101
        with trio.fail_after(60):
            answer = await in_thread(alice.get, big.path)
        assert answer.body == big.data
    finally:
        for wire in wires:
            wire.cut()


# --- who may open it ---------------------------------------------------------------------------


async def test_missing_or_wrong_credentials_are_403_before_the_upgrade(alice: Client, anonymous: Client) -> None:
    wrong = Client(alice.url, alice.access_key, "wrong")
    old = Client(alice.url, alice.access_key, alice.secret_key, "VISOR")
    for client in (anonymous, wrong, old):
        assert refusal(client) == 403


async def test_any_origin_is_403_where_none_is_configured(alice: Client, gateway) -> None:
    for origin in ("https://evil.example", gateway.url, "null", ""):
        assert refusal(alice, headers=[("Origin", origin)]) == 403


async def test_the_origin_must_be_that_of_public_url_whatever_the_host_says(start) -> None:
    gateway = start('[server]\npublic_url = "https://images.example"\n')
    async with subscribed(gateway.admin, headers=[("Origin", "https://images.example")]) as live:
        assert (await live.next())["type"] == "hello"
    for origin in (gateway.url, "http://images.example", "https://images.example.evil", "https://images.example:444"):
        assert refusal(gateway.admin, headers=[("Origin", origin)]) == 403


async def test_an_origin_that_is_refused_uses_up_no_ticket(start) -> None:
    gateway = start('[server]\npublic_url = "https://images.example"\n')
    ticket = new_ticket(gateway.admin)
    target = f"/transfers/ws?ticket={ticket}"
    assert refusal(gateway.client(), target=target, headers=[("Origin", "https://evil.example")]) == 403
    async with subscribed(gateway.client(), target=target, headers=[("Origin", "https://images.example")]) as live:
        assert (await live.next())["type"] == "hello"


def new_ticket(client: Client) -> str:
    answer = client.send_json("POST", "/tickets", {"route": "/transfers/ws"})
    assert answer.status == 200, answer.body
    ticket = answer.json()["ticket"]
    return ticket if isinstance(ticket, str) else ticket["ticket"]


async def test_a_ticket_opens_the_channel_for_its_user_once(
    alice: Client, bob: Client, anonymous: Client, stored
) -> None:
    target = f"/transfers/ws?ticket={new_ticket(alice)}"
    async with subscribed(anonymous, target=target) as live:
        await opened(live)
        other = (await in_thread(bob.get, stored.path)).header("x-transfer-id")
        own = (await in_thread(alice.get, stored.path)).header("x-transfer-id")
        await live.event("finished", own)
        assert other not in str(live.seen)
    assert refusal(anonymous, target=target) == 403


async def test_a_ticket_is_good_for_its_route_only(alice: Client, anonymous: Client, stored) -> None:
    ticket = new_ticket(alice)
    for path in ("/transfers", "/images", stored.path, "/users"):
        assert anonymous.get(f"{path}?ticket={ticket}").status == 403
    async with subscribed(anonymous, target=f"/transfers/ws?ticket={ticket}") as live:
        assert (await live.next())["type"] == "hello"


async def test_a_made_up_ticket_is_403(anonymous: Client) -> None:
    for ticket in ("", "fake", "x" * 43, "%00"):
        assert refusal(anonymous, target=f"/transfers/ws?ticket={ticket}") == 403


def test_tickets_need_credentials(anonymous: Client) -> None:
    assert anonymous.send_json("POST", "/tickets", {"route": "/transfers/ws"}).status == 403


def test_the_live_route_without_an_upgrade_is_no_200(alice: Client) -> None:
    answer = alice.get("/transfers/ws")
    assert 400 <= answer.status < 500


async def test_a_deleted_user_is_told_goodbye_or_cut_and_gets_no_more(gateway, make_user) -> None:

    user = make_user("leaver")
    async with subscribed(user) as live:
        await opened(live)
        await in_thread(gateway.admin.delete, f"/users/{user.access_key}")
        try:
            bye = await live.until(lambda m: m["type"] == "bye")
            assert bye["reason"] == "auth"
        except trio_websocket.ConnectionClosed:
            pass


# --- Server-Sent Events --------------------------------------------------------------------------


@contextmanager
def streaming(client: Client, query: str = "", *headers: tuple[str, str]) -> Generator[Wire]:
    with client.start("GET", f"/transfers/events{query}", headers) as wire:
        head = wire.read_head()
        assert (head.status, head.header("content-type")) == (200, "text/event-stream")
        assert head.header("cache-control") == "no-store"
        yield wire


def next_message(wire: Wire, wanted: str) -> tuple[str, dict]:
    """The id and the message of the next event of that type."""
    while True:
        found = re.search(rb"event: (\w+)\n(?:id: (\S+)\n)?data: (.*)\n\n", wire.read_through(b"\n\n"))
        assert found, "no event"
        message = json.loads(found[3])
        assert message["type"] == found[1].decode()
        if message["type"] == wanted:
            return (found[2] or b"").decode(), message


def next_event(wire: Wire, transfer_id: str) -> dict:
    """The next event of one transfer: others of the same user may still end."""
    while True:
        event = next_message(wire, "event")[1]
        if event["transfer"]["id"] == transfer_id:
            return event


def test_the_event_stream_tells_what_the_websocket_tells(alice: Client, bob: Client, stored) -> None:
    with streaming(alice) as wire:
        event_id, hello = next_message(wire, "hello")
        assert event_id == f"{hello['epoch']}:{hello['seq']}"
        assert set(next_message(wire, "snapshot")[1]) == {"type", "seq", "transfers", "totals"}
        bob.get(stored.path)
        transfer_id = alice.get(stored.path).header("x-transfer-id")
        events = [next_event(wire, transfer_id) for _ in range(2)]
        assert [event["kind"] for event in events] == ["started", "finished"]
        assert set(events[1]["transfer"]) == FIELDS


def test_the_event_stream_resumes_at_the_last_id(alice: Client, stored) -> None:
    with streaming(alice) as wire:
        last, _ = next_message(wire, "snapshot")
    transfer_id = alice.get(stored.path).header("x-transfer-id")
    eventually(lambda: shown(alice, transfer_id)["state"] == "finished")
    with streaming(alice, "", ("Last-Event-ID", last)) as wire:
        assert [next_event(wire, transfer_id)["kind"] for _ in range(2)] == ["started", "finished"]
    with streaming(alice, "", ("Last-Event-ID", "00ff:1")) as wire:
        assert next_message(wire, "gap")[1] == {"type": "gap"}
        next_message(wire, "snapshot")


def test_the_event_stream_filters(alice: Client, big: Stored) -> None:
    with pulling(alice, big) as (pull, _), pushing(alice) as (push, _), streaming(alice, "?kind=push") as wire:
        ids = {entry["id"] for entry in next_message(wire, "snapshot")[1]["transfers"]}
        assert push in ids
        assert pull not in ids
    assert alice.get("/transfers/events?nonsense=1").status == 400


def test_the_event_stream_wants_credentials(alice: Client) -> None:
    for headers in ((), (("Authorization", "Bearer none"),)):
        with alice.connect() as wire:
            wire.send(head_bytes("GET", "/transfers/events", [("Host", "g"), *headers]))
            assert wire.read_response("GET").status == 403


# --- the schema ----------------------------------------------------------------------------------


async def test_every_message_is_one_of_the_published_schema(alice: Client, big: Stored) -> None:
    answer = alice.get("/transfers/schema.json")
    assert (answer.status, answer.header("content-type")) == (200, "application/schema+json")
    schema = json.loads(answer.body)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    async with subscribed(alice) as live:
        await opened(live)
        await live.say(type="nonsense")
        await live.say(type="resume", epoch="0", seq=1)
        # What happened before this snapshot is told by no event.
        await live.until(lambda message: message["type"] == "snapshot")
        with pulling(alice, big) as (transfer_id, wire):
            wire.read_exactly(4 << 20)
            await in_thread(lambda: steered(alice, f"/transfers/{transfer_id}", paused=True))
            await live.until(lambda _: {"delta", "event", "gap", "error"} <= {each["type"] for each in live.seen})
        await live.event("failed", transfer_id)
    for message in live.seen:
        validator.validate(message)
    for wrong in ({"type": "delta", "seq": 1}, {**live.seen[0], "more": 1}, {"type": "event", "seq": "1"}):
        assert not validator.is_valid(wrong)


def test_the_schema_tells_what_a_client_may_say(alice: Client) -> None:
    said = json.loads(alice.get("/transfers/schema.json").body)["$defs"]
    assert {"Subscribe", "Resume", "Transfer", "Totals"} <= set(said)
    assert set(said["Transfer"]["properties"]) == FIELDS | {"position"}
    assert set(said["Transfer"]["required"]) == FIELDS


# --- the history ---------------------------------------------------------------------------------

ENDED_FIELDS = (FIELDS - {"rate", "eta_s", "waiters", "limit_bytes_per_s"}) | {"ended_at", "duration_s"}


def history(client: Client, query: str = "") -> list[dict]:
    answer = client.get(f"/transfers/history{query}")
    assert answer.status == 200
    return answer.json()["transfers"]


def test_what_ended_is_in_the_history_the_newest_first(alice: Client, bob: Client, admin: Client, stored) -> None:
    ids = []
    for _ in range(3):
        ids.append(alice.get(stored.path).header("x-transfer-id"))
        eventually(lambda: shown(alice, ids[-1])["state"] == "finished")
    eventually(lambda: {entry["id"] for entry in history(alice)} >= set(ids))
    found = [entry for entry in history(alice) if entry["id"] in ids]
    assert [entry["id"] for entry in found] == ids[::-1]
    assert set(found[0]) == ENDED_FIELDS
    assert (found[0]["state"], found[0]["bytes"], found[0]["image"]) == ("finished", len(stored.data), stored.id)
    assert set(found[0]["wait"]) == {"client", "store", "limit", "disk"}
    assert set(ids) <= {entry["id"] for entry in history(admin, f"?user={alice.access_key}")}
    assert not set(ids) & {entry["id"] for entry in history(bob)}
    assert not history(bob, f"?user={alice.access_key}")


def test_the_history_is_filtered_and_paged(alice: Client) -> None:
    stored = store_image(alice)
    for _ in range(3):
        alice.get(stored.path)
    failed = alice.add(b"bytes", [("Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA==")])
    assert failed.status == 400
    query = f"?image={stored.id}&kind=pull&state=finished"
    eventually(lambda: len(history(alice, query)) == 3)
    eventually(lambda: history(alice, "?state=failed&kind=push"))
    everything = [entry["id"] for entry in history(alice, query)]
    paged: list[str] = []
    target = f"/transfers/history{query}&limit=2"
    while target:
        answer = alice.get(target)
        paged += [entry["id"] for entry in answer.json()["transfers"]]
        found = re.match(r"<https?://[^/]+([^>]+)>; rel=\"next\"", answer.header("link") or "")
        target = found[1] if found else ""
    assert paged == everything


@pytest.mark.parametrize("query", ["?limit=0", "?limit=1001", "?limit=x", "?before=-1", "?limit=1&limit=2", "?owner=x"])
def test_a_wrong_question_to_the_history_is_400(alice: Client, query: str) -> None:
    assert alice.get(f"/transfers/history{query}").status == 400


def test_the_history_outlives_its_images(alice: Client) -> None:
    image = alice.add(b"short-lived").image
    transfer_id = alice.get(f"/images/{image['_id']}").header("x-transfer-id")
    assert alice.delete(f"/images/{image['_id']}").status == 200
    eventually(lambda: transfer_id in {entry["id"] for entry in history(alice, f"?image={image['_id']}")})
