"""What tells gateways that share a PostgreSQL whether anything has changed: exact, whoever writes, and asked once for
all who come together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
import sqlalchemy as sa
import trio
from trio.testing import wait_all_tasks_blocked

from visor_gateway.meta import last_read
from visor_gateway.meta.contract import ImageQuery
from visor_gateway.meta.gateways import Member
from visor_gateway.meta.last_read import LastRead, Seen
from visor_gateway.meta.shared import Shared
from visor_gateway.meta.sql import open_metadata

SOON = datetime.now(UTC) + timedelta(hours=1)


# --- in both databases -------------------------------------------------------------------------


async def test_each_change_of_a_record_is_another_version(backend, metadata, make_image, make_attempt, written):
    image, versions = make_image(attributes={"a": "1"}), []
    attempt = make_attempt(image)

    async def see() -> None:
        versions.append(await metadata.images.version())
        assert await metadata.images.version() == versions[-1]

    await see()
    await metadata.images.insert(image)
    await see()
    changed = msgspec.structs.replace(image, name="another")
    await metadata.images.replace(changed, expected=image)
    await see()
    await metadata.images.replace(msgspec.structs.replace(changed, attributes={}), expected=changed)
    await see()
    await metadata.images.begin(attempt)
    await see()
    await metadata.images.commit(attempt, written)
    await see()
    await metadata.images.count_access({image.id: (1, datetime.now(UTC))})
    await see()
    await metadata.images.entomb(image.id)
    await see()
    await metadata.images.bury(image.id)
    await see()
    assert len(set(versions)) == len(versions)
    assert None not in versions


async def test_each_change_of_an_account_is_another_version(backend, metadata):
    accounts, versions = metadata.accounts, [await metadata.images.version()]

    async def see() -> None:
        versions.append(await metadata.images.version())

    await accounts.create("someone", "a@example.org", "user")
    await see()
    token, _ = await accounts.issue_token("someone", expires_at=SOON, read_only=True, name=None)
    await see()
    await accounts.revoke_token("someone", token.id)
    await see()
    await accounts.change("someone", role="admin")
    await see()
    await accounts.rotate("someone")
    await see()
    await accounts.rotate_master()
    await see()
    await accounts.create("other", "b@example.org", "admin")
    await see()
    await accounts.delete("someone")
    await see()
    assert len(set(versions)) == len(versions)
    assert None not in versions


async def test_what_was_undone_is_no_change_that_is_missed(backend, metadata, make_image):
    """A change that is undone may make another version, the next one must."""
    image = make_image()
    await metadata.images.insert(image)
    seen = {await metadata.images.version()}

    def half(connection: sa.Connection) -> None:
        savepoint = connection.begin_nested()
        connection.execute(sa.text("UPDATE images SET name = 'undone'"))
        savepoint.rollback()
        connection.execute(sa.text("UPDATE images SET name = 'done'"))

    for _ in range(3):
        await metadata.images._database.write(half)
        version = await metadata.images.version()
        assert version not in seen
        seen.add(version)


@pytest.mark.parametrize("change", ["rotate", "delete"])
async def test_a_secret_that_is_kept_is_void_at_once_at_every_gateway(backend, change):
    async with backend.open() as ours, backend.open() as others:
        user = await others.accounts.create("someone", "a@example.org", "user")
        _, text = await others.accounts.issue_token("someone", expires_at=SOON, read_only=False, name=None)
        for _ in range(2):
            assert await ours.accounts.get("someone") == user
            assert (await ours.accounts.find_token(text))[1] == user
        await getattr(others.accounts, change)("someone")
        found, by_token = await ours.accounts.get("someone"), await ours.accounts.find_token(text)
        if change == "delete":
            assert (found, by_token) == (None, None)
        else:
            assert found.secret_key != user.secret_key
            assert by_token[1] == found


async def test_a_token_that_is_kept_is_void_at_once_when_revoked_at_another_gateway(backend):
    async with backend.open() as ours, backend.open() as others:
        await others.accounts.create("someone", "a@example.org", "user")
        for _ in range(5):
            token, text = await others.accounts.issue_token("someone", expires_at=SOON, read_only=True, name="ci")
            for _ in range(2):
                assert (await ours.accounts.find_token(text))[0] == token
            await others.accounts.revoke_token("someone", token.id)
            assert await ours.accounts.find_token(text) is None


# --- several gateways on one PostgreSQL --------------------------------------------------------


async def test_what_nobody_is_shown_leaves_what_is_kept(postgres_backend, make_image, make_attempt):
    async with postgres_backend.open() as ours, postgres_backend.open() as others:
        user = await ours.accounts.create("someone", "a@example.org", "user")
        attempt = make_attempt(make_image(), "one")
        await ours.images.begin(attempt, new=make_image(id=attempt.image_id))
        version = await ours.images.version()
        assert await others.images.renew("one") == {attempt.attempt_id}
        assert await others.accounts.use_once("nonce", "value", SOON)
        await others.accounts.issue_ticket(user.access_key, "/live", SOON)
        await others.gateways.renew(Member(name="other", instance_id="1", peer_url="https://other.test"), 30)
        await others.images.expired(ours="one")
        assert await ours.images.version() == version
        await others.images.fail(attempt)
        assert await ours.images.version() != version


async def test_a_change_behind_the_gateways_is_another_version_too(postgres_backend, make_image):
    async with postgres_backend.open() as metadata:
        image = make_image()
        await metadata.images.insert(image)
        for statement in (
            "UPDATE images SET name = 'by hand'",
            "TRUNCATE tokens",
            "DELETE FROM attributes",
        ):
            version = await metadata.images.version()
            postgres_backend.run(statement)
            assert await metadata.images.version() != version


async def test_accounts_and_tokens_are_read_once_while_nothing_changes(postgres_backend, monkeypatch):
    async with postgres_backend.open() as metadata:
        user = await metadata.accounts.create("someone", "a@example.org", "user")
        token, text = await metadata.accounts.issue_token("someone", expires_at=SOON, read_only=True, name=None)
        assert await metadata.accounts.get("someone") == user
        assert await metadata.accounts.find_token(text) == (token, user)

        async def refused(work):
            raise AssertionError("it was read")

        monkeypatch.setattr(metadata.database, "read", refused)
        for _ in range(3):
            assert await metadata.accounts.get("someone") == user
            assert await metadata.accounts.find_token(text) == (token, user)


async def test_a_token_that_is_kept_ends_by_the_clock_of_the_database(postgres_backend, monkeypatch):
    async with postgres_backend.open() as metadata:
        await metadata.accounts.create("someone", "a@example.org", "user")
        token, text = await metadata.accounts.issue_token("someone", expires_at=SOON, read_only=True, name=None)
        assert await metadata.accounts.find_token(text) is not None
        asked = metadata.database._engine.ask_version
        monkeypatch.setattr(metadata.database._engine, "ask_version", lambda: (asked()[0], token.expires_at))
        assert await metadata.accounts.find_token(text) is None


# --- while it is away --------------------------------------------------------------------------


@pytest.fixture
def away(postgres_backend):
    """Nobody can connect to the database, and nobody is connected, from the first call to the second."""

    def switch(off: bool) -> None:
        name, server = postgres_backend.database, postgres_backend.server
        server.run("postgres", f"ALTER DATABASE {name} ALLOW_CONNECTIONS {not off}")
        if off:
            server.run(
                "postgres", f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'"
            )

    yield switch
    switch(False)


async def test_a_connection_that_was_cut_while_idle_is_replaced_unnoticed(postgres_backend, make_image):
    async with postgres_backend.open() as metadata:
        version = await metadata.images.version()
        postgres_backend.server.run(
            "postgres",
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            f" WHERE datname = '{postgres_backend.database}'",
        )
        assert await metadata.images.version() == version


async def test_no_version_is_told_while_the_database_is_away(postgres_backend, away):
    async with postgres_backend.open() as metadata:
        before = await metadata.images.version()
        away(True)
        assert await metadata.images.version() is None
        away(False)
        with trio.fail_after(60):
            while (version := await metadata.images.version()) is None:
                await trio.lowlevel.checkpoint()
        assert version == before


async def test_what_stood_in_for_a_failed_read_is_of_no_version(postgres_backend, away, make_image):
    image = make_image(status="available")
    async with open_metadata(postgres_backend.url, postgres_backend.master_key, stale_if_error=3600) as metadata:
        await metadata.images.insert(image)
        assert await metadata.images.get(image.id) == image
        await metadata.images.insert(make_image())
        version = await metadata.images.version()
        away(True)
        assert await metadata.images.get(image.id) == image  # what was read before
        away(False)
        with trio.fail_after(60):
            while (now := await metadata.images.version()) is None:
                await trio.lowlevel.checkpoint()
        assert now != version


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(last_read.time, "monotonic", lambda: self.now)


def test_what_is_known_to_be_right_since_it_was_read_stands_in_for_longer(monkeypatch):
    clock = Clock(monkeypatch)
    last: LastRead[str, int] = LastRead(300)
    last.keep("a", 1, "v1")
    last.keep("b", 2)
    clock.now += 200
    seen = Seen("v1", clock.now)
    clock.now += 200
    assert (last.find("a", seen), last.find("b", seen)) == (1, None)
    assert last.find("a", Seen("v2", clock.now)) is None
    assert last.find("a") is None
    clock.now += 101
    assert last.find("a", seen) is None


async def test_an_image_that_is_asked_for_all_the_time_stands_in_although_it_was_read_long_ago(
    postgres_backend, away, make_image, monkeypatch
):
    image = make_image(status="available")
    async with open_metadata(postgres_backend.url, postgres_backend.master_key, stale_if_error=3600) as metadata:
        await metadata.images.insert(image)
        await metadata.images.version()
        await metadata.images.get(image.id)
        ((key, (value, seen)),) = metadata.images._last._values.items()
        assert seen.version is not None
        metadata.images._last._values[key] = value, seen._replace(moment=seen.moment - 7200)
        await metadata.images.version()
        away(True)
        assert await metadata.images.get(image.id) == image


# --- one question for all ----------------------------------------------------------------------


class Asked:
    """Answers with the number of the question, when it is told to."""

    def __init__(self) -> None:
        self.sent = 0
        self.go = trio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.sent += 1
        number = self.sent
        await self.go.wait()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return number

    def answer(self) -> None:
        self.go.set()
        self.go = trio.Event()


async def test_who_comes_while_a_question_is_under_way_shares_the_next_with_all_who_did():
    asked = Asked()
    shared, found = Shared(asked), {}

    async def ask(name: str) -> None:
        found[name] = await shared.answer()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "first")
        await wait_all_tasks_blocked()
        for name in ("second", "third", "fourth"):
            nursery.start_soon(ask, name)
        await wait_all_tasks_blocked()
        assert asked.sent == 1
        asked.answer()
        await wait_all_tasks_blocked()
        assert (found, asked.sent) == ({"first": 1}, 2)
        nursery.start_soon(ask, "fifth")
        await wait_all_tasks_blocked()
        asked.answer()
        await wait_all_tasks_blocked()
        assert found == {"first": 1, "second": 2, "third": 2, "fourth": 2}
        asked.answer()
    assert (found["fifth"], asked.sent) == (3, 3)


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_where_a_question_ends_without_an_answer_the_others_ask_again(how: str):
    asked = Asked()
    shared, found = Shared(asked), []

    async def ask() -> None:
        found.append(await shared.answer())

    async def lead(scope: trio.CancelScope) -> None:
        with scope:
            try:
                await shared.answer()
            except ValueError:
                found.append(0)

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(ask)  # keeps the lead waiting, so that the lead's question has those who share it
        await wait_all_tasks_blocked()
        nursery.start_soon(lead, scope)
        await wait_all_tasks_blocked()
        asked.answer()
        await wait_all_tasks_blocked()
        assert (found, asked.sent) == ([1], 2)
        for _ in range(2):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        if how == "cancelled":
            scope.cancel()
        else:
            asked.error = ValueError()
            asked.answer()
        await wait_all_tasks_blocked()
        assert asked.sent == 3
        asked.answer()
    assert found == ([1, 3, 3] if how == "cancelled" else [1, 0, 3, 3])


async def test_a_list_and_its_version_hold_together_while_another_gateway_writes(postgres_backend, make_image):
    """As often as it is asked: what was read after a version was told has all that was acknowledged before the call."""
    async with postgres_backend.open() as ours, postgres_backend.open() as others, trio.open_nursery() as nursery:
        acknowledged: list[str] = []
        kept: dict[object, set[str]] = {}
        done = trio.Event()

        async def write() -> None:
            for _ in range(20):
                image = make_image()
                await others.images.insert(image)
                acknowledged.append(image.id)
            done.set()

        async def read() -> None:
            while not done.is_set():
                expected = set(acknowledged)
                version = await ours.images.version()
                assert version is not None
                if version not in kept:
                    kept[version] = {image.id for image in await ours.images.find(ImageQuery())}
                assert expected <= kept[version]

        for _ in range(8):
            nursery.start_soon(read)
        nursery.start_soon(write)
