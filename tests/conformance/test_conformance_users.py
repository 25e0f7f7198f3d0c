"""Contract section 7: users, and who may manage them."""

from __future__ import annotations

import uuid

import pytest
from wire import Client, content_digest, unique

FIELDS = {"_id", "access_key", "email", "created_at", "updated_at", "role"}


def create(admin: Client, **fields):
    return admin.send_json("POST", "/users", {"user": fields})


@pytest.fixture
def key(admin: Client) -> str:
    """The access key of a new user."""
    key = unique("user")
    assert create(admin, access_key=key, email="one@example.org").status == 200
    return key


def test_creating_a_user_shows_its_secret_and_nothing_else_does(admin: Client) -> None:
    key = unique("user")
    answer = create(admin, access_key=key, email="one@example.org")
    assert answer.status == 200
    assert list(answer.json()) == ["user"]
    user = answer.json()["user"]
    assert set(user) == {*FIELDS, "secret_key"}
    assert uuid.UUID(user["_id"])
    assert (user["access_key"], user["email"], user["role"]) == (key, "one@example.org", "user")
    assert user["updated_at"] is None
    assert len(user["secret_key"]) >= 32
    others = [
        admin.get(f"/users/{key}"),
        admin.get("/users"),
        admin.send_json("PUT", f"/users/{key}", {"user": {"email": "two@example.org"}}),
        admin.delete(f"/users/{key}"),
    ]
    for other in others:
        assert other.status == 200
        assert user["secret_key"] not in other.body.decode()
        assert "secret_key" not in other.body.decode()


def test_a_user_can_be_sent_bare_or_in_an_object(admin: Client) -> None:
    key = unique("user")
    assert admin.send_json("POST", "/users", {"access_key": key, "email": "a@example.org"}).status == 200
    assert admin.get(f"/users/{key}").json()["user"]["email"] == "a@example.org"


def test_users_are_listed_with_their_fields(admin: Client, key: str) -> None:
    document = admin.get("/users").json()
    assert list(document) == ["users"]
    assert all(set(user) == FIELDS for user in document["users"])
    assert key in [user["access_key"] for user in document["users"]]


def test_users_filter_by_a_field(admin: Client) -> None:
    key = unique("user")
    email = f"{key}@filter.example"
    create(admin, access_key=key, email=email)
    (user,) = admin.get(f"/users?email={email}").json()["users"]
    assert user["access_key"] == key
    (user,) = admin.get(f"/users?access_key={key}").json()["users"]
    assert user["email"] == email
    assert admin.get("/users?email=nobody@nowhere.example").status == 404


def test_a_filter_can_not_probe_secrets(admin: Client) -> None:
    for field in ("secret_key", "secret", "token"):
        answer = admin.get(f"/users?{field}=x")
        assert answer.status in (400, 404)


def test_one_user_is_shown(admin: Client, key: str) -> None:
    document = admin.get(f"/users/{key}").json()
    assert list(document) == ["user"]
    assert set(document["user"]) == FIELDS


def test_users_come_as_xml_too(admin: Client, key: str) -> None:
    root = admin.get(f"/users/{key}", ("Accept", "application/xml")).xml()
    assert root.find("user/access_key").text == key
    root = admin.get("/users", ("Accept", "application/xml")).xml()
    assert root.findall("users/item/access_key")


def test_a_user_is_updated(admin: Client, key: str) -> None:
    answer = admin.send_json("PUT", f"/users/{key}", {"user": {"email": "new@example.org"}})
    user = answer.json()["user"]
    assert (answer.status, user["email"]) == (200, "new@example.org")
    assert user["updated_at"] is not None
    assert set(user) == FIELDS


def test_a_deleted_user_is_answered_as_it_was_and_gone(admin: Client, key: str) -> None:
    before = admin.get(f"/users/{key}").json()
    assert admin.delete(f"/users/{key}").json() == before
    expected = (404, f"No user found with access_key '{key}'.")
    again = [
        admin.get(f"/users/{key}"),
        admin.delete(f"/users/{key}"),
        admin.send_json("PUT", f"/users/{key}", {"user": {"email": "a@example.org"}}),
        admin.send_json("POST", f"/users/{key}/rotate", {}),
    ]
    assert all((answer.status, answer.message) == expected for answer in again)


def test_an_unknown_user_is_404(admin: Client) -> None:
    answer = admin.get("/users/none")
    assert (answer.status, answer.message) == (404, "No user found with access_key 'none'.")


def test_a_taken_access_key_is_409(admin: Client, key: str) -> None:
    answer = create(admin, access_key=key, email="other@example.org")
    assert (answer.status, answer.message) == (409, f"The access_key '{key}' was already taken.")
    assert admin.get(f"/users/{key}").json()["user"]["email"] == "one@example.org"


def test_an_access_key_that_was_ever_used_stays_taken(admin: Client, key: str) -> None:
    admin.delete(f"/users/{key}")
    answer = create(admin, access_key=key, email="other@example.org")
    assert (answer.status, answer.message) == (409, f"The access_key '{key}' was already taken.")


def test_an_access_key_is_never_renamed(admin: Client, key: str) -> None:
    other = unique("renamed")
    answer = admin.send_json("PUT", f"/users/{key}", {"user": {"access_key": other}})
    assert answer.status in (400, 409)
    assert admin.get(f"/users/{key}").status == 200
    assert admin.get(f"/users/{other}").status == 404


@pytest.mark.parametrize("field", ["access_key", "email"])
def test_a_missing_field_is_400_naming_it(admin: Client, field) -> None:
    fields = {"access_key": unique("user"), "email": "a@example.org"}
    del fields[field]
    answer = create(admin, **fields)
    assert (answer.status, answer.message) == (400, f"These fields are required: {field}")


@pytest.mark.parametrize("email", ["nonsense", "@example.org", "a@", "a b@example.org", "a@b@c.org", "a@example.org\n"])
def test_an_invalid_email_is_400(admin: Client, key: str, email) -> None:
    for answer in (
        create(admin, access_key=unique("user"), email=email),
        admin.send_json("PUT", f"/users/{key}", {"user": {"email": email}}),
    ):
        assert (answer.status, answer.message) == (400, "The email address seems to be invalid.")


@pytest.mark.parametrize("bad", ["", "a:b", "a b", "a/b", "a\nb", "é", "k" * 2000, "a?b", "a#b"])
def test_an_access_key_that_no_header_or_path_can_carry_is_400(admin: Client, bad) -> None:
    assert create(admin, access_key=bad, email="a@example.org").status == 400


@pytest.mark.parametrize("field", ["secret_key", "_id", "created_at", "updated_at"])
def test_a_client_that_sets_what_the_gateway_sets_gets_400(admin: Client, key: str, field) -> None:
    other = unique("user")
    answers = [
        admin.send_json("POST", "/users", {"access_key": other, "email": "a@example.org", field: "x" * 40}),
        admin.send_json("PUT", f"/users/{key}", {"user": {field: "x" * 40}}),
    ]
    for answer in answers:
        assert answer.status == 400
        assert field in answer.message
        assert "x" * 40 not in answer.message
    assert admin.get(f"/users/{other}").status == 404


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"null", b'{"user": []}', b"\xff", b'{"user": {"access_key": 1, "email": []}}']
)
def test_a_body_that_is_no_user_is_400(admin: Client, body) -> None:
    headers = [("Content-Type", "application/json"), ("Content-Digest", content_digest(body))]
    assert admin.request("POST", "/users", headers, body).status == 400


def test_a_deeply_nested_body_is_400(admin: Client) -> None:
    body = b"[" * 50_000
    headers = [("Content-Type", "application/json"), ("Content-Digest", content_digest(body))]
    assert admin.request("POST", "/users", headers, body).status in (400, 413)
    assert admin.get("/status").status == 200


def test_an_enormous_json_body_is_refused(admin: Client) -> None:
    body = b'{"access_key": "' + b"x" * (20 << 20) + b'"}'
    headers = [("Content-Type", "application/json"), ("Content-Digest", content_digest(body))]
    assert admin.request("POST", "/users", headers, body).status in (400, 413)


def test_role_is_user_or_admin(admin: Client, gateway) -> None:
    other = gateway.new_user("boss", role="admin")
    assert admin.get(f"/users/{other.access_key}").json()["user"]["role"] == "admin"
    assert other.get("/users").status == 200
    assert create(admin, access_key=unique("user"), email="a@example.org", role="root").status == 400
    assert admin.send_json("PUT", f"/users/{other.access_key}", {"user": {"role": "user"}}).status == 200
    assert other.get("/users").status == 403


def test_users_are_for_admins(alice: Client, bob: Client, stored) -> None:
    own = f"/users/{alice.access_key}"
    answers = [
        alice.get("/users"),
        alice.get(own),
        alice.get(f"/users/{bob.access_key}"),
        alice.get("/users/none"),
        create(alice, access_key=unique("user"), email="a@example.org"),
        alice.send_json("PUT", own, {"user": {"role": "admin"}}),
        alice.delete(f"/users/{bob.access_key}"),
        alice.send_json("POST", f"{own}/rotate", {}),
        alice.send_json("POST", f"/users/{bob.access_key}/rotate", {}),
        alice.get(f"{own}/tokens"),
        alice.send_json("POST", f"{own}/tokens", {}),
        alice.delete(f"{own}/tokens/x"),
    ]
    assert {answer.status for answer in answers} == {403}
    assert alice.get("/images").status == 200
    assert bob.get("/images").status == 200


def test_rotating_makes_a_new_secret_and_voids_the_old(admin: Client, gateway) -> None:
    user = gateway.new_user("rotated")
    answer = admin.send_json("POST", f"/users/{user.access_key}/rotate", {})
    assert answer.status == 200
    made = answer.json()["user"]
    assert set(made) == {*FIELDS, "secret_key"}
    assert made["secret_key"] != user.secret_key
    assert user.get("/transfers").status == 403
    assert Client(user.url, user.access_key, made["secret_key"]).get("/transfers").status == 200


def test_rotate_needs_no_body(admin: Client, key: str) -> None:
    assert admin.request("POST", f"/users/{key}/rotate").status == 200


def test_a_deleted_users_signature_is_void(admin: Client, gateway) -> None:
    user = gateway.new_user("leaver")
    assert user.get("/transfers").status == 200
    admin.delete(f"/users/{user.access_key}")
    assert user.get("/transfers").status == 403
    assert user.add().status == 403


def test_the_last_admin_can_not_be_deleted_or_demoted(fresh) -> None:
    admin = fresh.admin
    own = f"/users/{fresh.access_key}"
    assert admin.delete(own).status == 409
    assert admin.send_json("PUT", own, {"user": {"role": "user"}}).status == 409
    other = fresh.new_user("second", role="admin")
    assert other.delete(own).status == 200
    assert other.delete(f"/users/{other.access_key}").status == 409
    assert other.get("/users").status == 200


def test_secrets_of_two_users_differ(admin: Client) -> None:
    made = [create(admin, access_key=unique("user"), email="a@example.org").json()["user"] for _ in range(3)]
    assert len({user["secret_key"] for user in made}) == 3


# --- whom one is taken for -----------------------------------------------------------------------


def test_the_session_tells_key_and_role(alice: Client, admin: Client) -> None:
    for client, role in ((alice, "user"), (admin, "admin")):
        answer = client.get("/session")
        assert (answer.status, answer.json()) == (200, {"session": {"access_key": client.access_key, "role": role}})
        assert answer.header("cache-control") == "no-store"
