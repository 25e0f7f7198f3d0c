"""Records of images: lists, deletes, links. Their bytes are in `pulls.py` and `pushes.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

import structlog
import trio

from .. import signature
from ..errors import CredentialsRefused, Forbidden, InvalidRequest, NotFound, StoreError
from ..image import SHOWN, Image, timestamp
from ..meta.contract import ImageQuery
from ..transfer.plane import CUT_SECONDS
from .access import changeable, visible
from .negotiate import preferred, render
from .request import Answer, Rendered, Request, Services

LIMIT: Final = 1000  # images of one page
KEPT_QUERY: Final = 512  # bytes; longer ones are nobody's habit
LINK_SECONDS: Final = 3600
LINK_SECONDS_MAX: Final = 7 * 24 * 3600
REMOVE_SECONDS: Final = CUT_SECONDS + 30.0  # the bytes, once nobody writes them any more

_log: Final = structlog.get_logger("visor_gateway.images")

_LENIENT: Final = "handling=lenient"
_CONTROLS: Final = ("sort", "dir", "limit", "marker")


async def brief(request: Request) -> Rendered:
    """GET /images"""
    return await _kept_page(request, Image.brief)


async def detail(request: Request) -> Rendered:
    """GET /images/detail"""
    return await _kept_page(request, Image.shown)


async def _kept_page(request: Request, shown: Callable[[Image, str], dict[str, Any]]) -> Rendered:
    accept = request.accept
    query = request.scope["query_string"]
    key = (shown, request.base_url, request.scope["path"], query, request.caller.access_key, preferred(accept))

    async def make() -> Rendered:
        return Rendered(*render(await _page(request, shown), accept=accept))

    version = await request.services.images.version() if len(query) <= KEPT_QUERY else None
    return await request.services.pages.get(version, key, make)


async def _page(request: Request, shown: Callable[[Image, str], dict[str, Any]]) -> Answer:
    query = _query(request)
    # One more than asked for tells whether there is a next page.
    images = await request.services.images.find(query)
    headers: tuple[tuple[str, str], ...] = ()
    if not images:
        if not _is_lenient(request):
            suffix = " with given parameters." if query.filters else "."
            raise NotFound(f"No public images found{suffix}")
        headers = (("preference-applied", _LENIENT),)
    if len(images) >= query.limit:
        images = images[: query.limit - 1]
        headers = (("link", f'<{_next_page(request, images[-1].id)}>; rel="next"'),)
    return Answer({"images": [shown(image, request.image_uri(image.id)) for image in images]}, headers=headers)


def _is_lenient(request: Request) -> bool:
    """Whether the client would rather have an empty list than VISOR's 404 (RFC 7240, 4.4)."""
    wishes = (request.header(b"prefer") or b"").decode("latin-1").lower().split(",")
    return _LENIENT in (wish.strip() for wish in wishes)


def _query(request: Request) -> ImageQuery:
    controls: dict[str, str] = {}
    filters: list[tuple[str, str]] = []
    for name, value in request.query:
        if name not in _CONTROLS:
            filters.append(_filter(request, name, value))
        elif name in controls:
            raise InvalidRequest(f"The parameter '{name}' is given twice")
        else:
            controls[name] = value
    sort, direction = controls.get("sort", "_id"), controls.get("dir", "asc")
    if sort not in SHOWN or sort == "uri":
        raise InvalidRequest(f"Invalid sort '{sort}': it must be a field of the record")
    if direction not in ("asc", "desc"):
        raise InvalidRequest(f"Invalid dir '{direction}', available options: asc, desc")
    return ImageQuery(
        viewer=request.caller.access_key,
        filters=tuple(filters),
        sort=sort,
        descending=direction == "desc",
        limit=_limit(controls.get("limit")) + 1,
        marker=controls.get("marker"),
    )


def _filter(request: Request, name: str, value: str) -> tuple[str, str]:
    """`uri` is made from the request, so it is looked up as the `_id` that it ends with."""
    if name != "uri":
        return name, value
    image_id = value.rpartition("/")[2]
    return "_id", image_id if value == request.image_uri(image_id) else ""


def _limit(text: str | None) -> int:
    if text is None:
        return LIMIT
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= LIMIT):
        raise InvalidRequest(f"Invalid limit '{text}': it must be a number from 1 to {LIMIT}")
    return int(text)


def _next_page(request: Request, marker: str) -> str:
    kept = [(name, value) for name, value in request.query if name != "marker"]
    return f"{request.base_url}{request.scope['path'].rstrip('/')}?{urlencode([*kept, ('marker', marker)])}"


async def delete(request: Request) -> Answer:
    """DELETE /images/{id}"""
    image_id = request.params["id"]
    image = changeable(await request.services.images.get(image_id), image_id, request.caller)
    gone = await remove(request.services, image)
    return Answer({"image": gone.shown(request.image_uri(gone.id))})


async def delete_all(request: Request) -> Answer:
    """DELETE /all"""
    gone: list[Image] = []
    while images := await request.services.images.find(ImageQuery(everything=True, limit=LIMIT)):
        for image in images:
            try:
                gone.append(await remove(request.services, image))
            except NotFound:
                continue
    return Answer({"images": [image.shown(request.image_uri(image.id)) for image in gone]})


async def remove(services: Services, image: Image) -> Image:
    """Delete an image: the tombstone first, then whoever writes it, then its bytes, then the tombstone.

    Returns:
        The record as it was.

    Raises:
        NotFound: Somebody else deleted it first.
    """
    image = await services.images.entomb(image.id)
    # From here on nobody sees the image: a caller that leaves now must not leave its bytes to the sweep.
    with trio.move_on_after(REMOVE_SECONDS, shield=True):
        await services.plane.cancel_writers(image.id, "delete")
        await services.sweep.remove(image)
        await _forget(services, image.id)
    return image


async def _forget(services: Services, image_id: str) -> None:
    """Remove an image from the cache. Where that fails, nobody can ask for the entry: others will take its room."""
    try:
        await services.cache.forget(image_id)
    except StoreError as error:
        _log.warning("cache entry left", image=image_id, error=error.message)


async def link(request: Request) -> Answer:
    """POST /images/{id}/links"""
    image_id = request.params["id"]
    visible(await request.services.images.get(image_id), image_id, request.caller)
    body = request.json()
    seconds = body.pop("expires_in", LINK_SECONDS)
    if body:
        raise InvalidRequest(f"Unknown parameter '{next(iter(body))}': only expires_in is known")
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 1 <= seconds <= LINK_SECONDS_MAX:
        raise InvalidRequest(f"Invalid expires_in: it must be a number of seconds from 1 to {LINK_SECONDS_MAX}")
    if request.caller.access_key is None:
        raise Forbidden("A link needs an issuer")
    issuer = await request.services.accounts.get(request.caller.access_key)
    if issuer is None:
        raise CredentialsRefused
    expires = int(time.time()) + seconds
    made = signature.link_signature(issuer.secret_key, image_id, issuer.access_key, expires)
    query = urlencode({"key": issuer.access_key, "expires": expires, "sig": made})
    return Answer({
        "link": {
            "uri": f"{request.image_uri(image_id)}?{query}",
            "expires_at": timestamp(datetime.fromtimestamp(expires, UTC)),
        }
    })
