"""Image bytes out, as raw ASGI: authorised by the gate, resolved here, moved by the engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ..errors import InvalidRequest
from ..image import Image
from ..store.file import FileStore
from ..transfer.setbacks import Candidate
from . import conditional, entity, locations
from .access import existing, visible
from .delivery import Delivery
from .entity import Headers
from .movement import Receive, Send, new_transfer, run
from .negotiate import COMMON_HEADERS
from .remote import RemoteDelivery
from .request import Answer, Request
from .view import View, view


async def head(request: Request, receive: Receive, send: Send) -> Answer | None:
    """HEAD /images/{id}"""
    return await _read(request, send)


async def get(request: Request, receive: Receive, send: Send) -> Answer | None:
    """GET /images/{id}"""
    return await _read(request, send)


async def _read(request: Request, send: Send) -> Answer | None:
    seen = await _view(request)
    image = seen.image
    whole = request.method == "GET"
    if image.status == "locked":
        await _send_head(send, 200, [*seen.record, (b"content-length", b"0")])
    elif image.status == "available" and (whole or not request.services.scrub.is_condemned(image)):
        if request.services.scrub.is_condemned(image):
            await locations.candidates(request.services, image)
        await _send_entity(request, seen, send)
    elif whole:
        return _without_bytes(image, seen.record)
    else:
        await _send_head(send, 200, [*seen.record, (b"cache-control", b"no-store")])
    return None


async def _view(request: Request) -> View:
    """The image that is asked for. Raises `NotFound` where there is none for this caller."""
    image_id, images = request.params["id"], request.services.images
    uri = request.image_uri(image_id)

    async def make() -> View:
        return view(existing(await images.get(image_id), image_id), uri)

    found = await request.services.views.get(await images.version(), uri, make)
    visible(found.image, image_id, request.caller)
    return found


async def _send_entity(request: Request, seen: View, send: Send) -> None:
    if conditional.not_modified(request.headers, seen.validators):
        await _send_head(send, 304, entity.guidance(seen.image))
    elif request.method == "HEAD":
        # A range is of GET alone (RFC 9110, 14.2).
        await _send_head(send, 200, [*seen.record, *seen.entity, *seen.whole])
    else:
        spans = conditional.spans(request.headers, seen.image.size, seen.validators)
        await _pull(request, seen.image, [*seen.record, *seen.entity], spans, send)


async def _send_head(send: Send, status: int, headers: Headers) -> None:
    headers = [*COMMON_HEADERS, *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _without_bytes(image: Image, record: Headers) -> Answer:
    headers = [(name.decode(), value.decode()) for name, value in record]
    headers.append(("cache-control", "no-store"))
    if image.status == "uploading":
        headers.append(("retry-after", "5"))
    message = f"Image '{image.id}' has no bytes: status is '{image.status}'"
    return Answer({"code": 409, "message": message}, 409, tuple(headers))


async def _pull(
    request: Request, image: Image, headers: Headers, spans: tuple[conditional.Span, ...], send: Send
) -> None:
    if image.size is None and request.scope["http_version"] == "1.0":
        raise _VersionNotSupported("The size of this image is not known: ask with HTTP/1.1")
    candidates = await locations.candidates(request.services, image)
    store = candidates[0].store
    layout = entity.layout(image, spans)
    transfer = new_transfer(request, "pull", image.id, store.name, layout.image_bytes, layout.parts[0].offset)
    headers = [*COMMON_HEADERS, *headers, *layout.headers, (b"x-transfer-id", transfer.id.encode("ascii"))]
    request.services.access_counts.add(image.id)
    await run(request, transfer, partial(_delivery(request, image, candidates, send), layout=layout, headers=headers))


def _delivery(
    request: Request, image: Image, candidates: Sequence[Candidate], send: Send
) -> Callable[..., Awaitable[None]]:
    services, connection = request.services, request.scope["state"].get("connection")
    direct = Delivery(image, candidates, services, connection, send).run
    if isinstance(candidates[0].store, FileStore):
        return direct
    return RemoteDelivery(image, locations.reader(services, candidates), direct, services, connection, send).run


class _VersionNotSupported(InvalidRequest):
    status = 505
