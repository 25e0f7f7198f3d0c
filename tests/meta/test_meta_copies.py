"""Contract suite: further locations of an image's bytes."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from visor_gateway.errors import AttemptLost, Conflict, NotFound
from visor_gateway.image import Image
from visor_gateway.meta.contract import Attempt


@pytest.fixture
async def image(metadata, make_image, make_attempt, written) -> Image:
    """An available image in the store `file`."""
    image = make_image()
    attempt = make_attempt(image)
    await metadata.images.begin(attempt, new=image)
    return await metadata.images.commit(attempt, written)


@pytest.fixture
def copy_of(make_attempt):
    def make(image: Image, store: str = "s3", **fields: object) -> Attempt:
        return make_attempt(
            image, store=store, location=f"{store}://bucket/{image.id}", copies=image.attempt_id, **fields
        )

    return make


async def copied(metadata, attempt: Attempt):
    await metadata.images.begin_copy(attempt)
    return await metadata.images.commit_copy(attempt, "etag")


async def test_a_copy_is_a_location_beside_an_untouched_record(metadata, image, copy_of):
    attempt = copy_of(image)
    assert await metadata.images.begin_copy(attempt) == image
    assert await metadata.images.copying(image.id) == [attempt]
    made = await metadata.images.commit_copy(attempt, "etag")
    assert (made.store, made.location, made.validator, made.attempt_id) == (
        "s3",
        attempt.location,
        "etag",
        attempt.attempt_id,
    )
    assert await metadata.images.commit_copy(attempt, "etag") == made
    assert await metadata.images.locations(image.id) == [made]
    assert await metadata.images.copying(image.id) == []
    assert await metadata.images.get(image.id) == image
    assert await metadata.images.known_keys() == {f"{image.id}/{image.attempt_id}", attempt.key}


async def test_copies_keep_the_order_in_which_they_came(metadata, image, copy_of):
    for store in ("s3", "hdfs", "cumulus"):
        await copied(metadata, copy_of(image, store))
    assert [one.store for one in await metadata.images.locations(image.id)] == ["s3", "hdfs", "cumulus"]


async def test_one_location_in_each_store(metadata, image, copy_of):
    with pytest.raises(Conflict, match="in the store 'file' already"):
        await metadata.images.begin_copy(copy_of(image, "file"))
    await metadata.images.begin_copy(copy_of(image))
    with pytest.raises(Conflict, match="being copied"):
        await metadata.images.begin_copy(copy_of(image))
    await copied(metadata, copy_of(image, "hdfs"))
    with pytest.raises(Conflict, match="in the store 'hdfs' already"):
        await metadata.images.begin_copy(copy_of(image, "hdfs"))


async def test_only_bytes_that_the_image_has_are_copied(metadata, image, copy_of, make_image):
    with pytest.raises(Conflict):
        await metadata.images.begin_copy(msgspec.structs.replace(copy_of(image), copies="another"))
    locked = make_image()
    await metadata.images.insert(locked)
    with pytest.raises(Conflict):
        await metadata.images.begin_copy(copy_of(locked))
    with pytest.raises(NotFound):
        await metadata.images.begin_copy(copy_of(make_image()))


async def test_a_copy_holds_its_lease_while_the_image_has_its_bytes(metadata, image, copy_of):
    attempt = copy_of(image)
    await metadata.images.begin_copy(attempt)
    assert await metadata.images.renew(attempt.instance_id) == {attempt.attempt_id}
    await metadata.images.entomb(image.id)
    assert await metadata.images.renew(attempt.instance_id) == set()
    assert await metadata.images.entombed() == []  # its copier may still be writing
    with pytest.raises(AttemptLost):
        await metadata.images.commit_copy(attempt, None)
    assert await metadata.images.locations(image.id) == []


async def test_a_copy_whose_lease_ran_out_is_lost_and_swept(metadata, backend, image, copy_of):
    attempt = copy_of(image)
    await metadata.images.begin_copy(attempt)
    backend.leave_lease(attempt, seconds=-1)
    with pytest.raises(AttemptLost):
        await metadata.images.commit_copy(attempt, None)
    assert await metadata.images.expired() == [attempt]
    await metadata.images.fail(attempt)
    assert await metadata.images.expired() == []
    assert await metadata.images.get(image.id) == image


async def test_a_removed_copy_is_left_to_the_sweep_until_it_is_gone(metadata, image, copy_of):
    attempt = copy_of(image)
    await copied(metadata, attempt)
    left = await metadata.images.remove_location(image.id, "s3", instance_id="one")
    assert (left.key, left.store) == (attempt.key, "s3")
    assert await metadata.images.locations(image.id) == []
    assert await metadata.images.expired() == [left]
    await metadata.images.fail(left)
    assert await metadata.images.expired() == []
    assert await metadata.images.get(image.id) == image


async def test_the_first_copy_takes_the_place_of_a_removed_location(metadata, image, copy_of):
    await metadata.images.judge(image, good=False)
    first, second = copy_of(image), copy_of(image, "hdfs")
    await copied(metadata, first)
    await copied(metadata, second)
    left = await metadata.images.remove_location(image.id, "file", instance_id="one")
    assert (left.store, left.key) == ("file", f"{image.id}/{image.attempt_id}")
    now = await metadata.images.get(image.id)
    assert (now.store, now.location, now.validator, now.attempt_id) == ("s3", first.location, "etag", first.attempt_id)
    assert (now.sha256, now.size, now.status, now.bad_since) == (image.sha256, image.size, "available", None)
    assert [one.store for one in await metadata.images.locations(image.id)] == ["hdfs"]


async def test_a_copy_in_place_of_a_reference_has_the_digest_as_its_checksum(
    metadata, make_image, make_attempt, written, copy_of
):
    image = make_image()
    attempt = make_attempt(image, store="http", location="https://images.example/disk")
    await metadata.images.begin(attempt, new=image)
    image = await metadata.images.commit(attempt, msgspec.structs.replace(written, checksum="etag"))
    await copied(metadata, copy_of(image))
    await metadata.images.remove_location(image.id, "http", instance_id="one")
    now = await metadata.images.get(image.id)
    assert (now.store, now.checksum) == ("s3", written.sha256)


async def test_the_last_location_stays(metadata, image, copy_of):
    with pytest.raises(Conflict, match="no bytes but in the store 'file'"):
        await metadata.images.remove_location(image.id, "file", instance_id="one")
    with pytest.raises(NotFound, match="no copy in the store 's3'"):
        await metadata.images.remove_location(image.id, "s3", instance_id="one")
    await copied(metadata, copy_of(image))
    await metadata.images.begin_copy(copy_of(image, "hdfs"))
    with pytest.raises(Conflict, match="being copied"):
        await metadata.images.remove_location(image.id, "s3", instance_id="one")


async def test_copies_are_known_until_the_record_is_buried(metadata, image, copy_of):
    await copied(metadata, copy_of(image))
    await metadata.images.entomb(image.id)
    assert [one.store for one in await metadata.images.locations(image.id)] == ["s3"]
    await metadata.images.bury(image.id)
    assert await metadata.images.locations(image.id) == []


async def test_copies_are_judged_and_become_due_like_the_first_location(metadata, image, copy_of):
    await copied(metadata, copy_of(image))
    (copy,) = await metadata.images.locations(image.id)
    moment = copy.verified_at + timedelta(seconds=1)
    assert await metadata.images.scrubbed_before("s3", moment) == [image.id]
    assert await metadata.images.scrubbed_before("s3", copy.verified_at) == []
    assert await metadata.images.judge(copy.of(image), good=False)
    (bad,) = await metadata.images.locations(image.id)
    assert bad.bad_since is not None
    assert await metadata.images.judge(copy.of(image), good=False)
    assert (await metadata.images.locations(image.id))[0].bad_since == bad.bad_since
    assert (await metadata.images.get(image.id)).bad_since is None
    assert await metadata.images.judge(copy.of(image), good=True, validator="new")
    (good,) = await metadata.images.locations(image.id)
    assert (good.bad_since, good.validator) == (None, "new")
    assert not await metadata.images.judge(msgspec.structs.replace(image, attempt_id="another"), good=False)


async def test_a_copy_that_is_right_takes_the_place_before_a_bad_one(metadata, image, copy_of):
    await copied(metadata, copy_of(image))
    await copied(metadata, copy_of(image, "hdfs"))
    first, _ = await metadata.images.locations(image.id)
    await metadata.images.judge(first.of(image), good=False)
    await metadata.images.remove_location(image.id, "file", instance_id="one")
    assert (await metadata.images.get(image.id)).store == "hdfs"
