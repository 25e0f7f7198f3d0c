"""Two gateways on one PostgreSQL: what each keeps is right for as long as the other changes nothing, and not longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_process import Gateway, launch
from servers.postgresql import PostgreSQL

Pair = tuple[Gateway, Gateway]


@pytest.fixture
def pair(tmp_path: Path, postgresql_of_its_own: PostgreSQL) -> Iterator[Pair]:
    environment = {"VISOR_GATEWAY__METADATA__URL": postgresql_of_its_own.url_for(tmp_path)}
    config = f'[auth]\nmaster_key_file = "{tmp_path / "master.key"}"\n'
    first = launch(tmp_path / "first", config=config, environment=environment)
    try:
        second = launch(tmp_path / "second", config=config, environment=environment, beside=first)
        try:
            yield first, second
        finally:
            second.kill()
    finally:
        first.kill()


def new_token(gateway: Gateway, access_key: str) -> tuple[str, tuple[str, str]]:
    """A token's id, and the header that shows it."""
    made = gateway.admin.send_json("POST", f"/users/{access_key}/tokens", {"name": "ci"}).json()["token"]
    return made["id"], ("Authorization", f"Bearer {made['token']}")


def test_what_one_gateway_changed_the_other_shows_at_once(pair: Pair) -> None:
    first, second = pair
    image_id = first.admin.add(name="before").image["_id"]
    user = first.new_user()
    _, bearer = new_token(first, user.access_key)
    path, reader = f"/images/{image_id}", second.client()
    for number in range(10):
        for _ in range(2):
            assert reader.head(path, bearer).status == 200
            assert [image["_id"] for image in reader.get("/images", bearer).json()["images"]] == [image_id]
        assert first.admin.put(image_id, name=f"{number}").status == 200
        assert reader.head(path, bearer).meta()["name"] == f"{number}"
        assert reader.get("/images", bearer).json()["images"][0]["name"] == f"{number}"
        assert first.admin.put(image_id, access="private").status == 200
        assert reader.head(path, bearer).status == 404
        assert reader.get("/images", bearer).status == 404
        assert first.admin.put(image_id, access="public").status == 200
    assert first.admin.delete(path).status == 200
    assert reader.head(path, bearer).status == 404


def test_a_token_that_was_revoked_at_one_gateway_is_refused_at_once_by_the_other(pair: Pair) -> None:
    first, second = pair
    path = f"/images/{first.admin.add().image['_id']}"
    user = first.new_user()
    for revoking, reading in (pair, (second, first)) * 3:
        token_id, bearer = new_token(revoking, user.access_key)
        reader = reading.client()
        for _ in range(3):
            assert reader.head(path, bearer).status == 200
            assert reader.get("/images", bearer).status == 200
        assert revoking.admin.delete(f"/users/{user.access_key}/tokens/{token_id}").status == 200
        assert {reader.head(path, bearer).status, reader.get("/images", bearer).status} == {403}
    _, bearer = new_token(first, user.access_key)
    assert second.client().head(path, bearer).status == 200
    assert first.admin.delete(f"/users/{user.access_key}").status == 200
    assert second.client().head(path, bearer).status == 403
