"""Small requests: lists and heads of images, on 32 connections."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from .clients import Figures
from .gateway import FreeGateway, Gateway, QuietGateway, TwoWorkersGateway
from .glance import Glance
from .peer import Peer, Target
from .postgresql import PostgreSQLGateway
from .rounds import Contender, Table, alternate
from .stand import Stand, present

CONNECTIONS: Final = 32
IMAGES: Final = 20
_SECONDS: Final = 4.0


def ask(stand: Stand, peer: Peer, method: str, target: Target) -> Figures:
    """As many requests as are answered in a few seconds."""
    return stand.programs.run(
        "ask", peer.port, method, target.path, CONNECTIONS, stand.seconds(_SECONDS), target.headers
    )


def workloads(stand: Stand) -> Iterator[Table]:
    """The list of twenty images, and the head of one."""
    image = stand.directory / "small-image"
    image.write_bytes(bytes(1024))
    lists: list[Contender] = []
    heads: list[Contender] = []
    for peer, listed, method, one in _contenders(stand, image):
        lists.append(Contender(peer, partial(ask, stand, peer, "GET", listed)))
        heads.append(Contender(peer, partial(ask, stand, peer, method, one)))
    title = f"GET /images: {IMAGES} images, {CONNECTIONS} connections"
    yield alternate("list", title, lists, stand.options)
    yield alternate("head", f"HEAD of one image, {CONNECTIONS} connections", heads, stand.options)


def workers(stand: Stand) -> Iterator[Table]:
    """The same of the gateway with one worker and with two, on two cores."""
    image = stand.directory / "small-image"
    image.write_bytes(bytes(1024))
    lists: list[Contender] = []
    heads: list[Contender] = []
    for gateway in present(stand.find(FreeGateway), stand.find(TwoWorkersGateway)):
        found = [gateway.add(f"image {number}", image) for number in range(IMAGES)]
        lists.append(Contender(gateway, partial(ask, stand, gateway, "GET", Target("/images"))))
        heads.append(Contender(gateway, partial(ask, stand, gateway, "HEAD", Target(f"/images/{found[0]}"))))
    title = f"GET /images with one worker and with two: {IMAGES} images, {CONNECTIONS} connections"
    yield alternate("workers-list", title, lists, stand.options)
    yield alternate("workers-head", "HEAD of one image with one worker and with two", heads, stand.options)


def records(stand: Stand) -> Iterator[Table]:
    """The same of the gateway with its records in SQLite and in PostgreSQL, and a list that is made anew each time."""
    image = stand.directory / "small-image"
    image.write_bytes(bytes(1024))
    lists: list[Contender] = []
    filtered: list[Contender] = []
    heads: list[Contender] = []
    for gateway in present(stand.find(QuietGateway, label="records"), stand.find(PostgreSQLGateway)):
        found = [gateway.add(f"image {number}", image) for number in range(IMAGES)]
        lists.append(Contender(gateway, partial(ask, stand, gateway, "GET", Target("/images"))))
        narrowed = Target("/images?architecture=x86_64&sort=name")
        filtered.append(Contender(gateway, partial(ask, stand, gateway, "GET", narrowed)))
        heads.append(Contender(gateway, partial(ask, stand, gateway, "HEAD", Target(f"/images/{found[0]}"))))
    what = f"in SQLite and in PostgreSQL: {IMAGES} images, {CONNECTIONS} connections"
    yield alternate("records-list", f"GET /images {what}", lists, stand.options)
    yield alternate("records-filter", f"GET /images with filter and sort {what}", filtered, stand.options)
    yield alternate("records-head", f"HEAD of one image {what}", heads, stand.options)


def _contenders(stand: Stand, image: Path) -> Iterator[tuple[Peer, Target, str, Target]]:
    """Servers that hold the images, with what is asked of them. The reference is first."""
    for starlette in present(stand.starlette, stand.quiet_starlette):
        headers = _lines(starlette.authorization)
        yield starlette, Target("/images", headers), "HEAD", Target(f"/images/{uuid.UUID(int=1)}", headers)
    # Of their own: another holds the images that are pulled.
    for gateway in present(stand.find(Gateway, label="small"), stand.find(QuietGateway)):
        found = [gateway.add(f"image {number}", image) for number in range(IMAGES)]
        headers = _lines(gateway.authorization)
        yield gateway, Target("/images", headers), "HEAD", Target(f"/images/{found[0]}", headers)
    # Another Glance for the same reason; it has no HEAD, so the record is read. It asks nobody who is calling.
    glance = stand.find(Glance, lambda place: Glance(place, stand.options.peers / "glance"), label="small")
    if glance is not None:
        found = [glance.add(f"image {number}", image) for number in range(IMAGES)]
        yield glance, Target("/v2/images"), "GET", Target(f"/v2/images/{found[0]}")


def _lines(headers: dict[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
