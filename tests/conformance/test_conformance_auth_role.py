"""The role `auth` answers what VISOR's Auth server answered to the same requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from roles import Role, bearer, check_auth_exchanges, serving


@pytest.fixture(scope="module")
def role(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    with serving(tmp_path_factory.mktemp("auth"), "auth") as role:
        yield role


def test_every_recorded_request_is_answered_as_it_was(role: Role) -> None:
    role.anybody.is_told_secrets = True
    check_auth_exchanges(role.anybody, bearer())


def test_nobody_is_found_by_a_filter_that_nobody_meets(role: Role) -> None:
    secret = role.peer.get("/users/admin").json()["user"]["secret_key"]
    for query in ("email=nobody@example.org", "nothing=x", f"secret_key={secret}"):
        answer = role.peer.get(f"/users?{query}")
        assert (answer.status, answer.message) == (404, "No users found with given parameters.")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"secret_key": "x" * 40}, "These fields are read-only: secret_key"),
        ({"_id": "x"}, "These fields are read-only: _id"),
        ({"role": "admin"}, "These fields are not known"),
        ({"email": None}, "Invalid email"),
        ({"access_key": "other"}, "These fields are read-only: access_key"),
        ({"email": "nonsense"}, "The email address seems to be invalid."),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_a_peer_may_not_change_is_refused_and_named(role: Role, fields: dict[str, object], message: str) -> None:
    answer = role.peer.send_json("PUT", "/users/admin", {"user": fields})
    assert answer.status == 400
    assert answer.message.startswith(message)


def test_another_method_of_a_known_path_is_no_route(role: Role) -> None:
    for method, path in (("PUT", "/users"), ("POST", "/users/admin"), ("POST", "/users/admin/rotate")):
        answer = role.peer.request(method, path)
        assert (answer.status, answer.message) == (404, "Invalid operation or path.")
