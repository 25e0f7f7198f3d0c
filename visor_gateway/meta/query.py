"""From an `ImageQuery` to SQL: who sees what, filters, order, and the page after a marker."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from ..errors import InvalidRequest
from ..image import SHOWN
from .contract import ImageQuery
from .schema import Timestamp, attributes, images

#: Shown fields by the names that clients use. `uri` is made by the gateway and is no column.
_SHOWN: Final[dict[str, sa.Column[Any]]] = {
    name: images.c["id" if name == "_id" else name] for name in SHOWN if name != "uri"
}
SORTABLE: Final = tuple(_SHOWN)
_FILTERABLE: Final = _SHOWN | {"sha256": images.c.sha256}

Order = tuple[sa.ColumnElement[Any], ...]

#: How many images are put in order at a time, rather than looked for in an order.
FEW: Final = 1000
#: How whole numbers are shown, and the largest that a column takes.
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")
_LARGEST: Final = 2**63 - 1
#: Nothing that is stored has it: PostgreSQL takes it in no text.
NUL: Final = "\0"
ALIVE: Final = images.c.entombed_at.is_(None)


def page(connection: sa.Connection, query: ImageQuery) -> sa.Select[Any]:
    """The statement that selects the ids of a page's images, in order.

    Few images that meet the filters are found by these and put in order; many are met soon on a walk in the order that
    is asked for. Which it is, is counted, up to `FEW`: what a planner supposes of filters and orders that depend on
    each other is wrong where it matters.

    Raises:
        InvalidRequest: The marker names no image that the viewer sees, or `sort` is no sortable field.
    """
    if query.sort not in _SHOWN:
        raise InvalidRequest(f"Invalid sort '{query.sort}', available options: {', '.join(SORTABLE)}")
    key = _comparable(_SHOWN[query.sort])
    seen = _seen_of(query)
    wanted: list[sa.ColumnElement[bool]] = [ALIVE]
    if query.marker is not None:
        marked = sa.select(key, images.c.id).where(images.c.id == query.marker, ALIVE, _seen(query))
        marker = None if NUL in query.marker else connection.execute(marked).one_or_none()
        if marker is None:
            raise InvalidRequest(f"Invalid marker '{query.marker}': there is no such image")
        wanted.append(_after(query, key, *marker))
    filters = [_equals(*item) for item in query.filters]
    if filters and (ids := _few(connection, query, [*wanted, seen, *filters])) is not None:
        return sa.select(images.c.id).where(images.c.id.in_(ids))
    # The index is left to the order, and to what is equal in it.
    walked = [_equals(*item) if item[0] == query.sort else _has(*item) for item in query.filters]
    is_of_one_owner = query.sort == "owner" and "access" in dict(query.filters)
    met = sa.select(images.c.id).where(*wanted, seen if is_of_one_owner else _off_index(seen), *walked)
    return met.order_by(*order(query)).limit(query.limit)


def _few(
    connection: sa.Connection, query: ImageQuery, conditions: Sequence[sa.ColumnElement[bool]]
) -> list[str] | None:
    """The ids of the page, where no more than `FEW` images meet the conditions; else None."""
    column = _SHOWN[query.sort]
    found = sa.select(images.c.id, _comparable(column).label("key")).where(*conditions).limit(FEW + 1).subquery()
    ordered = _ordered(found.c.key, found.c.id, nullable=column.nullable, descending=query.descending)
    rows = connection.execute(sa.select(found.c.id, sa.func.count().over()).order_by(*ordered).limit(query.limit)).all()
    return [id for id, _ in rows] if not rows or rows[0][1] <= FEW else None


def first_page(*, anonymous: bool, everything: bool, sort: str, descending: bool) -> tuple[sa.Select[Any], Order]:
    """The same for any first page without filters, and its order. It can be used again and again.

    Its parameters are `viewer`, unless `anonymous`, and `limit`.
    """
    query = ImageQuery(viewer=None if anonymous else "", everything=everything, sort=sort, descending=descending)
    seen = _seen(query, sa.bindparam("viewer", type_=sa.String))
    selected = sa.select(images.c.id).where(ALIVE, _off_index(seen))
    return selected.order_by(*order(query)).limit(sa.bindparam("limit", type_=sa.Integer)), order(query)


def order(query: ImageQuery) -> Order:
    """Unset values first when ascending; ties by `_id`. As the indexes have it, so that a page is read off one."""
    column = _SHOWN[query.sort]
    return _ordered(_comparable(column), images.c.id, nullable=column.nullable, descending=query.descending)


def _ordered(
    key: sa.ColumnElement[Any], identity: sa.ColumnElement[str], *, nullable: bool | None, descending: bool
) -> Order:
    if descending:
        return (key.desc().nulls_last() if nullable else key.desc()), identity.desc()
    return (key.asc().nulls_first() if nullable else key.asc()), identity.asc()


def _seen(query: ImageQuery, viewer: sa.BindParameter[str] | None = None) -> sa.ColumnElement[bool]:
    """What is shown to whoever asks."""
    if query.everything:
        return sa.true()
    public = images.c.access == "public"
    return public if query.viewer is None else public | _owned(query, viewer)


def _seen_of(query: ImageQuery) -> sa.ColumnElement[bool]:
    """`_seen`, of images that meet the filters: no planner knows that who asks for private images is shown few."""
    wanted = dict(query.filters).get("access")
    if query.everything or wanted is None:
        return _seen(query)
    return sa.true() if wanted == "public" else _owned(query)


def _owned(query: ImageQuery, viewer: sa.BindParameter[str] | None = None) -> sa.ColumnElement[bool]:
    if query.viewer is None:
        return sa.false()
    return images.c.owner == (query.viewer if viewer is None else viewer)


def _off_index(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """The same condition, for which no database uses an index: whether it is true."""
    return condition if isinstance(condition, sa.sql.elements.True_) else condition.is_(sa.true())


def _equals(name: str, value: str) -> sa.ColumnElement[bool]:
    if NUL in name or NUL in value:
        return sa.false()
    if name not in _FILTERABLE:
        return sa.exists().where(
            attributes.c.image_id == images.c.id, attributes.c.name == name, attributes.c.value == value
        )
    column = _FILTERABLE[name]
    if isinstance(column.type, sa.Integer):
        # As text it would be compared with that of every row.
        return column == int(value) if _INTEGER.fullmatch(value) and abs(int(value)) <= _LARGEST else sa.false()
    return _comparable(column) == value


def _after(query: ImageQuery, key: sa.ColumnElement[Any], value: Any, image_id: str) -> sa.ColumnElement[bool]:
    """Rows behind the marker's (value, id) in the order of `order`."""
    identity = images.c.id
    if value is None:
        return (
            key.is_(None) & (identity < image_id)
            if query.descending
            else ((key.is_(None) & (identity > image_id)) | key.is_not(None))
        )
    here, marked = sa.tuple_(key, identity), sa.tuple_(value, image_id)
    if not query.descending:
        return here > marked
    behind = here < marked
    return behind | key.is_(None) if _SHOWN[query.sort].nullable else behind


def _has(name: str, value: str) -> sa.ColumnElement[bool]:
    """`_equals` of an image that was found otherwise."""
    if name in _FILTERABLE or NUL in name:
        return _off_index(_equals(name, value))
    # Of each image by itself: who asks whether there is one has PostgreSQL read the values of all images first.
    named = sa.select(attributes.c.value).where(attributes.c.image_id == images.c.id, attributes.c.name == name)
    return named.scalar_subquery() == value


def _comparable(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """The column as it is stored: moments as their text."""
    return sa.type_coerce(column, sa.String) if isinstance(column.type, Timestamp) else column
