"""What is PostgreSQL's own: connections that are lost, commits in doubt, what may be read while it is away."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import sqlalchemy as sa
import trio

from visor_gateway.errors import ConfigError, MetadataUnavailable
from visor_gateway.meta import postgres
from visor_gateway.meta.contract import ImageQuery
from visor_gateway.meta.last_read import KEPT, LastRead
from visor_gateway.meta.sql import open_metadata

LATER = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def backend(postgres_backend):
    return postgres_backend


def cut_connections(backend, *, but: str = "false") -> None:
    """What a restart of the server or a firewall does to those who are connected."""
    backend.server.run(
        "postgres",
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        f" WHERE datname = '{backend.database}' AND NOT ({but})",
    )


@pytest.fixture
def away(backend):
    """Nobody can connect to the database, and nobody is connected, from the first call to the second."""

    def switch(off: bool) -> None:
        backend.server.run("postgres", f"ALTER DATABASE {backend.database} ALLOW_CONNECTIONS {not off}")
        if off:
            cut_connections(backend)

    yield switch
    switch(False)


# --- opening -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgresql://user:canary-7d@host",
        "postgresql+asyncpg://user:canary-7d@host/db",
        "postgresql://user:canary-7d@host:port/db",
    ],
)
async def test_a_url_that_names_no_database_is_refused_without_showing_it(tmp_path, url):
    with pytest.raises(ConfigError, match="postgresql://USER:PASSWORD@HOST:PORT/NAME") as caught:
        async with open_metadata(url, tmp_path / "key"):
            pass
    assert "canary" not in str(caught.value)


async def test_a_server_that_is_not_there_is_unavailable_and_its_password_stays_untold(tmp_path):
    with pytest.raises(MetadataUnavailable) as caught:
        async with open_metadata("postgresql://user:canary-7d@127.0.0.1:1/db", tmp_path / "key"):
            pass
    assert "canary" not in f"{caught.value} {caught.value.__cause__}"


async def test_a_database_in_another_encoding_is_refused(backend):
    name = f"{backend.database}_latin"
    backend.server.run("postgres", f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    try:
        with pytest.raises(ConfigError, match=r"UTF8.*LATIN1"):
            async with open_metadata(backend.server.url(name), backend.master_key):
                pass
    finally:
        backend.server.run("postgres", f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_server_that_is_too_old_is_refused(backend, monkeypatch):
    monkeypatch.setattr(postgres, "_OLDEST", 990000)
    with pytest.raises(ConfigError, match="expected PostgreSQL 99 or newer, but it is"):
        async with backend.open():
            pass


async def test_every_column_of_text_is_in_the_order_of_its_code_points(backend, metadata, make_image):
    # The database's own order has upper and lower case beside each other.
    assert backend.query("SELECT 'a' < 'B'") == [(True,)]
    for name in ("a", "B", "Z", "é", "b"):
        await metadata.images.insert(make_image(name=name))
    found = await metadata.images.find(ImageQuery(sort="name"))
    assert [image.name for image in found] == ["B", "Z", "a", "b", "é"]
    other = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
    other += " AND data_type IN ('text', 'character varying') AND collation_name IS DISTINCT FROM 'C'"
    assert [row for row in backend.query(other) if row[0] != "alembic_version"] == []


# --- writers -----------------------------------------------------------------------------------


async def test_writers_of_two_gateways_wait_for_each_other(backend, gate, make_image):
    image = make_image()
    async with backend.open() as ours, backend.open() as others:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.images._database.write, gate)
            await gate.entered.wait()
            nursery.start_soon(others.images.insert, image)
            with trio.fail_after(60):
                while not backend.query("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
                    await trio.lowlevel.checkpoint()
            assert await others.images.get(image.id) is None
            gate.open()
        assert await others.images.get(image.id) == image


async def test_a_writer_that_is_paused_for_too_long_loses_its_lock_and_its_work(backend, make_image, monkeypatch):
    monkeypatch.setitem(postgres._CONNECT, "options", "-c idle_in_transaction_session_timeout=3000")
    image, other, resume = make_image(), make_image(), threading.Event()

    def paused(connection: sa.Connection) -> None:
        connection.execute(sa.text("CREATE TABLE done (x integer)"))
        assert resume.wait(60)

    async with backend.open() as ours, backend.open() as others:
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                with pytest.raises(MetadataUnavailable):
                    await ours.images._database.write(paused)

            nursery.start_soon(write)
            with trio.fail_after(60):
                while not backend.query("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"):
                    await trio.lowlevel.checkpoint()
            await others.images.insert(image)  # waits until the server has ended the transaction of the other
            resume.set()
        await ours.images.insert(other)
        assert "done" not in backend.tables()


async def test_a_lease_of_another_gateway_holds_when_a_gateway_starts(metadata, make_image, make_attempt, written):
    attempt = make_attempt(make_image(), "another")
    await metadata.images.begin(attempt, new=make_image(id=attempt.image_id))
    assert await metadata.images.expired(ours="ours") == []
    assert (await metadata.images.commit(attempt, written)).status == "available"


# --- lost connections --------------------------------------------------------------------------


async def test_connections_that_were_cut_while_idle_are_replaced_unnoticed(backend, metadata, make_image):
    image = make_image()
    for _ in range(3):
        cut_connections(backend)
        await metadata.images.replace(image, expected=image) if await metadata.images.get(image.id) else None
        cut_connections(backend)
        if await metadata.images.get(image.id) is None:
            await metadata.images.insert(image)
    assert await metadata.images.get(image.id) == image


@pytest.mark.parametrize("reached", [True, False])
async def test_a_commit_whose_answer_is_lost_ends_as_it_ended(backend, metadata, make_image, monkeypatch, reached):
    image = make_image()
    commit = sa.Connection.commit
    lost = []

    def cut(connection: sa.Connection) -> None:
        if lost:
            return commit(connection)
        lost.append(True)
        if reached:
            connection.connection.driver_connection.execute("COMMIT")
        connection.connection.driver_connection.pgconn.finish()
        return commit(connection)

    monkeypatch.setattr(sa.Connection, "commit", cut)
    if reached:
        await metadata.images.insert(image)
        assert await metadata.images.get(image.id) == image
    else:
        with pytest.raises(MetadataUnavailable):
            await metadata.images.insert(image)
        assert await metadata.images.get(image.id) is None


async def test_a_server_that_crashes_and_comes_back_is_used_again(tmp_path, postgresql_of_its_own, make_image):
    server = postgresql_of_its_own
    image, other = make_image(), make_image()
    with server.database() as name:
        async with open_metadata(server.url(name), tmp_path / "key") as metadata:
            await metadata.images.insert(image)
            server.kill()
            for failing in (metadata.images.get(image.id), metadata.images.insert(other), metadata.check()):
                with pytest.raises(MetadataUnavailable):
                    await failing
            server.start()
            with trio.fail_after(60):
                while True:
                    try:
                        assert await metadata.images.get(image.id) == image
                    except MetadataUnavailable:
                        await trio.lowlevel.checkpoint()
                    else:
                        break
            await metadata.images.insert(other)


async def test_between_two_tries_to_connect_everybody_is_refused_at_once(backend, metadata, away, monkeypatch):
    monkeypatch.setattr(postgres, "PAUSE_SECONDS", (3600.0, 3600.0))
    away(True)
    with pytest.raises(MetadataUnavailable):
        await metadata.check()
    away(False)
    with pytest.raises(MetadataUnavailable) as caught:
        await metadata.check()
    assert caught.value.__cause__ is None  # nobody was asked


async def test_a_statement_that_takes_too_long_is_ended(backend, monkeypatch):
    monkeypatch.setitem(postgres._CONNECT, "options", "-c statement_timeout=3000")
    async with backend.open() as metadata:
        with pytest.raises(MetadataUnavailable) as caught:
            await metadata.images._database.read(lambda connection: connection.execute(sa.text("SELECT pg_sleep(60)")))
        assert isinstance(caught.value.__cause__.orig, psycopg.errors.QueryCanceled)
        await metadata.check()


# --- while it is away --------------------------------------------------------------------------


def opened(backend, seconds: float):
    return open_metadata(backend.url, backend.master_key, stale_if_error=seconds)


async def test_public_images_accounts_and_tokens_can_be_read_while_the_database_is_away(backend, away, make_image):
    public, private, unread = make_image(status="available"), make_image(access="private"), make_image()
    locked = make_image()
    async with opened(backend, 3600) as metadata:
        images, accounts = metadata.images, metadata.accounts
        for image in (public, private, locked, unread):
            await images.insert(image)
        user = await accounts.create("someone", "a@example.org", "user")
        token, text = await accounts.issue_token("someone", expires_at=LATER, read_only=True, name=None)
        before = [await images.get(public.id), await images.locations(public.id)]
        for image in (private, locked):
            await images.get(image.id)
        await accounts.get("someone"), await accounts.find_token(text)
        away(True)
        assert [await images.get(public.id), await images.locations(public.id)] == before == [public, []]
        assert await accounts.get("someone") == user
        assert await accounts.find_token(text) == (token, user)
        for refused in (
            images.get(private.id),
            images.get(locked.id),
            images.get(unread.id),
            images.locations(unread.id),
            images.find(ImageQuery()),
            images.entomb(public.id),
            accounts.get("nobody"),
            accounts.find_token("unknown"),
        ):
            with pytest.raises(MetadataUnavailable):
                await refused


async def test_nothing_is_read_for_longer_than_it_may_be(backend, away, make_image):
    image = make_image(status="available")
    async with opened(backend, 0) as metadata:
        await metadata.images.insert(image)
        await metadata.accounts.create("someone", "a@example.org", "user")
        assert await metadata.images.get(image.id) == image
        assert await metadata.accounts.get("someone") is not None
        away(True)
        for refused in (metadata.images.get(image.id), metadata.accounts.get("someone")):
            with pytest.raises(MetadataUnavailable):
                await refused


@pytest.mark.parametrize("change", ["delete", "make private"])
async def test_what_was_changed_before_the_outage_is_not_read_as_it_was(backend, away, make_image, change):
    image = make_image(status="available")
    async with opened(backend, 3600) as metadata:
        await metadata.images.insert(image)
        await metadata.images.get(image.id)
        if change == "delete":
            await metadata.images.entomb(image.id)
        else:
            await metadata.images.replace(make_image(id=image.id, status="available", access="private"), expected=image)
        away(True)
        with pytest.raises(MetadataUnavailable):
            await metadata.images.get(image.id)


@pytest.mark.parametrize("change", ["rotate", "delete", "revoke"])
async def test_credentials_that_were_voided_before_the_outage_stay_void(backend, away, change):
    async with opened(backend, 3600) as metadata:
        accounts = metadata.accounts
        await accounts.create("someone", "a@example.org", "user")
        token, text = await accounts.issue_token("someone", expires_at=LATER, read_only=True, name=None)
        await accounts.get("someone"), await accounts.find_token(text)
        if change == "revoke":
            await accounts.revoke_token("someone", token.id)
        else:
            await getattr(accounts, change)("someone")
        away(True)
        for refused in (accounts.get("someone"), accounts.find_token(text)):
            with pytest.raises(MetadataUnavailable):
                await refused


async def test_a_kept_token_is_void_when_its_time_is_over(backend, away, monkeypatch):
    async with opened(backend, 3600) as metadata:
        await metadata.accounts.create("someone", "a@example.org", "user")
        soon = datetime.now(UTC) + timedelta(hours=1)
        _, text = await metadata.accounts.issue_token("someone", expires_at=soon, read_only=True, name=None)
        await metadata.accounts.find_token(text)
        away(True)
        last = metadata.accounts._last_tokens._values
        ((key, ((token, row), read)),) = last.items()
        last[key] = ((type(token)(**{**token_fields(token), "expires_at": datetime.now(UTC)}), row), read)
        assert await metadata.accounts.find_token(text) is None


def token_fields(token) -> dict[str, object]:
    return {name: getattr(token, name) for name in token.__struct_fields__}


def test_few_values_are_kept_and_the_oldest_goes_first():
    last: LastRead[int, str] = LastRead(3600)
    for number in range(KEPT + 2):
        last.keep(number, str(number))
    last.keep(2, "again")
    last.keep(-1, "one more")
    assert [last.find(number) for number in (0, 1, 2, 3, 4, KEPT + 1, -1)] == [
        None, None, "again", None, "4", str(KEPT + 1), "one more",
    ]  # fmt: skip
