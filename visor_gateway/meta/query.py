"""From an `ImageQuery` to SQL: who sees what, filters, order, and the page after a marker."""

from __future__ import annotations

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

#: Nothing that is stored has it: PostgreSQL takes it in no text.
NUL: Final = "\0"
ALIVE: Final = images.c.entombed_at.is_(None)


def page(connection: sa.Connection, query: ImageQuery) -> sa.Select[Any]:
    """The statement that selects the ids of a page's images, in order.

    Raises:
        InvalidRequest: The marker names no image that the viewer sees, or `sort` is no sortable field.
    """
    if query.sort not in _SHOWN:
        raise InvalidRequest(f"Invalid sort '{query.sort}', available options: {', '.join(SORTABLE)}")
    key = _comparable(_SHOWN[query.sort])
    selected = sa.select(images.c.id).where(ALIVE, _seen(query), *(_equals(*item) for item in query.filters))
    if query.marker is not None:
        marked = sa.select(key, images.c.id).where(images.c.id == query.marker, ALIVE, _seen(query))
        marker = None if NUL in query.marker else connection.execute(marked).one_or_none()
        if marker is None:
            raise InvalidRequest(f"Invalid marker '{query.marker}': there is no such image")
        selected = selected.where(_after(query, key, *marker))
    return selected.order_by(*order(query)).limit(query.limit)


def first_page(*, anonymous: bool, everything: bool, sort: str, descending: bool) -> tuple[sa.Select[Any], Order]:
    """The same for any first page without filters, and its order. It can be used again and again.

    Its parameters are `viewer`, unless `anonymous`, and `limit`.
    """
    query = ImageQuery(viewer=None if anonymous else "", everything=everything, sort=sort, descending=descending)
    seen = _seen(query, sa.bindparam("viewer", type_=sa.String))
    selected = sa.select(images.c.id).where(ALIVE, seen)
    return selected.order_by(*order(query)).limit(sa.bindparam("limit", type_=sa.Integer)), order(query)


def order(query: ImageQuery) -> Order:
    """Unset values first when ascending; ties by `_id`. As the indexes have it, so that a page is read off one."""
    column = _SHOWN[query.sort]
    key = _comparable(column)
    if query.descending:
        first = key.desc()
        return (first.nulls_last() if column.nullable else first), images.c.id.desc()
    first = key.asc()
    return (first.nulls_first() if column.nullable else first), images.c.id.asc()


def _seen(query: ImageQuery, viewer: sa.BindParameter[str] | None = None) -> sa.ColumnElement[bool]:
    if query.everything:
        return sa.true()
    public = images.c.access == "public"
    if query.viewer is None:
        return public
    return public | (images.c.owner == (query.viewer if viewer is None else viewer))


def _equals(name: str, value: str) -> sa.ColumnElement[bool]:
    if NUL in name or NUL in value:
        return sa.false()
    if name in _FILTERABLE:
        return _text(_FILTERABLE[name]) == value
    return sa.exists().where(
        attributes.c.image_id == images.c.id, attributes.c.name == name, attributes.c.value == value
    )


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


def _comparable(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """The column as it is stored: moments as their text."""
    return sa.type_coerce(column, sa.String) if isinstance(column.type, Timestamp) else column


def _text(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """The column as the text that clients see."""
    return sa.cast(column, sa.String) if isinstance(column.type, sa.Integer) else _comparable(column)
