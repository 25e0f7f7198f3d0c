"""The role `auth` on real sockets: whose secrets leave, and towards whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from roles import KEY, Role, serving
from wire import Client, unique


@pytest.fixture(scope="module")
def role(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    """A role that lets in who has the key, and this host without it."""
    settings = f'shared_key = "{KEY}"\nallow = ["127.0.0.0/8"]'
    with serving(tmp_path_factory.mktemp("auth"), "auth", settings) as role:
        yield role


def create(role: Role) -> dict[str, Any]:
    key = unique("user")
    fields = {"access_key": key, "email": f"{key}@example.org"}
    answer = role.peer.send_json("POST", "/users", {"user": fields})
    assert answer.status == 200
    user: dict[str, Any] = answer.json()["user"]
    return user


def test_a_known_peer_is_told_secrets(role: Role) -> None:
    made = create(role)
    assert role.peer.get(f"/users/{made['access_key']}").json()["user"] == made
    listed = role.peer.get("/users").json()["users"]
    assert made in listed
    assert {user["access_key"]: user["secret_key"] for user in listed}["admin"] == role.gateway.secret_key


def test_an_allowed_network_alone_is_told_none(role: Role) -> None:
    made = create(role)
    for path in ("/users", f"/users/{made['access_key']}", f"/users?email={made['email']}"):
        answer = role.anybody.get(path)
        assert answer.status == 200
        users = [*answer.json().values()]
        users = users[0] if isinstance(users[0], list) else users
        assert users
        assert all(user["secret_key"] is None for user in users)
        assert made["secret_key"].encode() not in answer.body


@pytest.mark.parametrize(
    ("method", "path", "document"),
    [
        ("POST", "/users", {"user": {"access_key": "new", "email": "new@example.org"}}),
        ("PUT", "/users/admin", {"user": {"email": "new@example.org"}}),
        ("DELETE", "/users/admin", None),
    ],
)
def test_an_allowed_network_alone_changes_nothing(role: Role, method: str, path: str, document: object) -> None:
    before = role.peer.get("/users").body
    assert role.anybody.request(method, path, (), json.dumps(document).encode()).status == 403
    assert role.peer.get("/users").body == before


def test_a_user_of_a_peer_is_one_of_the_gateway(role: Role) -> None:
    made = create(role)
    user = Client(role.gateway.url, made["access_key"], made["secret_key"])
    session = user.get("/session").json()["session"]
    assert session == {"access_key": made["access_key"], "role": "user"}
    answer = role.peer.delete(f"/users/{made['access_key']}")
    assert answer.json()["user"] == made
    assert user.get("/session").status == 403


def test_what_the_gateways_admin_changes_is_told_to_peers(role: Role) -> None:
    user = role.gateway.new_user()
    path = f"/users/{user.access_key}"
    assert role.peer.get(path).json()["user"]["secret_key"] == user.secret_key
    rotated = role.gateway.admin.send_json("POST", f"{path}/rotate", {}).json()["user"]["secret_key"]
    assert role.peer.get(path).json()["user"]["secret_key"] == rotated


def test_the_last_admin_stays(role: Role) -> None:
    answer = role.peer.delete("/users/admin")
    assert (answer.status, answer.message) == (409, "The last admin can't be deleted.")


def test_answers_with_secrets_are_kept_by_nobody(role: Role) -> None:
    assert role.peer.get("/users").header("cache-control") == "no-store"
