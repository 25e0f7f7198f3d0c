"""Bytes into a store: whole and recorded, or not at all (design: records never lead bytes)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import structlog.testing
import trio
from ingest_setting import Blocks, BreakingStore, RetryingStore, push_of, setting

from visor_gateway.errors import (
    AttemptLost,
    BodyIncomplete,
    Conflict,
    DigestMismatch,
    GatewayError,
    MetadataUnavailable,
    StoreFull,
    StoreUnreachable,
    TooLarge,
    TransferCancelled,
    UnsafeImage,
)
from visor_gateway.meta.contract import Attempt, Written

DATA = [b"a" * 100_000, b"b" * 50_000]
WHOLE = b"".join(DATA)


async def test_bytes_become_available_with_size_and_digests(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        image = await s.push(await s.locked(), Blocks(DATA), size=len(WHOLE))
        assert (image.status, image.size, image.store) == ("available", len(WHOLE), "file")
        assert image.sha256 == hashlib.sha256(WHOLE).hexdigest()
        assert image.checksum == hashlib.md5(WHOLE).hexdigest()
        assert image.location is not None
        assert (await s.store.stat(image.location)).validator == image.validator
        assert [path.read_bytes() for path in s.files()] == [WHOLE]


async def test_a_store_that_tries_its_own_steps_again_is_seen(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        image = await s.locked()
        transfer = push_of(image)
        await s.push(image, Blocks(DATA), RetryingStore(s.store, "nothing", StoreFull("unused")), transfer)
        assert transfer.attempt == 2
        assert (
            s.metrics.registry.get_sample_value("visor_transfer_retries_total", {"kind": "push", "store": "file"}) == 1
        )


@pytest.mark.parametrize(
    ("blocks", "declared", "error"),
    [
        (DATA, {"size": len(WHOLE) + 1}, BodyIncomplete),
        (DATA, {"digests": {"sha256": b"\0" * 32}}, DigestMismatch),
        (DATA, {"digests": {"md5": b"\0" * 16}}, DigestMismatch),
        ([b"x" * 600_000, b"x" * 600_000], {}, TooLarge),
        ([b"QFI\xfb\0\0\0\3" + b"\0\0\0\0\0\0\2\0" + b"\0\0\0\x08" + b"\0" * 100_000], {}, UnsafeImage),
    ],
)
async def test_bytes_that_may_not_be_kept_leave_error_and_nothing_else(
    tmp_path: Path, blocks: list[bytes], declared: dict[str, object], error: type[GatewayError]
) -> None:
    async with setting(tmp_path, max_size=1_000_000) as s:
        image = await s.locked()
        with pytest.raises(error):
            await s.push(image, Blocks(blocks), **declared)
        assert await s.status(image) == "error"
        assert s.files() == []


@pytest.mark.parametrize("call", ["open_write", "write", "commit"])
@pytest.mark.parametrize("error", [StoreFull, StoreUnreachable])
async def test_a_store_that_fails_leaves_error_and_nothing_else(
    tmp_path: Path, call: str, error: type[StoreFull | StoreUnreachable]
) -> None:
    async with setting(tmp_path) as s:
        image = await s.locked()
        with pytest.raises(error):
            await s.push(image, Blocks(DATA), BreakingStore(s.store, call, error("no")))
        assert await s.status(image) == "error"
        assert s.files() == []
        # And the image can be given bytes again.
        assert (await s.push(image, Blocks(DATA))).status == "available"


async def test_an_unsafe_image_is_kept_where_the_operator_wants_it(tmp_path: Path) -> None:
    unsafe = b"QFI\xfb\0\0\0\3" + b"\0\0\0\0\0\0\2\0" + b"\0\0\0\x08" + b"\0" * 100_000
    async with setting(tmp_path, keep_unsafe=True) as s:
        with structlog.testing.capture_logs() as logs:
            image = await s.push(await s.locked(), Blocks([unsafe]))
        assert (image.status, image.size) == ("available", len(unsafe))
        warned = [log for log in logs if log["event"] == "unsafe image is kept"]
        assert [(log["image"], log["log_level"]) for log in warned] == [(image.id, "warning")]
        assert "backing file" in warned[0]["finding"]


async def test_a_source_that_breaks_leaves_error_and_nothing_else(tmp_path: Path) -> None:
    def gone() -> None:
        raise BodyIncomplete("gone")

    async with setting(tmp_path) as s:
        image = await s.locked()
        with pytest.raises(BodyIncomplete):
            await s.push(image, Blocks(DATA, gone))
        assert (await s.status(image), s.files()) == ("error", [])


async def test_a_cancelled_push_has_cleaned_up_when_it_has_ended(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        image = await s.locked()
        transfer = push_of(image)
        with pytest.raises(TransferCancelled) as caught:
            await s.push(image, Blocks(DATA, lambda: transfer.cancel("request")), transfer=transfer)
        assert caught.value.reason == "request"
        assert transfer.ended.is_set()
        assert transfer.state == "cancelled"
        assert (await s.status(image), s.files()) == ("error", [])


async def test_a_push_cancelled_from_outside_cleans_up_too(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        image = await s.locked()
        with trio.CancelScope() as scope:
            await s.push(image, Blocks(DATA, scope.cancel))
        assert scope.cancelled_caught
        assert (await s.status(image), s.files()) == ("error", [])
        assert s.hub.live() == ()


async def test_of_two_writers_one_is_refused_and_disturbs_nothing(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        image = await s.locked()
        refused: list[Conflict] = []
        first = push_of(image)

        async def second() -> None:
            try:
                await s.push(image, Blocks(DATA))
            except Conflict as error:
                refused.append(error)
            first.cancel("request")

        async with trio.open_nursery() as nursery:
            with pytest.raises(TransferCancelled):
                await s.push(image, Blocks(DATA, lambda: nursery.start_soon(second)), transfer=first)
        assert [error.message for error in refused] == ["Can only assign image file to a locked or error image"]


async def test_a_writer_whose_image_was_deleted_leaves_no_bytes(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        image = await s.locked()

        class Deleting(Blocks):
            async def receive_some(self) -> bytes | bytearray | memoryview:
                block = await super().receive_some()
                if not block:
                    await s.metadata.images.entomb(image.id)
                return block

        with pytest.raises(AttemptLost):
            await s.push(image, Deleting(DATA))
        assert s.files() == []


async def test_a_commit_whose_outcome_is_unknown_removes_no_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database may have committed before its answer was lost: bytes of an available image must not go."""
    async with setting(tmp_path) as s:
        image = await s.locked()
        commit = s.metadata.images.commit

        async def answer_lost(attempt: Attempt, written: Written) -> None:
            await commit(attempt, written)
            raise MetadataUnavailable("away")

        monkeypatch.setattr(s.metadata.images, "commit", answer_lost)
        with pytest.raises(MetadataUnavailable):
            await s.push(image, Blocks(DATA))
        assert await s.status(image) == "available"
        assert [path.read_bytes() for path in s.files()] == [WHOLE]


async def test_what_an_abort_could_not_remove_is_left_to_the_sweep(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        image = await s.locked()

        class AwayForGood(BreakingStore):
            def _maybe(self, call: str) -> None:
                if call in ("write", "abort"):
                    raise StoreUnreachable("away")

        with pytest.raises(StoreUnreachable):
            await s.push(image, Blocks(DATA), AwayForGood(s.store, "", StoreUnreachable("away")))
        # Nobody sees the bytes, and the image can be given new ones before the old are removed.
        assert await s.status(image) == "error"
        assert len(s.files()) == 1
        assert (await s.push(image, Blocks(DATA))).status == "available"
    async with setting(tmp_path, instance_id="two") as s:
        await s.sweep.at_start()
        assert await s.status(image) == "available"
        assert [path.read_bytes() for path in s.files()] == [WHOLE]
