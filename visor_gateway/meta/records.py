"""The records of images, as statements on a connection. `contract` says what each does and raises."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from ..errors import Conflict, NotFound
from ..image import Fields, Image, change
from . import query as sql
from . import reader
from .contract import ImageQuery
from .database import Database
from .query import ALIVE, NUL
from .schema import Timestamp, attempts, attributes, database_time, images, locations

_Statements = tuple[sa.Select[Any], sa.Select[Any]]

_FIELDS: Final = tuple(name for name in Image.__struct_fields__ if name != "attributes")
_RECORD: Final = tuple(images.c[name] for name in _FIELDS)
# Every request for an image reads one record: built once, as building costs more than running.
_ONE: Final = sa.select(*_RECORD).where(images.c.id == sa.bindparam("image"), ALIVE)
_ATTRIBUTES_OF_ONE: Final = (
    sa
    .select(attributes.c.name, attributes.c.value)
    .where(attributes.c.image_id == sa.bindparam("image"))
    .order_by(attributes.c.name)
)
#: One record with its attributes, a row for each of them: in one statement, so that they are of one moment.
_ONE_NOW: Final = reader.text(
    sa
    .select(*_RECORD, attributes.c.name.label("attribute"), attributes.c.value)
    .outerjoin(attributes, attributes.c.image_id == images.c.id)
    .where(images.c.id == sa.bindparam("image"), ALIVE)
    .order_by(attributes.c.name)
)
_MOMENTS: Final = tuple(number for number, column in enumerate(_RECORD) if isinstance(column.type, Timestamp))
#: What `replace` demands to be unchanged.
_STATE: Final = ("status", "store", "location", "format")
#: What `replace` never touches: it is set by other methods, or for ever.
_KEPT: Final = frozenset({
    "id",
    "owner",
    "created_at",
    "accessed_at",
    "access_count",
    "attempt_id",
    "scrubbed_at",
    "bad_since",
    "learned",
    "attributes",
})


def get(connection: sa.Connection, image_id: str) -> Image | None:
    if NUL in image_id:
        return None
    row = connection.execute(_ONE, {"image": image_id}).one_or_none()
    if row is None:
        return None
    custom = connection.execute(_ATTRIBUTES_OF_ONE, {"image": image_id})
    return Image(**dict(zip(_FIELDS, row, strict=True)), attributes={name: value for name, value in custom})


def get_now(database: Database, image_id: str) -> Image | None:
    """What `get` finds, without a thread.

    Raises:
        LookupError: The database can't be read now.
    """
    rows = database.read_now(_ONE_NOW, image=image_id)
    if rows is None:
        raise LookupError(image_id)
    if not rows:
        return None
    values = list(rows[0][:-2])
    for number in _MOMENTS:
        if values[number] is not None:
            values[number] = datetime.fromisoformat(values[number])
    custom = {name: value for *_, name, value in rows if name is not None}
    return Image(**dict(zip(_FIELDS, values, strict=True)), attributes=custom)


def require(connection: sa.Connection, image_id: str) -> Image:
    image = get(connection, image_id)
    if image is None:
        raise NotFound(f"No image found with id '{image_id}'.")
    return image


def find(connection: sa.Connection, query: ImageQuery) -> list[Image]:
    if query.filters or query.marker is not None or query.sort not in sql.SORTABLE:
        return _records(connection, sql.page(connection, query), *sql.order(query))
    anonymous = query.viewer is None
    statements = _first_page(anonymous, query.everything, query.sort, query.descending)
    viewer = {} if anonymous or query.everything else {"viewer": query.viewer}
    return _fetched(connection, statements, {"limit": query.limit, **viewer})


@functools.cache  # as many as there are sortable fields, times eight
def _first_page(anonymous: bool, everything: bool, sort: str, descending: bool) -> _Statements:
    ids, order = sql.first_page(anonymous=anonymous, everything=everything, sort=sort, descending=descending)
    return _statements(ids, *order)


def entombed(connection: sa.Connection) -> list[Image]:
    writing = sa.exists().where(attempts.c.image_id == images.c.id, attempts.c.expires_at > database_time())
    unfinished = sa.select(images.c.id).where(~ALIVE, ~writing)
    return _records(connection, unfinished, images.c.entombed_at, images.c.id)


def _records(connection: sa.Connection, ids: sa.Select[Any], *order: sa.ColumnElement[Any]) -> list[Image]:
    """The images that `ids` selects: two statements, however many they are."""
    return _fetched(connection, _statements(ids, *order), {})


def _statements(ids: sa.Select[Any], *order: sa.ColumnElement[Any]) -> _Statements:
    page = ids.subquery("page")
    return (
        ids.with_only_columns(*_RECORD).order_by(None).order_by(*order),
        # In no order: to have one by name, SQLite would walk through the attributes of all images.
        sa.select(attributes).join(page, page.c.id == attributes.c.image_id),
    )


def _fetched(connection: sa.Connection, statements: _Statements, parameters: Mapping[str, Any]) -> list[Image]:
    records, attributes_of_them = statements
    rows = connection.execute(records, parameters).all()
    if not rows:
        return []
    custom: dict[str, dict[str, str]] = {}
    for row in sorted(connection.execute(attributes_of_them, parameters), key=lambda row: row.name):
        custom.setdefault(row.image_id, {})[row.name] = row.value
    return [Image(**dict(zip(_FIELDS, row, strict=True)), attributes=custom.get(row.id, {})) for row in rows]


def known_keys(connection: sa.Connection) -> set[str]:
    written = sa.select(images.c.id, images.c.attempt_id).where(images.c.attempt_id.is_not(None))
    copied = sa.select(locations.c.image_id, locations.c.attempt_id)
    leased = sa.select(attempts.c.image_id, attempts.c.attempt_id)
    return {f"{image_id}/{attempt_id}" for image_id, attempt_id in connection.execute(written.union(copied, leased))}


def check(connection: sa.Connection) -> None:
    connection.execute(sa.select(images.c.id).limit(1)).all()


def insert(connection: sa.Connection, image: Image) -> None:
    connection.execute(images.insert().values({name: getattr(image, name) for name in _FIELDS}))
    _set_attributes(connection, image.id, image.attributes)


def replace(connection: sa.Connection, image: Image, expected: Image) -> Image:
    current = require(connection, image.id)
    if any(getattr(current, name) != getattr(expected, name) for name in _STATE):
        raise Conflict(f"Image '{image.id}' was changed meanwhile: its status is '{current.status}'")
    changed = {name for name in _FIELDS if name not in _KEPT and getattr(image, name) != getattr(expected, name)}
    # Only what the caller changed is written, so that of two changes to different fields none is lost.
    removed = expected.attributes.keys() - image.attributes.keys()
    added = dict(image.attributes.items() - expected.attributes.items())
    base = msgspec.structs.replace(
        current,
        **{name: getattr(image, name) for name in changed},
        attributes={name: value for name, value in current.attributes.items() if name not in removed},
    )
    # Two changes together may make a record too large that neither did alone: `change` refuses that.
    change(base, Fields(named={}, attributes=added), now=base.created_at)
    if changed:
        update(connection, image.id, {name: getattr(image, name) for name in changed})
    touched = removed | added.keys()
    connection.execute(
        attributes.delete().where(attributes.c.image_id == image.id, attributes.c.name.in_(sorted(touched)))
    )
    _set_attributes(connection, image.id, added)
    return require(connection, image.id)


def _set_attributes(connection: sa.Connection, image_id: str, values: Mapping[str, str]) -> None:
    if values:
        rows = [{"image_id": image_id, "name": name, "value": value} for name, value in values.items()]
        connection.execute(attributes.insert(), rows)


def update(connection: sa.Connection, image_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(images.update().where(images.c.id == image_id).values(values))


def entomb(connection: sa.Connection, image_id: str) -> Image:
    image = require(connection, image_id)
    update(connection, image_id, {"entombed_at": database_time()})
    return image


def bury(connection: sa.Connection, image_id: str) -> None:
    connection.execute(images.delete().where(images.c.id == image_id, ~ALIVE))


def count_access(connection: sa.Connection, counts: Mapping[str, tuple[int, datetime]]) -> None:
    statement = (
        images
        .update()
        .where(images.c.id == sa.bindparam("image"))
        .values(access_count=images.c.access_count + sa.bindparam("count"), accessed_at=sa.bindparam("moment"))
    )
    rows = [{"image": image_id, "count": count, "moment": moment} for image_id, (count, moment) in counts.items()]
    connection.execute(statement, rows)


def judge(connection: sa.Connection, image: Image, good: bool, validator: str | None) -> bool:
    own = (images.c.id == image.id) & (images.c.attempt_id == image.attempt_id) & (images.c.status == "available")
    copy = (locations.c.image_id == image.id) & (locations.c.attempt_id == image.attempt_id)
    return _judge(connection, own & ALIVE, images.c.scrubbed_at, good, validator) or _judge(
        connection, copy, locations.c.verified_at, good, validator
    )


def _judge(
    connection: sa.Connection,
    same: sa.ColumnElement[bool],
    hashed_at: sa.Column[datetime],
    good: bool,
    validator: str | None,
) -> bool:
    table, now = hashed_at.table, datetime.now(UTC)
    found: dict[str, Any] = {hashed_at.name: now}
    if good:
        found |= {"bad_since": None, "validator": validator}
    else:
        found["bad_since"] = sa.func.coalesce(table.c.bad_since, sa.literal(now, Timestamp))
    return connection.execute(sa.update(table).where(same).values(found)).rowcount == 1


def pin(connection: sa.Connection, image: Image, sha256: str, size: int) -> str | None:
    same = (images.c.id == image.id) & (images.c.attempt_id == image.attempt_id) & (images.c.status == "available")
    unpinned = images.c.sha256.is_(None)
    connection.execute(images.update().where(same, unpinned, ALIVE).values(sha256=sha256, size=size))
    found: str | None = connection.execute(sa.select(images.c.sha256).where(same, ALIVE)).scalar_one_or_none()
    return found


def learn(connection: sa.Connection, image: Image, blake3: str | None) -> bool:
    same = (images.c.id == image.id) & (images.c.sha256 == image.sha256) & (images.c.status == "available")
    learned = None if blake3 is None else f"{image.sha256}:{blake3}"
    return connection.execute(images.update().where(same, ALIVE).values(learned=learned)).rowcount == 1


def scrubbed_before(connection: sa.Connection, store: str, moment: datetime) -> list[str]:
    own = sa.select(
        images.c.id, images.c.store, sa.func.coalesce(images.c.scrubbed_at, images.c.uploaded_at).label("hashed_at")
    ).where(images.c.status == "available", images.c.sha256.is_not(None), ALIVE)
    copied = (
        sa
        .select(images.c.id, locations.c.store, locations.c.verified_at)
        .join(locations, locations.c.image_id == images.c.id)
        .where(ALIVE)
    )
    places = own.union_all(copied).subquery()
    last = sa.func.min(places.c.hashed_at)
    due = (
        sa
        .select(places.c.id)
        .where(places.c.store == store, places.c.hashed_at < sa.literal(moment, Timestamp))
        .group_by(places.c.id)
        .order_by(last, places.c.id)
    )
    return list(connection.execute(due).scalars())


def bad(connection: sa.Connection) -> list[Image]:
    return _records(
        connection, sa.select(images.c.id).where(images.c.bad_since.is_not(None), ALIVE), images.c.bad_since
    )
