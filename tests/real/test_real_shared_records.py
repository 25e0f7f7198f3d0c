"""Two gateways on one PostgreSQL: what each keeps is right for as long as the other changes nothing, and not longer."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from gateway_process import Gateway, launch
from servers.postgresql import PostgreSQL
from wire import PATIENCE, Client, Wire

Pair = tuple[Gateway, Gateway]


@pytest.fixture
def workers() -> int:
    """How many the second gateway has."""
    return 1


@pytest.fixture
def pair(tmp_path: Path, postgresql_of_its_own: PostgreSQL, workers: int) -> Iterator[Pair]:
    environment = {"VISOR_GATEWAY__METADATA__URL": postgresql_of_its_own.url_for(tmp_path)}
    config = f'[auth]\nmaster_key_file = "{tmp_path / "master.key"}"\n'
    first = launch(tmp_path / "first", config=config, environment=environment)
    try:
        second = launch(tmp_path / "second", config=config, environment=environment, workers=workers, beside=first)
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


@contextlib.contextmanager
def watching(client: Client) -> Generator[Wire, None, None]:
    with client.start("GET", "/transfers/events", timeout=PATIENCE) as wire:
        assert wire.read_head().status == 200
        while b'"type":"snapshot"' not in wire.read_through(b"\n\n"):
            pass
        yield wire


def told_goodbye(wire: Wire) -> None:
    """The last message, and the end of the stream."""
    while b'"type":"bye"' not in (message := wire.read_through(b"\n\n")):
        pass
    assert b'"reason":"auth"' in message


@pytest.mark.parametrize("workers", [1, 2])
def test_who_watches_through_one_gateway_is_told_goodbye_when_another_takes_his_rights(pair: Pair) -> None:
    first, second = pair
    stays = first.new_user()
    with watching(second.client(stays.access_key, stays.secret_key)) as unchanged:
        deleted, rotated, promoted = first.new_user(), first.new_user(), first.new_user()
        for user, change in (
            (deleted, lambda: first.admin.delete(f"/users/{deleted.access_key}")),
            (rotated, lambda: first.admin.send_json("POST", f"/users/{rotated.access_key}/rotate", {})),
            (promoted, lambda: first.admin.send_json("PUT", f"/users/{promoted.access_key}", {"role": "admin"})),
        ):
            with watching(second.client(user.access_key, user.secret_key)) as wire:
                assert (
                    first.admin.send_json("PUT", f"/users/{user.access_key}", {"email": "n@example.org"}).status == 200
                )
                assert change().status == 200
                told_goodbye(wire)
        # Whoever kept his rights is still told of what happens.
        own = second.client(stays.access_key, stays.secret_key)
        own.add(body=b"x" * 1000)
        while b'"kind":"finished"' not in (message := unchanged.read_through(b"\n\n")):
            assert b'"type":"bye"' not in message
