"""Answers that are kept: never another's, never older than a change that was acknowledged, never too many."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio
from gateway import Gateway
from trio.testing import wait_all_tasks_blocked

from visor_gateway.meta.sql import open_metadata
from visor_gateway.routes.kept import Kept
from visor_gateway.routes.request import PAGES_BYTES, VIEWS_BYTES

LISTS = ["/images", "/images/detail"]


def ids(reply) -> list[str]:
    return [image["_id"] for image in reply.json()["images"]]


@pytest.mark.parametrize("target", LISTS)
async def test_a_list_shows_what_was_added_changed_and_deleted_since_the_last(gateway: Gateway, target: str) -> None:
    first = await gateway.add()
    for _ in range(2):
        assert ids(await gateway.call("GET", target)) == [first["_id"]]
    second = await gateway.add()
    assert set(ids(await gateway.call("GET", target))) == {first["_id"], second["_id"]}
    await gateway.call("PUT", f"/images/{first['_id']}", {"x-image-meta-name": "renamed"})
    assert "renamed" in {image["name"] for image in (await gateway.call("GET", target)).json()["images"]}
    await gateway.call("DELETE", f"/images/{second['_id']}")
    assert ids(await gateway.call("GET", target)) == [first["_id"]]
    await gateway.call("DELETE", f"/images/{first['_id']}")
    assert (await gateway.call("GET", target)).status == 404


async def test_a_head_shows_what_another_process_has_just_changed(gateway: Gateway, tmp_path: Path) -> None:
    image_id = (await gateway.add())["_id"]
    async with open_metadata(f"sqlite:///{tmp_path}/db.sqlite", tmp_path / "master.key") as other:
        for number in range(5):
            image = await other.images.get(image_id)
            changed = msgspec.structs.replace(image, name=f"{number}")
            await other.images.replace(changed, expected=image)
            reply = await gateway.call("HEAD", f"/images/{image_id}")
            assert reply.headers["x-image-meta-name"] == f"{number}"
            assert (await gateway.call("GET", f"/images/{image_id}")).headers["x-image-meta-name"] == f"{number}"
        await other.images.entomb(image_id)
        assert (await gateway.call("HEAD", f"/images/{image_id}")).status == 404
        assert (await gateway.call("GET", "/images")).status == 404


async def test_a_revoked_token_opens_nothing_that_is_kept(gateway: Gateway, tmp_path: Path) -> None:
    image_id = (await gateway.add())["_id"]
    made = (await gateway.json("POST", "/users/admin/tokens", {"expires_in": 60})).json()["token"]
    bearer = {"authorization": f"Bearer {made['token']}"}
    targets = [("GET", "/images"), ("HEAD", f"/images/{image_id}"), ("GET", f"/images/{image_id}")]
    for _ in range(2):
        assert {(await gateway.call(*target, bearer)).status for target in targets} == {200}
    async with open_metadata(f"sqlite:///{tmp_path}/db.sqlite", tmp_path / "master.key") as other:
        await other.accounts.revoke_token("admin", made["id"])
    assert {(await gateway.call(*target, bearer)).status for target in targets} == {403}


async def test_what_is_kept_for_one_is_not_shown_to_another(gateway: Gateway) -> None:
    alice, bob = await gateway.user("alice"), await gateway.user("bob")
    private = (await gateway.add(user=alice, access="private"))["_id"]
    public = (await gateway.add(user=alice))["_id"]
    for _ in range(2):
        for target in LISTS:
            assert set(ids(await gateway.call("GET", target, user=alice))) == {private, public}
            assert ids(await gateway.call("GET", target, user=bob)) == [public]
        for method in ("HEAD", "GET"):
            assert (await gateway.call(method, f"/images/{private}", user=alice)).status == 200
            assert (await gateway.call(method, f"/images/{private}", user=bob)).status == 404


async def test_whatever_makes_answers_differ_keeps_them_apart(gateway: Gateway) -> None:
    await gateway.add(name="a")
    image_id = (await gateway.add(name="b"))["_id"]
    for _ in range(2):
        for host in ("one.test", "two.test:81"):
            listed = await gateway.call("GET", "/images", {"host": host})
            assert all(image["uri"].startswith(f"http://{host}/images/") for image in listed.json()["images"])
            shown = await gateway.call("HEAD", f"/images/{image_id}", {"host": host})
            assert shown.headers["x-image-meta-uri"] == f"http://{host}/images/{image_id}"
        xml = await gateway.call("GET", "/images", {"accept": "application/xml"})
        assert xml.headers["content-type"] == "application/xml; charset=utf-8"
        assert (await gateway.call("GET", "/images")).headers["content-type"] == "application/json; charset=utf-8"
        assert ids(await gateway.call("GET", "/images?name=b")) == [image_id]
        assert len(ids(await gateway.call("GET", "/images?name=a"))) == 1
        assert "checksum" in (await gateway.call("GET", "/images/detail")).json()["images"][0]
        assert "checksum" not in (await gateway.call("GET", "/images")).json()["images"][0]
        page = await gateway.call("GET", "/images/?limit=1")
        assert "/images?limit=1&marker=" in page.headers["link"]


async def test_preconditions_are_weighed_for_every_request(gateway: Gateway) -> None:
    image_id = (await gateway.add())["_id"]
    etag = (await gateway.call("HEAD", f"/images/{image_id}")).headers["etag"]
    for method in ("HEAD", "GET"):
        assert (await gateway.call(method, f"/images/{image_id}", {"if-none-match": etag})).status == 304
        assert (await gateway.call(method, f"/images/{image_id}", {"if-match": '"other"'})).status == 412
        assert (await gateway.call(method, f"/images/{image_id}")).status == 200


async def test_what_is_kept_has_a_bound_whatever_clients_ask(gateway: Gateway) -> None:
    image_id = (await gateway.add())["_id"]
    for number in range(1000):
        host = {"host": f"{'h' * 6000}{number}.test"}
        await gateway.call("HEAD", f"/images/{image_id}", host)
    await gateway.call("GET", f"/images?x={'y' * 10_000}")
    assert VIEWS_BYTES // 2 < gateway.services.views.size <= VIEWS_BYTES
    assert gateway.services.pages.size <= PAGES_BYTES


# --- making ----------------------------------------------------------------------------------------


class Maker:
    """Makes a value when it is told, and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = trio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.calls += 1
        number = self.calls
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return number


async def test_all_who_ask_at_once_get_what_one_of_them_made() -> None:
    kept: Kept[str, int] = Kept(100, lambda value: 1)
    make, found = Maker(), []

    async def ask() -> None:
        found.append(await kept.get(1, "key", make))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        make.go.set()
    assert (found, make.calls) == ([1] * 5, 1)
    assert await kept.get(1, "key", make) == 1
    assert await kept.get(2, "key", make) == 2


async def test_who_asks_after_a_change_does_not_get_what_was_begun_before_it() -> None:
    kept: Kept[str, int] = Kept(100, lambda value: 1)
    make, found = Maker(), {}

    async def ask(version: int) -> None:
        found[version] = await kept.get(version, "key", make)

    async with trio.open_nursery() as nursery:
        for version in (1, 2):
            nursery.start_soon(ask, version)
            await wait_all_tasks_blocked()
        make.go.set()
    assert found == {1: 1, 2: 2}


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_where_the_maker_ends_the_others_make_it_themselves(how: str) -> None:
    kept: Kept[str, int] = Kept(100, lambda value: 1)
    make, found = Maker(), []

    async def ask() -> None:
        found.append(await kept.get(1, "key", make))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            async with trio.open_nursery() as leader:

                async def lead() -> None:
                    try:
                        await kept.get(1, "key", make)
                    except ValueError:
                        make.error = None

                leader.start_soon(lead)
                await wait_all_tasks_blocked()
                nursery.start_soon(ask)
                await wait_all_tasks_blocked()
                if how == "cancelled":
                    first.cancel()
                else:
                    make.error = ValueError()
                    make.go.set()
        make.go.set()
    assert (found, make.calls) == ([2], 2)


async def test_without_a_version_every_one_is_made() -> None:
    kept: Kept[str, int] = Kept(100, lambda value: 1)
    make = Maker()
    make.go.set()
    assert [await kept.get(None, "key", make) for _ in range(3)] == [1, 2, 3]
    assert kept.size == 0
