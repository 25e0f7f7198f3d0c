"""Reads in the event loop: as right as any, whoever writes, and done without where they can't be had."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from visor_gateway.meta.fresh import Fresh

SOON = timedelta(hours=1)


@pytest.fixture
def backend(sqlite_backend):
    """Only SQLite is read in the event loop."""
    return sqlite_backend


def later() -> datetime:
    return datetime.now(UTC) + SOON


async def test_what_another_process_writes_is_seen_at_once(backend, make_image):
    image = make_image(attributes={"b": "1", "a": "2"})
    async with backend.open() as ours, backend.open() as others:
        await others.images.insert(image)
        before = await ours.images.version()
        assert await ours.images.get(image.id) == await others.images.get(image.id) == image
        assert await ours.images.version() == before
        await others.images.entomb(image.id)
        assert await ours.images.version() != before
        assert await ours.images.get(image.id) is None


async def test_our_own_writes_change_the_version(backend, make_image):
    async with backend.open() as ours:
        versions = [await ours.images.version()]
        for _ in range(3):
            await ours.images.insert(make_image())
            versions.append(await ours.images.version())
    assert len(set(versions)) == len(versions)
    assert None not in versions


async def test_a_token_that_is_kept_is_void_when_its_time_is_over(backend, monkeypatch):
    class Clock(datetime):
        ahead = timedelta(0)

        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + cls.ahead

    monkeypatch.setattr("visor_gateway.meta.database.datetime", Clock)
    async with backend.open() as ours:
        await ours.accounts.create("someone", "a@example.org", "user")
        _, text = await ours.accounts.issue_token("someone", expires_at=later(), read_only=True, name=None)
        assert await ours.accounts.find_token(text) is not None
        Clock.ahead = 2 * SOON
        assert await ours.accounts.find_token(text) is None


async def test_a_rotated_master_key_is_read_again(backend):
    async with backend.open() as ours, backend.open() as others:
        user = await ours.accounts.create("someone", "a@example.org", "user")
        assert await ours.accounts.get("someone") == user
        await others.accounts.rotate_master()
        assert await ours.accounts.get("someone") == user


async def test_a_thread_reads_where_the_event_loop_can_not(backend, make_image):
    image = make_image(attributes={"a": "1"})
    async with backend.open() as ours:
        await ours.images.insert(image)
        user = await ours.accounts.create("someone", "a@example.org", "user")
        token, text = await ours.accounts.issue_token("someone", expires_at=later(), read_only=True, name=None)
        ours.images._database._engine._reader.close()
        assert await ours.images.version() is None
        assert await ours.images.get(image.id) == image
        assert await ours.accounts.get("someone") == user
        assert await ours.accounts.find_token(text) == (token, user)


# --- what is kept ----------------------------------------------------------------------------------


def test_nothing_outlives_its_version():
    kept: Fresh[str, int] = Fresh(100)
    kept.keep(1, "a", 10, 1)
    assert (kept.find(1, "a"), kept.find(1, "b"), kept.find(2, "a"), kept.find(None, "a")) == (10, None, None, None)
    kept.keep(2, "b", 20, 1)
    assert (kept.find(2, "a"), kept.find(1, "a"), kept.find(2, "b"), kept.size) == (None, None, 20, 1)


def test_without_a_version_nothing_is_kept():
    kept: Fresh[str, int] = Fresh(100)
    kept.keep(None, "a", 10, 1)
    assert (kept.find(None, "a"), kept.size) == (None, 0)


def test_no_more_is_kept_than_fits():
    kept: Fresh[int, str] = Fresh(10)
    kept.keep(1, 0, "too large", 11)
    for key in range(1, 5):
        kept.keep(1, key, "value", 3)
        assert kept.size <= 10
    assert [key for key in range(5) if kept.find(1, key)] == [2, 3, 4]
    kept.keep(1, 4, "larger", 10)
    assert [key for key in range(5) if kept.find(1, key)] == [4]
    assert kept.size == 10
