"""Which gateways share a PostgreSQL, and what they prove to each other."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from visor_gateway.errors import MetadataUnavailable
from visor_gateway.meta.gateways import LOAD_SECONDS, Member, PeerKeys
from visor_gateway.meta.master_key import MasterKey
from visor_gateway.meta.sql import Metadata, open_metadata

ONE = Member("one", "i1", "http://one:4568")
TWO = Member("two", "i2", "http://two:4568")


@pytest.fixture
def backend(postgres_backend):
    return postgres_backend


async def test_gateways_find_each_other_and_leave(metadata: Metadata) -> None:
    gateways = metadata.gateways
    assert await gateways.renew(ONE, 60) == (True, [])
    assert await gateways.renew(TWO, 60) == (True, [ONE])
    assert await gateways.renew(ONE, 60) == (True, [TWO])
    await gateways.leave(ONE)
    assert await gateways.renew(TWO, 60) == (True, [])


async def test_a_gateway_whose_lease_is_over_is_no_member(metadata: Metadata) -> None:
    await metadata.gateways.renew(ONE, -1)
    assert await metadata.gateways.renew(TWO, 60) == (True, [])


async def test_a_name_is_one_gateways(metadata: Metadata) -> None:
    gateways = metadata.gateways
    await gateways.renew(ONE, 60)
    impostor = Member("one", "i3", "http://elsewhere:4568")
    assert await gateways.renew(impostor, 60) == (False, [])
    assert await gateways.renew(TWO, 60) == (True, [ONE])
    # A later process of the same gateway has it, and the earlier one does not take it along.
    successor = Member("one", "i4", ONE.peer_url)
    assert await gateways.renew(successor, 60) == (True, [TWO])
    await gateways.leave(ONE)
    assert await gateways.renew(TWO, -1) == (True, [successor])
    # The one whose lease is over loses it to whoever comes.
    await gateways.renew(successor, -1)
    assert await gateways.renew(impostor, 60) == (True, [])


async def test_who_comes_and_who_goes_wakes_the_others_and_a_renewal_does_not(backend, metadata: Metadata) -> None:
    woken: list[str] = []
    async with open_metadata(backend.url, backend.master_key) as other, other.gateways.news() as news:

        async def woken_by(name: str) -> None:
            with trio.fail_after(60):
                await news.wait()
            woken.append(name)

        await metadata.gateways.renew(ONE, 60)
        await woken_by("a newcomer")
        await metadata.gateways.renew(ONE, 60)  # no notice: the next one is that of
        await metadata.gateways.leave(ONE)
        await woken_by("a leave")
        with trio.move_on_after(0.05) as waited:
            await news.wait()
        assert waited.cancelled_caught
    assert woken == ["a newcomer", "a leave"]


async def test_a_lost_connection_is_told_to_who_waits_for_news(backend, metadata: Metadata) -> None:
    async with metadata.gateways.news() as news:
        backend.server.run(
            "postgres",
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            f" WHERE datname = '{backend.database}' AND query LIKE 'LISTEN%'",
        )
        with trio.fail_after(60), pytest.raises(MetadataUnavailable):
            await news.wait()


# --- keys ----------------------------------------------------------------------------------------


@pytest.fixture
def master_key(tmp_path: Path) -> Callable[..., MasterKey]:
    """Writes a master key file with these keys, and reads it."""

    def made(*keys: bytes) -> MasterKey:
        path = tmp_path / "master.key"
        path.touch(mode=0o600)
        path.write_text("".join(f"{base64.b64encode(key).decode()}\n" for key in keys))
        master_key = MasterKey(path)
        master_key.load()
        return master_key

    return made


async def test_gateways_with_one_master_key_know_each_other(master_key: Callable[..., MasterKey]) -> None:
    key, other = secrets.token_bytes(32), secrets.token_bytes(32)
    access_key, secret = PeerKeys(master_key(key)).own()
    assert access_key == f"@{master_key(key).ids[0]}"
    assert await PeerKeys(master_key(key)).secret(access_key) == secret
    assert await PeerKeys(master_key(other)).secret(access_key) is None
    assert await PeerKeys(master_key(key)).secret(access_key.removeprefix("@")) is None
    assert secret not in {key.hex(), base64.b64encode(key).decode()}


async def test_a_key_that_is_rotated_in_is_known_after_a_while(
    master_key: Callable[..., MasterKey], autojump_clock: trio.testing.MockClock
) -> None:
    old, new = secrets.token_bytes(32), secrets.token_bytes(32)
    keys = PeerKeys(master_key(old))
    assert await keys.secret("@unknown") is None  # the file was read: the next look is later
    access_key, secret = PeerKeys(master_key(new, old)).own()
    assert await keys.secret(access_key) is None
    await trio.sleep(LOAD_SECONDS)
    assert await keys.secret(access_key) == secret


async def test_where_the_file_can_t_be_read_any_more_a_key_is_just_not_known(
    master_key: Callable[..., MasterKey], tmp_path: Path
) -> None:
    keys = PeerKeys(master_key(secrets.token_bytes(32)))
    (tmp_path / "master.key").unlink()
    assert await keys.secret("@unknown") is None
