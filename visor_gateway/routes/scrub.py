"""Scrubs: asking for them, and what they found. For admins."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec

from ..errors import Conflict, InvalidRequest, NotFound
from ..image import Image, timestamp
from .request import Answer, Request

ACCEPTED: Final = 202


async def state(request: Request) -> Answer:
    """GET /scrub"""
    return await _state(request, 200)


async def ask(request: Request) -> Answer:
    """POST /scrub: `{"images": [...]}`, or without a body every image of the file stores."""
    body = request.json()
    wanted = body.pop("images", None)
    if body:
        raise InvalidRequest(f"Unknown parameter '{next(iter(body))}': only images is known")
    services = request.services
    if wanted is None:
        now = datetime.now(UTC)
        for store in services.scrub.stores:
            await services.plane.ask_scrub(await services.images.scrubbed_before(store, now))
    else:
        await services.plane.ask_scrub([await _scrubbable(request, image_id) for image_id in _ids(wanted)])
    return await _state(request, ACCEPTED)


def _ids(wanted: object) -> list[str]:
    if not isinstance(wanted, list) or not all(isinstance(image_id, str) for image_id in wanted):
        raise InvalidRequest("Invalid images: it must be a list of ids")
    return wanted


async def _scrubbable(request: Request, image_id: str) -> str:
    image = await request.services.images.get(image_id)
    if image is None:
        raise NotFound(f"No image found with id '{image_id}'.")
    if image.status != "available" or (image.store or "") not in request.services.scrub.stores:
        raise Conflict(f"Image '{image_id}' can't be scrubbed: it is not available in a file store")
    return image.id


async def _state(request: Request, status: int) -> Answer:
    services = request.services
    damaged = [_shown(image) for image in await services.images.bad()]
    shown = msgspec.structs.asdict(await services.plane.scrub_progress()) | {"bad": damaged}
    return Answer({"scrub": shown}, status, (("cache-control", "no-store"),))


def _shown(image: Image) -> dict[str, str | None]:
    return {
        "_id": image.id,
        "name": image.name,
        "store": image.store,
        "bad_since": timestamp(image.bad_since) if image.bad_since else None,
        "scrubbed_at": timestamp(image.scrubbed_at) if image.scrubbed_at else None,
    }
