"""Contract suite: tokens, tickets, and what may be used once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trio

from visor_gateway.errors import NotFound
from visor_gateway.meta import credentials

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=1)
EARLIER = NOW - timedelta(days=1)


@pytest.fixture
async def accounts(metadata):
    for name in ("alice", "bob"):
        await metadata.accounts.create(name, f"{name}@example.org", "user")
    return metadata.accounts


def row_count(backend, table):
    [[count]] = backend.query(f"SELECT count(*) FROM {table}")
    return count


async def test_a_token_leads_to_its_account(accounts):
    token, text = await accounts.issue_token("alice", expires_at=LATER, read_only=True, name="ci")
    assert (token.access_key, token.read_only, token.expires_at, token.name) == ("alice", True, LATER, "ci")
    assert len(text) >= 43  # 256 bits in base64
    assert await accounts.find_token(text) == (token, await accounts.get("alice"))
    assert await accounts.find_token(text + "x") is None
    assert await accounts.find_token("") is None


async def test_tokens_of_an_account_are_listed_in_order_of_issue(accounts):
    tokens = [
        (await accounts.issue_token("alice", expires_at=LATER, read_only=False, name=str(number)))[0]
        for number in range(3)
    ]
    await accounts.issue_token("bob", expires_at=LATER, read_only=False, name=None)
    assert await accounts.tokens("alice") == tokens


async def test_an_expired_token_is_none(accounts):
    _, text = await accounts.issue_token("alice", expires_at=EARLIER, read_only=False, name=None)
    assert await accounts.find_token(text) is None
    assert await accounts.tokens("alice") == []


async def test_a_revoked_token_is_void(accounts):
    token, text = await accounts.issue_token("alice", expires_at=LATER, read_only=False, name=None)
    with pytest.raises(NotFound, match="No token found"):
        await accounts.revoke_token("bob", token.id)
    assert await accounts.revoke_token("alice", token.id) == token
    assert await accounts.find_token(text) is None
    with pytest.raises(NotFound, match="No token found"):
        await accounts.revoke_token("alice", token.id)


async def test_a_deleted_account_takes_its_tokens_and_tickets_with_it(accounts):
    _, text = await accounts.issue_token("alice", expires_at=LATER, read_only=False, name=None)
    ticket = await accounts.issue_ticket("alice", "/r", LATER)
    await accounts.delete("alice")
    assert await accounts.find_token(text) is None
    assert await accounts.redeem_ticket(ticket, "/r") is None


async def test_a_ticket_is_redeemed_once(accounts):
    ticket = await accounts.issue_ticket("alice", "/transfers/ws", LATER)
    assert len(ticket) >= 43
    assert await accounts.redeem_ticket(ticket, "/transfers/ws") == await accounts.get("alice")
    assert await accounts.redeem_ticket(ticket, "/transfers/ws") is None
    assert await accounts.redeem_ticket("unknown", "/transfers/ws") is None


async def test_a_ticket_for_another_route_or_out_of_time_is_void(accounts):
    wrong, late = await accounts.issue_ticket("alice", "/a", LATER), await accounts.issue_ticket("alice", "/a", EARLIER)
    assert await accounts.redeem_ticket(wrong, "/b") is None
    assert await accounts.redeem_ticket(wrong, "/a") is None
    assert await accounts.redeem_ticket(late, "/a") is None


async def test_of_many_who_redeem_one_ticket_one_succeeds(backend):
    users = []

    async def redeem(metadata, ticket):
        users.append(await metadata.accounts.redeem_ticket(ticket, "/a"))

    async with backend.open() as one, backend.open() as two:
        alice = await one.accounts.create("alice", "a@example.org", "user")
        ticket = await one.accounts.issue_ticket("alice", "/a", LATER)
        async with trio.open_nursery() as nursery:
            for _ in range(25):
                nursery.start_soon(redeem, one, ticket)
                nursery.start_soon(redeem, two, ticket)
    assert [user for user in users if user is not None] == [alice]


async def test_a_value_is_used_once(backend):
    async with backend.open() as metadata:
        assert await metadata.accounts.use_once("signature", "abc=", LATER)
        assert not await metadata.accounts.use_once("signature", "abc=", LATER)
        assert await metadata.accounts.use_once("signature", "ABC=", LATER)
        assert await metadata.accounts.use_once("nonce", "abc=", LATER)
    async with backend.open() as metadata:
        assert not await metadata.accounts.use_once("signature", "abc=", LATER)


async def test_kind_and_value_are_kept_apart(metadata):
    assert await metadata.accounts.use_once("a", "bc", LATER)
    assert await metadata.accounts.use_once("ab", "c", LATER)


async def test_of_many_who_use_one_value_one_succeeds(backend):
    outcomes = []

    async def use(metadata):
        outcomes.append(await metadata.accounts.use_once("signature", "abc", LATER))

    async with backend.open() as one, backend.open() as two, trio.open_nursery() as nursery:
        for _ in range(25):
            nursery.start_soon(use, one)
            nursery.start_soon(use, two)
    assert sorted(outcomes) == [False] * 49 + [True]


async def test_a_clock_that_is_set_back_does_not_let_a_value_be_used_again(metadata):
    assert await metadata.accounts.use_once("signature", "abc", NOW - timedelta(minutes=5))
    assert not await metadata.accounts.use_once("signature", "abc", NOW + timedelta(minutes=5))


async def test_what_is_over_is_purged_a_bounded_number_at_a_time(backend, metadata, accounts, monkeypatch):
    long_ago = NOW - timedelta(days=2)
    monkeypatch.setattr(credentials, "PURGE_ROWS", 0)
    for number in range(8):
        await accounts.use_once("signature", str(number), long_ago)
        await accounts.issue_ticket("alice", "/a", long_ago)
        await accounts.issue_token("alice", expires_at=long_ago, read_only=False, name=None)
    monkeypatch.setattr(credentials, "PURGE_ROWS", 5)
    await accounts.use_once("signature", "new", LATER)
    await accounts.issue_ticket("alice", "/a", LATER)
    await accounts.issue_token("alice", expires_at=LATER, read_only=False, name=None)
    assert [row_count(backend, table) for table in ("used", "tickets", "tokens")] == [4, 4, 4]
    await accounts.use_once("signature", "newer", LATER)
    assert row_count(backend, "used") == 2
