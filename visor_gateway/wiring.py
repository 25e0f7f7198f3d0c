"""The parts of the gateway that its settings alone decide upon: a piece of the composition root, `daemon`."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from . import config
from .datadir import DataDirectory
from .meta.sql import Metadata, open_metadata
from .metrics import Metrics
from .outbound import LocationPolicy, Outbound
from .server.settings import RoleSettings, ServerSettings
from .store.cachedir import CacheDirectory
from .store.cachefiles import CacheFiles
from .store.contract import Store
from .store.file import FileStore
from .transfer.admission import Slots
from .transfer.cache import Cache
from .transfer.engine import Engine
from .transfer.ingest import Ingest
from .transfer.scrub import Plan
from .transfer.zerocopy import ZeroCopy


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


def way_out(settings: config.Settings, policy: LocationPolicy) -> Outbound:
    """The way to other servers, which the caller closes."""
    return Outbound(policy, stall_timeout=settings.server.stall_timeout)


def fast_lowat(settings: config.Settings) -> int:
    """What is queued for a client who takes much, in bytes."""
    return max(settings.server.notsent_lowat, settings.server.notsent_lowat_fast)


def pumps(settings: config.Settings) -> ZeroCopy:
    """The threads that send files, which the caller starts and closes."""
    server = settings.server
    return ZeroCopy(
        pumps=server.pump_threads,
        quantum=server.pump_quantum,
        nice=server.pump_nice,
        notsent_lowat=fast_lowat(settings),
        patience=server.stall_timeout,
    )


def ingest(settings: config.Settings, metadata: Metadata, instance_id: str) -> Ingest:
    """The way into the stores."""
    return Ingest(
        metadata.images,
        instance_id=instance_id,
        visor_md5=settings.digests.visor_md5,
        max_size=settings.server.max_image_size,
        keep_unsafe=settings.stores.unsafe_images == "warn",
        nice=settings.server.pump_nice,
    )


def cache(settings: config.Settings, metadata: Metadata, engine: Engine, metrics: Metrics) -> Cache:
    """The cache of remote images; one that keeps nothing where `max_bytes` is 0."""
    cache = settings.cache
    files = None
    if cache.max_bytes:
        directory = CacheDirectory(
            cache.directory,
            max_bytes=cache.max_bytes,
            min_free=cache.min_free,
            evicted=lambda entry: metrics.cache_evictions.inc(),
        )
        files = CacheFiles(directory)
    return Cache(
        files,
        engine,
        metadata.images,
        metrics,
        finish_percent=cache.finish_percent,
        strict_ranges=cache.strict_ranges,
        nice=settings.server.pump_nice,
    )


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
