"""Image bytes in, as raw ASGI: authorised by the gate, checked here, moved by the engine.

Everything that can refuse a request is asked before the first `receive()`, which is what answers
`Expect: 100-continue`: a refused upload costs the client nothing.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Final

import msgspec

from .. import image as images
from ..errors import (
    BodyIncomplete,
    Conflict,
    InvalidField,
    InvalidRequest,
    NotFound,
    TooLarge,
    UnsupportedMedia,
)
from ..image import Fields, Image
from ..store.contract import Block
from ..transfer.contract import ClientConnection, LentBody
from ..transfer.digest import expected_digests
from ..transfer.ingest import Declared
from ..transfer.intake import INTAKE_MIN
from ..transfer.transfer import Transfer
from . import references
from .access import changeable, visible
from .entity import OCTETS
from .movement import Receive, Send, chosen_store, new_transfer, run
from .request import Answer, Caller, Request, Services

#: Statuses in which an image takes bytes.
ASSIGNABLE: Final = ("locked", "error")
#: Fields that say where and what the bytes are.
_OF_THE_BYTES: Final = ("store", "location", "format")


class Announced(msgspec.Struct, frozen=True):
    """The body that a request's head announces. `length` is None where it is chunked."""

    length: int | None
    digests: dict[str, bytes]


async def post(request: Request, receive: Receive, send: Send) -> Answer:
    """POST /images"""
    body = _announced(request)
    fields = images.checked(images.from_headers(request.headers))
    _check_body(request, body, fields, None)
    image = images.create(fields, owner=request.caller.access_key or "", now=datetime.now(UTC))
    await check_companions(request.services, request.caller, fields)
    if image.location is not None:
        return _stored(request, await references.assign(request, image, new=True))
    if body is not None:
        return await _push(request, image, body, receive, new=True)
    await request.services.images.insert(image)
    return _stored(request, image)


async def put(request: Request, receive: Receive, send: Send) -> Answer:
    """PUT /images/{id}"""
    image_id = request.params["id"]
    stored = changeable(await request.services.images.get(image_id), image_id, request.caller)
    if request.header(b"content-range") is not None:
        raise InvalidRequest("Content-Range is not supported: send the whole image")
    body = _announced(request)
    fields = images.checked(images.from_headers(request.headers))
    if body is None and not fields:
        raise InvalidRequest("Neither headers nor a body were sent: there is nothing to update")
    _check_body(request, body, fields, stored)
    image = images.change(stored, fields, now=datetime.now(UTC))
    await check_companions(request.services, request.caller, fields)
    location = fields.named.get("location")
    if body is not None:
        store = chosen_store(request.services, image.store or request.services.settings.stores.default)
        await request.services.engine.check_room(
            store=store.name, user=request.caller.access_key, client=request.client
        )
    if fields:
        # The location becomes the record's only once there is something at it.
        kept = msgspec.structs.replace(image, location=stored.location)
        image = await request.services.images.replace(kept, expected=stored)
    if location is not None:
        image = msgspec.structs.replace(image, location=location)
        return _stored(request, await references.assign(request, image, new=False))
    if body is not None:
        return await _push(request, image, body, receive, new=False)
    return _stored(request, image)


def _announced(request: Request) -> Announced | None:
    """What the head says of the body; None where there is none.

    Raises:
        InvalidRequest, TooLarge, UnsupportedMedia: It may not be sent.
    """
    length = request.header(b"content-length")
    chunked = request.header(b"transfer-encoding") is not None
    if not chunked and (length is None or int(length) == 0):
        return None
    coding = request.header(b"content-encoding")
    if coding is not None and coding.strip().lower() != b"identity":
        raise UnsupportedMedia("Content-Encoding must be identity: an image is stored as it is sent")
    media = (request.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    if media != OCTETS:
        raise InvalidRequest("Request Content-Type must be application/octet-stream")
    limit = request.services.settings.server.max_image_size
    size = None if length is None or chunked else int(length)
    if size is not None and size > limit:
        raise TooLarge(f"An image may have {limit} bytes at most")
    return Announced(size, expected_digests(request.headers))


def _check_body(request: Request, body: Announced | None, fields: Fields, stored: Image | None) -> None:
    """The rules of docs/protocol.md for what may come together."""
    store = fields.named.get("store") or (stored.store if stored is not None else None)
    if body is not None:
        if fields.named.get("location") is not None:
            raise InvalidRequest("When the location header is present no file content can be provided")
        if store == "http":
            raise InvalidRequest("Cannot post an image file to a HTTP backend")
    if stored is not None and stored.status not in ASSIGNABLE:
        if body is not None:
            raise Conflict("Can only assign image file to a locked or error image")
        fixed = [name for name in _OF_THE_BYTES if name in fields.named]
        if fixed:
            raise Conflict(f"Can only change {', '.join(fixed)} of a locked or error image")
    if fields.named.get("store") is not None:
        chosen_store(request.services, store)


async def check_companions(services: Services, caller: Caller, fields: Fields) -> None:
    """`kernel` and `ramdisk` name images of that type, which the caller can see.

    Raises:
        InvalidField: One does not.
    """
    for name, ancestor in (("kernel", "aki"), ("ramdisk", "ari")):
        wanted = fields.named.get(name)
        if wanted is None:
            continue
        try:
            found = visible(await services.images.get(wanted), wanted, caller)
        except NotFound:
            raise InvalidField(f"Invalid {name} '{wanted}': no such image") from None
        if found.type != name and found.format != ancestor:
            raise InvalidField(f"Invalid {name} '{wanted}': that image is no {name}")


async def _push(request: Request, image: Image, body: Announced, receive: Receive, *, new: bool) -> Answer:
    services = request.services
    store = chosen_store(services, image.store or services.settings.stores.default)
    source = RequestBody(receive, request.scope["state"].get("connection"), body.length)
    transfer = new_transfer(request, "push", image.id, store.name, body.length)
    declared = Declared(size=body.length, digests=body.digests)

    async def work(transfer: Transfer) -> Image:
        # Only here is there a slot: before, nothing is asked of the client.
        if body.length is None and not await source.peek():
            raise InvalidRequest("The body has no bytes: send Content-Length: 0 for metadata only")
        return await services.ingest.write(transfer, image, store, source, declared, new=new)

    written = await run(request, transfer, work)
    return _stored(request, written, transfer)


class RequestBody:
    """The body of a request as a source of blocks, or as the socket that it comes from.

    Raises `BodyIncomplete` when the client is gone before its end.

    Attributes:
        lends: Whether the socket can be had, and the body is long enough to be worth it.
    """

    def __init__(self, receive: Receive, connection: ClientConnection | None = None, length: int | None = None) -> None:
        self._receive = receive
        self._connection = connection
        self.lends = connection is not None and connection.lends and length is not None and length >= INTAKE_MIN
        self._peeked: bytes = b""
        self._more = True

    async def peek(self) -> bytes:
        """The first block, which `receive_some` will give again; b"" where the body is empty."""
        self._peeked = await self._next()
        return self._peeked

    def lend(self) -> AbstractAsyncContextManager[LentBody]:
        """What is left of the body, on its socket. Only where `lends`."""
        if self._connection is None:
            raise RuntimeError("There is no connection to lend")
        return self._connection.lend_body()

    async def receive_some(self) -> Block:
        if self._peeked:
            block, self._peeked = self._peeked, b""
            return block
        return await self._next()

    async def _next(self) -> bytes:
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise BodyIncomplete("The client stopped sending before the body was whole")
            self._more = message.get("more_body", False)
            if body := message.get("body", b""):
                return bytes(body)
        return b""


def _stored(request: Request, image: Image, transfer: Transfer | None = None) -> Answer:
    uri = request.image_uri(image.id)
    headers = [("location", uri)]
    if transfer is not None:
        headers.append(("x-transfer-id", transfer.id))
    return Answer({"image": image.shown(uri)}, headers=tuple(headers))
