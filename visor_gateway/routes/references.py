"""Images whose bytes a client names by location: a reference where the store is `http`, else an import."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import msgspec
import trio

from ..errors import Draining, InvalidField, InvalidRequest
from ..image import Image
from ..log import redact
from ..store.contract import ObjectInfo, Store
from ..transfer.ingest import Declared
from ..transfer.setbacks import Candidate
from ..transfer.transfer import Transfer
from .locations import upstream
from .request import Request

CLOSE_SECONDS: Final = 5.0


async def assign(request: Request, image: Image, *, new: bool) -> Image:
    """Give an image the bytes at its `location`.

    Args:
        image: With the client's location. `new`: it is not in the repository yet.

    Returns:
        The record: available for a reference; for an import as it is before the background transfer begins.

    Raises:
        InvalidField: The scheme is not allowed, or a reference would show a signature or token in its query.
        NotFound: `No image file found at <location>`, whatever the cause. Nothing was changed.
    """
    services = request.services
    location = image.location or ""
    if urlsplit(location).scheme not in services.settings.locations.allow:
        raise InvalidField("Invalid location: its scheme is not allowed here")
    origin = services.references
    target = services.stores.get(image.store or origin.name)
    if target is None:
        raise InvalidRequest(f"The store '{image.store}' is not supported")
    if target is origin and redact(location) != location:
        # A record shows its location to all who may see the image. That of an import is not kept.
        raise InvalidField(
            "Invalid location: it may not carry credentials; with a store, the image is fetched from there"
        )
    info = await origin.stat(location)
    if target is origin:
        return await services.ingest.refer(image, origin, info, checksum=info.checksum, new=new)
    return await _import(request, image, info, target, new=new)


async def _import(request: Request, image: Image, info: ObjectInfo, target: Store, *, new: bool) -> Image:
    services = request.services
    location = image.location or ""
    await services.engine.check_room(store=target.name, user=request.caller.access_key, client=None)
    record = msgspec.structs.replace(image, location=None)
    transfer = Transfer(
        id=str(uuid.uuid4()),
        kind="import",
        image=image.id,
        store=target.name,
        client=None,
        user=request.caller.access_key,
        size=info.size,
    )

    promised = await services.ingest.promise(transfer, record, target, new=new)

    async def work(transfer: Transfer) -> Image:
        # Opened when the first bytes are asked for: an origin that is gone by then fails the import, which the record
        # tells.
        origin = upstream(services, [Candidate(services.references, location, info)], transfer)
        try:
            return await services.ingest.write(
                transfer, record, target, origin, Declared(size=info.size), promised=promised
            )
        finally:
            await origin.aclose()

    try:
        services.engine.start(transfer, work, unstarted=partial(services.ingest.give_up, promised))
    except Draining:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await services.ingest.give_up(promised)
        raise
    return record
