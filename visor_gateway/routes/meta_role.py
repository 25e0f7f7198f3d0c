"""The role `meta`: VISOR's Meta API over the records of this gateway (docs/protocol.md, The Meta API).

A peer is believed what it says of bytes that it keeps itself: that is what a catalogue is for. What it can't do: move a
record against its order of statuses, touch the bytes of an image that this gateway wrote, name another image's object,
or leave credentials in a location.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from ..errors import Conflict, InvalidField, InvalidRequest, NotFound
from ..image import CLIENT_FIELDS, Fields, Image, change, create
from ..log import redact
from ..meta.contract import ImageQuery
from ..visor_documents import (
    NO_IMAGES_FILTERED,
    ImageChanges,
    ImageDocument,
    brief_image,
    deleted_image,
    read_image_request,
)
from ..visor_documents import image as image_document
from . import images, role_request
from .access import existing
from .pushes import check_companions
from .request import Answer, Caller
from .role_request import RoleRequest, route
from .table import Policy

PAGE: Final = 10_000  # images of one answer; VISOR knows no pages, and 10,000 detailed images are some 6 MB
SCHEMES: Final = frozenset({"http", "https", "file", "s3", "cumulus", "walrus", "lunacloud", "lcs", "hdfs", "webhdfs"})
#: What may follow a status. Bytes of an available image stay as they are.
FOLLOWING: Final[Mapping[str, frozenset[str]]] = {
    "locked": frozenset({"locked", "uploading", "available", "error"}),
    "uploading": frozenset({"uploading", "available", "error"}),
    "error": frozenset({"error", "uploading", "available"}),
    "available": frozenset({"available"}),
}
#: Fields that say where the bytes are, and which.
OF_THE_BYTES: Final = ("status", "store", "location", "format", "size", "checksum", "uploaded_at")

_STORE: Final = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_UUID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: A location that ends like an object of one of our stores.
_OBJECT: Final = re.compile(rf".*/({_UUID})/{_UUID}\Z", re.IGNORECASE)
_USER: Final = re.compile(r"(://)[^/@:]*@")
_CONTROLS: Final = ("sort", "dir", "limit", "marker")


# --- reading -------------------------------------------------------------------------------------


async def brief(request: RoleRequest) -> Answer:
    """GET /images"""
    return await _page(request, "/images", lambda image: brief_image(ImageDocument.of(image)))


async def detail(request: RoleRequest) -> Answer:
    """GET /images/detail"""
    return await _page(request, "/images/detail", lambda image: _shown(request, image))


async def get(request: RoleRequest) -> Answer:
    """GET /images/{id}: private images too. Counted as an access."""
    image = await _image(request)
    request.services.access_counts.add(image.id)
    return Answer({"image": _shown(request, image)})


async def _page(request: RoleRequest, path: str, shown: Callable[[Image], dict[str, Any]]) -> Answer:
    query = _query(request)
    # One more than asked for tells whether there is a next page.
    found = await request.services.images.find(query)
    if not found:
        raise NotFound(NO_IMAGES_FILTERED)
    headers: tuple[tuple[str, str], ...] = ()
    if len(found) >= query.limit:
        found = found[: query.limit - 1]
        kept = [(name, value) for name, value in request.query if name != "marker"]
        headers = (("link", f'<{path}?{urlencode([*kept, ("marker", found[-1].id)])}>; rel="next"'),)
    return Answer({"images": [shown(image) for image in found]}, headers=headers)


def _query(request: RoleRequest) -> ImageQuery:
    """As VISOR had it: public images, with a filter by owner all of the owner's."""
    controls: dict[str, str] = {}
    filters: list[tuple[str, str]] = []
    for name, value in request.query:
        if name not in _CONTROLS:
            filters.append(("_id", value.rpartition("/")[2]) if name == "uri" else (name, value))
        elif name in controls:
            raise InvalidRequest(f"The parameter '{name}' is given twice")
        else:
            controls[name] = value
    direction = controls.get("dir", "asc").lower()
    if direction not in ("asc", "desc"):
        raise InvalidRequest("Invalid dir, available options: asc, desc")
    return ImageQuery(
        everything=any(name == "owner" for name, _ in filters),
        filters=tuple(filters),
        sort=controls.get("sort", "_id"),
        descending=direction == "desc",
        limit=_limit(controls.get("limit")) + 1,
        marker=controls.get("marker"),
    )


def _limit(text: str | None) -> int:
    if text is None:
        return PAGE
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= PAGE):
        raise InvalidRequest(f"Invalid limit: it must be a number from 1 to {PAGE}")
    return int(text)


async def _image(request: RoleRequest) -> Image:
    return existing(await request.services.images.get(request.params["id"]), request.params["id"])


def _shown(request: RoleRequest, image: Image) -> dict[str, Any]:
    return image_document(ImageDocument.of(image), request.image_uri(image.id))


# --- changing ------------------------------------------------------------------------------------


async def register(request: RoleRequest) -> Answer:
    """POST /images: a `locked` record, whatever status is sent."""
    asked = read_image_request(request.body, new=True)
    owner = asked.named.pop("owner", None)
    if owner is None:
        raise InvalidField("These fields are required: owner")
    asked.named.pop("status", None)
    fields, rest = _told_apart(asked)
    await check_companions(request.services, Caller(access_key=owner), fields)
    record = create(fields, owner=owner, now=datetime.now(UTC))
    record = msgspec.structs.replace(record, **rest)
    await _check_place(request, record)
    await request.services.images.insert(record)
    return Answer({"image": _shown(request, record)})


async def update(request: RoleRequest) -> Answer:
    """PUT /images/{id}"""
    asked = read_image_request(request.body, new=False)
    image = await _image(request)
    if asked.named.pop("owner", image.owner) != image.owner:
        raise InvalidField("These fields are read-only: owner")
    fields, rest = _told_apart(asked)
    await check_companions(request.services, Caller(access_key=image.owner), fields)
    changed = msgspec.structs.replace(change(image, fields, now=datetime.now(UTC)), **rest)
    if _touched(image, changed):
        await _check_place(request, changed)
    changed = _settled(image, changed)
    stored = await request.services.images.replace(changed, expected=image)
    return Answer({"image": _shown(request, stored)})


async def delete(request: RoleRequest) -> Answer:
    """DELETE /images/{id}: the record, and the bytes if this gateway wrote them."""
    await request.services.access_counts.flush()
    gone = await images.remove(request.services, await _image(request))
    document = deleted_image(ImageDocument.of(gone), request.image_uri(gone.id))
    return Answer({"image": document})


def _told_apart(asked: ImageChanges) -> tuple[Fields, dict[str, Any]]:
    """What clients of the image API may set too, and what only a peer may."""
    named = {name: value for name, value in asked.named.items() if name in CLIENT_FIELDS}
    rest = {name: value for name, value in asked.named.items() if name not in CLIENT_FIELDS}
    if rest.get("status", "") is None:
        raise InvalidField("Invalid status: it can't be unset")
    if "checksum" in rest:
        checksum = rest["checksum"]
        rest["sha256"] = checksum if checksum is not None and _SHA256.match(checksum) else None
    return Fields(named=named, attributes=asked.attributes), rest


def _settled(image: Image, changed: Image) -> Image:
    """The record as it may become.

    Raises:
        Conflict: It may not, as it stands.
        InvalidField: It would be available and nowhere.
    """
    touched = _touched(image, changed)
    if touched and image.attempt_id is not None:
        raise Conflict(f"Can't change {', '.join(touched)}: the bytes of image '{image.id}' are this gateway's")
    if changed.status not in FOLLOWING[image.status]:
        raise Conflict(f"Can't change status from '{image.status}' to '{changed.status}'")
    if touched and image.status == "available":
        raise Conflict(f"Can only change {', '.join(touched)} of a locked or error image")
    if changed.status == "available" and (changed.store is None or changed.location is None):
        raise InvalidField("An available image has a store and a location")
    if changed.status == "error":
        return msgspec.structs.replace(changed, size=None, checksum=None, sha256=None)
    return changed


def _touched(image: Image, changed: Image) -> list[str]:
    return [name for name in OF_THE_BYTES if getattr(image, name) != getattr(changed, name)]


async def _check_place(request: RoleRequest, image: Image) -> None:
    """Raises `InvalidField` where a record may not have its store or location."""
    if image.store is not None and not _STORE.match(image.store):
        raise InvalidField("Invalid store: it must have lower-case letters, digits and _, at most 64")
    if image.location is None:
        return
    try:
        scheme = urlsplit(image.location).scheme
    except ValueError as exc:
        raise InvalidField("Invalid location: it is not a URI") from exc
    if scheme not in SCHEMES:
        raise InvalidField(f"Invalid location: its scheme must be one of {', '.join(sorted(SCHEMES))}")
    if image.store == "http" and scheme not in ("http", "https"):
        raise InvalidField("Invalid location: for the store 'http' its scheme must be http or https")
    # A name alone, as HDFS has it, is no secret.
    bare = _USER.sub(r"\1", image.location)
    if redact(bare) != bare:
        raise InvalidField("Invalid location: it may not carry credentials")
    found = _OBJECT.match(image.location)
    # The objects of another gateway are named for ids of its own. Those of this gateway belong to its records.
    if found is None or (image_id := found[1].lower()) == image.id:
        return
    if await request.services.images.get(image_id) is not None:
        raise InvalidField("Invalid location: it is that of another image")


# --- the table -----------------------------------------------------------------------------------


ROUTES: Final = (
    route("GET", "/status", Policy.OPEN, role_request.status, "Whether it is there"),
    route("GET", "/ready", Policy.OPEN, role_request.ready, "Whether the gateway takes work", 200, 503),
    route("GET", "/images", Policy.PEER, brief, "Public images, or those of an owner, briefly", 200, 400, 403, 404),
    route("GET", "/images/detail", Policy.PEER, detail, "The same with all fields", 200, 400, 403, 404),
    route("POST", "/images", Policy.PEER, register, "Register an image", 200, 400, 403),
    route("GET", "/images/{id}", Policy.PEER, get, "One image", 200, 403, 404),
    route("PUT", "/images/{id}", Policy.PEER, update, "Change an image", 200, 400, 403, 404, 409),
    route("DELETE", "/images/{id}", Policy.PEER, delete, "Remove an image", 200, 403, 404),
)
