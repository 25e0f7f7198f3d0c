"""A store of the S3 family on a real server, and how to see what it left there."""

from __future__ import annotations

import urllib.error
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

import trio
from servers.s3_service import S3Service
from store_suite import Subject

from visor_gateway.outbound import CONFIGURED, Outbound
from visor_gateway.store.s3 import S3Settings, S3Store
from visor_gateway.store.s3_answers import children, parse, text
from visor_gateway.store.s3_dialect import DIALECTS
from visor_gateway.store.s3_signing import Signer
from visor_gateway.store.spool import Spool

GIB = 1 << 30


class S3Client:
    """Signed requests by other means than the store's."""

    def __init__(self, service: S3Service, signature: str, bucket: str) -> None:
        self._signer = Signer(signature, service.access_key, service.secret_key, "us-east-1")  # type: ignore[arg-type]
        self._service = service
        self._bucket = bucket

    def ask(self, method: str, key: str = "", query: dict[str, str] | None = None, data: bytes | None = None) -> bytes:
        path, parameters = quote(f"/{key}".rstrip("/")), urlencode(query or {}).removesuffix("=")
        return self._service.ask(self._signer, method, f"/{self._bucket}{path}?{parameters}".removesuffix("?"), data)

    def keys(self) -> list[str]:
        """All objects."""
        return [text(item, "Key") for item in children(parse(self.ask("GET")), "Contents")]

    def uploads(self) -> list[tuple[str, str]]:
        """Keys and ids of uploads under way; none where the server has no list of them."""
        try:
            root = parse(self.ask("GET", query={"uploads": ""}))
        except urllib.error.HTTPError as error:
            if error.code in {404, 501}:
                return []
            raise
        return [(text(item, "Key"), text(item, "UploadId")) for item in children(root, "Upload")]

    def empty(self) -> None:
        """Remove everything."""
        for key, upload_id in self.uploads():
            self.ask("DELETE", key, {"uploadId": upload_id})
        for key in self.keys():
            self.ask("DELETE", key)


class S3Subject(Subject):
    """A store on a server of which it has a bucket alone."""

    store: S3Store

    def __init__(self, store: S3Store, client: S3Client) -> None:
        super().__init__(store)
        self.client = client

    def residue(self) -> list[str]:
        """Uploads under way, attempts that have not ended, and bytes in the spool."""
        spooled = [f"{self.store.spool.used} bytes in the spool"] if self.store.spool.used else []
        return [key for key, _ in self.client.uploads()] + list(self.store._writing) + spooled

    async def settle(self) -> None:
        """Close idle connections: they are no leak."""
        await self.store.objects.bucket._outbound.aclose()


@asynccontextmanager
async def s3_subject(
    service: S3Service,
    spool: Path,
    kind: str = "s3",
    *,
    bucket: str = "visor",
    max_size: int = 1024 * GIB,
    max_parts: int = 10_000,
    spool_limit: int = GIB,
) -> AsyncGenerator[S3Subject, None]:
    """A store of that type in an empty bucket, at work until the end of the block."""
    dialect = DIALECTS[kind]
    outbound = Outbound(CONFIGURED)
    signer = Signer(dialect.signature, service.access_key, service.secret_key, "us-east-1")
    settings = S3Settings(endpoint=service.endpoint, bucket=bucket, max_size=max_size, max_parts=max_parts)
    store = S3Store(kind, settings, dialect, signer, outbound, Spool(spool, spool_limit))
    # Where no Walrus is, its path leads to a bucket of another name.
    client = S3Client(service, dialect.signature, dialect.path.split("/")[1] if dialect.path else bucket)
    client.empty()
    async with trio.open_nursery() as nursery:
        await nursery.start(store.serve)
        try:
            yield S3Subject(store, client)
        finally:
            nursery.cancel_scope.cancel()
            await outbound.aclose()
    client.empty()
