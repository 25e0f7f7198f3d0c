"""What a crash left is finished, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import trio
from ingest_setting import Blocks, BreakingStore, Setting, setting
from memory_store import MemoryStore

from visor_gateway.errors import MetadataUnavailable, StoreUnreachable, TransferCancelled
from visor_gateway.image import Image
from visor_gateway.meta.contract import Attempt
from visor_gateway.metrics import Metrics
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.ingest import Ingest
from visor_gateway.transfer.sweep import LIST_SECONDS, SWEEP_SECONDS, Sweep
from visor_gateway.transfer.transfer import Transfer

DATA = [b"x" * 10_000]


async def crashed(s: Setting, *, committed: bool) -> Image:
    """An image whose writer died: its temporary file, or its object without the record, is there."""
    image = await s.locked()
    attempt = Attempt(image_id=image.id, attempt_id=str(uuid4()), instance_id="dead", store="file", location="")
    await s.metadata.images.begin(attempt)
    writer = await s.store.open_write(attempt.key)
    await writer.write(DATA[0])
    if committed:
        await writer.commit()
    assert s.files()
    return image


@pytest.mark.parametrize("committed", [False, True])
async def test_an_upload_that_a_crash_ended_becomes_error_without_bytes(tmp_path: Path, committed: bool) -> None:
    async with setting(tmp_path) as s:
        image = await crashed(s, committed=committed)
        await s.sweep.at_start()
        found = await s.metadata.images.get(image.id)
        assert found is not None
        assert (found.status, found.size, found.location) == ("error", None, None)
        assert s.files() == []


async def test_an_import_that_a_crash_ended_in_the_queue_becomes_error(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        image = await s.locked()
        transfer = Transfer(id="t", kind="import", image=image.id, store="file", client=None, user=None, size=None)
        attempt = await s.ingest.promise(transfer, image, s.store)
        assert s.ingest.writing == {attempt.attempt_id: transfer}
        restarted = Sweep(s.metadata.images, {"file": s.store}, s.hub, s.metrics, s.ingest, instance_id="later")
        await restarted.at_start()
        assert await s.status(image) == "error"


@pytest.mark.parametrize("broken", ["delete", "abandon"])
async def test_what_a_store_that_is_away_can_not_do_is_done_later(tmp_path: Path, broken: str) -> None:
    async with setting(tmp_path) as s:
        deleted = await s.push(await s.locked(), Blocks(DATA))
        died = await crashed(s, committed=True)
        await s.metadata.images.entomb(deleted.id)
        away = BreakingStore(s.store, broken, StoreUnreachable("away"))
        sweep = Sweep(s.metadata.images, {"file": away}, s.hub, s.metrics, s.ingest, instance_id="one")
        await sweep.at_start()
        assert len(s.files()) == 1
        assert s.metrics.registry.get_sample_value("visor_store_errors_total", {"store": "file"}) == 1
        away.broken = ""
        await sweep.at_start()
        assert s.files() == []
        assert await s.metadata.images.entombed() == []
        assert await s.status(died) == "error"


async def test_available_images_and_running_uploads_are_left_alone(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        kept = await s.push(await s.locked(), Blocks(DATA))
        running = await s.locked()

        class Sweeping(Blocks):
            async def receive_some(self) -> bytes | bytearray | memoryview:
                await s.sweep.at_start()
                return await super().receive_some()

        assert (await s.push(running, Sweeping(DATA))).status == "available"
        assert await s.status(kept) == "available"
        assert len(s.files()) == 2


async def test_an_attempt_in_a_store_that_is_not_configured_waits_for_it(tmp_path: Path) -> None:
    async with setting(tmp_path) as s:
        image = await crashed(s, committed=False)
        sweep = Sweep(s.metadata.images, {}, s.hub, s.metrics, s.ingest, instance_id="one")
        await sweep.at_start()
        assert await s.status(image) == "uploading"


async def test_a_database_that_is_away_puts_a_sweep_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    calls = 0

    class Images:
        async def expired(self, *, ours: str | None = None, ended: str | None = None) -> list[Attempt]:
            nonlocal calls
            calls += 1
            await trio.lowlevel.checkpoint()
            raise MetadataUnavailable("away")

        async def renew(self, instance_id: str, *, writing: object) -> set[str]:
            await trio.lowlevel.checkpoint()
            raise MetadataUnavailable("away")

    images: Any = Images()
    ingest = Ingest(images, instance_id="one", visor_md5=False, max_size=1)
    sweep = Sweep(images, {}, Hub(), Metrics(), ingest, instance_id="one")
    with trio.move_on_after(3.5 * SWEEP_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sweep.serve)
            nursery.start_soon(sweep.renew)
    assert calls == 3


async def test_old_leftovers_without_record_or_lease_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with setting(tmp_path) as s:
        kept = await s.push(await s.locked(), Blocks(DATA))
        writer = await s.store.open_write(f"{uuid4()}/{uuid4()}")
        await writer.write(DATA[0])
        monkeypatch.setattr("visor_gateway.transfer.sweep.LEFTOVER_SECONDS", 0.0)
        monkeypatch.setattr("visor_gateway.transfer.sweep.SWEEP_SECONDS", 0.0)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(s.sweep.serve)
                while len(s.files()) > 1:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert await s.status(kept) == "available"
        assert msgspec.structs.asdict(kept)["location"].endswith(s.files()[0].name)


async def test_a_store_is_listed_seldom(autojump_clock: trio.testing.MockClock) -> None:
    class Images:
        async def expired(self, *, ours: str | None = None, ended: str | None = None) -> list[Attempt]:
            await trio.lowlevel.checkpoint()
            return []

        async def entombed(self) -> list[Image]:
            await trio.lowlevel.checkpoint()
            return []

    class Listed(MemoryStore):
        listings = 0

        async def leftovers(self, older_than: float) -> Sequence[str]:
            self.listings += 1
            return await super().leftovers(older_than)

    images: Any = Images()
    store = Listed()
    ingest = Ingest(images, instance_id="one", visor_md5=False, max_size=1)
    sweep = Sweep(images, {"memory": store}, Hub(), Metrics(), ingest, instance_id="one")
    with trio.move_on_after(2 * LIST_SECONDS + 3 * SWEEP_SECONDS):
        await sweep.serve()
    assert store.listings == 3


async def test_leases_of_live_writers_are_renewed_and_a_lost_one_ends_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visor_gateway.transfer.sweep.RENEW_SECONDS", 0.0)
    async with setting(tmp_path) as s:
        kept, lost = await s.locked(), await s.locked()
        forgotten = await crashed(s, committed=False)
        asked: list[set[str]] = []
        renew = s.metadata.images.renew

        async def watched(instance_id: str, *, writing: Any) -> set[str]:
            asked.append(set(writing))
            return await renew(instance_id, writing=writing)

        monkeypatch.setattr(s.metadata.images, "renew", watched)

        class UntilTheOtherIsCut(Blocks):
            async def receive_some(self) -> bytes | bytearray | memoryview:
                await s.metadata.images.entomb(lost.id)
                with trio.fail_after(60):
                    await cut.wait()
                return b""

        cut = trio.Event()

        async def lose() -> None:
            with pytest.raises(TransferCancelled, match="lease"):
                await s.push(lost, Blocks(DATA, lambda: None))
            cut.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.sweep.renew)
            nursery.start_soon(lose)
            while len(s.ingest.writing) < 1:
                await trio.lowlevel.checkpoint()
            assert (await s.push(kept, UntilTheOtherIsCut([]))).status == "available"
            nursery.cancel_scope.cancel()
        assert any(len(attempts) == 2 for attempts in asked)
        assert s.ingest.writing == {}
        assert await s.status(forgotten) == "uploading"
