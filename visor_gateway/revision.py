"""A change of the settings while serving: whatever can fail is prepared first, then all changes at once.

Requests and transfers under way keep what they began with: services, store objects, the certificate of their
connection. What begins afterwards has the new.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Protocol

import msgspec
import trio

from . import config, wiring
from .errors import StoreError
from .routes.request import Services
from .server.bind import tls_contexts
from .server.listen import Server
from .server.settings import ServerSettings
from .store.contract import Store
from .store.file import FileStore
from .store.http import HttpStore
from .stores import StoreTable
from .transfer.plane import ControlPlane


class Revision(msgspec.Struct, frozen=True):
    """Settings, and what was made of them."""

    settings: config.Settings
    server: ServerSettings
    references: HttpStore
    stores: Mapping[str, tuple[object, Store]]
    tls: Mapping[str, ssl.SSLContext]

    @property
    def store_objects(self) -> list[Store]:
        """The stores alone."""
        return [store for _, store in self.stores.values()]


class Revisable(Protocol):
    """An application that can be told of other services."""

    def revise(self, services: Services) -> None:
        """Serve later requests with these; those under way keep what they began with."""
        ...


class Reviser:
    """Changes what one process serves with.

    Attributes:
        services: What requests are given now.
    """

    def __init__(
        self,
        services: Services,
        table: StoreTable,
        stack: AsyncExitStack,
        server_settings: Callable[[config.Settings], ServerSettings],
    ) -> None:
        """`stack` closes what is opened here. `server_settings` is what this process's part of the socket edge is."""
        self.services = services
        self._table = table
        self._stack = stack
        self._server_settings = server_settings
        self._apps: Sequence[Revisable] = ()
        self._server: Server | None = None

    def serve_with(self, apps: Sequence[Revisable], server: Server) -> None:
        """Have these follow. A supervisor has none."""
        self._apps, self._server = apps, server

    def answer_by(self, plane: ControlPlane) -> None:
        """Have later requests ask another plane."""
        self.services = msgspec.structs.replace(self.services, plane=plane)
        for app in self._apps:
            app.revise(self.services)

    async def prepare(self, settings: config.Settings) -> Revision:
        """Make what settings ask for, and change nothing. To be taken, or discarded.

        Raises:
            ConfigError: They can't be served with.
        """
        server = self._server_settings(settings)
        tls = await trio.to_thread.run_sync(tls_contexts, server)
        references = self._references(settings)
        revision = Revision(settings, server, references, self._table.built(settings, references), tls)
        await self._table.begin(revision.store_objects)
        held = set(self._table.values())
        for store in revision.store_objects:
            if isinstance(store, FileStore) and store not in held:
                # Makes what it needs on its first day. One that can't be used stops nothing.
                with suppress(StoreError):
                    await store.check()
        return revision

    def _references(self, settings: config.Settings) -> HttpStore:
        """The store of references, under the policy of `[locations]`."""
        if settings.locations == self.services.settings.locations:
            return self.services.references
        outbound = wiring.way_out(settings, wiring.location_policy(settings))
        self._stack.push_async_exit(outbound)
        return HttpStore(outbound)

    def discard(self, revision: Revision) -> None:
        """Change nothing after all."""
        held = set(self._table.values())
        self._table.end([store for store in revision.store_objects if store not in held])

    def take(self, revision: Revision) -> None:
        """Change all. Does not wait, and does not fail."""
        settings, services = revision.settings, self.services
        gone = self._table.exchange(revision.stores)
        self.services = msgspec.structs.replace(services, settings=settings, references=revision.references)
        services.ingest.revise(
            visor_md5=settings.digests.visor_md5,
            max_size=settings.server.max_image_size,
            keep_unsafe=settings.stores.unsafe_images == "warn",
        )
        services.cache.revise(finish_percent=settings.cache.finish_percent, strict_ranges=settings.cache.strict_ranges)
        services.scrub.revise(wiring.scrub_plans(settings, self._table))
        services.history.revise(keep=settings.metadata.history)
        for app in self._apps:
            app.revise(self.services)
        if self._server is not None:
            self._server.revise(revision.server, revision.tls)
        self._table.retire(gone, services.hub.live)
