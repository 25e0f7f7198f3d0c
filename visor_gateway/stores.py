"""The stores that the configuration names, built, served and exchanged: a part of the composition root, `daemon`.

A store whose settings change is exchanged for a new object. Who holds the old one, a transfer under way, keeps it: it
is served until the last of these transfers has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import trio

from . import config
from .errors import ConfigError
from .outbound import Outbound
from .store.contract import ServedStore, Store
from .store.file import FileStore
from .store.http import HttpStore
from .store.parts import MAX_PARTS
from .store.spool import Spool
from .transfer.transfer import Transfer

NO_REGION: Final = "us-east-1"  # for services whose signatures name none
SETTLED_SECONDS: Final = 60.0  # after which a request that had found a store has begun its transfer, or has ended
#: Settings of a store that are not the store object's business.
_NOT_BUILT_IN: Final = ("transfers", "scrub_interval", "scrub_rate")


class StoreTable(Mapping[str, Store]):
    """All stores by name, in the order of the configuration. Iterations see the stores of the moment they began at."""

    def __init__(self, settings: config.Settings, references: HttpStore, servers: Outbound) -> None:
        """Nothing is asked of the stores' servers.

        Args:
            settings: All settings.
            references: The store of type `http`.
            servers: The way out to servers that the configuration names. The caller closes it.

        Raises:
            ConfigError: A store can't be built.
        """
        self._servers = servers
        self._spool = Spool(settings.cache.directory / "spool", settings.cache.spool_max_bytes)
        self._keys: dict[str, object] = {}
        self._stores: dict[str, Store] = {}
        self._nursery: trio.Nursery | None = None
        self._served: dict[Store, trio.CancelScope] = {}
        self.exchange(self.built(settings, references))

    def __getitem__(self, name: str) -> Store:
        return self._stores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stores)

    def __len__(self) -> int:
        return len(self._stores)

    # --- building --------------------------------------------------------------------------------

    def built(self, settings: config.Settings, references: HttpStore) -> Mapping[str, tuple[object, Store]]:
        """The stores of these settings, for `exchange`; those that stay as they are are the same objects.

        Raises:
            ConfigError: A store can't be built.
        """
        return {name: self._built(name, store, settings, references) for name, store in settings.stores.named.items()}

    def _built(
        self, name: str, store: config.StoreSettings, settings: config.Settings, references: HttpStore
    ) -> tuple[object, Store]:
        key = _key(store, settings, references)
        if name in self._stores and self._keys[name] == key:
            return key, self._stores[name]
        return key, _store(name, store, settings, references, self._servers, self._spool)

    def exchange(self, stores: Mapping[str, tuple[object, Store]]) -> list[Store]:
        """Have these stores from now on. Returns those that are gone. Never waits."""
        gone = [store for name, store in self._stores.items() if name not in stores or stores[name][1] is not store]
        self._keys = {name: key for name, (key, _) in stores.items()}
        self._stores = {name: store for name, (_, store) in stores.items()}
        return gone

    # --- serving ---------------------------------------------------------------------------------

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks of the stores that need some, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self.begin(self._stores.values())
            task_status.started()
            await trio.sleep_forever()

    async def begin(self, stores: Iterable[Store]) -> None:
        """Serve those of `stores` that need it and are not served yet. Returns when they are."""
        for store in stores:
            if self._nursery is not None and isinstance(store, ServedStore) and store not in self._served:
                await self._nursery.start(self._serve, store)

    async def _serve(self, store: ServedStore, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as scope:
            self._served[store] = scope
            async with trio.open_nursery() as nursery:
                await nursery.start(store.serve)
                task_status.started()

    def end(self, stores: Sequence[Store]) -> None:
        """Serve these no longer: nobody knows them yet."""
        for store in stores:
            if store in self._served:
                self._served.pop(store).cancel(reason="the store is not used")

    def retire(self, stores: Sequence[Store], live: Callable[[], Sequence[Transfer]]) -> None:
        """Serve these no longer once the transfers that may hold them have ended. Does not wait for them.

        Args:
            live: The transfers under way.
        """
        if self._nursery is not None:
            self._nursery.start_soon(self._end_unused, stores, live)

    async def _end_unused(self, stores: Sequence[Store], live: Callable[[], Sequence[Transfer]]) -> None:
        await trio.sleep(SETTLED_SECONDS)
        for transfer in live():
            await transfer.ended.wait()
        self.end(stores)


def _key(store: config.StoreSettings, settings: config.Settings, references: HttpStore) -> object:
    """What makes one store object differ from another."""
    if isinstance(store, config.HttpStore):
        return references
    values = {name: value for name, value in msgspec.structs.asdict(store).items() if name not in _NOT_BUILT_IN}
    return store.type, settings.server.max_image_size, values


def _store(
    name: str,
    store: config.StoreSettings,
    settings: config.Settings,
    references: HttpStore,
    servers: Outbound,
    spool: Spool,
) -> Store:
    if isinstance(store, config.FileStore):
        return FileStore(name, store.directory, always_verify=store.verify == "always")
    if isinstance(store, config.HttpStore):
        return references
    if isinstance(store, config.HdfsStore):
        # Imported here, as those of S3 are: most gateways load nothing of it.
        from .store.webhdfs import WebHdfsStore

        return WebHdfsStore(name, servers, endpoints=store.endpoint, directory=store.directory, username=store.username)
    if isinstance(store, config.S3Store | config.CumulusStore):
        return _s3_store(name, store, settings.server.max_image_size, servers, spool)
    raise ConfigError(f"[stores.{name}]: stores of type '{store.type}' are not served by this version")


def _s3_store(
    name: str, store: config.S3Store | config.CumulusStore, max_size: int, servers: Outbound, spool: Spool
) -> Store:
    from .store.s3 import S3Settings, S3Store
    from .store.s3_dialect import DIALECTS
    from .store.s3_signing import Signer

    dialect = DIALECTS[store.type]
    region, max_parts = NO_REGION, MAX_PARTS
    if isinstance(store, config.S3Store):
        region, max_parts = store.region, store.max_parts
    try:
        signer = Signer(dialect.signature, store.access_key.reveal(), store.secret_key.reveal(), region)
    except ConfigError as exc:
        raise ConfigError(f"[stores.{name}]: {exc.message}") from exc
    where = S3Settings(endpoint=store.endpoint, bucket=store.bucket, max_size=max_size, max_parts=max_parts)
    return S3Store(name, where, dialect, signer, servers, spool)
