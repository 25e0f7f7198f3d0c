"""The metadata in a SQL database: opening it, and its repositories."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa
import trio

from ..errors import ConfigError
from .accounts import SqlAccountRepository, key_ids
from .contract import AccountRepository
from .database import Database
from .gateways import PeerKeys, SqlGatewayRepository
from .history import SqlHistoryRepository
from .images import SqlImageRepository
from .master_key import MasterKey

CLOSE_SECONDS: Final = 10.0


class Metadata:
    """Records and accounts of one gateway, or of all that share a database.

    Attributes:
        images: Records of images (`contract.ImageRepository`).
        accounts: Accounts (`contract.AccountRepository`).
        history: Transfers that ended (`contract.HistoryRepository`).
        gateways: Gateways that share a PostgreSQL.
        peer_keys: What these prove to each other that they share the master key by.
    """

    images: SqlImageRepository
    accounts: AccountRepository

    def __init__(self, database: Database, master_key: MasterKey, *, stale_if_error: float = 0) -> None:
        self.database = database
        self.master_key = master_key
        self.images = SqlImageRepository(database, stale_if_error=stale_if_error)
        self.accounts = SqlAccountRepository(database, master_key, stale_if_error=stale_if_error)
        self.history = SqlHistoryRepository(database)
        self.gateways = SqlGatewayRepository(database)
        self.peer_keys = PeerKeys(master_key)

    async def check(self) -> None:
        """Raises `MetadataUnavailable` when the database can't be used."""
        await self.images.check()
        await self.accounts.check()

    async def serve(self) -> None:
        """What the metadata has to do for as long as the gateway runs, until cancelled."""
        await trio.sleep_forever()


@asynccontextmanager
async def open_metadata(url: str, master_key: Path, *, stale_if_error: float = 0) -> AsyncGenerator[Metadata, None]:
    """Open the metadata, bring the schema up to date, and close it at the end of the block.

    No call may be under way when the block ends.

    Args:
        url: `sqlite:////absolute/path`. The file is made (mode 0600) if it is missing; its directory is not. Or
            `postgresql://user:password@host:port/name`, a database that is there.
        master_key: The master key file. It is made (mode 0600) if it is missing and no secret needs it.
        stale_if_error: Seconds after it was last read for which a public image, an account or a token can be read while
            a PostgreSQL database is away.

    Raises:
        ConfigError: The URL, the database or the master key file can't be used; the message names it.
        MetadataUnavailable: The database failed, is away, or another process kept it locked.
    """
    database = await Database.open(url)
    try:
        keys = MasterKey(master_key)
        await database.write(lambda connection: _prepare(connection, keys))
        yield Metadata(database, keys, stale_if_error=stale_if_error)
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await database.aclose()


def _prepare(connection: sa.Connection, keys: MasterKey) -> None:
    """Load the master key, or make it for a database that has no secrets yet."""
    used = key_ids(connection)
    if not os.path.exists(keys.path):  # unlike Path's, it raises nothing where the directory can't be searched
        if used:
            raise ConfigError(f"{keys.path}: expected the master key file, without which no secret can be read")
        keys.create()
    keys.load()
    missing = used - set(keys.ids)
    if missing:
        raise ConfigError(
            f"{keys.path}: expected the master key {', '.join(sorted(missing))}, under which secrets are encrypted"
        )
