"""Which record is which at the server, and what of it the server is still to be told: statements on a connection."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from ...image import Image
from ...visor_documents import ImageDocument
from .. import records
from ..query import ALIVE
from ..schema import attributes, catalogue, catalogue_marker, database_time, images

#: In one statement; SQLite takes more.
_IDS: Final = 500


class Link(NamedTuple):
    """A record's other side.

    Attributes:
        image_id, remote_id: Its `_id` here and at the server; the latter is None before it was registered.
        ours: Whether its bytes are this gateway's.
        base: What the server answered last, as JSON.
        changes, told: How often it was changed here, and the number of the change that the server was told of last.
        asked: Whether it may have been registered without an answer.
        missing: The server says that it is not there: it is hidden.
        gone: It was deleted here.
    """

    image_id: str
    remote_id: str | None
    ours: bool
    base: bytes | None
    changes: int
    told: int
    asked: bool
    missing: bool
    gone: bool

    @property
    def waits(self) -> bool:
        """Whether the server is to be told something."""
        return self.changes > self.told

    @property
    def document(self) -> ImageDocument | None:
        """What the server answered last."""
        return None if self.base is None else msgspec.json.decode(self.base, type=ImageDocument)


_LINK: Final = tuple(catalogue.c[name] for name in Link._fields)


def by_image(connection: sa.Connection, image_id: str) -> Link | None:
    row = connection.execute(sa.select(*_LINK).where(catalogue.c.image_id == image_id)).one_or_none()
    return None if row is None else Link._make(row)


def by_remote(connection: sa.Connection, remote_ids: Collection[str]) -> dict[str, Link]:
    """Links by the ids that the server has."""
    found = {}
    for some in _chunks(remote_ids):
        for row in connection.execute(sa.select(*_LINK).where(catalogue.c.remote_id.in_(some))):
            found[row.remote_id] = Link._make(row)
    return found


def _chunks(ids: Collection[str]) -> Iterator[list[str]]:
    listed = list(ids)
    for start in range(0, len(listed), _IDS):
        yield listed[start : start + _IDS]


def waiting(connection: sa.Connection) -> list[str]:
    """Ids of the images that the server is to be told of."""
    rows = sa.select(catalogue.c.image_id).where(catalogue.c.changes > catalogue.c.told)
    return list(connection.execute(rows.order_by(catalogue.c.image_id)).scalars())


def changed(connection: sa.Connection, image_id: str, *, gone: bool = False) -> None:
    """Note, in the transaction that changes a record, that the server is to be told. From now on the image is ours."""
    fresh = insert(catalogue).values(
        image_id=image_id, ours=True, changes=1, told=0, asked=False, missing=False, gone=gone
    )
    noted = {"changes": catalogue.c.changes + 1, "ours": True, "gone": gone}
    connection.execute(fresh.on_conflict_do_update(index_elements=[catalogue.c.image_id], set_=noted))


def described(connection: sa.Connection, image_id: str) -> None:
    """`changed`, for a change that leaves a foreign image foreign."""
    more = catalogue.update().where(catalogue.c.image_id == image_id)
    connection.execute(more.values(changes=catalogue.c.changes + 1))


def add(connection: sa.Connection, image: Image, document: ImageDocument) -> None:
    """Store a foreign image."""
    records.insert(connection, image)
    values = {"remote_id": document.id, "base": msgspec.json.encode(document)}
    fresh = {"ours": False, "changes": 0, "told": 0, "asked": False, "missing": False, "gone": False}
    connection.execute(catalogue.insert().values(image_id=image.id, **values, **fresh))


def update(connection: sa.Connection, image_id: str, **values: Any) -> None:
    connection.execute(catalogue.update().where(catalogue.c.image_id == image_id).values(values))


def forget(connection: sa.Connection, image_id: str) -> None:
    connection.execute(catalogue.delete().where(catalogue.c.image_id == image_id))


def overwrite(connection: sa.Connection, image: Image) -> None:
    """Store a record as it is given."""
    values = msgspec.structs.asdict(image)
    custom = values.pop("attributes")
    records.update(connection, values.pop("id"), values)
    connection.execute(attributes.delete().where(attributes.c.image_id == image.id))
    if custom:
        rows = [{"image_id": image.id, "name": name, "value": value} for name, value in custom.items()]
        connection.execute(attributes.insert(), rows)


def hide(connection: sa.Connection, image_id: str) -> None:
    """Let a record be there for nobody, as long as the server says that it is not. No sweep removes its bytes."""
    records.update(connection, image_id, {"entombed_at": database_time()})
    update(connection, image_id, missing=True)


def show(connection: sa.Connection, image_id: str) -> None:
    """Undo `hide`."""
    records.update(connection, image_id, {"entombed_at": None})
    update(connection, image_id, missing=False)


def hidden(connection: sa.Connection) -> set[str]:
    return set(connection.execute(sa.select(catalogue.c.image_id).where(catalogue.c.missing)).scalars())


def remote_ids(connection: sa.Connection, image: Image) -> dict[str, str]:
    """What the server calls the images that `kernel` and `ramdisk` name."""
    named = [name for name in (image.kernel, image.ramdisk) if name is not None]
    rows = connection.execute(
        sa.select(catalogue.c.image_id, catalogue.c.remote_id).where(
            catalogue.c.image_id.in_(named), catalogue.c.remote_id.is_not(None)
        )
    )
    return {image_id: remote_id for image_id, remote_id in rows}


def told_of(connection: sa.Connection, *, public: bool, owner: str | None) -> dict[str, str]:
    """By the server's id, the `_id`s of the images that a list of it should have: the public ones, or an owner's."""
    listed = images.c.access == "public" if public else images.c.owner == owner
    rows = connection.execute(
        sa
        .select(catalogue.c.remote_id, catalogue.c.image_id)
        .join(images, images.c.id == catalogue.c.image_id)
        .where(catalogue.c.remote_id.is_not(None), catalogue.c.changes == catalogue.c.told)
        .where(images.c.status != "uploading", ALIVE, listed)
    )
    return {remote_id: image_id for remote_id, image_id in rows}


def owners(connection: sa.Connection) -> list[str]:
    """Owners of images."""
    return list(connection.execute(sa.select(images.c.owner).where(images.c.owner != "").distinct()).scalars())


def instance(connection: sa.Connection, fresh: str) -> str:
    """The id of the gateway that this database belongs to: `fresh`, if it has none yet."""
    connection.execute(insert(catalogue_marker).values(number=1, instance_id=fresh).on_conflict_do_nothing())
    return str(connection.execute(sa.select(catalogue_marker.c.instance_id)).scalar_one())
