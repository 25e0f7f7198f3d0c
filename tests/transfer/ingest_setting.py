"""What tests of the engine stand on: a real database, a real file store, and stores and sources that misbehave."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import trio

from visor_gateway import image as images
from visor_gateway.errors import StoreError
from visor_gateway.image import Image
from visor_gateway.meta.sql import Metadata, open_metadata
from visor_gateway.metrics import Metrics
from visor_gateway.store.contract import Block, ObjectInfo, ReadStream, WriteStream
from visor_gateway.store.file import FileStore
from visor_gateway.transfer.engine import Engine
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.ingest import Declared, Ingest
from visor_gateway.transfer.sweep import Sweep
from visor_gateway.transfer.transfer import Transfer


class Blocks:
    """A source of given blocks; `then` runs where the end would be."""

    def __init__(self, blocks: Iterable[bytes], then: Callable[[], object] | None = None) -> None:
        self._blocks = list(blocks)
        self._then = then

    async def receive_some(self) -> Block:
        await trio.lowlevel.checkpoint()
        if self._blocks:
            return self._blocks.pop(0)
        if self._then is not None:
            self._then()
            await trio.sleep_forever()
        return b""


class BreakingStore:
    """A file store of which one call fails; `broken` names it."""

    writable = True

    def __init__(self, store: FileStore, broken: str, error: StoreError) -> None:
        self.name = store.name
        self.broken = broken
        self._store = store
        self._error = error

    def _maybe(self, call: str) -> None:
        if call == self.broken:
            raise self._error

    async def check(self) -> None:
        self._maybe("check")
        await self._store.check()

    async def stat(self, location: str) -> ObjectInfo:
        return await self._store.stat(location)

    async def open_read(
        self, location: str, offset: int = 0, length: int | None = None, *, expected: ObjectInfo | None = None
    ) -> ReadStream:
        self._maybe("open_read")
        return await self._store.open_read(location, offset, length, expected=expected)

    async def open_write(self, key: str, *, size: int | None = None) -> WriteStream:
        self._maybe("open_write")
        return _BreakingWrite(self, await self._store.open_write(key, size=size))

    async def delete(self, location: str) -> None:
        self._maybe("delete")
        await self._store.delete(location)

    async def abandon(self, key: str) -> None:
        self._maybe("abandon")
        await self._store.abandon(key)

    async def leftovers(self, older_than: float) -> list[str]:
        return list(await self._store.leftovers(older_than))


class _BreakingWrite:
    def __init__(self, store: BreakingStore, stream: WriteStream) -> None:
        self._store = store
        self._stream = stream
        self.location = stream.location

    async def write(self, data: Block) -> None:
        self._store._maybe("write")
        await self._stream.write(data)

    async def commit(self) -> ObjectInfo:
        self._store._maybe("commit")
        return await self._stream.commit()

    async def abort(self) -> None:
        self._store._maybe("abort")
        await self._stream.abort()


class RetryingStore(BreakingStore):
    """A file store whose writer says that its first write was tried again."""

    async def open_write(self, key: str, *, size: int | None = None) -> WriteStream:
        return _RetryingWrite(self, await super().open_write(key, size=size))


class _RetryingWrite(_BreakingWrite):
    def __init__(self, store: BreakingStore, stream: WriteStream) -> None:
        super().__init__(store, stream)
        self.on_retry: Callable[[], None] = lambda: None
        self._tried = False

    async def write(self, data: Block) -> None:
        if not self._tried:
            self._tried = True
            self.on_retry()
        await super().write(data)


class Setting(msgspec.Struct):
    """One gateway's engine, without routes and server."""

    metadata: Metadata
    store: FileStore
    directory: Path
    hub: Hub
    metrics: Metrics
    engine: Engine
    ingest: Ingest
    sweep: Sweep

    def files(self) -> list[Path]:
        return [path for path in self.directory.rglob("*") if path.is_file()]

    async def locked(self) -> Image:
        """A stored record without bytes."""
        fields = images.checked({"name": "disk", "architecture": "x86_64"})
        image = images.create(fields, owner="foo", now=datetime.now(UTC))
        await self.metadata.images.insert(image)
        return image

    async def status(self, image: Image) -> str:
        found = await self.metadata.images.get(image.id)
        assert found is not None
        return found.status

    async def push(
        self, image: Image, source: Blocks, store: object = None, transfer: Transfer | None = None, **declared: object
    ) -> Image:
        """Write bytes as a push does."""
        transfer = transfer or push_of(image)

        async def work(transfer: Transfer) -> Image:
            target = store or self.store
            return await self.ingest.write(transfer, image, target, source, Declared(**declared))  # type: ignore[arg-type]

        return await self.engine.run(transfer, work)


def push_of(image: Image, kind: str = "push") -> Transfer:
    """A transfer that writes an image."""
    return Transfer(
        id=images.new_id(),
        kind=kind,
        image=image.id,
        store="file",
        client="c",
        user="foo",
        size=None,  # type: ignore[arg-type]
    )


@asynccontextmanager
async def setting(
    tmp_path: Path, *, max_size: int = 10**9, instance_id: str = "one", keep_unsafe: bool = False
) -> AsyncGenerator[Setting, None]:
    """Open a setting on `tmp_path`; its database and files stay there."""
    directory = tmp_path / "store"
    hub, metrics = Hub(), Metrics()
    async with open_metadata(f"sqlite:///{tmp_path}/db.sqlite", tmp_path / "master.key") as metadata:
        store = FileStore("file", directory)
        await store.check()
        ingest = Ingest(
            metadata.images, instance_id=instance_id, visor_md5=True, max_size=max_size, keep_unsafe=keep_unsafe
        )
        yield Setting(
            metadata,
            store,
            directory,
            hub,
            metrics,
            Engine(hub, metrics),
            ingest,
            Sweep(metadata.images, {"file": store}, hub, metrics, ingest, instance_id=instance_id),
        )
