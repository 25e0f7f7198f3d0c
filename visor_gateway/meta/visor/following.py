"""Records changed after the server's: statements on a connection."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
import structlog

from ...image import Image
from ...visor_documents import ImageDocument
from .. import records
from ..schema import images
from . import links, published, taken
from .links import Link
from .marker import OWNER

_log = structlog.get_logger("visor_gateway.meta.visor")


def as_it_is(connection: sa.Connection, image_id: str) -> tuple[Link | None, Image | None, dict[str, str]]:
    link, image = links.by_image(connection, image_id), records.get(connection, image_id)
    return link, image, {} if image is None else links.remote_ids(connection, image)


def told(connection: sa.Connection, link: Link, document: ImageDocument) -> None:
    links.update(
        connection, link.image_id, remote_id=document.id, base=msgspec.json.encode(document), told=link.changes
    )


def told_missing(connection: sa.Connection, link: Link) -> None:
    links.update(connection, link.image_id, told=link.changes)
    image = records.get(connection, link.image_id)
    if image is not None and image.status != "uploading":
        links.hide(connection, link.image_id)


def forget_gone(connection: sa.Connection, link: Link) -> None:
    """The server knows no such record now; the link goes with the record."""
    links.update(connection, link.image_id, remote_id=None, told=link.changes, asked=False)
    if connection.execute(sa.select(images.c.id).where(images.c.id == link.image_id)).first() is None:
        links.forget(connection, link.image_id)


def miss(connection: sa.Connection, remote_id: str) -> None:
    link = links.by_remote(connection, [remote_id]).get(remote_id)
    if link is None or link.waits or link.gone or link.missing:
        return
    image = records.get(connection, link.image_id)
    if image is None or image.status == "uploading":
        return
    _log.warning("a record is gone from the Meta server", image=link.image_id)
    if link.ours:
        links.hide(connection, link.image_id)
    else:
        # None of its bytes are ours: nothing remains to be done.
        connection.execute(images.delete().where(images.c.id == link.image_id))
        links.forget(connection, link.image_id)


def differing(connection: sa.Connection, found: Sequence[ImageDocument]) -> list[ImageDocument]:
    """What of the documents is not known yet: as a rule nothing is, and nothing has to be written."""
    known = links.by_remote(connection, [document.id for document in found])
    return [document for document in found if _is_news(known.get(document.id), document)]


def _is_news(link: Link | None, document: ImageDocument) -> bool:
    if link is None:
        return document.owner != OWNER
    return not (link.waits or link.gone) and (link.missing or link.base != msgspec.json.encode(document))


def take_over(connection: sa.Connection, found: Sequence[ImageDocument]) -> None:
    known = links.by_remote(connection, [document.id for document in found])
    for document in found:
        link = known.get(document.id)
        if link is None:
            _add(connection, document)
        elif _is_news(link, document):
            _follow(connection, link, document)


def _add(connection: sa.Connection, document: ImageDocument) -> None:
    if document.owner == OWNER:
        return
    marked = document.attributes.get(published.MARK)
    if marked is not None and links.by_image(connection, marked) is not None:
        return  # it is being registered, or says that it is one that we know
    if links.by_image(connection, document.id) is not None:
        return
    taken_id = connection.execute(sa.select(images.c.id).where(images.c.id == document.id)).first()
    if taken_id is None:
        links.add(connection, taken.foreign(document, None, _local_ids(connection, document)), document)


def _follow(connection: sa.Connection, link: Link, document: ImageDocument) -> None:
    if link.missing:
        links.show(connection, link.image_id)
    image, base = records.get(connection, link.image_id), link.document
    if image is None or base is None:
        return
    if image.status == "uploading" and link.ours:
        return
    local_ids = _local_ids(connection, document)
    now = taken.merged(image, base, document, local_ids) if link.ours else taken.foreign(document, image, local_ids)
    if now != image:
        links.overwrite(connection, now)
    links.update(connection, link.image_id, base=msgspec.json.encode(document))


def _local_ids(connection: sa.Connection, document: ImageDocument) -> dict[str, str]:
    named = [name for name in (document.kernel, document.ramdisk) if name is not None]
    return {remote_id: link.image_id for remote_id, link in links.by_remote(connection, named).items()}
