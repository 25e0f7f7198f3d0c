"""An Auth server that lies, or that somebody else writes lies to, harms nothing: a test for each lie."""

from __future__ import annotations

import json
import uuid

import pytest
import structlog
import trio
from canary import canary
from servers.visor_raw import BROKEN, redirecting

from visor_gateway.errors import MetadataUnavailable

SECRET = canary.secret("auth-server")


@pytest.fixture
def backend(auth_backend):
    auth_backend.stale_if_error = 3600
    return auth_backend


@pytest.fixture
def server(auth_server):
    return auth_server


@pytest.fixture
def accounts(metadata):
    return metadata.accounts


@pytest.fixture
def bar(server):
    return server.add("bar", secret_key=SECRET)


def told(answer):
    return lambda method, path, status, was: (200, json.dumps(answer).encode())


@pytest.mark.parametrize("claim", [
    {"role": "admin"}, {"admin": True}, {"is_admin": 1}, {"roles": ["admin"]}, {"read_only": False},
    {"role": {"$ne": "user"}},
])  # fmt: skip
async def test_nobody_becomes_an_admin_by_what_it_says(accounts, server, bar, claim) -> None:
    server.lie = told({"user": {**bar, **claim}})
    user = await accounts.get("bar")
    assert (user.access_key, user.role) == ("bar", "user")
    server.lie = told({"users": [{**bar, **claim}]})
    assert [user.role for user in await accounts.find()] == ["user"]
    assert await accounts.find([("role", "admin")]) == []


@pytest.mark.parametrize("other", ["baz", "admin", "Bar", "bar ", "../bar", ""])
async def test_an_answer_about_another_user_is_not_taken_for_this_one(accounts, server, bar, other) -> None:
    assert await accounts.get("bar") is not None
    server.lie = told({"user": {**bar, "access_key": other}})
    assert await accounts.get("bar") is None
    for change in (accounts.create("new", "a@example.org", "user"),):
        with pytest.raises(MetadataUnavailable, match="another user"):
            await change


@pytest.mark.parametrize("lie", [
    {"secret_key": "a\r\nb" * 10}, {"secret_key": "a\0b"}, {"secret_key": ""}, {"secret_key": None},
    {"secret_key": "a b"}, {"secret_key": "ü" * 40}, {"secret_key": "x" * 10_000}, {"secret_key": ["x"]},
    {"secret_key": 7}, {"_id": "1"}, {"_id": None}, {"_id": "../x"}, {"email": None}, {"email": "a\r\nx: 1"},
    {"email": "a" * 10_000}, {"created_at": "never"}, {"created_at": None}, {"created_at": "9" * 100},
    {"updated_at": 5}, {"access_key": {"a": 1}},
])  # fmt: skip
async def test_a_user_with_a_value_that_none_can_have_is_none(accounts, server, bar, lie) -> None:
    server.add("good")
    assert await accounts.get("bar") is not None
    server.lie = told({"user": {**bar, **lie}})
    with structlog.testing.capture_logs() as logs:
        assert await accounts.get("bar") is None
        server.lie = told({"users": [{**bar, **lie}, server.rows["good"]]})
        assert [user.access_key for user in await accounts.find()] == ["good"]
    assert SECRET not in str(logs)


async def test_users_who_are_there_twice_are_listed_once(accounts, server, bar) -> None:
    root = await accounts.create("root", "a@example.org", "admin")
    other = {**bar, "_id": str(uuid.uuid4()), "secret_key": "o" * 40}
    server.lie = told({"users": [bar, other, {**bar, "access_key": "root"}, None, 5, [], {}]})
    found = await accounts.find()
    assert [(user.access_key, user.role) for user in found] == [("bar", "user"), ("root", "admin")]
    assert found[0].secret_key == SECRET
    assert found[1] == root


async def test_an_id_of_an_account_here_leads_to_none_of_its_credentials(accounts, server, bar) -> None:
    root = await accounts.create("root", "a@example.org", "admin")
    bar["_id"] = root.id
    assert (await accounts.get("bar")).role == "user"
    assert await accounts.tokens("bar") == []
    await accounts.delete("bar")
    assert await accounts.get("root") == root


async def test_an_error_message_of_it_reaches_nobody(accounts, server, bar) -> None:
    for status in (400, 404, 409, 500):
        server.lie = lambda method, path, was, answer, status=status: (
            status,
            json.dumps({"code": status, "message": f"secret is {SECRET}\r\nx: 1"}).encode(),
        )
        for refused in (
            accounts.create("new", "a@example.org", "user"),
            accounts.change("bar", email="b@example.org"),
            accounts.delete("bar"),
            accounts.find(),
        ):
            with structlog.testing.capture_logs() as logs:
                try:
                    outcome = str(await refused)
                except Exception as error:
                    outcome = str(error)
            assert SECRET not in outcome + str(logs)


BODIES = {
    "nothing": b"",
    "no JSON": b"<html>",
    "another document": b'{"image":{}}',
    "a list": b'{"user":[]}',
    "null": b"null",
    "no UTF-8": b'{"user":"\xff"}',
    "deep": b"[" * 60_000,
    "too much": b'{"user":{"email":"' + b"x" * (65 << 10) + b'"}}',
}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((200, body) for body in BODIES.values()), (204, b""), (404, b"<html>"), (404, b"{}"),
        *((status, b"{}") for status in (302, 401, 403, 418, 500)),
    ],
)  # fmt: skip
async def test_an_answer_of_another_form_is_no_answer(accounts, server, bar, status, body) -> None:
    before = await accounts.get("bar")
    server.lie = lambda method, path, was, answer: (status, body)
    assert await accounts.get("bar") == before
    for refused in (accounts.get("unseen"), accounts.find(), accounts.change("bar", email="b@example.org")):
        with pytest.raises(MetadataUnavailable):
            await refused
    server.lie = None
    assert await accounts.get("unseen") is None


@pytest.mark.parametrize("raw", BROKEN)
async def test_an_exchange_that_never_ends_or_breaks_is_no_answer(accounts, server, backend, bar, raw) -> None:
    before = await accounts.get("bar")
    asked = backend.users._server
    asked.document_seconds = asked.list_seconds = 0.3
    server.raw = raw
    with trio.fail_after(60):
        assert await accounts.get("bar") == before
        for refused in (accounts.get("unseen"), accounts.find(), accounts.check()):
            with pytest.raises(MetadataUnavailable):
                await refused
    asked.document_seconds = asked.list_seconds = 30
    server.raw = None
    await accounts.check()


async def test_a_list_of_any_length_is_given_up(accounts, server, backend, bar) -> None:
    backend.users._server.list_bytes = 64 << 10
    server.lie = lambda method, path, was, answer: (200, b'{"users":[' + b" " * (65 << 10) + b"]}")
    with pytest.raises(MetadataUnavailable, match="too much"):
        await accounts.find()


async def test_a_redirect_is_not_followed(accounts, server, bar) -> None:
    server.raw = redirecting
    with pytest.raises(MetadataUnavailable, match="status 302"):
        await accounts.get("bar")
    assert server.requests == ["GET /users/bar"]
