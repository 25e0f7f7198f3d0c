"""The BLAKE3 that was learned of an image's bytes: bound to their SHA-256."""

from __future__ import annotations

import msgspec
import pytest

from visor_gateway.image import Image
from visor_gateway.meta.contract import Attempt, Written

BLAKE3 = "b" * 64


@pytest.fixture
def image(make_image) -> Image:
    return make_image()


async def available(metadata, image: Image, make_attempt, written: Written) -> Image:
    attempt: Attempt = make_attempt(image)
    await metadata.images.begin(attempt, new=image)
    return await metadata.images.commit(attempt, written)


async def test_it_is_kept_with_the_record_and_can_be_forgotten(metadata, image, make_attempt, written) -> None:
    made = await available(metadata, image, make_attempt, written)
    assert made.blake3 is None
    assert await metadata.images.learn(made, BLAKE3)
    known = await metadata.images.get(made.id)
    assert (known.blake3, known.sha256, known.updated_at) == (BLAKE3, made.sha256, made.updated_at)
    assert BLAKE3 not in str(known.shown("/"))
    assert await metadata.images.learn(known, None)
    assert (await metadata.images.get(made.id)).blake3 is None


async def test_all_who_share_the_database_know_it(backend, metadata, image, make_attempt, written) -> None:
    made = await available(metadata, image, make_attempt, written)
    async with backend.open() as other:
        assert (await other.images.get(made.id)).blake3 is None
        await metadata.images.learn(made, BLAKE3)
        assert (await other.images.get(made.id)).blake3 == BLAKE3


async def test_a_change_of_the_record_leaves_it(metadata, image, make_attempt, written) -> None:
    made = await available(metadata, image, make_attempt, written)
    await metadata.images.learn(made, BLAKE3)
    changed = await metadata.images.replace(msgspec.structs.replace(made, name="other"), expected=made)
    assert (changed.name, changed.blake3) == ("other", BLAKE3)
    await metadata.images.judge(changed, good=False)
    await metadata.images.judge(changed, good=True)
    assert (await metadata.images.get(made.id)).blake3 == BLAKE3


async def test_nothing_is_learned_of_bytes_that_the_record_does_not_have(
    metadata, image, make_attempt, written
) -> None:
    made = await available(metadata, image, make_attempt, written)
    assert not await metadata.images.learn(msgspec.structs.replace(made, sha256="d" * 64), BLAKE3)
    assert not await metadata.images.learn(msgspec.structs.replace(made, id="another"), BLAKE3)
    assert (await metadata.images.get(made.id)).blake3 is None
    await metadata.images.entomb(made.id)
    assert not await metadata.images.learn(made, BLAKE3)


async def test_other_bytes_make_it_void(backend, metadata, image, make_attempt, written) -> None:
    made = await available(metadata, image, make_attempt, written)
    await metadata.images.learn(made, BLAKE3)
    # Whoever changes the digest need not know of it.
    backend.run(f"UPDATE images SET sha256 = '{'d' * 64}' WHERE id = '{made.id}'")
    known = await metadata.images.get(made.id)
    assert (known.sha256, known.blake3) == ("d" * 64, None)
    # Nor does the next one to write bytes.
    backend.run(f"UPDATE images SET status = 'error', sha256 = '{written.sha256}' WHERE id = '{made.id}'")
    attempt = make_attempt(image)
    assert (await metadata.images.begin(attempt)).learned is None
    again = await metadata.images.commit(attempt, written)
    assert (again.sha256, again.learned) == (written.sha256, None)
