"""The `hdfs` store: images in a directory of a Hadoop file system, by WebHDFS (the REST API of Hadoop 2.7 and later).

It speaks to the NameNodes of the configuration and to DataNodes that these name, and to nobody else. Calls are made in
the name of one user (`user.name`), as clusters without Kerberos take them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from ..errors import ObjectChanged, ObjectMissing, StoreError, StoreUnreachable
from ..outbound import BadResponse, Outbound, OutboundError, Response
from .contract import ObjectInfo
from .direct import BodyReadStream
from .hdfspaths import HdfsPaths
from .hdfswrite import HdfsWriteStream, info_of, remove_if_empty
from .namenode import FileStatus, NameNodes, content_of
from .objectkey import ObjectKey
from .remoteexception import error_of
from .representation import declared_length

REMOVE_SECONDS: Final = 10.0
_DIRECTORY_PERMISSION: Final = "700"


class WebHdfsStore:
    """`Store` over WebHDFS.

    Args:
        name: Its name in the configuration.
        outbound: The way out to configured servers. The caller closes it.
        endpoints: The http addresses of the NameNodes.
        directory: Absolute path of the directory that holds the images; made if it is missing.
        username: The HDFS user whose files they are.
    """

    writable = True

    def __init__(
        self, name: str, outbound: Outbound, *, endpoints: Sequence[str], directory: str, username: str
    ) -> None:
        self.name = name
        self._outbound = outbound
        self._paths = HdfsPaths(endpoints[0], directory)
        self._namenodes = NameNodes(name, outbound, endpoints, username)

    async def check(self) -> None:
        """Tell whether a NameNode serves, writable, and lets the user into the directory; makes it if it is missing."""
        # Refused in safe mode for a directory that is there, too.
        await self._namenodes.make_directory(self._paths.root, _DIRECTORY_PERMISSION)
        await self._namenodes.check_access(self._paths.root, "rwx")

    async def stat(self, location: str) -> ObjectInfo:
        """Describe an object. Raises `ObjectMissing` if there is none."""
        return info_of(await self._status(self._paths.key(location)))

    async def open_read(
        self, location: str, offset: int = 0, length: int | None = None, *, expected: ObjectInfo | None = None
    ) -> HdfsReadStream:
        """Open `length` bytes from `offset` (all the rest if None). The caller closes the stream.

        A read goes on after a delete as far as the block that its DataNode has open; then it fails.

        Raises:
            ObjectMissing: No such object.
            ObjectChanged: The object does not have that range, or is not the expected one.
            StoreError: The store failed.
        """
        key = self._paths.key(location)
        info = info_of(await self._status(key))
        if not info.agrees_with(expected):
            raise ObjectChanged(f"The store '{self.name}' has other bytes now than those that were expected")
        size = info.size or 0
        end = size if length is None else offset + length
        if not 0 <= offset <= end <= size:
            raise ObjectChanged(f"The range is outside the object, which has {size} bytes")
        response = None if offset == end else await self._open(self._paths.object(key), offset, end - offset)
        return HdfsReadStream(self.name, info, response, end - offset)

    async def open_write(self, key: str, *, size: int | None = None) -> HdfsWriteStream:
        """Begin to write the object `key`, in a file of a temporary name.

        Raises:
            ObjectExists: The key is taken.
            StoreError: The store failed; nothing is left.
        """
        stream = HdfsWriteStream(self.name, self._outbound, self._namenodes, self._paths, ObjectKey.parse(key))
        await stream.begin()
        return stream

    async def delete(self, location: str) -> None:
        """Remove an object. A missing one, and what is no location of this store, is a success.

        Cancelled, it has done nothing: once begun, it is finished, within `REMOVE_SECONDS`.
        """
        try:
            key = self._paths.key(location)
        except ObjectMissing:
            return
        await self._remove(key.image_id, self._paths.object(key))

    async def abandon(self, key: str) -> None:
        """Remove what a crashed attempt at `key` left, committed or not. Nothing there is a success.

        Cancelled, it has done nothing, as `delete`.
        """
        parsed = ObjectKey.parse(key)
        # In the order in which the writer goes on: what is renamed meanwhile is found under its second name.
        await self._remove(parsed.image_id, self._paths.partial(parsed), self._paths.object(parsed))

    async def _remove(self, image_id: str, *paths: str) -> None:
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(REMOVE_SECONDS, shield=True):
            for path in paths:
                await self._namenodes.delete(path)
            await remove_if_empty(self._namenodes, self._paths.image(image_id))
            return
        raise StoreUnreachable(f"The store '{self.name}' does not answer")

    async def leftovers(self, older_than: float) -> list[str]:
        """Keys whose files were closed, or begun and not closed, more than `older_than` seconds ago.

        Ages are by the NameNode's clock. Costs one call for each image.
        """
        found: dict[str, None] = {}
        for directory in await self._list(self._paths.root):
            if directory.is_file or not self._paths.is_image(directory.path_suffix):
                continue
            for file in await self._list(self._paths.image(directory.path_suffix)):
                key = ObjectKey.from_file(directory.path_suffix, file.path_suffix) if file.is_file else None
                if key is not None and self._age(file) >= older_than:
                    found[str(key)] = None
        return list(found)

    def _age(self, file: FileStatus) -> float:
        # The header tells whole seconds: a file may seem to be of the future.
        return max(0, self._namenodes.now - file.modification_time) / 1000

    async def _list(self, path: str) -> tuple[FileStatus, ...]:
        try:
            return await self._namenodes.list(path)
        except ObjectMissing:
            return ()

    async def _status(self, key: ObjectKey) -> FileStatus:
        status = await self._namenodes.status(self._paths.object(key))
        if not status.is_file:
            raise ObjectMissing(f"The store '{self.name}' has no such object")
        return status

    async def _open(self, path: str, offset: int, length: int) -> Response:
        """The answer of a DataNode that brings exactly these bytes."""
        return await self._namenodes.at_datanode(
            "GET",
            "OPEN",
            path,
            lambda url: self._answer(url, length),
            offset=str(offset),
            length=str(length),
        )

    async def _answer(self, url: str, length: int) -> Response:
        response = await self._outbound.open("GET", url, follow=False)
        try:
            await self._require_bytes(response, length)
        except BaseException:
            await response.aclose()
            raise
        return response

    async def _require_bytes(self, response: Response, length: int) -> None:
        if response.status != 200:
            raise error_of(response.status, await content_of(response), self.name)
        if declared_length(response) != length:
            raise BadResponse("not the length that was asked for")


class HdfsReadStream(BodyReadStream):
    """Bytes of one range; `DirectReadStream` of the store contract."""

    def __init__(self, store: str, info: ObjectInfo, response: Response | None, length: int) -> None:
        super().__init__(response, length)
        self.info = info
        self._store = store

    async def receive_some(self) -> bytes:
        """Up to a block of bytes; b"" at the end of the range. Raises `StoreUnreachable` where fewer come."""
        if self._closed:
            raise StoreError("The stream is closed")
        if self._response is None or not self._left:
            return b""
        try:
            data = await self._response.stream.receive_some()
        except OutboundError as exc:
            raise StoreUnreachable(f"The store '{self._store}' broke off with {self._left} bytes to come") from exc
        self._left -= len(data)
        return data
