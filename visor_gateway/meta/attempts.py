"""Attempts to write bytes, and their leases, as statements on a connection. `contract` says what each does and raises.

A lease that ran out is over for good: the sweep may be removing its bytes at this moment. So it is neither renewed nor
committed, and those that the sweep is told of are marked, lest a clock that is set back revives them.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from ..errors import AttemptLost, Conflict
from ..image import Image
from .contract import LEASE_SECONDS, Attempt, Written
from .query import ALIVE
from .records import get, insert, require, update
from .schema import attempts, database_time, images

#: The columns of an `Attempt`.
ATTEMPT: Final = tuple(attempts.c[name] for name in Attempt.__struct_fields__)
_ASSIGNABLE: Final = ("locked", "error")
#: What a record may be while an attempt holds it, or was promised it.
_UNFINISHED: Final = (*_ASSIGNABLE, "uploading")
_OF_THE_BYTES: Final = ("size", "checksum", "sha256", "validator", "uploaded_at", "scrubbed_at", "bad_since", "learned")
_NO_BYTES: Final = {name: None for name in _OF_THE_BYTES}
#: End of a lease that the sweep was told of.
LONG_AGO: Final = datetime.fromtimestamp(0, UTC)


def promise(connection: sa.Connection, attempt: Attempt, new: Image | None) -> None:
    image = _assignable(connection, attempt, new)
    update(connection, image.id, {"attempt_id": attempt.attempt_id})
    lease(connection, attempt)


def _assignable(connection: sa.Connection, attempt: Attempt, new: Image | None) -> Image:
    if new is not None:
        insert(connection, new)
    image = require(connection, attempt.image_id)
    if image.status not in _ASSIGNABLE:
        raise Conflict("Can only assign image file to a locked or error image")
    return image


def lease(connection: sa.Connection, attempt: Attempt) -> None:
    values = msgspec.structs.asdict(attempt)
    connection.execute(attempts.insert().values(**values, expires_at=database_time(LEASE_SECONDS)))


def begin(connection: sa.Connection, attempt: Attempt, new: Image | None) -> Image:
    image = _assignable(connection, attempt, new)
    _redeem(connection, attempt, image)
    taken: dict[str, Any] = {
        "status": "uploading",
        "attempt_id": attempt.attempt_id,
        "store": attempt.store,
        **_NO_BYTES,
    }
    update(connection, image.id, taken)
    lease(connection, attempt)
    return msgspec.structs.replace(image, **taken)


def _redeem(connection: sa.Connection, attempt: Attempt, image: Image) -> None:
    """Take back the lease of a promise, if there was one: the attempt begins now."""
    alive = sa.select(attempts.c.expires_at > database_time()).where(attempts.c.attempt_id == attempt.attempt_id)
    running = connection.execute(alive).scalar_one_or_none()
    if running is None:
        return
    if not running or image.attempt_id != attempt.attempt_id:
        raise AttemptLost(f"Image '{attempt.image_id}' is no longer held by this upload")
    end_lease(connection, attempt)


def renew(connection: sa.Connection, instance_id: str, writing: Collection[str] | None) -> set[str]:
    writes = (images.c.attempt_id == attempts.c.attempt_id) & images.c.status.in_(_UNFINISHED)
    copies = (images.c.attempt_id == attempts.c.copies) & (images.c.status == "available")
    holds = sa.exists().where(images.c.id == attempts.c.image_id, writes | copies, ALIVE)
    held = [attempts.c.instance_id == instance_id, attempts.c.expires_at > database_time(), holds]
    if writing is not None:
        held.append(attempts.c.attempt_id.in_(writing))
    connection.execute(attempts.update().where(*held).values(expires_at=database_time(LEASE_SECONDS)))
    return set(connection.execute(sa.select(attempts.c.attempt_id).where(*held)).scalars())


def commit(connection: sa.Connection, attempt: Attempt, written: Written) -> Image:
    now = datetime.now(UTC)
    leased = sa.exists().where(attempts.c.attempt_id == attempt.attempt_id, attempts.c.expires_at > database_time())
    result = connection.execute(
        images
        .update()
        .where(images.c.id == attempt.image_id, images.c.attempt_id == attempt.attempt_id)
        .where(images.c.status == "uploading", ALIVE, leased)
        .values(
            status="available",
            location=attempt.location,
            uploaded_at=now,
            updated_at=now,
            **msgspec.structs.asdict(written),
        )
    )
    if result.rowcount == 1:
        end_lease(connection, attempt)
        return require(connection, attempt.image_id)
    return _committed_before(connection, attempt)


def _committed_before(connection: sa.Connection, attempt: Attempt) -> Image:
    """The outcome of a commit that is tried again because nobody knew how the first one ended."""
    image = get(connection, attempt.image_id)
    if image is None or image.status != "available" or image.attempt_id != attempt.attempt_id:
        raise AttemptLost(f"Image '{attempt.image_id}' is no longer held by this upload")
    return image


def fail(connection: sa.Connection, attempt: Attempt, bytes_left: bool) -> None:
    failed = {"status": "error", "attempt_id": None, "location": None, "updated_at": datetime.now(UTC), **_NO_BYTES}
    connection.execute(
        images
        .update()
        .where(images.c.id == attempt.image_id, images.c.attempt_id == attempt.attempt_id)
        .where(images.c.status.in_(_UNFINISHED), ALIVE)
        .values(failed)
    )
    if bytes_left:
        lapsed = attempts.update().where(attempts.c.attempt_id == attempt.attempt_id)
        connection.execute(lapsed.values(expires_at=LONG_AGO))
    else:
        end_lease(connection, attempt)


def end_lease(connection: sa.Connection, attempt: Attempt) -> None:
    connection.execute(attempts.delete().where(attempts.c.attempt_id == attempt.attempt_id))


def expired(connection: sa.Connection, ours: str | None, ended: str | None) -> list[Attempt]:
    over: sa.ColumnElement[bool] = attempts.c.expires_at <= database_time()
    if ours is not None and connection.dialect.name == "sqlite":
        # A SQLite database belongs to one data directory, and that to one running instance. On a server others may
        # be writing at this moment: their leases say for how long.
        over |= attempts.c.instance_id != ours
    if ended is not None:
        over |= attempts.c.instance_id == ended
    connection.execute(attempts.update().where(over).values(expires_at=LONG_AGO))
    rows = connection.execute(sa.select(*ATTEMPT).where(attempts.c.expires_at == LONG_AGO))
    return [Attempt(**row._mapping) for row in rows]
