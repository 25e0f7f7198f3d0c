"""The contract of the history: order, pages, filters, and that it stays as short as it was told to."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec

from visor_gateway.meta.contract import EndedTransfer, HistoryQuery

MOMENT = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)


def ended(**fields: Any) -> EndedTransfer:
    values: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "kind": "pull",
        "image": "i",
        "store": "file",
        "client": "192.0.2.1",
        "user": "anne",
        "state": "finished",
        "bytes": 2**40,
        "size": 2**40,
        "offset": 0,
        "rate_avg": 10**9,
        "started_at": MOMENT,
        "ended_at": MOMENT,
        "duration_ms": 1100,
        "wait_client": 1,
        "wait_store": 2,
        "wait_limit": 3,
        "wait_disk": 4,
        "attempt": 1,
        "error": None,
    }
    return EndedTransfer(**values | fields)


async def test_what_was_added_is_found_again_the_newest_first(metadata) -> None:
    first, second = ended(), ended(user=None, client=None, store=None, size=None, error="why", state="failed")
    await metadata.history.add([first], keep=10)
    await metadata.history.add([second], keep=10)
    found = await metadata.history.find(HistoryQuery())
    assert [msgspec.structs.replace(each, number=0) for each in found] == [second, first]
    assert found[0].number > found[1].number > 0


async def test_only_the_last_are_kept_and_numbers_are_never_given_again(metadata) -> None:
    await metadata.history.add([ended(image=str(number)) for number in range(7)], keep=3)
    found = await metadata.history.find(HistoryQuery())
    assert [each.image for each in found] == ["6", "5", "4"]
    await metadata.history.add([ended(image="7")], keep=3)
    assert [each.image for each in await metadata.history.find(HistoryQuery())] == ["7", "6", "5"]
    await metadata.history.add([], keep=0)
    assert await metadata.history.find(HistoryQuery()) == []
    await metadata.history.add([ended()], keep=3)
    assert (await metadata.history.find(HistoryQuery()))[0].number > found[0].number


async def test_pages_meet_without_gap_or_overlap(metadata) -> None:
    await metadata.history.add([ended(image=str(number)) for number in range(10)], keep=100)
    images: list[str] = []
    before = None
    while page := await metadata.history.find(HistoryQuery(before=before, limit=3)):
        images += [each.image for each in page]
        before = page[-1].number
    assert images == [str(number) for number in reversed(range(10))]


async def test_users_see_their_own_and_every_filter_chooses(metadata) -> None:
    await metadata.history.add(
        [
            ended(image="1"),
            ended(image="2", user="bob", kind="push"),
            ended(image="3", store="s3", state="failed"),
            ended(image="4", user=None),
        ],
        keep=10,
    )

    async def seen(viewer: str | None = None, **filters: set[str]) -> str:
        chosen = tuple((name, frozenset(values)) for name, values in filters.items())
        found = await metadata.history.find(HistoryQuery(user=viewer, filters=chosen))
        return "".join(each.image for each in found)

    assert await seen() == "4321"
    assert await seen("anne") == "31"
    assert await seen("anne", user={"bob"}) == ""
    assert await seen(kind={"push"}) == "2"
    assert await seen(image={"1", "4"}) == "41"
    assert await seen(store={"s3"}, state={"failed"}) == "3"
    assert await seen(state={"finished"}, kind={"pull"}) == "41"
