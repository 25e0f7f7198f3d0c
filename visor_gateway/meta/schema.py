"""The tables, and how a moment is stored in them.

A moment is stored as the text that clients see (`image.timestamp`): it sorts and filters as shown, in every
database. The migrations, not this module, make the tables; a test holds the two to each other.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.sql.functions import FunctionElement

from ..image import timestamp
from .text import text


class Timestamp(sa.types.TypeDecorator[datetime]):
    """An aware datetime, stored as RFC 3339 text in UTC with microseconds."""

    impl = sa.String
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        return dialect.type_descriptor(text(27))

    def process_bind_param(self, value: datetime | None, dialect: Any) -> str | None:
        return None if value is None else timestamp(value)

    def process_result_value(self, value: Any, dialect: Any) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value)


class _DatabaseTime(FunctionElement[datetime]):
    """The clock of the database, shifted by an interval. Each database's module compiles it to a `Timestamp` text."""

    name = "database_time"
    type = Timestamp()
    inherit_cache = True


def database_time(seconds: float = 0) -> sa.ColumnElement[datetime]:
    """What the database's clock shows, `seconds` from now: gateways that share a database share this clock."""
    return _DatabaseTime(sa.bindparam(None, f"{seconds:+f} seconds", sa.String))


metadata: Final = sa.MetaData()

images: Final = sa.Table(
    "images",
    metadata,
    sa.Column("id", text(36), primary_key=True),
    sa.Column("name", text(255), nullable=False),
    sa.Column("architecture", text(16), nullable=False),
    sa.Column("owner", text(64), nullable=False),
    sa.Column("access", text(16), nullable=False),
    sa.Column("status", text(16), nullable=False),
    sa.Column("type", text(16)),
    sa.Column("format", text(16)),
    sa.Column("store", text(255)),
    sa.Column("location", text()),
    sa.Column("kernel", text()),
    sa.Column("ramdisk", text()),
    sa.Column("size", sa.BigInteger),
    sa.Column("checksum", text()),
    sa.Column("sha256", text(64)),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp),
    sa.Column("uploaded_at", Timestamp),
    sa.Column("accessed_at", Timestamp),
    sa.Column("access_count", sa.BigInteger, nullable=False),
    sa.Column("attempt_id", text(36)),
    sa.Column("validator", text()),
    sa.Column("entombed_at", Timestamp),
    sa.Column("scrubbed_at", Timestamp),
    sa.Column("bad_since", Timestamp),
    sa.Column("learned", text(129)),
)
# A list is read off an index that has its order, or that of a filter. The migrations tell PostgreSQL to put NULL first,
# as SQLite does, and to hash texts of any length, which no ordered index of it takes: they serve filters alone there.
sa.Index("images_by_access", images.c.access, images.c.id)
sa.Index("images_by_access_count", images.c.access_count, images.c.id)
sa.Index("images_by_accessed_at", images.c.accessed_at, images.c.id)
sa.Index("images_by_architecture", images.c.architecture, images.c.id)
sa.Index("images_by_checksum", images.c.checksum, images.c.id)
sa.Index("images_by_created_at", images.c.created_at, images.c.id)
sa.Index("images_by_format", images.c.format, images.c.id)
sa.Index("images_by_kernel", images.c.kernel, images.c.id)
sa.Index("images_by_location", images.c.location, images.c.id)
sa.Index("images_by_name", images.c.name, images.c.id)
sa.Index("images_by_owner", images.c.owner, images.c.created_at, images.c.id)
sa.Index("images_by_owner_and_id", images.c.owner, images.c.id)
sa.Index("images_by_ramdisk", images.c.ramdisk, images.c.id)
sa.Index("images_by_sha256", images.c.sha256)
sa.Index("images_by_size", images.c.size, images.c.id)
sa.Index("images_by_status", images.c.status, images.c.id)
sa.Index("images_by_store", images.c.store, images.c.id)
sa.Index("images_by_type", images.c.type, images.c.id)
sa.Index("images_by_updated_at", images.c.updated_at, images.c.id)
sa.Index("images_by_uploaded_at", images.c.uploaded_at, images.c.id)
sa.Index(
    "images_entombed",
    images.c.entombed_at,
    sqlite_where=images.c.entombed_at.is_not(None),
    postgresql_where=images.c.entombed_at.is_not(None),
)

attributes: Final = sa.Table(
    "attributes",
    metadata,
    sa.Column("image_id", text(36), sa.ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("name", text(64), primary_key=True),
    sa.Column("value", text(), nullable=False),
    # Clustered by image: a list reads the attributes of its images in one walk.
    sqlite_with_rowid=False,
)
sa.Index("attributes_by_name", attributes.c.name, attributes.c.value)

#: Leases. No foreign key to images: what a crashed writer left must be found after its record is gone too.
attempts: Final = sa.Table(
    "attempts",
    metadata,
    sa.Column("attempt_id", text(36), primary_key=True),
    sa.Column("image_id", text(36), nullable=False),
    sa.Column("instance_id", text(255), nullable=False),
    sa.Column("store", text(255), nullable=False),
    sa.Column("location", text(), nullable=False),
    sa.Column("expires_at", Timestamp, nullable=False),
    sa.Column("copies", text(36)),
)

#: Where an image's bytes are beside the location that its record names.
locations: Final = sa.Table(
    "locations",
    metadata,
    sa.Column("image_id", text(36), sa.ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("store", text(255), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("location", text(), nullable=False),
    sa.Column("attempt_id", text(36), nullable=False),
    sa.Column("validator", text()),
    sa.Column("verified_at", Timestamp, nullable=False),
    sa.Column("bad_since", Timestamp),
)

#: A deleted account keeps its row, so that its access key stays taken; secret, key id and email are gone from it.
accounts: Final = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", text(36), primary_key=True),
    sa.Column("access_key", text(64), nullable=False, unique=True),
    sa.Column("email", text(254)),
    sa.Column("role", text(16), nullable=False),
    sa.Column("key_id", text(16)),
    sa.Column("secret", sa.LargeBinary),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp),
    sa.Column("deleted_at", Timestamp),
)

tokens: Final = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", text(36), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column(
        "account_id",
        text(36),
        sa.ForeignKey("accounts.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("read_only", sa.Boolean, nullable=False),
    sa.Column("name", text()),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("expires_at", Timestamp, nullable=False, index=True),
)

tickets: Final = sa.Table(
    "tickets",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column(
        "account_id",
        text(36),
        sa.ForeignKey("accounts.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("route", text(), nullable=False),
    sa.Column("expires_at", Timestamp, nullable=False, index=True),
)

#: Digests of signatures and nonces that were used.
used: Final = sa.Table(
    "used",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("expires_at", Timestamp, nullable=False, index=True),
)

#: Gateways that show each other's transfers, for as long as they renew their leases.
gateways: Final = sa.Table(
    "gateways",
    metadata,
    sa.Column("name", text(64), primary_key=True),
    sa.Column("instance_id", text(36), nullable=False),
    sa.Column("peer_url", text(), nullable=False),
    sa.Column("expires_at", Timestamp, nullable=False),
)

#: One row, in PostgreSQL: a mark that is another one after any change of what gateways keep. Triggers that the
#: migration made set it, in the transaction of the change. It is random, so that a database that is put back from a
#: backup can't come to a mark that stood for something else.
changes: Final = sa.Table(
    "changes",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("mark", text(36), nullable=False),
)

#: Transfers that ended, the newest with the highest number; `meta.history` keeps them few.
history: Final = sa.Table(
    "history",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", text(36), nullable=False),
    sa.Column("kind", text(16), nullable=False),
    sa.Column("image", text(36), nullable=False),
    sa.Column("store", text(255)),
    sa.Column("client", text(64)),
    sa.Column("user", text(64)),
    sa.Column("state", text(16), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("size", sa.BigInteger),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("rate_avg", sa.BigInteger, nullable=False),
    sa.Column("started_at", Timestamp, nullable=False),
    sa.Column("ended_at", Timestamp, nullable=False),
    sa.Column("duration_ms", sa.BigInteger, nullable=False),
    sa.Column("wait_client", sa.BigInteger, nullable=False),
    sa.Column("wait_store", sa.BigInteger, nullable=False),
    sa.Column("wait_limit", sa.BigInteger, nullable=False),
    sa.Column("wait_disk", sa.BigInteger, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("error", text()),
    sqlite_autoincrement=True,
)

#: What records are at a VISOR Meta server, and what it is still to be told (`meta.visor.links`).
catalogue: Final = sa.Table(
    "catalogue",
    metadata,
    sa.Column("image_id", text(36), primary_key=True),
    sa.Column("remote_id", text(36), unique=True),
    sa.Column("ours", sa.Boolean, nullable=False),
    sa.Column("base", sa.LargeBinary),
    sa.Column("changes", sa.BigInteger, nullable=False),
    sa.Column("told", sa.BigInteger, nullable=False),
    sa.Column("asked", sa.Boolean, nullable=False),
    sa.Column("missing", sa.Boolean, nullable=False),
    sa.Column("gone", sa.Boolean, nullable=False),
)

#: One row: as whom this database's gateway keeps others off a Meta server's catalogue.
catalogue_marker: Final = sa.Table(
    "catalogue_marker",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("instance_id", text(36), nullable=False),
)

#: Users of a VISOR Auth server that tokens, tickets or a deletion are kept of (`meta.visor.users`). Their rows in
#: `accounts` are those of deleted accounts: without the server nobody gets in by them.
auth_users: Final = sa.Table(
    "auth_users",
    metadata,
    sa.Column("account_id", text(36), sa.ForeignKey("accounts.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("remote_id", text(36), nullable=False),
    sa.Column("deleted", sa.Boolean, nullable=False),
)
