"""The repository of images over SQL. Each coroutine is one transaction of the functions in `records` and `attempts`."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial

from ..errors import MetadataUnavailable
from ..image import Image
from . import attempts, copies, records
from .contract import Attempt, ImageQuery, Location, Written
from .database import Database
from .last_read import LastRead


class SqlImageRepository:
    """`contract.ImageRepository` over a `Database`, which its opener closes."""

    def __init__(self, database: Database, *, stale_if_error: float = 0) -> None:
        """Public images can be read for `stale_if_error` seconds after the last time, while the database is away."""
        self._database = database
        self._last: LastRead[str, Image] = LastRead(stale_if_error)
        self._last_locations: LastRead[str, list[Location]] = LastRead(stale_if_error)

    async def insert(self, image: Image) -> None:
        await self._database.write(partial(records.insert, image=image))

    async def version(self) -> Hashable | None:
        return await self._database.version()

    async def get(self, image_id: str) -> Image | None:
        with suppress(LookupError):
            return records.get_now(self._database, image_id)
        version = self._database.seen.version
        try:
            image = await self._database.read(partial(records.get, image_id=image_id))
        except MetadataUnavailable:
            if (kept := self._last.find(image_id, self._database.seen)) is None:
                raise
            return kept
        if image is not None and image.access == "public" and image.status == "available":
            self._last.keep(image_id, image, version)
        else:
            self._last.drop(image_id)
        return image

    async def find(self, query: ImageQuery) -> list[Image]:
        return await self._database.read(partial(records.find, query=query))

    async def replace(self, image: Image, *, expected: Image) -> Image:
        changed = await self._database.write(partial(records.replace, image=image, expected=expected))
        self._last.drop(image.id)
        return changed

    async def promise(self, attempt: Attempt, *, new: Image | None = None) -> None:
        await self._database.write(partial(attempts.promise, attempt=attempt, new=new))

    async def begin(self, attempt: Attempt, *, new: Image | None = None) -> Image:
        return await self._database.write(partial(attempts.begin, attempt=attempt, new=new))

    async def renew(self, instance_id: str, *, writing: Collection[str] | None = None) -> set[str]:
        return await self._database.write(partial(attempts.renew, instance_id=instance_id, writing=writing))

    async def commit(self, attempt: Attempt, written: Written) -> Image:
        return await self._database.write(partial(attempts.commit, attempt=attempt, written=written))

    async def fail(self, attempt: Attempt, *, bytes_left: bool = False) -> None:
        await self._database.write(partial(attempts.fail, attempt=attempt, bytes_left=bytes_left))

    async def entomb(self, image_id: str) -> Image:
        image = await self._database.write(partial(records.entomb, image_id=image_id))
        self._last.drop(image_id)
        return image

    async def bury(self, image_id: str) -> None:
        await self._database.write(partial(records.bury, image_id=image_id))

    async def entombed(self) -> list[Image]:
        return await self._database.read(records.entombed)

    async def expired(self, *, ours: str | None = None, ended: str | None = None) -> list[Attempt]:
        return await self._database.write(partial(attempts.expired, ours=ours, ended=ended))

    async def known_keys(self) -> set[str]:
        return await self._database.read(records.known_keys)

    async def begin_copy(self, attempt: Attempt) -> Image:
        return await self._database.write(partial(copies.begin, attempt=attempt))

    async def commit_copy(self, attempt: Attempt, validator: str | None) -> Location:
        return await self._database.write(partial(copies.commit, attempt=attempt, validator=validator))

    async def locations(self, image_id: str) -> list[Location]:
        with suppress(LookupError):
            return copies.of_image_now(self._database, image_id)
        version = self._database.seen.version
        try:
            found = await self._database.read(partial(copies.of_image, image_id=image_id))
        except MetadataUnavailable:
            if (kept := self._last_locations.find(image_id, self._database.seen)) is None:
                raise
            return kept
        self._last_locations.keep(image_id, found, version)
        return found

    async def copying(self, image_id: str) -> list[Attempt]:
        return await self._database.read(partial(copies.under_way, image_id=image_id))

    async def remove_location(self, image_id: str, store: str, *, instance_id: str) -> Attempt:
        left = await self._database.write(
            partial(copies.remove, image_id=image_id, store=store, instance_id=instance_id)
        )
        self._last.drop(image_id)
        self._last_locations.drop(image_id)
        return left

    async def count_access(self, counts: Mapping[str, tuple[int, datetime]]) -> None:
        if counts:
            await self._database.write(partial(records.count_access, counts=counts))

    async def judge(self, image: Image, *, good: bool, validator: str | None = None) -> bool:
        return await self._database.write(partial(records.judge, image=image, good=good, validator=validator))

    async def pin(self, image: Image, *, sha256: str, size: int) -> str | None:
        return await self._database.write(partial(records.pin, image=image, sha256=sha256, size=size))

    async def learn(self, image: Image, blake3: str | None) -> bool:
        return await self._database.write(partial(records.learn, image=image, blake3=blake3))

    async def scrubbed_before(self, store: str, moment: datetime) -> list[str]:
        return await self._database.read(partial(records.scrubbed_before, store=store, moment=moment))

    async def bad(self) -> list[Image]:
        return await self._database.read(records.bad)

    async def check(self) -> None:
        await self._database.read(records.check)
