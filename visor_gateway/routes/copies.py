"""Further locations of an image: copying it into another store, where it is, and removing it from there."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import trio

from ..errors import Conflict, Draining, InvalidRequest, NotFound
from ..image import Image, timestamp
from ..meta.contract import Attempt, Location
from ..store.contract import Store
from ..transfer.transfer import Transfer
from . import locations
from .access import changeable, visible
from .movement import chosen_store, transfer_id
from .request import Answer, Request, Services

ACCEPTED: Final = 202
CLOSE_SECONDS: Final = 5.0
REMOVE_SECONDS: Final = 30.0
_UNCACHED: Final = (("cache-control", "no-store"),)


async def find(request: Request) -> Answer:
    """GET /images/{id}/copies"""
    image_id = request.params["id"]
    image = visible(await request.services.images.get(image_id), image_id, request.caller)
    return await _answer(request.services, image)


async def add(request: Request) -> Answer:
    """POST /images/{id}/copies: `{"store": "<name>"}`"""
    image_id, services = request.params["id"], request.services
    image = changeable(await services.images.get(image_id), image_id, request.caller)
    store = _target(request)
    _demand_copyable(image)
    candidates = await locations.candidates(services, image)
    await services.engine.check_room(store=store.name, user=request.caller.access_key, client=None)
    transfer = Transfer(
        id=transfer_id(request),
        kind="copy",
        image=image.id,
        store=store.name,
        client=None,
        user=request.caller.access_key,
        size=image.size,
    )
    if any(live.id == transfer.id for live in services.hub.live()):
        raise Conflict(f"The transfer id '{transfer.id}' is taken")
    promised = await services.copying.promise(transfer, image, store)

    async def work(transfer: Transfer) -> Location:
        source = locations.upstream(services, candidates, transfer, 0, image.size, verified=True)
        try:
            return await services.copying.copy(promised, transfer, image, store, source)
        finally:
            await source.aclose()

    try:
        services.engine.start(transfer, work, unstarted=partial(services.copying.give_up, promised))
    except Draining:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await services.copying.give_up(promised)
        raise
    headers = (("location", f"{request.base_url}/transfers/{transfer.id}"), ("x-transfer-id", transfer.id))
    return Answer({"transfer": transfer.shown()}, ACCEPTED, (*headers, *_UNCACHED))


def _target(request: Request) -> Store:
    """The store that the body names."""
    body = request.json()
    name = body.pop("store", None)
    if body:
        raise InvalidRequest(f"Unknown parameter '{next(iter(body))}': only store is known")
    if not isinstance(name, str):
        raise InvalidRequest("Invalid store: it must be a store's name")
    store = chosen_store(request.services, name)
    if not store.writable:
        raise InvalidRequest("Cannot copy an image file to a HTTP backend")
    return store


def _demand_copyable(image: Image) -> None:
    if image.status != "available":
        raise Conflict(f"Image '{image.id}' has no bytes: status is '{image.status}'")
    if image.sha256 is None:
        # A copy is compared with the record. The first complete pull of a reference finds its digest out.
        raise Conflict(f"Image '{image.id}' has no digest yet that a copy could be compared with: pull it once")


async def remove(request: Request) -> Answer:
    """DELETE /images/{id}/copies/{store}"""
    image_id, services = request.params["id"], request.services
    image = changeable(await services.images.get(image_id), image_id, request.caller)
    # Once it is forgotten, a caller that leaves must not leave its bytes to the sweep.
    with trio.move_on_after(REMOVE_SECONDS, shield=True):
        await services.sweep.remove_location(image.id, request.params["store"])
    kept = await services.images.get(image_id)
    if kept is None:
        raise NotFound(f"No image found with id '{image_id}'.")
    return await _answer(services, kept)


async def _answer(services: Services, image: Image) -> Answer:
    places = [] if image.location is None else [image]
    places += [one.of(image) for one in await services.images.locations(image.id)]
    shown = [_place(services, place) for place in places]
    shown += [_under_way(image, one) for one in await services.images.copying(image.id)]
    return Answer({"copies": shown}, 200, _UNCACHED)


def _place(services: Services, image: Image) -> dict[str, Any]:
    moment = image.scrubbed_at or image.uploaded_at
    return {
        "store": image.store,
        "status": "bad" if services.scrub.is_condemned(image) else "available",
        "size": image.size,
        "location": image.location,
        "verified_at": timestamp(moment) if moment is not None and image.sha256 is not None else None,
    }


def _under_way(image: Image, attempt: Attempt) -> dict[str, Any]:
    return {"store": attempt.store, "status": "copying", "size": image.size, "location": None, "verified_at": None}
