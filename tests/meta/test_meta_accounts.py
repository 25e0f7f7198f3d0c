"""Contract suite: accounts, their secrets and roles."""

from __future__ import annotations

import contextlib
import string
import uuid
from datetime import UTC, datetime, timedelta

import pytest
import trio

from visor_gateway.errors import Conflict, GatewayError, InvalidField, NotFound
from visor_gateway.image import timestamp
from visor_gateway.meta.account import check_email, check_role

LATER = datetime.now(UTC) + timedelta(days=1)


async def test_a_new_account_has_a_random_secret_and_can_be_read(metadata):
    alice = await metadata.accounts.create("alice", "alice@example.org", "user")
    bob = await metadata.accounts.create("bob", "bob@example.org", "admin")
    assert uuid.UUID(alice.id).version == 4
    assert len(alice.secret_key) == 40
    assert set(alice.secret_key) <= set(string.ascii_letters + string.digits)
    assert alice.secret_key != bob.secret_key
    assert (alice.email, alice.role, alice.updated_at) == ("alice@example.org", "user", None)
    assert await metadata.accounts.get("alice") == alice
    assert await metadata.accounts.get("Alice") is None
    assert await metadata.accounts.get("carol") is None
    assert await metadata.accounts.find() == [alice, bob]


async def test_accounts_are_there_after_closing_and_opening(backend):
    async with backend.open() as metadata:
        alice = await metadata.accounts.create("alice", "alice@example.org", "user")
    async with backend.open() as metadata:
        assert await metadata.accounts.get("alice") == alice


async def test_accounts_are_filtered_by_equality_on_shown_fields(metadata):
    bob = await metadata.accounts.create("bob", "b@example.org", "admin")
    alice = await metadata.accounts.create("alice", "a@example.org", "user")
    for filters, expected in [
        ([], [alice, bob]),
        ([("email", "b@example.org")], [bob]),
        ([("access_key", "alice"), ("role", "user")], [alice]),
        ([("access_key", "alice"), ("role", "admin")], []),
        ([("_id", bob.id)], [bob]),
        ([("created_at", timestamp(alice.created_at))], [alice]),
        ([("no_such", "x")], []),
        ([("secret_key", bob.secret_key)], []),
        ([("key_id", "x")], []),
    ]:
        assert await metadata.accounts.find(filters) == expected


async def test_an_access_key_is_given_once(metadata):
    await metadata.accounts.create("bar", "a@example.org", "user")
    with pytest.raises(Conflict, match=r"The access_key 'bar' was already taken\."):
        await metadata.accounts.create("bar", "b@example.org", "user")


async def test_the_access_key_of_a_deleted_account_stays_taken(metadata):
    bar = await metadata.accounts.create("bar", "a@example.org", "user")
    assert await metadata.accounts.delete("bar") == bar
    with pytest.raises(Conflict, match=r"The access_key 'bar' was already taken\."):
        await metadata.accounts.create("bar", "b@example.org", "user")
    assert await metadata.accounts.get("bar") is None
    assert await metadata.accounts.find() == []


async def test_of_many_who_ask_for_one_access_key_one_gets_it(backend):
    outcomes = []

    async def create(metadata):
        try:
            await metadata.accounts.create("bar", "a@example.org", "user")
            outcomes.append("ok")
        except GatewayError as error:
            outcomes.append(type(error).__name__)

    async with backend.open() as one, backend.open() as two, trio.open_nursery() as nursery:
        for _ in range(25):
            nursery.start_soon(create, one)
            nursery.start_soon(create, two)
    assert sorted(outcomes) == ["Conflict"] * 49 + ["ok"]


async def test_an_account_is_changed(metadata):
    before = await metadata.accounts.create("bar", "a@example.org", "user")
    after = await metadata.accounts.change("bar", email="new@example.org", role="user")
    assert (after.email, after.role, after.secret_key) == ("new@example.org", "user", before.secret_key)
    assert after.updated_at >= before.created_at
    assert (await metadata.accounts.get("bar")).email == "new@example.org"


async def test_a_user_becomes_an_admin_where_users_are_the_gateways_own(metadata, backend):
    bar = await metadata.accounts.create("bar", "a@example.org", "user")
    if backend.has_own_users:
        assert (await metadata.accounts.change("bar", role="admin")).role == "admin"
        return
    with pytest.raises(Conflict, match=r"^The user 'bar' is kept by the Auth server, whose users can't be admin"):
        await metadata.accounts.change("bar", role="admin", email="b@example.org")
    assert await metadata.accounts.get("bar") == bar


async def test_a_user_gets_no_other_secret_where_an_auth_server_has_him(metadata, backend):
    bar = await metadata.accounts.create("bar", "a@example.org", "user")
    if backend.has_own_users:
        assert (await metadata.accounts.rotate("bar")).secret_key != bar.secret_key
        return
    with pytest.raises(Conflict, match=r"^The secret of 'bar' is kept by the Auth server, which can't give"):
        await metadata.accounts.rotate("bar")
    assert await metadata.accounts.get("bar") == bar


async def test_a_rotated_secret_is_another_one(metadata):
    before = await metadata.accounts.create("bar", "a@example.org", "admin")
    after = await metadata.accounts.rotate("bar")
    assert after.secret_key != before.secret_key
    assert after.updated_at is not None
    assert await metadata.accounts.get("bar") == after


async def test_what_is_asked_of_an_unknown_account_is_refused(metadata):
    accounts = metadata.accounts
    await accounts.create("gone", "a@example.org", "user")
    await accounts.delete("gone")
    for name in ("none", "gone"):
        for refused in (
            accounts.change(name, email="a@example.org"),
            accounts.rotate(name),
            accounts.delete(name),
            accounts.issue_token(name, expires_at=LATER, read_only=False, name=None),
            accounts.tokens(name),
            accounts.revoke_token(name, "x"),
            accounts.issue_ticket(name, "/transfers/ws", LATER),
        ):
            with pytest.raises(NotFound, match=rf"No user found with access_key '{name}'\."):
                await refused


async def test_rights_are_others_after_a_change_of_role_or_secret_alone(metadata):
    user = await metadata.accounts.create("bar", "a@example.org", "user")
    admin = await metadata.accounts.create("root", "a@example.org", "admin")
    await metadata.accounts.create("second", "a@example.org", "admin")
    rights = metadata.accounts.rights
    assert await rights(["bar", "root", "nobody", "n\0"]) == {"bar": user.rights, "root": admin.rights}
    assert await rights([]) == {}
    await metadata.accounts.change("bar", email="b@example.org")
    assert await rights({"bar"}) == {"bar": user.rights}
    rotated = await metadata.accounts.rotate("root")
    assert await rights({"root"}) == {"root": rotated.rights}
    changed = await metadata.accounts.change("root", role="user")
    assert await rights({"root"}) == {"root": changed.rights}
    assert len({user.rights, admin.rights, rotated.rights, changed.rights}) == 4
    assert admin.secret_key not in admin.rights
    await metadata.accounts.delete("bar")
    assert await rights({"bar"}) == {}


async def test_the_last_admin_keeps_account_and_role(metadata):
    await metadata.accounts.create("root", "a@example.org", "admin")
    await metadata.accounts.create("user", "a@example.org", "user")
    for refused in (metadata.accounts.delete("root"), metadata.accounts.change("root", role="user")):
        with pytest.raises(Conflict, match="last admin"):
            await refused
    await metadata.accounts.change("root", role="admin", email="b@example.org")
    await metadata.accounts.create("second", "a@example.org", "admin")
    await metadata.accounts.delete("root")
    with pytest.raises(Conflict, match="last admin"):
        await metadata.accounts.delete("second")
    assert [user.access_key for user in await metadata.accounts.find([("role", "admin")])] == ["second"]


async def test_of_two_admins_who_delete_each_other_one_stays(backend):
    async def delete(metadata, name):
        with contextlib.suppress(Conflict):
            await metadata.accounts.delete(name)

    async with backend.open() as one, backend.open() as two:
        for name in ("a", "b"):
            await one.accounts.create(name, "a@example.org", "admin")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(delete, one, "a")
            nursery.start_soon(delete, two, "b")
        assert len(await one.accounts.find()) == 1


async def test_the_first_admin_is_made_once(backend):
    made = []

    async def ensure(metadata):
        made.append(await metadata.accounts.ensure_admin())

    async with backend.open() as one, backend.open() as two:
        async with trio.open_nursery() as nursery:
            for metadata in (one, two):
                nursery.start_soon(ensure, metadata)
        [admin] = [user for user in made if user is not None]
        assert (admin.access_key, admin.role) == ("admin", "admin")
        check_email(admin.email)
        assert await two.accounts.get("admin") == admin
        assert await two.accounts.ensure_admin() is None


async def test_an_admin_that_was_deleted_is_not_made_again(metadata):
    await metadata.accounts.ensure_admin()
    await metadata.accounts.create("root", "a@example.org", "admin")
    await metadata.accounts.delete("admin")
    assert await metadata.accounts.ensure_admin() is None


async def test_an_account_shows_no_secret_when_it_is_printed(metadata):
    user = await metadata.accounts.create("bar", "a@example.org", "user")
    assert user.secret_key not in f"{user!r} {user}"


async def test_a_role_is_user_or_admin(metadata):
    for role in ("user", "admin"):
        check_role(role)
    with pytest.raises(InvalidField, match="Invalid role 'root', available options: user, admin"):
        await metadata.accounts.create("bar", "a@example.org", "root")
    await metadata.accounts.create("bar", "a@example.org", "user")
    with pytest.raises(InvalidField, match="role"):
        await metadata.accounts.change("bar", role="")
