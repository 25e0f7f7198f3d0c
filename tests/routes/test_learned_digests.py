"""All bytes are held to the SHA-256 once, and from then on to the BLAKE3 that was learned with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from blake3 import blake3
from faulty_origin import Close, Reset
from gateway import Gateway, running_gateway
from reference_world import DATA, REPR_DIGEST, SIZE, UNVERIFIED, World, cut_at, once, world

from visor_gateway.errors import MetadataUnavailable
from visor_gateway.image import Image
from visor_gateway.routes import delivery, remote
from visor_gateway.store.file import FileStore
from visor_gateway.transfer import learning
from visor_gateway.transfer.digest import Digests

BLAKE3 = blake3(DATA).hexdigest()
BOTH = ["sha256", "blake3"]


def flipped(position: int) -> bytes:
    """The image with one bit of one byte changed."""
    return DATA[:position] + bytes([DATA[position] ^ 1]) + DATA[position + 1 :]


@pytest.fixture
async def verifying(tmp_path: Path) -> AsyncGenerator[World]:
    async with world(tmp_path, VISOR_GATEWAY__STORES__RETRY_TIMEOUT="0.2") as made:
        yield made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The digests that each read has run."""
    reads: list[list[str]] = []
    real = learning.digests_for

    def noting(image: Image) -> Digests:
        digests = real(image)
        reads.append([name for name in BOTH if name in digests])
        return digests

    for module in (delivery, remote):
        monkeypatch.setattr(module, "digests_for", noting)
    return reads


async def record(gateway: Gateway, image: str) -> Image:
    found = await gateway.services.images.get(image)
    assert found is not None
    return found


async def learned(world: World) -> str:
    """A reference whose BLAKE3 is known."""
    image = await world.pinned()
    assert (await world.pull(image)).body == DATA
    assert (await record(world.gateway, image)).blake3 == BLAKE3
    return image


async def test_the_first_read_that_is_held_to_the_sha256_learns_and_later_ones_use_it(
    verifying: World, run: list[list[str]]
) -> None:
    image = await verifying.refer()
    for number in range(4):
        reply = await verifying.pull(image)
        assert (reply.status, reply.body, reply.cut) == (200, DATA, False)
        assert reply.headers.get("repr-digest") == (REPR_DIGEST if number else None)
    assert run == [["sha256"], BOTH, ["blake3"], ["blake3"]]


async def test_a_client_whose_socket_is_not_lent_learns_and_uses_it_too(verifying: World, run: list[list[str]]) -> None:
    image = await verifying.pinned()
    for _ in range(2):
        assert (await verifying.gateway.call("GET", f"/images/{image}")).body == DATA
    assert run == [["sha256"], BOTH, ["blake3"]]
    verifying.origin.body = flipped(SIZE - 1)
    reply = await verifying.gateway.call("GET", f"/images/{image}")
    assert reply.was_reset
    assert len(reply.body) < SIZE


async def test_a_read_that_was_healed_learns_and_is_held_to_it(verifying: World, run: list[list[str]]) -> None:
    image = await verifying.pinned()
    for _ in range(2):
        verifying.origin.answer = once(cut_at(2_000_000, Close()))
        reply = await verifying.pull(image)
        assert (reply.body, reply.cut) == (DATA, False)
    assert run == [["sha256"], BOTH, ["blake3"]]


@pytest.mark.parametrize("position", [0, 1, SIZE // 2, SIZE - 70_000, SIZE - 60_000, SIZE - 2, SIZE - 1])
async def test_a_flipped_bit_is_caught_wherever_it_is(verifying: World, run: list[list[str]], position: int) -> None:
    image = await learned(verifying)
    verifying.origin.body = flipped(position)
    # What was learned is forgotten: the next read is held to the SHA-256 again.
    for digests in (["blake3"], BOTH, BOTH):
        reply = await verifying.pull(image)
        assert (reply.status, reply.cut, len(reply.body) < SIZE) == (200, True, True)
        assert run[-1] == digests
        assert (await record(verifying.gateway, image)).blake3 is None
    verifying.origin.body = DATA
    for digests in (BOTH, ["blake3"]):
        assert (await verifying.pull(image)).body == DATA
        assert run[-1] == digests


async def test_a_wrong_entry_in_the_database_costs_one_pull(verifying: World) -> None:
    image = await learned(verifying)
    await verifying.gateway.services.images.learn(await record(verifying.gateway, image), "0" * 64)
    assert (await verifying.pull(image)).cut
    for _ in range(2):
        assert (await verifying.pull(image)).body == DATA
    assert (await record(verifying.gateway, image)).blake3 == BLAKE3


# --- what teaches nothing --------------------------------------------------------------------------------------------


async def test_a_range_teaches_nothing(verifying: World) -> None:
    image = await verifying.pinned()
    assert (await verifying.pull(image, range=f"bytes=1-{SIZE - 1}")).body == DATA[1:]
    assert (await record(verifying.gateway, image)).learned is None


async def test_a_read_that_broke_teaches_nothing(verifying: World) -> None:
    image = await verifying.pinned()
    cut = cut_at(SIZE - 1, Reset())
    verifying.origin.answer = lambda asked: cut if asked.span == (0, SIZE - 1) else [Reset()]
    assert (await verifying.pull(image)).cut
    assert (await record(verifying.gateway, image)).learned is None


async def test_other_bytes_teach_nothing(verifying: World) -> None:
    image = await verifying.pinned()
    verifying.origin.body = flipped(SIZE - 1)
    assert (await verifying.pull(image)).cut
    assert (await record(verifying.gateway, image)).learned is None


async def test_a_cancelled_pull_teaches_nothing(verifying: World) -> None:
    image = await verifying.pinned()
    await verifying.cancelled(image)
    assert (await record(verifying.gateway, image)).learned is None


async def test_a_pull_that_is_not_verified_teaches_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, **UNVERIFIED) as trusting:
        image = await trusting.pinned()
        assert (await trusting.pull(image)).body == DATA
        assert (await record(trusting.gateway, image)).learned is None


async def test_nothing_is_learned_of_a_record_that_has_other_bytes_by_then(
    verifying: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await verifying.pinned()
    images, other = verifying.gateway.services.images, "d" * 64
    real = images.learn

    async def late(before: Image, blake3: str | None) -> bool:
        change = sa.text("UPDATE images SET sha256 = :other")
        await images._database.write(lambda connection: connection.execute(change, {"other": other}))  # type: ignore[attr-defined]
        return await real(before, blake3)

    monkeypatch.setattr(images, "learn", late)
    assert (await verifying.pull(image)).body == DATA
    found = await record(verifying.gateway, image)
    assert (found.sha256, found.learned) == (other, None)


# --- a database that is away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", ["fails", "hangs"])
async def test_a_database_that_can_not_learn_keeps_no_client_from_its_bytes(
    verifying: World, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    async def learn(*_: Any) -> bool:
        if away == "hangs":
            await trio.sleep_forever()
        raise MetadataUnavailable("The database is away")

    monkeypatch.setattr(learning, "LEARN_SECONDS", 0.05)
    monkeypatch.setattr(verifying.gateway.services.images, "learn", learn)
    image = await verifying.pinned()
    for _ in range(2):
        reply = await verifying.pull(image)
        assert (reply.body, reply.cut) == (DATA, False)


# --- files that are hashed on every pull -----------------------------------------------------------------------------


async def test_a_file_that_is_always_verified_is_held_to_what_was_learned(tmp_path: Path, run: list[list[str]]) -> None:
    store = FileStore("file", tmp_path / "store", always_verify=True)
    async with running_gateway(tmp_path, stores={"file": store}) as gateway:
        image = str((await gateway.add(DATA))["_id"])
        for _ in range(3):
            assert (await gateway.call("GET", f"/images/{image}")).body == DATA
        assert run == [BOTH, ["blake3"], ["blake3"]]
        (file,) = gateway.files()
        file.chmod(0o600)
        file.write_bytes(flipped(SIZE // 2))
        before = await record(gateway, image)
        assert before.location is not None
        validator = (await store.stat(before.location)).validator
        await gateway.services.images.judge(before, good=True, validator=validator)
        reply = await gateway.call("GET", f"/images/{image}")
        assert (reply.was_reset, len(reply.body) < SIZE, run[-1]) == (True, True, ["blake3"])
        marked = await record(gateway, image)
        assert (marked.bad_since is not None, marked.blake3) == (True, None)
