"""The repository of images whose catalogue is a Meta server's. `contract` says what each method does and raises.

Every record is in the local database too, where all rules of the contract are kept. What changes a record notes in the
same transaction that the server is to be told, and tells it before it returns, if the server answers in time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Final, TypeVar

import sqlalchemy as sa
import trio

from ...errors import Conflict
from ...image import Image
from .. import attempts, copies, records
from ..contract import Attempt, ImageQuery, Location, Written
from ..database import Database
from ..images import SqlImageRepository
from . import links, taken
from .catalogue import Catalogue

T = TypeVar("T")

TELL_SECONDS: Final = 5.0


class CatalogueImageRepository(SqlImageRepository):
    """`contract.ImageRepository` over a local `Database` and a `Catalogue`, which their opener closes."""

    def __init__(self, database: Database, catalogue: Catalogue) -> None:
        super().__init__(database)
        self._catalogue = catalogue

    # --- reads ---------------------------------------------------------------------------------

    async def version(self) -> Hashable | None:
        return await super().version() if self._catalogue.followed else None

    async def get(self, image_id: str) -> Image | None:
        await self._catalogue.refresh(image_id)
        image = await super().get(image_id)
        if image is None and await self._catalogue.look_for(image_id):
            image = await super().get(image_id)
        return image

    async def find(self, query: ImageQuery) -> list[Image]:
        await self._catalogue.look_at_all(query.viewer)
        return await super().find(query)

    async def locations(self, image_id: str) -> list[Location]:
        return await super().locations(image_id)

    async def entombed(self) -> list[Image]:
        hidden = await self._database.read(links.hidden)
        return [image for image in await super().entombed() if image.id not in hidden]

    async def check(self) -> None:
        await super().check()
        await self._catalogue.require()

    # --- changes -------------------------------------------------------------------------------

    async def insert(self, image: Image) -> None:
        await self._catalogue.require()
        await self._change(image.id, partial(records.insert, image=image))

    async def replace(self, image: Image, *, expected: Image) -> Image:
        await self._catalogue.require()
        work = partial(records.replace, image=image, expected=expected)
        return await self._change(image.id, work, note=links.described)

    async def promise(self, attempt: Attempt, *, new: Image | None = None) -> None:
        await self._catalogue.require()
        await self._change(attempt.image_id, _assigning(attempt, partial(attempts.promise, attempt=attempt, new=new)))

    async def begin(self, attempt: Attempt, *, new: Image | None = None) -> Image:
        await self._catalogue.require()
        work = _assigning(attempt, partial(attempts.begin, attempt=attempt, new=new))
        return await self._change(attempt.image_id, work)

    async def commit(self, attempt: Attempt, written: Written) -> Image:
        work = partial(attempts.commit, attempt=attempt, written=written)
        return await self._change(attempt.image_id, work, note=links.described)

    async def fail(self, attempt: Attempt, *, bytes_left: bool = False) -> None:
        work = partial(attempts.fail, attempt=attempt, bytes_left=bytes_left)
        await self._change(attempt.image_id, work, note=links.described)

    async def entomb(self, image_id: str) -> Image:
        await self._catalogue.require()
        return await self._change(image_id, partial(records.entomb, image_id=image_id), note=_gone)

    async def bury(self, image_id: str) -> None:
        await self._database.write(partial(_bury, image_id=image_id))

    async def begin_copy(self, attempt: Attempt) -> Image:
        # From now on its bytes are in a store of ours, so nobody else says which they are.
        return await self._change(attempt.image_id, partial(copies.begin, attempt=attempt))

    async def remove_location(self, image_id: str, store: str, *, instance_id: str) -> Attempt:
        work = partial(copies.remove, image_id=image_id, store=store, instance_id=instance_id)
        return await self._change(image_id, work)

    async def _change(
        self,
        image_id: str,
        work: Callable[[sa.Connection], T],
        *,
        note: Callable[[sa.Connection, str], None] = links.changed,
    ) -> T:
        def noted(connection: sa.Connection) -> T:
            outcome = work(connection)
            note(connection, image_id)
            return outcome

        outcome = await self._database.write(noted)
        # What is done is done: a cancellation waits, but not for a server that is slow.
        with trio.move_on_after(TELL_SECONDS, shield=True):
            await self._catalogue.tell(image_id)
        return outcome


def _assigning(attempt: Attempt, work: Callable[[sa.Connection], T]) -> Callable[[sa.Connection], T]:
    """`work`, unless somebody else gives bytes to the image, or gave it some that are not to be believed."""

    def checked(connection: sa.Connection) -> T:
        link = links.by_image(connection, attempt.image_id)
        document = None if link is None or link.ours else link.document
        if document is not None and not taken.assignable(document):
            raise Conflict("Can only assign image file to a locked or error image")
        return work(connection)

    return checked


def _gone(connection: sa.Connection, image_id: str) -> None:
    links.changed(connection, image_id, gone=True)


def _bury(connection: sa.Connection, image_id: str) -> None:
    link = links.by_image(connection, image_id)
    if link is not None and link.missing:
        return
    records.bury(connection, image_id)
    if link is not None and link.gone and not link.waits:
        links.forget(connection, image_id)
