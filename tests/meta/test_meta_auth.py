"""Users at an Auth server: what of them is there, what is here, and what holds while it is away."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from canary import canary

from visor_gateway.errors import Conflict, InvalidField, MetadataUnavailable, NotFound
from visor_gateway.meta.sql import open_metadata
from visor_gateway.meta.visor.auth import FRESH_SECONDS

LATER = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def backend(auth_backend):
    return auth_backend


@pytest.fixture
def server(auth_server):
    return auth_server


@pytest.fixture
def accounts(metadata):
    return metadata.accounts


async def credentials_of(accounts, access_key):
    """The texts of a token and a ticket."""
    _, token = await accounts.issue_token(access_key, expires_at=LATER, read_only=False, name=None)
    return token, await accounts.issue_ticket(access_key, "/r", LATER)


# --- what others change there ------------------------------------------------------------------


async def test_a_user_of_the_server_is_a_user_here(accounts, server) -> None:
    row = server.add("bar", secret_key=(secret := canary.secret("auth")))
    user = await accounts.get("bar")
    assert (user.id, user.access_key, user.secret_key, user.role) == (row["_id"], "bar", secret, "user")
    assert await accounts.find() == [user]
    token, ticket = await credentials_of(accounts, "bar")
    assert (await accounts.find_token(token))[1] == user
    assert await accounts.redeem_ticket(ticket, "/r") == user


async def test_a_secret_that_is_changed_there_counts_here(accounts, server) -> None:
    row = server.add("bar")
    before = await accounts.get("bar")
    row["secret_key"] = "n" * 40
    assert (await accounts.get("bar")).secret_key == "n" * 40 != before.secret_key


async def test_a_user_who_is_gone_there_is_refused_here_with_all_credentials(accounts, server) -> None:
    server.add("bar")
    token, ticket = await credentials_of(accounts, "bar")
    row = server.rows.pop("bar")
    assert await accounts.get("bar") is None
    assert await accounts.find_token(token) is None
    assert await accounts.redeem_ticket(ticket, "/r") is None
    with pytest.raises(NotFound):
        await accounts.tokens("bar")
    server.rows["bar"] = row
    assert (await accounts.find_token(token))[1].access_key == "bar"


async def test_somebody_else_under_the_same_access_key_has_none_of_the_credentials(accounts, server) -> None:
    server.add("bar")
    token, ticket = await credentials_of(accounts, "bar")
    del server.rows["bar"]
    server.add("bar")
    assert await accounts.get("bar") is not None
    assert await accounts.find_token(token) is None
    assert await accounts.redeem_ticket(ticket, "/r") is None
    assert await accounts.tokens("bar") == []
    token, _ = await credentials_of(accounts, "bar")
    assert (await accounts.find_token(token))[1] == await accounts.get("bar")


async def test_an_answer_holds_for_seconds_and_spares_the_server(accounts, server, backend) -> None:
    assert 0 < FRESH_SECONDS <= 5
    server.add("bar")
    backend.users.fresh_seconds = 3600
    for _ in range(3):
        assert await accounts.get("bar") is not None
        assert await accounts.get("none") is None
    assert server.requests == ["GET /users/bar", "GET /users/none"]
    await accounts.delete("bar")
    assert await accounts.get("bar") is None


# --- what is here alone --------------------------------------------------------------------------


async def test_a_user_of_the_server_never_takes_the_place_of_an_account_here(accounts, server) -> None:
    admin = await accounts.ensure_admin()
    root = await accounts.create("root", "a@example.org", "admin")
    for name in ("admin", "root"):
        server.add(name)
        server.rows[name].update(secret_key="s" * 40)
    assert await accounts.get("admin") == admin
    assert await accounts.get("root") == root
    assert await accounts.find() == [admin, root]
    await accounts.delete("admin")
    assert await accounts.get("admin") is None
    assert await accounts.find() == [root]
    assert [row["access_key"] for row in server.rows.values()] == ["admin", "root"]


async def test_the_first_admin_is_made_although_the_server_has_one(accounts, server) -> None:
    server.add("admin")
    assert await accounts.get("admin") is None
    with pytest.raises(NotFound):
        await accounts.issue_token("admin", expires_at=LATER, read_only=False, name=None)
    with pytest.raises(Conflict):
        await accounts.create("admin", "a@example.org", "user")
    assert (await accounts.ensure_admin()).role == "admin"


async def test_an_admin_gets_no_access_key_that_a_user_of_the_server_has(accounts, server) -> None:
    server.add("bar")
    with pytest.raises(Conflict, match=r"^The access_key 'bar' was already taken\.$"):
        await accounts.create("bar", "a@example.org", "admin")
    token, _ = await credentials_of(accounts, "bar")
    del server.rows["bar"]
    with pytest.raises(Conflict, match=r"^The access_key 'bar' was already taken\.$"):
        await accounts.create("bar", "a@example.org", "admin")
    assert await accounts.find_token(token) is None


async def test_whom_the_gateway_deleted_stays_refused_when_others_register_him_again(accounts, server) -> None:
    await accounts.create("bar", "a@example.org", "user")
    token, ticket = await credentials_of(accounts, "bar")
    await accounts.delete("bar")
    assert server.rows == {}
    server.add("bar")
    assert await accounts.get("bar") is None
    assert await accounts.find() == []
    assert await accounts.find_token(token) is None
    assert await accounts.redeem_ticket(ticket, "/r") is None
    with pytest.raises(Conflict):
        await accounts.create("bar", "a@example.org", "user")


async def test_nothing_of_a_secret_is_kept_and_without_the_server_nobody_of_it_gets_in(backend, server) -> None:
    async with backend.open() as metadata:
        server.add("bar", secret_key=(secret := canary.secret("auth")))
        token, _ = await credentials_of(metadata.accounts, "bar")
        assert (await metadata.accounts.get("bar")).secret_key == secret
        for content in backend.contents():
            assert secret.encode() not in content
            assert token.encode() not in content
        root = await metadata.accounts.create("root", "a@example.org", "admin")
        assert await metadata.accounts.rotate_master() == 1
    async with open_metadata(backend.url, backend.master_key) as local:
        assert await local.accounts.find() == [root]
        assert await local.accounts.get("bar") is None
        assert await local.accounts.find_token(token) is None
        with pytest.raises(Conflict):
            await local.accounts.create("bar", "a@example.org", "user")


@pytest.mark.parametrize(
    ("access_key", "email", "role"),
    [("a/b", "a@example.org", "user"), ("..", "a@example.org", "user"), ("bar", "x", "user"), ("bar", "x", "admin"),
     ("bar", "a@example.org", "root")],
)  # fmt: skip
async def test_what_no_user_can_have_is_not_asked_of_the_server(accounts, server, access_key, email, role) -> None:
    with pytest.raises(InvalidField):
        await accounts.create(access_key, email, role)
    assert await accounts.get("../images") is None
    assert await accounts.get("a b") is None
    assert server.requests == []


# --- what that server can't do -----------------------------------------------------------------


@pytest.mark.parametrize("email", ["o'neil@example.org", 'a"b@example.org', "a\\b@example.org", "ü@example.org"])
async def test_an_address_that_its_sql_would_not_survive_is_refused_here(accounts, server, email) -> None:
    server.add("foo")
    for refused in (accounts.create("bar", email, "user"), accounts.change("foo", email=email)):
        with pytest.raises(InvalidField, match=r"^The Auth server can't hold this email: printable ASCII without"):
            await refused
    assert [*server.rows] == ["foo"]


async def test_a_delete_that_the_server_refuses_changes_nothing(accounts, server) -> None:
    row = server.add("bar")
    token, _ = await credentials_of(accounts, "bar")
    refusal = 409, b'{"code":409,"message":"no"}'
    server.lie = lambda method, path, status, answer: (
        refusal if method == "DELETE" else (status, json.dumps(answer).encode())
    )
    with pytest.raises(Conflict, match=r"^The Auth server refuses to delete this user\.$"):
        await accounts.delete("bar")
    server.lie = None
    server.rows["bar"] = row
    assert (await accounts.find_token(token))[1].access_key == "bar"


# --- while it is away ----------------------------------------------------------------------------


async def test_users_are_used_for_a_while_when_the_server_is_away(backend, server) -> None:
    backend.stale_if_error = 3600
    server.add("bar")
    server.add("unseen")
    async with backend.open() as metadata:
        accounts = metadata.accounts
        root = await accounts.create("root", "a@example.org", "admin")
        token, ticket = await credentials_of(accounts, "bar")
        bar = await accounts.get("bar")
        server.close()
        try:
            assert await accounts.get("bar") == bar
            assert (await accounts.find_token(token))[1] == bar
            assert await accounts.redeem_ticket(ticket, "/r") == bar
            assert await accounts.get("root") == root
            for refused in (
                accounts.check(),
                accounts.get("unseen"),
                accounts.find(),
                accounts.create("new", "a@example.org", "user"),
                accounts.create("newer", "a@example.org", "admin"),
                accounts.change("bar", email="b@example.org"),
                accounts.delete("bar"),
            ):
                with pytest.raises(MetadataUnavailable):
                    await refused
            assert await accounts.get("bar") == bar
            backend.users._stale_seconds = 0
            for late in (accounts.get("bar"), accounts.find_token(token)):
                with pytest.raises(MetadataUnavailable):
                    await late
        finally:
            server.reopen()
        await accounts.check()
        assert await accounts.get("bar") == bar
        assert [user.access_key for user in await accounts.find()] == ["bar", "root", "unseen"]


async def test_one_who_was_gone_before_the_outage_is_not_used_in_it(backend, server) -> None:
    backend.stale_if_error = 3600
    server.add("bar")
    async with backend.open() as metadata:
        assert await metadata.accounts.get("bar") is not None
        del server.rows["bar"]
        assert await metadata.accounts.get("bar") is None
        server.lie = lambda method, path, status, answer: (500, b"{}")
        with pytest.raises(MetadataUnavailable):
            await metadata.accounts.get("bar")


async def test_a_server_that_failed_just_now_is_left_alone(accounts, server, backend) -> None:
    server.lie = lambda method, path, status, answer: (500, b"{}")
    backend.users.rest_seconds = 3600
    for name in ("bar", "baz"):
        with pytest.raises(MetadataUnavailable):
            await accounts.get(name)
    assert server.requests == ["GET /users/bar"]


async def test_a_delete_without_an_answer_refuses_the_user_all_the_same(accounts, server) -> None:
    server.add("bar")
    token, _ = await credentials_of(accounts, "bar")

    def cut(request) -> bool:
        if request.command != "DELETE":
            return False
        server.answer("DELETE", request.path, b"")
        return True

    server.raw = cut
    with pytest.raises(MetadataUnavailable):
        await accounts.delete("bar")
    server.raw = None
    server.add("bar", _id=str(uuid.uuid4()))
    assert await accounts.get("bar") is None
    assert await accounts.find_token(token) is None
    with pytest.raises(NotFound):
        await accounts.delete("bar")
    assert [*server.rows] == ["bar"]


async def test_a_delete_that_the_server_did_not_hear_of_is_asked_for_again(accounts, server) -> None:
    row = server.add("bar")
    server.raw = lambda request: request.command == "DELETE"
    with pytest.raises(MetadataUnavailable):
        await accounts.delete("bar")
    assert await accounts.get("bar") is None
    server.raw = None
    assert [*server.rows] == ["bar"]
    assert (await accounts.delete("bar")).id == row["_id"]
    assert server.rows == {}
    with pytest.raises(NotFound):
        await accounts.delete("bar")
