"""The database: its file, schema and pragmas, and what happens when it fails or a call is cancelled."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
import trio
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from visor_gateway.errors import ConfigError, MetadataUnavailable
from visor_gateway.meta import migrations
from visor_gateway.meta.contract import ImageQuery
from visor_gateway.meta.migrations import history
from visor_gateway.meta.schema import database_time, images
from visor_gateway.meta.schema import metadata as schema

#: Indexes that can't be told in one way to both databases.
IN_TWO_WAYS = tuple(
    f"images_by_{name}"
    for name in (
        *("accessed_at", "format", "size", "store", "type", "updated_at", "uploaded_at"),  # unset values first
        *("checksum", "kernel", "location", "ramdisk"),  # hashed
    )
)


def revision(backend) -> list[tuple[str]]:
    return backend.query("SELECT version_num FROM alembic_version")


# --- opening -----------------------------------------------------------------------------------


async def test_many_gateways_that_start_at_once_on_an_empty_database_all_start(backend):
    opened = []

    async def start():
        async with backend.open() as metadata:
            opened.append(await metadata.accounts.ensure_admin())

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(start)
    assert len([user for user in opened if user is not None]) == 1
    assert len(opened) == 6


# --- schema ------------------------------------------------------------------------------------


async def test_the_migrations_make_the_schema_that_the_code_uses(metadata):
    def compare(connection):
        options = {"compare_type": True, "include_object": lambda _, name, *others: name not in IN_TWO_WAYS}
        context = MigrationContext.configure(connection, opts=options)
        return compare_metadata(context, schema)

    assert await metadata.images._database.read(compare) == []


async def test_an_up_to_date_database_is_left_as_it_is(backend, make_image):
    image = make_image()
    async with backend.open() as metadata:
        await metadata.images.insert(image)
    before = revision(backend), backend.tables()
    async with backend.open() as metadata:
        assert await metadata.images.get(image.id) == image
    assert (revision(backend), backend.tables()) == before


async def test_a_database_of_a_newer_version_is_left_alone(backend):
    async with backend.open():
        pass
    backend.run("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match=r"newer.*9999") as caught:
        async with backend.open():
            pass
    assert "\n" not in caught.value.message
    assert revision(backend) == [("9999",)]


async def test_a_database_of_something_else_is_left_alone(backend):
    backend.run("CREATE TABLE songs (title TEXT)")
    with pytest.raises(ConfigError, match="empty database"):
        async with backend.open():
            pass
    assert backend.tables() == ["songs"]


async def test_a_migration_that_fails_leaves_nothing(backend, monkeypatch):
    upgrade = history.command.upgrade

    def fail(config, target):
        upgrade(config, target)
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(history.command, "upgrade", fail)
        with pytest.raises(sqlite3.OperationalError):
            async with backend.open():
                pass
    assert backend.tables() == []
    async with backend.open() as metadata:
        await metadata.check()


async def test_the_database_clock_shows_the_present(metadata):
    def look(connection):
        return connection.execute(sa.select(database_time(), database_time(90.5), database_time(-1))).one()

    now, later, earlier = await metadata.images._database.read(look)
    assert (later - now).total_seconds() == pytest.approx(90.5, abs=0.002)
    assert (now - earlier).total_seconds() == pytest.approx(1, abs=0.002)
    # The database's host is this one.
    assert abs((now - datetime.now(UTC)).total_seconds()) < 60


# --- failures ----------------------------------------------------------------------------------


async def test_a_database_that_fails_is_unavailable_and_tells_nothing_of_itself(backend, metadata):
    backend.run("DROP TABLE locations", "DROP TABLE attributes", "DROP TABLE images")
    for failing in (metadata.images.get("secret-id"), metadata.images.find(ImageQuery()), metadata.check()):
        with pytest.raises(MetadataUnavailable) as caught:
            await failing
        assert caught.value.status == 503
        assert caught.value.message == "The metadata database can't be used now"


async def test_the_cause_of_a_failure_shows_no_values(backend, metadata):
    backend.run("DROP TABLE auth_users", "DROP TABLE tokens", "DROP TABLE tickets", "DROP TABLE accounts")
    with pytest.raises(MetadataUnavailable) as caught:
        await metadata.accounts.create("key-of-alice", "address@example.org", "user")
    assert "address@example.org" not in str(caught.value.__cause__)


async def test_what_work_raises_undoes_its_transaction(metadata, make_image):
    image = make_image()

    def work(connection):
        connection.execute(
            images.insert().values(
                id=image.id,
                name="x",
                architecture="i386",
                owner="a",
                access="public",
                status="locked",
                created_at=image.created_at,
                access_count=0,
            )
        )
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        await metadata.images._database.write(work)
    assert await metadata.images.get(image.id) is None


# --- cancellation and concurrency --------------------------------------------------------------


async def test_a_call_that_has_begun_is_finished_when_it_is_cancelled(backend, metadata, gate):
    outcomes = []

    async def call():
        outcomes.append(await metadata.images._database.write(gate))
        await trio.lowlevel.checkpoint()
        outcomes.append("not cancelled")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await gate.entered.wait()
        nursery.cancel_scope.cancel()
        gate.open()
    assert outcomes == ["outcome"]
    assert "done" in backend.tables()


async def test_a_writer_that_is_cancelled_while_it_waits_has_done_nothing(metadata, make_image, gate):
    waiting = make_image()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(metadata.images._database.write, gate)
        await gate.entered.wait()
        with trio.CancelScope() as scope:
            scope.cancel()
            await metadata.images.insert(waiting)
        assert scope.cancelled_caught
        assert await metadata.images.get(waiting.id) is None
        gate.open()
    assert await metadata.images.get(waiting.id) is None


async def test_fifty_tasks_share_the_database(metadata, make_image, make_attempt, written):
    async def live(number):
        image = make_image(name=str(number), attributes={"number": str(number)})
        attempt = make_attempt(image, f"instance-{number}")
        await metadata.images.begin(attempt, new=image)
        assert await metadata.images.renew(f"instance-{number}") == {attempt.attempt_id}
        await metadata.images.commit(attempt, written)
        [found] = await metadata.images.find(ImageQuery(filters=(("number", str(number)),)))
        assert (found.name, found.status) == (str(number), "available")
        if number % 2:
            await metadata.images.entomb(image.id)
            await metadata.images.bury(image.id)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(live, number)
    assert len(await metadata.images.find(ImageQuery())) == 25
    assert await metadata.images.entombed() == []


async def test_readers_do_not_wait_for_a_writer(metadata, make_image, gate):
    image = make_image()
    await metadata.images.insert(image)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(metadata.images._database.write, gate)
        await gate.entered.wait()
        assert await metadata.images.get(image.id) == image
        gate.open()


def test_the_migration_that_is_numbered_last_is_the_last_one() -> None:
    assert ScriptDirectory(str(history.HERE)).get_heads() == [migrations.latest()]


async def test_a_database_of_the_first_version_is_upgraded_with_its_images(backend, make_image, monkeypatch) -> None:
    upgrade = history.command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(history.command, "upgrade", lambda config, _: upgrade(config, "0001"))
        async with backend.open():
            pass
    columns = "id, name, architecture, owner, access, status, created_at, access_count"
    backend.run(
        f"INSERT INTO images ({columns}) VALUES"
        " ('i', 'old', 'x86_64', 'alice', 'public', 'locked', '2026-01-02T03:04:05.000000Z', 0)"
    )
    async with backend.open() as metadata:
        image = await metadata.images.get("i")
    assert (image.name, image.scrubbed_at, image.bad_since) == ("old", None, None)
