"""Contract suite: attempts, leases, and who wins."""

from __future__ import annotations

from datetime import datetime

import msgspec
import pytest
import sqlalchemy as sa
import trio

from visor_gateway.errors import AttemptLost, Conflict, GatewayError, NotFound
from visor_gateway.image import Image
from visor_gateway.meta.schema import attempts

LEASE_END = sa.select(attempts.c.attempt_id, attempts.c.expires_at)


@pytest.fixture
async def image(metadata, make_image) -> Image:
    image = make_image(attributes={"a": "1"})
    await metadata.images.insert(image)
    return image


async def lease_ends(metadata) -> dict[str, datetime]:
    """Ends of leases by attempt id."""
    rows = await metadata.images._database.read(lambda connection: connection.execute(LEASE_END).all())
    return dict(tuple(row) for row in rows)


async def outcome(call) -> str:
    try:
        await call
    except GatewayError as error:
        return type(error).__name__
    return "ok"


async def test_an_upload_goes_from_locked_over_uploading_to_available(metadata, image, make_attempt, written):
    attempt = make_attempt(image)
    taken = await metadata.images.begin(attempt)
    assert (taken.status, taken.attempt_id, taken.store, taken.location) == (
        "uploading",
        attempt.attempt_id,
        "file",
        None,
    )
    assert await metadata.images.get(image.id) == taken
    done = await metadata.images.commit(attempt, written)
    assert (done.status, done.location, done.size, done.checksum, done.sha256, done.validator) == (
        "available",
        attempt.location,
        written.size,
        written.checksum,
        written.sha256,
        written.validator,
    )
    assert done.uploaded_at == done.updated_at is not None
    assert done.attributes == image.attributes
    assert await metadata.images.get(image.id) == done
    assert await metadata.images.renew("instance-1") == set()


async def test_the_location_is_the_one_that_the_commit_names(metadata, image, make_attempt, written):
    attempt = make_attempt(image, location="")
    await metadata.images.begin(attempt)
    done = await metadata.images.commit(msgspec.structs.replace(attempt, location="file:///there"), written)
    assert done.location == "file:///there"


async def test_a_new_record_and_its_lease_are_stored_together(metadata, make_image, make_attempt):
    image = make_image(attributes={"a": "1"})
    taken = await metadata.images.begin(make_attempt(image), new=image)
    assert taken.status == "uploading"
    assert await metadata.images.get(image.id) == taken
    assert len(await metadata.images.renew("instance-1")) == 1


async def test_nothing_of_a_new_record_stays_when_its_lease_can_not_be_stored(metadata, make_image, make_attempt):
    first, second = make_image(), make_image()
    attempt = make_attempt(first)
    await metadata.images.begin(attempt, new=first)
    assert await outcome(metadata.images.begin(make_attempt(second, attempt_id=attempt.attempt_id), new=second)) != "ok"
    assert await metadata.images.get(second.id) is None


async def test_a_failed_upload_leaves_error_and_can_be_tried_again(metadata, image, make_attempt, written):
    first, second = make_attempt(image), make_attempt(image)
    await metadata.images.begin(first)
    await metadata.images.fail(first)
    failed = await metadata.images.get(image.id)
    assert failed.status == "error"
    assert failed.updated_at is not None
    assert {failed.size, failed.checksum, failed.sha256, failed.validator, failed.location, failed.attempt_id} == {None}
    assert await metadata.images.known_keys() == set()
    await metadata.images.begin(second)
    assert (await metadata.images.commit(second, written)).status == "available"


async def test_a_failed_upload_whose_bytes_stayed_is_told_to_the_sweep(metadata, image, make_attempt, written):
    first, second = make_attempt(image), make_attempt(image)
    await metadata.images.begin(first)
    await metadata.images.fail(first, bytes_left=True)
    assert (await metadata.images.get(image.id)).status == "error"
    assert await metadata.images.expired() == [first]
    with pytest.raises(AttemptLost):
        await metadata.images.commit(first, written)
    await metadata.images.begin(second)
    await metadata.images.fail(first)
    assert await metadata.images.expired() == []
    assert (await metadata.images.commit(second, written)).status == "available"


async def test_writing_to_an_unknown_image_is_refused(metadata, make_image, make_attempt):
    with pytest.raises(NotFound, match=r"No image found with id"):
        await metadata.images.begin(make_attempt(make_image()))


@pytest.mark.parametrize("status", ["uploading", "available"])
async def test_an_image_that_is_not_locked_or_error_is_not_taken(metadata, make_image, make_attempt, status):
    image = make_image(status=status)
    await metadata.images.insert(image)
    with pytest.raises(Conflict, match="Can only assign image file to a locked or error image"):
        await metadata.images.begin(make_attempt(image))
    assert await metadata.images.get(image.id) == image
    assert await metadata.images.expired(ours="another") == []


async def test_of_two_gateways_that_upload_to_one_image_one_wins(backend, make_image, make_attempt):
    image = make_image()
    outcomes = []

    async def upload(metadata, instance):
        outcomes.append(await outcome(metadata.images.begin(make_attempt(image, instance))))

    async with backend.open() as one, backend.open() as two:
        await one.images.insert(image)
        async with trio.open_nursery() as nursery:
            for number in range(25):
                nursery.start_soon(upload, one, f"one-{number}")
                nursery.start_soon(upload, two, f"two-{number}")
    assert sorted(outcomes) == ["Conflict"] * 49 + ["ok"]


async def test_a_commit_may_be_repeated(metadata, image, make_attempt, written):
    attempt = make_attempt(image)
    await metadata.images.begin(attempt)
    done = await metadata.images.commit(attempt, written)
    assert await metadata.images.commit(attempt, written) == done


async def test_a_paused_writer_whose_lease_ran_out_can_not_commit(backend, metadata, image, make_attempt, written):
    attempt = make_attempt(image)
    await metadata.images.begin(attempt)
    backend.leave_lease(attempt, seconds=-1)
    with pytest.raises(AttemptLost):
        await metadata.images.commit(attempt, written)
    assert (await metadata.images.get(image.id)).status == "uploading"


async def test_a_writer_that_was_overtaken_can_neither_commit_nor_fail(backend, metadata, image, make_attempt, written):
    first, second = make_attempt(image), make_attempt(image, "instance-2")
    await metadata.images.begin(first)
    backend.leave_lease(first, seconds=-1)
    await metadata.images.fail(first)
    await metadata.images.begin(second)
    with pytest.raises(AttemptLost):
        await metadata.images.commit(first, written)
    await metadata.images.fail(first)
    assert (await metadata.images.commit(second, written)).status == "available"
    await metadata.images.fail(first)
    await metadata.images.fail(second)
    assert (await metadata.images.get(image.id)).attempt_id == second.attempt_id


async def test_a_delete_takes_the_image_from_its_writer(metadata, image, make_attempt, written):
    attempt = make_attempt(image)
    await metadata.images.begin(attempt)
    await metadata.images.entomb(image.id)
    assert await metadata.images.renew("instance-1") == set()
    with pytest.raises(AttemptLost):
        await metadata.images.commit(attempt, written)


async def test_renewing_keeps_a_lease_and_names_what_is_held(backend, metadata, make_image, make_attempt, written):
    attempts = [make_attempt(make_image(), name) for name in ("one", "one", "two")]
    for attempt in attempts:
        await metadata.images.begin(attempt, new=make_image(id=attempt.image_id))
    assert await metadata.images.renew("one") == {attempts[0].attempt_id, attempts[1].attempt_id}
    assert await metadata.images.renew("two") == {attempts[2].attempt_id}
    assert await metadata.images.renew("three") == set()
    await metadata.images.commit(attempts[0], written)
    assert await metadata.images.renew("one") == {attempts[1].attempt_id}


async def test_renewing_moves_the_end_of_a_lease(backend, metadata, image, make_attempt, written):
    attempt = make_attempt(image)
    await metadata.images.begin(attempt)
    backend.leave_lease(attempt, seconds=5)
    before = await lease_ends(metadata)
    await metadata.images.renew("instance-1")
    after = await lease_ends(metadata)
    assert (after[attempt.attempt_id] - before[attempt.attempt_id]).total_seconds() == pytest.approx(25, abs=3)


async def test_a_lease_that_nobody_works_on_is_not_renewed(metadata, make_image, make_attempt):
    kept, forgotten = make_attempt(make_image()), make_attempt(make_image())
    for attempt in (kept, forgotten):
        await metadata.images.begin(attempt, new=make_image(id=attempt.image_id))
    before = await lease_ends(metadata)
    assert await metadata.images.renew("instance-1", writing={kept.attempt_id, "unknown"}) == {kept.attempt_id}
    after = await lease_ends(metadata)
    assert after[kept.attempt_id] > before[kept.attempt_id]
    assert after[forgotten.attempt_id] == before[forgotten.attempt_id]
    assert await metadata.images.renew("instance-1", writing=()) == set()


async def test_a_lease_that_ran_out_is_not_taken_up_again(backend, metadata, image, make_attempt, written):
    attempt = make_attempt(image)
    await metadata.images.begin(attempt)
    backend.leave_lease(attempt, seconds=-1)
    assert await metadata.images.renew("instance-1") == set()
    with pytest.raises(AttemptLost):
        await metadata.images.commit(attempt, written)


async def test_the_sweep_is_told_of_leases_that_are_over_until_they_are_ended(
    backend, metadata, make_image, make_attempt
):
    over, held = make_attempt(make_image()), make_attempt(make_image(), "instance-2")
    for attempt in (over, held):
        await metadata.images.begin(attempt, new=make_image(id=attempt.image_id))
    assert await metadata.images.expired() == []
    backend.leave_lease(over, seconds=-1)
    assert await metadata.images.expired() == [over]
    assert await metadata.images.expired() == [over]
    await metadata.images.fail(over)
    assert await metadata.images.expired() == []
    assert (await metadata.images.get(over.image_id)).status == "error"
    assert (await metadata.images.get(held.image_id)).status == "uploading"


async def test_a_lease_of_a_buried_image_is_still_swept(backend, metadata, image, make_attempt):
    attempt = make_attempt(image)
    await metadata.images.begin(attempt)
    await metadata.images.entomb(image.id)
    await metadata.images.bury(image.id)
    backend.leave_lease(attempt, seconds=-1)
    assert await metadata.images.expired() == [attempt]
    await metadata.images.fail(attempt)
    assert await metadata.images.expired() == []


async def test_a_delete_is_left_alone_while_a_writer_may_still_hold_the_bytes(backend, metadata, image, make_attempt):
    attempt = make_attempt(image)
    await metadata.images.begin(attempt)
    await metadata.images.entomb(image.id)
    assert await metadata.images.entombed() == []
    backend.leave_lease(attempt, seconds=-1)
    assert [entombed.id for entombed in await metadata.images.entombed()] == [image.id]


async def test_keys_of_records_tombstones_and_leases_are_known(metadata, make_image, make_attempt, written):
    available, uploading, entombed, buried = [make_attempt(make_image()) for _ in range(4)]
    for attempt in (available, uploading, entombed, buried):
        await metadata.images.begin(attempt, new=make_image(id=attempt.image_id))
    await metadata.images.commit(available, written)
    for attempt in (entombed, buried):
        await metadata.images.commit(attempt, written)
        await metadata.images.entomb(attempt.image_id)
    await metadata.images.bury(buried.image_id)
    await metadata.images.insert(make_image())
    assert await metadata.images.known_keys() == {available.key, uploading.key, entombed.key}


async def test_a_reference_of_unknown_size_becomes_available(metadata, image, make_attempt, written):
    attempt = make_attempt(image, store="http", location="https://origin/a.iso")
    await metadata.images.begin(attempt)
    unknown = msgspec.structs.replace(written, size=None, checksum=None, sha256=None, validator=None)
    done = await metadata.images.commit(attempt, unknown)
    assert (done.status, done.store, done.location, done.size) == ("available", "http", "https://origin/a.iso", None)


# --- promises --------------------------------------------------------------------------------------------------------


async def test_a_promised_attempt_holds_its_lease_before_it_begins(metadata, image, make_attempt, written):
    attempt = make_attempt(image)
    await metadata.images.promise(attempt)
    assert (await metadata.images.get(image.id)).status == "locked"
    assert await metadata.images.renew("instance-1") == {attempt.attempt_id}
    assert (await metadata.images.begin(attempt)).status == "uploading"
    assert (await metadata.images.commit(attempt, written)).status == "available"
    assert await lease_ends(metadata) == {}


async def test_a_new_record_and_its_promise_are_stored_together(metadata, make_image, make_attempt):
    image = make_image()
    await metadata.images.promise(make_attempt(image), new=image)
    found = await metadata.images.get(image.id)
    assert (found.status, len(await lease_ends(metadata))) == ("locked", 1)


async def test_a_promise_that_nobody_kept_becomes_error(metadata, image, make_attempt):
    attempt = make_attempt(image)
    await metadata.images.promise(attempt)
    assert await metadata.images.expired(ended=attempt.instance_id) == [attempt]
    assert await outcome(metadata.images.begin(attempt)) == "AttemptLost"
    await metadata.images.fail(attempt)
    assert (await metadata.images.get(image.id)).status == "error"
    assert await lease_ends(metadata) == {}


async def test_bytes_that_come_first_win_over_a_promise(metadata, image, make_attempt, written):
    promised, pushed = make_attempt(image), make_attempt(image)
    await metadata.images.promise(promised)
    await metadata.images.begin(pushed)
    assert await outcome(metadata.images.begin(promised)) == "Conflict"
    assert await metadata.images.renew("instance-1") == {pushed.attempt_id}
    await metadata.images.fail(promised)
    assert (await metadata.images.get(image.id)).status == "uploading"
    await metadata.images.fail(pushed)
    assert await outcome(metadata.images.begin(promised)) == "ok"  # its lease was given up: it begins like any other


async def test_of_two_promises_the_later_one_holds(metadata, image, make_attempt):
    first, second = make_attempt(image), make_attempt(image)
    await metadata.images.promise(first)
    await metadata.images.promise(second)
    assert await outcome(metadata.images.begin(first)) == "AttemptLost"
    assert await outcome(metadata.images.begin(second)) == "ok"


async def test_nothing_is_promised_to_an_available_image(metadata, image, make_attempt, written):
    attempt = make_attempt(image)
    await metadata.images.begin(attempt)
    await metadata.images.commit(attempt, written)
    assert await outcome(metadata.images.promise(make_attempt(image))) == "Conflict"


# --- pinning ---------------------------------------------------------------------------------------------------------


async def test_the_first_digest_of_a_reference_stays(metadata, image, make_attempt, written):
    attempt = make_attempt(image)
    await metadata.images.begin(attempt)
    told = msgspec.structs.replace(written, sha256=None, size=None, checksum="etag")
    reference = await metadata.images.commit(attempt, told)
    assert await metadata.images.pin(reference, sha256="a" * 64, size=7) == "a" * 64
    assert await metadata.images.pin(reference, sha256="b" * 64, size=8) == "a" * 64
    found = await metadata.images.get(image.id)
    assert (found.sha256, found.size, found.checksum) == ("a" * 64, 7, "etag")


async def test_nothing_is_pinned_to_a_record_that_is_gone(metadata, image, make_attempt, written):
    attempt = make_attempt(image)
    await metadata.images.begin(attempt)
    reference = await metadata.images.commit(attempt, msgspec.structs.replace(written, sha256=None))
    await metadata.images.entomb(image.id)
    assert await metadata.images.pin(reference, sha256="a" * 64, size=7) is None
