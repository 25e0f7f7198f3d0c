"""A gateway whose users are at another gateway's role `auth`, or at an Auth server that goes away and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from canary import canary
from gateway_process import Gateway, running
from roles import KEY, Role, bearer, serving
from servers.visor_auth import AuthServer
from wire import Client, eventually, store_image, unique

SECONDS = 60.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    """The gateway that has the users."""
    with serving(tmp_path_factory.mktemp("directory"), "auth") as role:
        yield role


@pytest.fixture(scope="module")
def branch(directory: Role, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway without users of its own, but for its admin."""
    address = directory.url.removeprefix("http://")
    config = f'[accounts]\nurl = "visor+http://:{KEY}@{address}"\n'
    with running(tmp_path_factory.mktemp("branch"), config=config) as gateway:
        yield gateway


def of_user(gateway: Gateway, user: Client) -> Client:
    """The same user at another gateway."""
    return gateway.client(user.access_key, user.secret_key)


def test_a_user_who_is_made_there_signs_pulls_here_until_he_is_deleted_there(directory: Role, branch: Gateway) -> None:
    user = directory.gateway.new_user()
    here = of_user(branch, user)
    image = store_image(here, access="private")
    assert image.record["owner"] == user.access_key
    assert here.get(image.path).body == image.data
    token = branch.admin.send_json("POST", f"/users/{user.access_key}/tokens", {"name": "ci"}).json()["token"]["token"]
    assert branch.client().get(image.path, bearer(token)).body == image.data
    assert directory.gateway.admin.delete(f"/users/{user.access_key}").status == 200
    eventually(lambda: here.get(image.path).status == 403, SECONDS, "the end of his signatures")
    eventually(lambda: branch.client().get(image.path, bearer(token)).status == 403, SECONDS, "the end of his token")
    assert branch.admin.get(f"/users/{user.access_key}").status == 404


def test_a_secret_that_is_rotated_there_counts_here(directory: Role, branch: Gateway) -> None:
    user = directory.gateway.new_user()
    before = of_user(branch, user)
    assert before.get("/session").status == 200
    answer = directory.gateway.admin.request("POST", f"/users/{user.access_key}/rotate")
    after = branch.client(user.access_key, answer.json()["user"]["secret_key"])
    eventually(lambda: after.get("/session").status == 200, SECONDS, "the new secret")
    eventually(lambda: before.get("/session").status == 403, SECONDS, "the end of the old secret")


def test_a_user_who_is_made_here_is_one_there(directory: Role, branch: Gateway) -> None:
    user = branch.new_user()
    assert user.get("/session").json()["session"] == {"access_key": user.access_key, "role": "user"}
    there = Client(directory.gateway.url, user.access_key, user.secret_key)
    assert there.get("/session").status == 200
    path = f"/users/{user.access_key}"
    assert branch.admin.send_json("PUT", path, {"email": "new@example.org"}).status == 200
    assert directory.gateway.admin.get(path).json()["user"]["email"] == "new@example.org"
    for answer in (
        branch.admin.request("POST", f"{path}/rotate"),
        branch.admin.send_json("PUT", path, {"role": "admin"}),
    ):
        assert answer.status == 409
        assert "is kept by the Auth server" in answer.message
    assert branch.admin.delete(path).status == 200
    assert directory.gateway.admin.get(path).status == 404


def test_an_admin_there_is_no_admin_here(directory: Role, branch: Gateway) -> None:
    there = directory.gateway.new_user(role="admin")
    assert of_user(branch, there).get("/session").json()["session"]["role"] == "user"
    assert of_user(branch, there).get("/users").status == 403
    assert of_user(branch, directory.gateway.admin).get("/session").status == 403
    here = branch.new_user(role="admin")
    assert here.get("/users").status == 200
    assert directory.gateway.admin.get(f"/users/{here.access_key}").status == 404


def test_while_the_server_is_away_users_pull_and_nothing_of_them_changes(tmp_path: Path) -> None:
    server = AuthServer()
    try:
        key = unique("user")
        server.add(key, secret_key=(secret := canary.secret("auth-server")))
        config = f'[accounts]\nurl = "{server.url}"\n'
        with running(tmp_path, config=config, workers=1) as gateway:
            user = gateway.client(key, secret)
            image = store_image(user, access="private")
            server.close()
            assert user.get(image.path).body == image.data
            eventually(lambda: gateway.client().get("/ready").status == 503, SECONDS, "it is noticed")
            assert user.get(image.path).body == image.data
            assert gateway.admin.send_json("PUT", f"/users/{key}", {"email": "a@example.org"}).status == 503
            assert gateway.client("never-seen", secret).get(image.path).status == 503
            assert gateway.admin.get("/session").status == 200
            server.reopen()
            eventually(lambda: gateway.client().get("/ready").status == 200, SECONDS, "ready again")
            assert gateway.admin.get(f"/users/{key}").status == 200
    finally:
        server.close()
    assert server.failures == []
