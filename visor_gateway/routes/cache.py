"""The cache: what is in it, filling it ahead, removing from it. For admins."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from ..errors import Conflict, InvalidRequest, NotFound
from ..image import timestamp
from ..store.cacheentries import Entry
from ..store.file import FileStore
from . import locations
from .request import Answer, Request

ACCEPTED: Final = 202
_UNCACHED: Final = (("cache-control", "no-store"),)


async def state(request: Request) -> Answer:
    """GET /cache"""
    return await _state(request, 200)


async def warm(request: Request) -> Answer:
    """POST /cache: `{"image": "<id>"}`"""
    body = request.json()
    image_id = body.pop("image", None)
    if body:
        raise InvalidRequest(f"Unknown parameter '{next(iter(body))}': only image is known")
    if not isinstance(image_id, str):
        raise InvalidRequest("Invalid image: it must be an id")
    image = await request.services.images.get(image_id)
    if image is None:
        raise NotFound(f"No image found with id '{image_id}'.")
    if image.status != "available":
        raise Conflict(f"Image '{image.id}' has no bytes: status is '{image.status}'")
    candidates = await locations.candidates(request.services, image)
    if isinstance(candidates[0].store, FileStore):
        raise Conflict(f"Image '{image.id}' is in a file store, which is not cached")
    await request.services.cache.warm(image, locations.reader(request.services, candidates))
    return await _state(request, ACCEPTED)


async def purge(request: Request) -> Answer:
    """DELETE /cache"""
    return _removed(await request.services.cache.forget())


async def remove(request: Request) -> Answer:
    """DELETE /cache/{id}"""
    image_id = request.params["id"]
    gone = await request.services.cache.forget(image_id)
    if not gone:
        raise NotFound(f"No image in the cache with id '{image_id}'.")
    return _removed(gone)


async def _state(request: Request, status: int) -> Answer:
    found = await request.services.cache.state()
    entries = [_shown(entry) for entry in found.entries]
    shown = {"max_bytes": found.max_bytes, "bytes": found.bytes, "entries": entries}
    return Answer({"cache": shown}, status, _UNCACHED)


def _removed(entries: Any) -> Answer:
    return Answer({"removed": [_shown(entry) for entry in entries]}, 200, _UNCACHED)


def _shown(entry: Entry) -> dict[str, Any]:
    return {
        "image": entry.image_id,
        "size": entry.size,
        "sha256": entry.sha256,
        "used_at": timestamp(datetime.fromtimestamp(entry.used_at, UTC)),
    }
