"""The application in this process, over a real database and a real file store, spoken to as ASGI."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import trio
from canary import canary

from visor_gateway import config, signature
from visor_gateway.meta.access import AccessCounts
from visor_gateway.meta.contract import User
from visor_gateway.meta.sql import open_metadata
from visor_gateway.metrics import Metrics
from visor_gateway.outbound import LocationPolicy, Outbound
from visor_gateway.routes.app import Application
from visor_gateway.routes.request import Services
from visor_gateway.store.cachedir import CacheDirectory
from visor_gateway.store.cachefiles import CacheFiles
from visor_gateway.store.contract import Store
from visor_gateway.store.file import FileStore
from visor_gateway.store.http import HttpStore
from visor_gateway.transfer.admission import Admission, Slots
from visor_gateway.transfer.cache import Cache
from visor_gateway.transfer.copier import Copier
from visor_gateway.transfer.copying import Copying
from visor_gateway.transfer.engine import Engine
from visor_gateway.transfer.health import StoreHealth
from visor_gateway.transfer.history import History
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.ingest import Ingest
from visor_gateway.transfer.limits import Rates
from visor_gateway.transfer.plane import LocalPlane
from visor_gateway.transfer.scrub import Plan, Scrub
from visor_gateway.transfer.setbacks import Setbacks
from visor_gateway.transfer.splice import Splicer
from visor_gateway.transfer.sweep import Sweep
from visor_gateway.transfer.zerocopy import ZeroCopy

RECORD = {"x-image-meta-name": "disk", "x-image-meta-architecture": "x86_64"}
OCTETS = {"content-type": "application/octet-stream"}
#: A store that fails is not waited for.
IMPATIENT = {"VISOR_GATEWAY__STORES__RETRY_TIMEOUT": "0"}


class Readiness:
    def __init__(self) -> None:
        self.listening = True
        self.draining = False


class Connection:
    """A client's connection that only remembers whether it was reset."""

    lends = False

    def __init__(self) -> None:
        self.was_reset = False

    def unacknowledged(self) -> int:
        return 0

    async def wait_gone(self) -> None:
        await trio.sleep_forever()

    def reset(self) -> None:
        self.was_reset = True


class Reply(msgspec.Struct):
    """What came back. `status` is 0 where nothing did."""

    status: int
    headers: dict[str, str]
    body: bytes
    was_reset: bool

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Gateway:
    """Calls the application as a server would."""

    def __init__(self, services: Services, admin: User, directory: Path) -> None:
        self.services = services
        self.admin = admin
        self.directory = directory
        self.app = Application(services)

    async def call(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | list[bytes] | None = None,
        *,
        user: User | None = None,
        chunked: bool = False,
        client: str = "192.0.2.7",
    ) -> Reply:
        """One request signed by `user` (the admin if None). A list as body is sent in these pieces."""
        sent = {"host": "gateway.test", **(headers or {})}
        blocks = body if isinstance(body, list) else [body] if body else []
        if blocks and not chunked:
            sent.setdefault("content-length", str(sum(map(len, blocks))))
        elif blocks or chunked:
            sent["transfer-encoding"] = "chunked"
        signer = user or self.admin
        if "authorization" not in sent:
            sent |= self._signed(method, target, sent, signer)
        return await self.raw(method, target, sent, blocks, client=client)

    def signed(self, method: str, target: str) -> dict[str, str]:
        """Headers of a request of the admin."""
        sent = {"host": "gateway.test"}
        return sent | self._signed(method, target, sent, self.admin)

    def _signed(self, method: str, target: str, sent: dict[str, str], user: User) -> dict[str, str]:
        sent = {**sent, "date": formatdate(usegmt=True), "x-visor-nonce": uuid4().hex}
        raw = [(name.encode(), value.encode()) for name, value in sent.items()]
        sent["authorization"] = signature.authorization(
            signature.SHA256, method, target.encode(), raw, user.access_key, user.secret_key
        )
        return sent

    async def raw(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        blocks: list[bytes],
        *,
        client: str = "192.0.2.7",
        gone: bool = False,
    ) -> Reply:
        """One request exactly as given. A client that is `gone` takes no answer."""
        connection = Connection()
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items() if value],
            "client": (client, 40000),
            "server": ("127.0.0.1", 4568),
            "state": {"connection": connection},
            "extensions": {},
        }
        messages = [{"type": "http.request", "body": block, "more_body": True} for block in blocks]
        messages.append({"type": "http.request", "body": b"", "more_body": False})
        reply = Reply(0, {}, b"", False)

        async def receive() -> dict[str, Any]:
            await trio.lowlevel.checkpoint()
            if messages:
                return messages.pop(0)
            await trio.sleep_forever()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            await trio.lowlevel.checkpoint()
            if gone:
                raise ConnectionAbortedError("the client is gone")
            if message["type"] == "http.response.start":
                assert reply.status == 0, "a second answer"
                reply.status = message["status"]
                reply.headers = {n.decode().lower(): v.decode() for n, v in message["headers"]}
            else:
                reply.body += message.get("body", b"")

        await self.app(scope, receive, send)
        reply.was_reset = connection.was_reset
        canary.look(f"{method} {path}", str(reply.headers))
        canary.look(f"{method} {path}", reply.body)
        canary.answered(method, target, reply.body)
        return reply

    async def json(self, method: str, target: str, payload: Any, **kwargs: Any) -> Reply:
        """A control request with a signed JSON body."""
        body = msgspec.json.encode(payload)
        digest = f"sha-256=:{b64encode(hashlib.sha256(body).digest()).decode()}:"
        headers = {"content-type": "application/json", "content-digest": digest}
        return await self.call(method, target, headers, body, **kwargs)

    async def add(
        self, content: bytes = b"bytes of an image", user: User | None = None, **fields: str
    ) -> dict[str, Any]:
        """Add an available image; returns its record."""
        headers = {**RECORD, **OCTETS, **{f"x-image-meta-{name}": value for name, value in fields.items()}}
        reply = await self.call("POST", "/images", headers, content, user=user)
        assert reply.status == 200, reply.body
        record: dict[str, Any] = reply.json()["image"]
        return record

    async def user(self, access_key: str) -> User:
        """A fresh user who is no admin."""
        user = await self.services.accounts.create(access_key, f"{access_key}@example.org", "user")
        canary.keep("a user's secret key", user.secret_key)
        return user

    def files(self) -> list[Path]:
        """Every file of the store."""
        return [path for path in self.directory.rglob("*") if path.is_file()]


def cache_files(settings: config.Cache, metrics: Metrics) -> CacheFiles | None:
    """The cache's files, where it is on."""
    if not settings.max_bytes:
        return None
    directory = CacheDirectory(
        settings.directory, max_bytes=settings.max_bytes, evicted=lambda entry: metrics.cache_evictions.inc()
    )
    return CacheFiles(directory)


@asynccontextmanager
async def running_gateway(
    tmp_path: Path,
    *,
    environ: Mapping[str, str] | None = None,
    stores: Mapping[str, Store] | None = None,
) -> AsyncGenerator[Gateway, None]:
    """A gateway with the default settings, changed by `environ` as an operator's environment changes them."""
    settings = config.load(None, data_dir=tmp_path, environ=IMPATIENT | dict(environ or {}), overrides={})
    directory = tmp_path / "store"
    hub, metrics = Hub(), Metrics()
    limits = settings.limits
    slots = Slots(
        transfers=limits.transfers,
        transfers_per_store=limits.transfers_per_store,
        transfers_per_user=limits.transfers_per_user,
        queue_limit=limits.queue_limit,
    )
    rates = Rates(limits.bytes_per_s, limits.bytes_per_s_per_transfer)
    engine = Engine(hub, metrics, admission=Admission(slots), rates=rates)
    outbound = Outbound(
        LocationPolicy(deny_private=settings.locations.deny_private, allow_hosts=settings.locations.allow_hosts),
        stall_timeout=settings.server.stall_timeout,
    )
    references = HttpStore(outbound)
    served: dict[str, Store] = {"file": FileStore("file", directory), "http": references, **(stores or {})}
    async with AsyncExitStack() as stack:
        zerocopy = stack.enter_context(ZeroCopy())
        metadata = await stack.enter_async_context(
            open_metadata(f"sqlite:///{tmp_path}/db.sqlite", tmp_path / "master.key")
        )
        admin = await metadata.accounts.ensure_admin()
        assert admin is not None
        canary.keep("the first user's secret key", admin.secret_key)
        ingest = Ingest(
            metadata.images,
            instance_id="test",
            visor_md5=settings.digests.visor_md5,
            max_size=settings.server.max_image_size,
        )
        scrub = Scrub(
            metadata.images,
            {
                name: (store, Plan(interval=0, bytes_per_s=1 << 40))
                for name, store in served.items()
                if isinstance(store, FileStore)
            },
            metrics,
        )
        cache = Cache(
            cache_files(settings.cache, metrics),
            engine,
            metadata.images,
            metrics,
            finish_percent=settings.cache.finish_percent,
            strict_ranges=settings.cache.strict_ranges,
        )
        await cache.prepare()
        history = History(metadata.history, keep=settings.metadata.history)
        engine.record_in(history)
        services = Services(
            settings=settings,
            images=metadata.images,
            accounts=metadata.accounts,
            stores=served,
            references=references,
            plane=LocalPlane(hub, engine, metrics, scrub),
            hub=hub,
            engine=engine,
            ingest=ingest,
            sweep=Sweep(metadata.images, served, hub, metrics, ingest, instance_id="test"),
            scrub=scrub,
            health=StoreHealth(served, metrics),
            metrics=metrics,
            access_counts=AccessCounts(metadata.images),
            history=history,
            zerocopy=zerocopy,
            splicer=stack.enter_context(Splicer()),
            copier=Copier(),
            cache=cache,
            setbacks=Setbacks(),
            copying=Copying(metadata.images, ingest, instance_id="test"),
            readiness=Readiness(),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.serve)
            try:
                yield Gateway(services, admin, directory)
            finally:
                nursery.cancel_scope.cancel()
                with trio.move_on_after(5, shield=True):
                    await outbound.aclose()
