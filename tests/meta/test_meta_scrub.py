"""What is remembered of scrubs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from visor_gateway.image import Image
from visor_gateway.meta.contract import Attempt, Written

LATER = timedelta(hours=1)


async def available(metadata, make_image, make_attempt, written: Written, **fields: object) -> Image:
    image = make_image(**fields)
    attempt: Attempt = make_attempt(image)
    await metadata.images.begin(attempt, new=image)
    return await metadata.images.commit(attempt, written)


async def test_a_mark_is_set_kept_and_cleared(metadata, make_image, make_attempt, written) -> None:
    images = metadata.images
    image = await available(metadata, make_image, make_attempt, written)
    assert (image.scrubbed_at, image.bad_since) == (None, None)
    assert await images.judge(image, good=False)
    first = await images.get(image.id)
    assert first.bad_since == first.scrubbed_at is not None
    assert [found.id for found in await images.bad()] == [image.id]
    assert await images.judge(image, good=False)
    second = await images.get(image.id)
    assert second.bad_since == first.bad_since
    assert second.scrubbed_at >= first.scrubbed_at
    assert await images.judge(image, good=True, validator="4-5-6")
    third = await images.get(image.id)
    assert (third.bad_since, third.validator) == (None, "4-5-6")
    assert await images.bad() == []


async def test_other_bytes_than_those_that_were_judged_keep_their_state(
    metadata, make_image, make_attempt, written
) -> None:
    images = metadata.images
    image = await available(metadata, make_image, make_attempt, written)
    assert not await images.judge(msgspec.structs.replace(image, attempt_id="another"), good=False)
    assert (await images.get(image.id)).bad_since is None
    await images.entomb(image.id)
    assert not await images.judge(image, good=False)
    assert await images.bad() == []


async def test_a_change_of_the_record_changes_no_mark(metadata, make_image, make_attempt, written) -> None:
    image = await available(metadata, make_image, make_attempt, written)
    await metadata.images.judge(image, good=False)
    marked = await metadata.images.get(image.id)
    changed = msgspec.structs.replace(image, name="other")
    assert (await metadata.images.replace(changed, expected=image)).bad_since == marked.bad_since


async def test_those_of_the_longest_ago_are_due_first(metadata, make_image, make_attempt, written) -> None:
    images = metadata.images
    one, two, three = [await available(metadata, make_image, make_attempt, written) for _ in range(3)]
    await images.insert(make_image())
    reference = make_attempt(make_image())
    await images.begin(reference, new=make_image(id=reference.image_id))
    await images.commit(reference, Written(size=None, checksum=None, sha256=None, validator=None))
    await images.judge(one, good=True)
    now = datetime.now(UTC)
    assert await images.scrubbed_before("file", now + LATER) == [two.id, three.id, one.id]
    assert await images.scrubbed_before("file", now - LATER) == []
    assert await images.scrubbed_before("s3", now + LATER) == []
