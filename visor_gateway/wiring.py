"""What the parts of the gateway are given of its settings: a part of the composition root, `daemon`."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from . import config
from .datadir import DataDirectory
from .meta.sql import Metadata, open_metadata
from .outbound import LocationPolicy
from .server.settings import RoleSettings, ServerSettings
from .store.contract import Store
from .store.file import FileStore
from .transfer.admission import Slots
from .transfer.scrub import Plan


@asynccontextmanager
async def metadata(settings: config.Settings, directory: DataDirectory) -> AsyncGenerator[Metadata, None]:
    """The records and accounts, open within the block. Raises as `open_metadata`."""
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(_records(settings, directory))
        if settings.accounts.url is not None:
            # Imported here: most gateways load nothing of it.
            from .meta.visor.accounts import open_accounts

            stale, url = settings.metadata.stale_if_error, settings.accounts.url.reveal()
            await stack.enter_async_context(open_accounts(url, opened, stale_if_error=stale))
        yield opened


def _records(settings: config.Settings, directory: DataDirectory) -> AbstractAsyncContextManager[Metadata]:
    url, keys = settings.metadata.url.reveal(), settings.auth.master_key_file or directory.master_key
    stale = settings.metadata.stale_if_error
    database = directory.database(url)
    if database == url:
        return open_metadata(url, keys, stale_if_error=stale)
    # Imported here: most gateways load nothing of it.
    from .meta.visor.opening import open_catalogue

    return open_catalogue(url, database, keys, stale_if_error=stale)


def location_policy(settings: config.Settings) -> LocationPolicy:
    """What locations that clients name may lead to."""
    locations = settings.locations
    return LocationPolicy(allow=locations.allow, deny_private=locations.deny_private, allow_hosts=locations.allow_hosts)


def server_settings(settings: config.Settings) -> ServerSettings:
    """What the socket edge is to know."""
    server = settings.server
    serves_images = "image" in server.roles
    return ServerSettings(
        bind=server.bind if serves_images else (),
        serves_images=serves_images,
        roles=tuple(
            RoleSettings(
                name=role,
                bind=peers.bind,
                tls_certificate=peers.tls_certificate,
                tls_key=peers.tls_key,
                client_ca=peers.client_ca,
            )
            for role, peers in settings.peer_servers().items()
        ),
        tls_certificate=server.tls_certificate,
        tls_key=server.tls_key,
        max_connections=server.max_connections,
        backlog=server.backlog,
        notsent_lowat=server.notsent_lowat,
        stall_timeout=server.stall_timeout,
    )


def gateway_name(settings: config.Settings) -> str | None:
    """This gateway's name among others that it shares a view with; None where it does with nobody."""
    if settings.peers.url is None:
        return None
    return settings.peers.name or os.uname().nodename[:64]


def slots(settings: config.Settings) -> Slots:
    """How many transfers may run and wait."""
    limits = settings.limits
    return Slots(
        transfers=limits.transfers,
        transfers_per_store=limits.transfers_per_store,
        transfers_per_user=limits.transfers_per_user,
        of_store={name: store.transfers for name, store in settings.stores.named.items() if store.transfers},
        queue_limit=limits.queue_limit,
    )


def scrub_plans(settings: config.Settings, stores: Mapping[str, Store]) -> dict[str, tuple[FileStore, Plan]]:
    """The stores that are scrubbed, and how often and how fast."""
    found = {}
    for name, described in settings.stores.named.items():
        store = stores[name]
        if isinstance(described, config.FileStore) and isinstance(store, FileStore):
            found[name] = store, Plan(interval=described.scrub_interval, bytes_per_s=described.scrub_rate)
    return found
