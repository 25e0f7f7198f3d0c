"""Further locations of images' bytes, as statements on a connection. `contract` says what each does and raises.

A copy is an attempt that names the attempt whose bytes it copies: it holds its lease, and may be committed, for as long
as the image has these bytes. What a removed copy leaves in its store is an attempt whose lease is over, so that the
sweep finishes what nobody else does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from ..errors import AttemptLost, Conflict, NotFound
from ..image import Image
from . import reader
from .attempts import ATTEMPT, LONG_AGO, end_lease, lease
from .contract import Attempt, Location
from .database import Database
from .query import ALIVE
from .records import require, update
from .schema import attempts, database_time, images, locations

_LOCATION: Final = tuple(locations.c[name] for name in Location.__struct_fields__)
_OF_IMAGE: Final = (
    sa.select(*_LOCATION).where(locations.c.image_id == sa.bindparam("image")).order_by(locations.c.position)
)
#: Every pull reads it.
_OF_IMAGE_NOW: Final = reader.text(_OF_IMAGE)
_MOMENTS: Final = ("verified_at", "bad_since")


def begin(connection: sa.Connection, attempt: Attempt) -> Image:
    image = require(connection, attempt.image_id)
    if image.status != "available" or image.attempt_id != attempt.copies:
        raise Conflict(f"Image '{image.id}' has no bytes to copy: status is '{image.status}'")
    taken = {image.store, *(one.store for one in of_image(connection, image.id))}
    if attempt.store in taken:
        raise Conflict(f"Image '{image.id}' is in the store '{attempt.store}' already")
    if attempt.store in {one.store for one in under_way(connection, image.id)}:
        raise Conflict(f"Image '{image.id}' is being copied to the store '{attempt.store}' already")
    lease(connection, attempt)
    return image


def commit(connection: sa.Connection, attempt: Attempt, validator: str | None) -> Location:
    held = sa.select(attempts.c.attempt_id).where(
        attempts.c.attempt_id == attempt.attempt_id, attempts.c.expires_at > database_time()
    )
    same = sa.select(images.c.id).where(
        images.c.id == attempt.image_id,
        images.c.attempt_id == attempt.copies,
        images.c.status == "available",
        ALIVE,
    )
    found = of_image(connection, attempt.image_id)
    for one in found:
        if one.attempt_id == attempt.attempt_id:
            return one
    if connection.execute(held).first() is None or connection.execute(same).first() is None:
        raise AttemptLost(f"Image '{attempt.image_id}' has no longer the bytes that were copied")
    made = Location(
        image_id=attempt.image_id,
        store=attempt.store,
        position=1 + max((one.position for one in found), default=0),
        location=attempt.location,
        attempt_id=attempt.attempt_id,
        validator=validator,
        verified_at=datetime.now(UTC),
    )
    connection.execute(locations.insert().values({name: getattr(made, name) for name in Location.__struct_fields__}))
    end_lease(connection, attempt)
    return made


def of_image(connection: sa.Connection, image_id: str) -> list[Location]:
    return [Location(**row._mapping) for row in connection.execute(_OF_IMAGE, {"image": image_id})]


def of_image_now(database: Database, image_id: str) -> list[Location]:
    """What `of_image` finds, without a thread.

    Raises:
        LookupError: The database can't be read now.
    """
    rows = database.read_now(_OF_IMAGE_NOW, image=image_id)
    if rows is None:
        raise LookupError(image_id)
    return [_location(dict(zip(Location.__struct_fields__, row, strict=True))) for row in rows]


def _location(values: dict[str, Any]) -> Location:
    for name in _MOMENTS:
        values[name] = None if values[name] is None else datetime.fromisoformat(values[name])
    return Location(**values)


def under_way(connection: sa.Connection, image_id: str) -> list[Attempt]:
    rows = connection.execute(
        sa
        .select(*ATTEMPT)
        .where(attempts.c.image_id == image_id, attempts.c.copies.is_not(None))
        .where(attempts.c.expires_at > database_time())
        .order_by(attempts.c.attempt_id)
    )
    return [Attempt(**row._mapping) for row in rows]


def remove(connection: sa.Connection, image_id: str, store: str, instance_id: str) -> Attempt:
    image = require(connection, image_id)
    found = {one.store: one for one in of_image(connection, image_id)}
    if image.status != "available" or (store != image.store and store not in found):
        raise NotFound(f"Image '{image_id}' has no copy in the store '{store}'")
    if not found:
        raise Conflict(f"Image '{image_id}' has no bytes but in the store '{store}'")
    if under_way(connection, image_id):
        raise Conflict(f"Image '{image_id}' is being copied: try again when that has ended")
    if store == image.store:
        left = _left_behind(image_id, store, image.attempt_id or "", image.location or "", instance_id)
        first = min(found.values(), key=lambda one: (one.bad_since is not None, one.position))
        _make_first(connection, image, first)
        _forget(connection, first)
    else:
        gone = found[store]
        left = _left_behind(image_id, store, gone.attempt_id, gone.location, instance_id)
        _forget(connection, gone)
    connection.execute(attempts.insert().values(**_row(left), expires_at=LONG_AGO))
    return left


def _left_behind(image_id: str, store: str, attempt_id: str, location: str, instance_id: str) -> Attempt:
    return Attempt(image_id=image_id, attempt_id=attempt_id, instance_id=instance_id, store=store, location=location)


def _row(attempt: Attempt) -> dict[str, Any]:
    return {name: getattr(attempt, name) for name in Attempt.__struct_fields__}


def _make_first(connection: sa.Connection, image: Image, first: Location) -> None:
    """A copy becomes what the record names. What was found of the bytes before was found elsewhere."""
    values: dict[str, Any] = {
        "store": first.store,
        "location": first.location,
        "attempt_id": first.attempt_id,
        "validator": first.validator,
        "scrubbed_at": first.verified_at,
        "bad_since": first.bad_since,
        "updated_at": datetime.now(UTC),
    }
    if (image.location or "").startswith(("http://", "https://")):
        values["checksum"] = image.sha256  # before, it was the origin's ETag
    update(connection, image.id, values)


def _forget(connection: sa.Connection, gone: Location) -> None:
    connection.execute(locations.delete().where(locations.c.image_id == gone.image_id, locations.c.store == gone.store))
