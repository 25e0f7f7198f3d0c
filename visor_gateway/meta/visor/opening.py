"""Opening a catalogue: the local database, the Meta server beside it, and the marker that keeps other gateways off."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from ..sql import Metadata, open_metadata
from . import links
from .catalogue import Catalogue
from .images import CatalogueImageRepository
from .server import VisorServer, way_to


class CatalogueMetadata(Metadata):
    """Records of a Meta server; accounts, history, and what else that server can't keep, of the local database."""

    images: CatalogueImageRepository
    catalogue: Catalogue

    async def serve(self) -> None:
        await self.catalogue.serve()


@asynccontextmanager
async def open_catalogue(
    url: str, database: str, master_key: Path, *, stale_if_error: float = 0, watch_seconds: float | None = None
) -> AsyncGenerator[CatalogueMetadata, None]:
    """Open a Meta server's catalogue, and close it at the end of the block. No call may be under way when it ends.

    Args:
        url: `visor+http://host:port`.
        database: URL of the local SQLite database, as of `open_metadata`.
        master_key: As of `open_metadata`.
        stale_if_error: Seconds for which records are read that the server can't be asked about any more.
        watch_seconds: Seconds in which another gateway has to give a sign of life.

    Raises:
        ConfigError: A URL, the database or the master key file can't be used, or another gateway has this catalogue.
        MetadataUnavailable: The server or the database can't be used now.
    """
    async with way_to(url) as outbound:
        server = VisorServer(url, outbound)
        async with open_metadata(database, master_key) as local:
            catalogue = Catalogue(server, local.database, stale_if_error=stale_if_error)
            if watch_seconds is not None:
                catalogue.marker.watch_seconds = watch_seconds
            instance = await local.database.write(partial(links.instance, fresh=str(uuid.uuid4())))
            await catalogue.start(instance)
            metadata = CatalogueMetadata(local.database, local.master_key)
            metadata.images = CatalogueImageRepository(local.database, catalogue)
            metadata.catalogue = catalogue
            yield metadata
