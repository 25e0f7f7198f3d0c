"""The client of a gateway: everything its API offers, under Trio and asyncio alike."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Final

import anyio
import anyio.to_thread

from . import live
from .body import Source
from .cache import Cache
from .copies import Copies
from .credentials import Credentials
from .download import Began, Download, Downloaded, Progress, no_begin, no_progress
from .entity import Record, record
from .images import Filters, ImagePages
from .part import PartFile
from .scrub import Scrub
from .session import Session, Timing, segment
from .sink import RawWriter, StreamSink
from .transfers import Transfers
from .upload import Upload, field_headers
from .users import Users

CLOSE_SECONDS: Final = 1.0  # TLS may want to say goodbye; a dead gateway must not keep its client


class Client:
    """A client of one gateway. Use it as an async context manager; leaving closes every connection.

    Every method may be cancelled at any time and leaves nothing open. Failures are `VisorError`s; `OSError` tells of
    local files.

    Args:
        url: `http://HOST:PORT` or `https://HOST:PORT`, with a path if the gateway stands behind one.
        credentials: A `KeyPair` or a `Token`; None to go anonymous.
        tls: For https: whom to trust; None for what the system trusts.
        timing: Timeouts and retries.

    Attributes:
        users: Accounts and tokens.
        transfers: What moves on the gateway.
        scrub: What the gateway reads and hashes again.
        cache: Its local copies of images in remote stores.
        copies: The stores in which an image has its bytes.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._session = Session(url, credentials, tls=tls, timing=timing or Timing())
        self.users = Users(self._session)
        self.transfers = Transfers(self._session)
        self.scrub = Scrub(self._session)
        self.cache = Cache(self._session)
        self.copies = Copies(self._session)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await self._session.aclose()

    # --- records ---------------------------------------------------------------------------------

    def images(
        self,
        filters: Filters | None = None,
        *,
        detail: bool = False,
        sort: str | None = None,
        descending: bool = False,
        limit: int | None = None,
        marker: str | None = None,
    ) -> ImagePages:
        """Records of public and own images, to iterate over; pages are fetched on the way.

        Args:
            filters: Fields or custom attributes that must equal a text.
            detail: Every field, not the brief ones.
            sort: A field; `_id` where None.
            limit: Records in all.
            marker: `_id` after which to begin.
        """
        path = "/images/detail" if detail else "/images"
        return ImagePages(self._session, path, filters, sort=sort, descending=descending, limit=limit, marker=marker)

    async def brief(
        self,
        filters: Filters | None = None,
        *,
        sort: str | None = None,
        descending: bool = False,
        limit: int | None = None,
    ) -> list[Record]:
        """Brief records of every matching image; empty where there is none."""
        return await self.images(filters, sort=sort, descending=descending, limit=limit).collect()

    async def detail(
        self,
        filters: Filters | None = None,
        *,
        sort: str | None = None,
        descending: bool = False,
        limit: int | None = None,
    ) -> list[Record]:
        """Full records of every matching image; empty where there is none."""
        return await self.images(filters, detail=True, sort=sort, descending=descending, limit=limit).collect()

    async def head(self, image_id: str) -> Record:
        """One record. Unset fields are left out. Raises `NotFound`."""
        return record((await self._session.call("HEAD", _path(image_id))).headers)

    async def create(
        self,
        fields: Mapping[str, str],
        source: Source | None = None,
        *,
        sha256: str | None = None,
        transfer_id: str | None = None,
        progress: Progress = no_progress,
    ) -> Record:
        """A new image: of metadata only, with `location` among the fields, or with bytes.

        Args:
            source: A path, an async iterable of bytes (its length need not be known), or None.
            sha256: Hex digest that the bytes must have; the gateway refuses others.
            transfer_id: UUID under which the gateway lists the transfer; random where None.

        Raises:
            DigestMismatch: The gateway holds other bytes than were sent. The image is left as it is.
            VisorError, OSError: As their classes say.
        """
        return await self._put("POST", "/images", fields, source, sha256, transfer_id, progress)

    async def update(
        self,
        image_id: str,
        fields: Mapping[str, str],
        source: Source | None = None,
        *,
        sha256: str | None = None,
        transfer_id: str | None = None,
        progress: Progress = no_progress,
    ) -> Record:
        """Change an image's fields, or give bytes to one that has none (`locked` or `error`). As `create`."""
        return await self._put("PUT", _path(image_id), fields, source, sha256, transfer_id, progress)

    async def delete(self, image_id: str) -> Record:
        """Remove an image, record and bytes. Returns its record as it was."""
        image: Record = (await self._session.call("DELETE", _path(image_id))).json("image")
        return image

    async def delete_all(self) -> Record:
        """Remove every image that the caller may delete. For admins. Returns the gateway's answer."""
        answer: Record = (await self._session.call("DELETE", "/all")).json()
        return answer

    async def link(self, image_id: str, *, expires_in: int | None = None) -> Record:
        """A signed link, `{"uri": ..., "expires_at": ...}`, with which anyone may read the image.

        Args:
            expires_in: Seconds; None for what the gateway gives.
        """
        json = {} if expires_in is None else {"expires_in": expires_in}
        link: Record = (await self._session.call("POST", _path(image_id, "/links"), json=json)).json("link")
        return link

    # --- bytes -----------------------------------------------------------------------------------

    async def download(
        self,
        image_id: str,
        target: str | os.PathLike[str],
        *,
        transfer_id: str | None = None,
        progress: Progress = no_progress,
        began: Began = no_begin,
    ) -> Downloaded:
        """Fetch an image into the file `target`, which appears, or is replaced, once every byte is there and right.

        Until then they are in `<target>.part`. A download that was cut, by whatever, is continued by the next one.
        `began` is told the id of each transfer that it takes: each connection has one of its own.

        Raises:
            DigestMismatch: The bytes were wrong; the part file is gone.
            TargetBusy: Another process downloads to `target`.
            VisorError, OSError: As their classes say; the part file stays.
        """
        part = await anyio.to_thread.run_sync(PartFile.open, Path(target))
        try:
            download = Download(self._session, image_id, part, progress=progress, transfer_id=transfer_id, began=began)
            return await download.run()
        finally:
            part.close()

    async def download_to(
        self,
        image_id: str,
        writer: RawWriter,
        *,
        transfer_id: str | None = None,
        progress: Progress = no_progress,
        began: Began = no_begin,
    ) -> Downloaded:
        """Write an image to something that can't take bytes back, such as a pipe. The caller closes it.

        A broken connection is continued within this call. An error means that what was written is not the image.
        """
        sink = StreamSink(writer)
        download = Download(self._session, image_id, sink, progress=progress, transfer_id=transfer_id, began=began)
        return await download.run()

    def watch(self) -> AbstractAsyncContextManager[live.LiveChannel]:
        """The live channel: messages about every transfer that the caller may see."""
        return live.opened(self._session)

    async def _put(
        self,
        method: str,
        path: str,
        fields: Mapping[str, str],
        source: Source | None,
        sha256: str | None,
        transfer_id: str | None,
        progress: Progress,
    ) -> Record:
        if source is None:
            image: Record = (await self._session.call(method, path, headers=field_headers(fields))).json("image")
            return image
        upload = Upload(self._session, sha256=sha256, transfer_id=transfer_id, progress=progress)
        return await upload.run(method, path, fields, source)


def _path(image_id: str, rest: str = "") -> str:
    return f"/images/{segment(image_id)}{rest}"
