"""Which gateways share this database and show each other's transfers, and what they prove themselves by.

Each has a row with the address that others reach it at, under a lease by the database's clock. Who comes or goes wakes
the others by NOTIFY; renewals wake nobody.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import sqlalchemy as sa
import structlog
import trio
from sqlalchemy.dialects import postgresql

from ..errors import ConfigError
from .database import Database, News
from .master_key import MasterKey
from .schema import database_time, gateways

CHANNEL: Final = "visor_gateways"
LIMIT: Final = 64  # gateways that are looked at
#: Access keys of users hold no "@", so that nobody can be named like a peer.
PREFIX: Final = "@"
LOAD_SECONDS: Final = 5.0  # between two looks into the file of the master key for a key that is not known

_log: Final = structlog.get_logger("visor_gateway.peers")
_NOTIFY: Final = sa.text(f"SELECT pg_notify('{CHANNEL}', '')")


class Member(msgspec.Struct, frozen=True):
    """One gateway.

    Attributes:
        instance_id: Of its process; another one after an upgrade or a restart.
        peer_url: Where other gateways reach it.
    """

    name: str
    instance_id: str
    peer_url: str


class SqlGatewayRepository:
    """The table of gateways, in PostgreSQL alone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def renew(self, member: Member, seconds: float) -> tuple[bool, list[Member]]:
        """Enter `member`, or keep it entered for so many seconds more, and find all others.

        Returns:
            Whether the name is this member's. It is not while another gateway, at another address, holds it.

        Raises:
            MetadataUnavailable: The database can't be used.
        """
        return await self._database.write(lambda connection: _renew(connection, member, seconds))

    async def leave(self, member: Member) -> None:
        """Take `member` out, unless a later process of the same gateway has the name by now."""
        await self._database.write(lambda connection: _leave(connection, member))

    @asynccontextmanager
    async def news(self) -> AsyncGenerator[News, None]:
        """Tells when a gateway came or went, within the block. Raises `MetadataUnavailable`."""
        async with self._database.listening(CHANNEL) as news:
            yield news


def _renew(connection: sa.Connection, member: Member, seconds: float) -> tuple[bool, list[Member]]:
    now = database_time()
    gone = connection.execute(gateways.delete().where(gateways.c.expires_at < now)).rowcount
    before = connection.execute(
        sa.select(gateways.c.instance_id).where(gateways.c.name == member.name)
    ).scalar_one_or_none()
    insert = postgresql.insert(gateways).values(expires_at=database_time(seconds), **msgspec.structs.asdict(member))
    entered = connection.execute(
        insert.on_conflict_do_update(
            index_elements=[gateways.c.name],
            set_={name: insert.excluded[name] for name in ("instance_id", "peer_url", "expires_at")},
            where=sa.or_(
                gateways.c.instance_id == insert.excluded.instance_id, gateways.c.peer_url == insert.excluded.peer_url
            ),
        ).returning(gateways.c.name)
    ).first()
    if gone or (entered is not None and before != member.instance_id):
        connection.execute(_NOTIFY)
    rows = connection.execute(
        sa
        .select(gateways.c.name, gateways.c.instance_id, gateways.c.peer_url)
        .where(gateways.c.name != member.name)
        .order_by(gateways.c.name)
        .limit(LIMIT)
    )
    return entered is not None, [Member(**row._mapping) for row in rows]


def _leave(connection: sa.Connection, member: Member) -> None:
    left = gateways.delete().where(gateways.c.name == member.name, gateways.c.instance_id == member.instance_id)
    if connection.execute(left).rowcount:
        connection.execute(_NOTIFY)


class PeerKeys:
    """What gateways prove to each other that they share the master key by: access keys and secrets derived from it."""

    def __init__(self, keys: MasterKey) -> None:
        self._keys = keys
        self._loaded_at = -LOAD_SECONDS

    def own(self) -> tuple[str, str]:
        """The access key and the secret to sign with now."""
        key_id = self._keys.ids[0]
        return f"{PREFIX}{key_id}", self._keys.peer_secret(key_id) or secrets.token_hex()

    async def secret(self, access_key: str) -> str | None:
        """The secret that an access key of a peer stands for; None where there is none."""
        if not access_key.startswith(PREFIX):
            return None
        key_id = access_key.removeprefix(PREFIX)
        found = self._keys.peer_secret(key_id)
        if found is None and trio.current_time() - self._loaded_at >= LOAD_SECONDS:
            # The file may have been given a new key; strangers who guess must not have it read all the time.
            self._loaded_at = trio.current_time()
            try:
                await trio.to_thread.run_sync(self._keys.load)
            except ConfigError as error:
                _log.error("keys of other gateways can't be read", error=error.message)
                return None
            found = self._keys.peer_secret(key_id)
        return found
