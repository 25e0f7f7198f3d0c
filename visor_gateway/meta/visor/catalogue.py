"""Both sides of a catalogue kept alike: the server is told of our changes, and others' changes are taken over."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
import structlog
import trio

from ... import visor_documents as documents
from ...errors import MetadataUnavailable
from ...image import Image
from ...visor_documents import ImageDocument, InvalidDocument
from ..database import Database
from . import following, links, published
from .links import Link
from .marker import RENEW_SECONDS, Marker
from .server import Answer, VisorServer

T = TypeVar("T")

POLL_SECONDS: Final = 5.0
#: Polls take at most one part in so many of the time, however long the lists are.
_PART: Final = 10
#: After a failure the server is left alone for so long.
_REST_SECONDS: Final = 2.0
_PAGES: Final = 200  # of a list, where the server has pages
_OWNERS: Final = 8  # whose private images are looked at in one poll
_LOOKUPS: Final = 32  # of records that a list has no longer, in one poll

_REMEMBERED: Final = 4096  # owners of which is known when they were looked at
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")

_log: Final = structlog.get_logger("visor_gateway.meta.visor")


class Catalogue:
    """A Meta server beside the local database, which its opener closes."""

    def __init__(self, server: VisorServer, database: Database, *, stale_if_error: float) -> None:
        self._server = server
        self._database = database
        self._telling = trio.Lock()
        self._looked: dict[str | None, float] = {}  # when the public list (None) and owners' were read last
        self._contact = -math.inf
        self._failed = -math.inf
        self._next_owner = 0
        self._left_out = 0
        self._refused: dict[str, int] = {}
        self.marker = Marker(server)
        self.poll_seconds = POLL_SECONDS
        self._stale_seconds = stale_if_error

    # --- contact -------------------------------------------------------------------------------

    @property
    def in_touch(self) -> bool:
        """Whether what is known of the server is new enough to be used."""
        since = trio.current_time() - self._contact
        return since <= max(self._stale_seconds, 3 * self.poll_seconds)

    @property
    def followed(self) -> bool:
        """Whether `serve` looks often enough that nobody else has to."""
        return self.in_touch and trio.current_time() - self._looked.get(None, -math.inf) < 3 * self.poll_seconds

    async def start(self, instance: str) -> None:
        """Take the catalogue for the gateway of that id, and see what it holds. Raises `ConfigError`, where another
        gateway has it, and `MetadataUnavailable`."""
        await self._seen(self.marker.claim(instance))
        await self.tell_all()
        await self._look(None)

    async def require(self) -> None:
        """Ask whether the server is there, where that is not known from just now.

        Raises:
            MetadataUnavailable: It is not, or another gateway took the catalogue.
        """
        self.marker.check()
        if trio.current_time() - self._contact > self.poll_seconds or self._failed > self._contact:
            await self._seen(self.marker.renew())
        self.marker.check()

    async def _seen(self, exchange: Awaitable[T]) -> T:
        """The outcome of an exchange, noting whether the server is there."""
        try:
            outcome = await exchange
        except MetadataUnavailable:
            self._failed = trio.current_time()
            raise
        self._contact = trio.current_time()
        return outcome

    # --- telling -------------------------------------------------------------------------------

    async def tell(self, image_id: str) -> None:
        """Tell the server of an image's changes, if it can be told now; else that is done later."""
        try:
            await self._tell(image_id)
        except MetadataUnavailable as exc:
            _log.warning("a record is told of later", image=image_id, error=exc.message)

    async def _tell(self, image_id: str) -> None:
        self.marker.check()
        async with self._telling:
            link, image, named = await self._database.read(partial(following.as_it_is, image_id=image_id))
            if link is None or not link.waits:
                return
            if link.gone or (image is None and not link.missing):
                await self._tell_gone(link)
            elif image is not None:
                await self._tell_state(link, image, named)

    async def _tell_gone(self, link: Link) -> None:
        remote_id = link.remote_id or (await self._registered(link, None) if link.asked else None)
        if remote_id is not None:
            await self._seen(self._server.ask("DELETE", f"/images/{remote_id}"))
        await self._database.write(partial(following.forget_gone, link=link))

    async def _tell_state(self, link: Link, image: Image, named: dict[str, str]) -> None:
        if self._refused.get(image.id) == link.changes:
            return
        fields = published.description(image, named)
        remote_id = link.remote_id
        if remote_id is None and link.asked:
            remote_id = await self._registered(link, image.owner)
        if remote_id is None:
            await self._database.write(partial(links.update, image_id=link.image_id, asked=True))
            answer = await self._ask_for("POST", "/images", fields, image, {})
            document = self._document(answer, link)
            if document is None:
                self._refused[image.id] = link.changes
                return
            remote_id, base = document.id, msgspec.json.encode(document)
            update = partial(links.update, image_id=link.image_id, remote_id=remote_id, base=base)
            await self._database.write(update)
            if image.status == "locked" and image.store is None and image.location is None:
                await self._database.write(partial(following.told, link=link, document=document))
                return
        state = published.state(image) if link.ours else {}
        answer = await self._ask_for("PUT", f"/images/{remote_id}", fields, image, state)
        if answer.status == 404:
            _log.warning("a record is gone from the Meta server", image=image.id)
            await self._database.write(partial(following.told_missing, link=link))
            return
        document = self._document(answer, link)
        if document is None:
            self._refused[image.id] = link.changes
        elif document.id == remote_id:
            await self._database.write(partial(following.told, link=link, document=document))
        else:
            raise MetadataUnavailable("The Meta server answers with another record")

    async def _ask_for(
        self, method: str, path: str, fields: dict[str, Any], image: Image, state: dict[str, Any]
    ) -> Answer:
        """Ask with all fields, and where one of them is refused, with the least."""
        answer = await self._seen(self._server.ask(method, path, documents.image_request(fields | state)))
        if answer.status == 400 or (answer.status == 404 and {"kernel", "ramdisk"} & fields.keys()):
            least = published.least(image) | {name: state[name] for name in ("status", "size") if name in state}
            answer = await self._seen(self._server.ask(method, path, documents.image_request(least)))
        return answer

    def _document(self, answer: Answer, link: Link) -> ImageDocument | None:
        if answer.status != 200:
            _log.warning("the Meta server refuses a record", image=link.image_id, status=answer.status)
            return None
        try:
            return documents.read_image(answer.body)
        except InvalidDocument as exc:
            raise MetadataUnavailable("The Meta server's answer can't be read") from exc

    async def _registered(self, link: Link, owner: str | None) -> str | None:
        """The id of a record whose registration was not answered, if there was one."""
        for query in ({"owner": owner} if owner else {}, {}):
            for document in await self._listed(query):
                if document.attributes.get(published.MARK) == link.image_id:
                    return document.id
        return None

    async def tell_all(self) -> None:
        """Tell the server of all that it was not told of. Raises `MetadataUnavailable`."""
        for image_id in await self._database.read(links.waiting):
            await self._tell(image_id)

    # --- looking -------------------------------------------------------------------------------

    async def look_at_all(self, viewer: str | None) -> None:
        """Take over what others changed in the public images and in the viewer's, unless that was done just now.

        Raises:
            MetadataUnavailable: The server can't be asked, and what is known of it is too old.
        """
        if not self.followed:
            await self._if_it_answers(self._look, None)
        if viewer is not None and trio.current_time() - self._looked.get(viewer, -math.inf) >= self.poll_seconds:
            await self._if_it_answers(self._look, viewer)
        if len(self._looked) > _REMEMBERED:
            self._looked.clear()

    async def refresh(self, image_id: str) -> None:
        """Take over what others changed in one image, unless `serve` sees to that. Raises as `look_at_all`."""
        if self.followed:
            return
        link = await self._database.read(partial(links.by_image, image_id=image_id))
        if link is not None and link.remote_id is not None:
            await self._if_it_answers(self._look_at, link.remote_id)

    async def _if_it_answers(self, ask: Callable[[T], Awaitable[None]], what: T) -> None:
        """Ask the server, unless it failed just now; a failure matters when what is known is too old."""
        if self.in_touch and trio.current_time() - self._failed < _REST_SECONDS:
            return
        try:
            await ask(what)
        except MetadataUnavailable:
            if not self.in_touch:
                raise

    async def _look(self, owner: str | None) -> None:
        began = trio.current_time()
        found = await self._listed({} if owner is None else {"owner": owner})
        if owner is not None:
            found = [document for document in found if document.owner == owner]
        await self._take_over(found)
        self._looked[owner] = began
        known = await self._database.read(partial(links.told_of, public=owner is None, owner=owner))
        absent = known.keys() - {document.id for document in found}
        for remote_id in sorted(absent)[:_LOOKUPS]:
            await self._look_at(remote_id)

    async def _take_over(self, found: Sequence[ImageDocument]) -> None:
        if news := await self._database.read(partial(following.differing, found=found)):
            await self._database.write(partial(following.take_over, found=news))

    async def _listed(self, query: dict[str, str]) -> list[ImageDocument]:
        answer = await self._seen(self._server.list("/images/detail", query))
        found, refused = await self._images_of(answer)
        for _ in range(_PAGES):
            if answer.following is None:
                break
            answer = await self._seen(self._server.page(f"/images/detail?{answer.following}"))
            more, bad = await self._images_of(answer)
            found, refused = found + more, refused + bad
        if refused > self._left_out:
            _log.warning("records of the Meta server are left out", count=refused)
        self._left_out = refused
        return found

    async def _images_of(self, answer: Answer) -> tuple[list[ImageDocument], int]:
        if answer.status == 404:
            return [], 0
        if answer.status != 200:
            raise MetadataUnavailable(f"The Meta server refuses a list: status {answer.status}")
        try:
            return await trio.to_thread.run_sync(documents.read_images, answer.body)
        except InvalidDocument as exc:
            self._failed = trio.current_time()
            raise MetadataUnavailable("The Meta server's list can't be read") from exc

    async def look_for(self, image_id: str) -> bool:
        """Take over one image that is not known here, if the server has it. Returns whether it was asked.

        Raises:
            MetadataUnavailable: It can't be asked.
        """
        if not _UUID.match(image_id):
            return False
        link = await self._database.read(partial(links.by_image, image_id=image_id))
        if link is not None:  # deleted here or there
            return False
        await self._look_at(image_id)
        return True

    async def _look_at(self, remote_id: str) -> None:
        answer = await self._seen(self._server.ask("GET", f"/images/{remote_id}"))
        if answer.status == 404:
            await self._database.write(partial(following.miss, remote_id=remote_id))
            return
        if answer.status != 200:
            return
        try:
            document = documents.read_image(answer.body)
        except InvalidDocument as exc:
            _log.warning("a record of the Meta server is left out", why=str(exc))
            return
        if document.id == remote_id:
            await self._take_over([document])

    async def serve(self) -> None:
        """Keep both sides alike and the marker alive, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_marker)
            nursery.start_soon(self._follow)

    async def _keep_marker(self) -> None:
        while True:
            await trio.sleep(RENEW_SECONDS)
            with suppress(MetadataUnavailable):  # `_follow` tells
                await self._seen(self.marker.renew())

    async def _follow(self) -> None:
        told = False
        while True:
            began = trio.current_time()
            try:
                await self.tell_all()
                await self._look(None)
                for owner in await self._owners():
                    await self._look(owner)
                self.marker.check()
                told = False
            except MetadataUnavailable as exc:
                if not told:
                    _log.warning("the Meta server can't be used now", error=exc.message)
                told = True
            took = trio.current_time() - began
            await trio.sleep(max(self.poll_seconds, _PART * took))

    async def _owners(self) -> list[str]:
        """The owners whose turn it is."""
        known = sorted(await self._database.read(links.owners))
        turn = (known + known)[self._next_owner : self._next_owner + min(_OWNERS, len(known))]
        self._next_owner = (self._next_owner + len(turn)) % max(len(known), 1)
        return turn
