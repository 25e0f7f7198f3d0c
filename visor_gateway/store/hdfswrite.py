"""Writing one object to HDFS.

The bytes go to a file of a temporary name, in one request to one DataNode, chunked, since their number is seldom known;
`commit` renames the file. A rename never overwrites.

What makes an abort sure: before `open_write` returns, the NameNode has been seen to hold the temporary file. So the
DataNode has created it by then, and nothing that comes late can create it again after it was deleted. Where the
creation itself is cut short, its connection is half-closed and waited for first: a DataNode that closes has done with
the request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

import trio

from ..errors import ObjectExists, ObjectMissing, StoreError, StoreFull, StoreUnreachable
from ..outbound import Outbound, OutboundError, Upload
from .contract import Block, ObjectInfo
from .hdfspaths import HdfsPaths
from .namenode import FileStatus, NameNodes, datanode_gone
from .objectkey import ObjectKey
from .remoteexception import error_of

T = TypeVar("T")

BEGIN_SECONDS: Final = 60.0  # until the NameNode knows of the file
CLOSE_SECONDS: Final = 60.0  # until it has the file closed, retries included
_FIRST_LOOK: Final = 0.005  # seconds; a creation takes 10 to 20 ms on a quiet cluster
_LAST_LOOK: Final = 0.25
CUT_SECONDS: Final = 5.0  # for a DataNode to notice that a body was broken off
RETRY_DELAYS: Final = (
    0.5,
    2.0,
    5.0,
    10.0,
)  # seconds before a step of `commit` is tried again; a failover takes so long

_PERMISSION: Final = "600"  # private images are nobody else's in HDFS either


def validator_of(status: FileStatus) -> str:
    """A strong validator: another file, an append and a change of the clock each make another one."""
    return f"{status.file_id}-{status.modification_time}-{status.length}"


def info_of(status: FileStatus) -> ObjectInfo:
    """What the store's contract tells of a file."""
    return ObjectInfo(size=status.length, validator=validator_of(status))


class HdfsWriteStream:
    """One attempt; `WriteStream` and `RetryingStream` of the store contract.

    Resource handling: `begin` leaves nothing when it fails or is cancelled. After it the opener calls `commit` or
    `abort`.
    """

    def __init__(self, store: str, outbound: Outbound, namenodes: NameNodes, paths: HdfsPaths, key: ObjectKey) -> None:
        self.location = paths.location(key)
        self.on_retry: Callable[[], None] = lambda: None
        self._store = store
        self._outbound = outbound
        self._namenodes = namenodes
        self._root = paths.root
        self._image = paths.image(key.image_id)
        self._path = paths.object(key)
        self._partial = paths.partial(key)
        self._upload: Upload | None = None
        self._written = 0
        self._validator = ""  # of the file that a rename may have made visible
        self._open = True
        self._committed = False

    async def begin(self) -> None:
        """Create the temporary file.

        Raises:
            ObjectExists: The key is taken, by an object or by another attempt. That one is untouched.
            StoreError: The store failed.
        """
        for path in (self._path, self._partial):
            if await self._look(path) is not None:
                raise self._exists()
        try:
            self._upload = await self._connect()
            await self._create(self._upload)
        except ObjectExists:
            self._open = False
            with trio.move_on_after(CUT_SECONDS, shield=True):
                await self._leave()
            raise
        except BaseException:
            self._open = False
            # What is left all the same has the name of the key, and is removed by `abandon`.
            with trio.move_on_after(2 * CUT_SECONDS, shield=True), suppress(StoreError):
                await self._give_up()
            raise

    async def write(self, data: Block) -> None:
        """Append `data`; the caller may use its buffer again when this returns or raises."""
        upload = self._usable()
        try:
            await upload.send(data)
        except OutboundError as exc:
            self._open = False
            raise await self._cause(upload, exc) from exc
        except BaseException:
            self._open = False
            raise
        self._written += len(data)

    async def commit(self) -> ObjectInfo:
        """Make the object visible.

        When it returns, the NameNode has the file closed and its name in the edit log, on disk; every byte was taken by
        every DataNode of its pipeline. Whether these have it on disk is theirs: `dfs.datanode.synconclose`.

        Raises:
            ObjectExists: The key is taken; that object is untouched.
            StoreError: The store failed, or has other bytes than were written.
        """
        upload = self._usable()
        self._open = False
        try:
            answer = await upload.finish()
        except OutboundError as exc:
            raise await self._cause(upload, exc) from exc
        if answer.status not in {200, 201}:
            raise error_of(answer.status, answer.content, self._store)
        await self._leave()
        written = await self._closed()
        if written.length != self._written:
            raise StoreUnreachable(f"The store '{self._store}' kept {written.length} of {self._written} bytes")
        self._validator = validator_of(written)
        status = await self._insist(self._publish)
        self._committed = True
        return info_of(status)

    async def abort(self) -> None:
        """Remove every trace of the attempt, if it was not committed. Safe at any time and twice."""
        self._open = False
        if not self._committed:
            await self._give_up()

    # --- beginning -------------------------------------------------------------------------------

    async def _connect(self) -> Upload:
        """A connection to a DataNode that will create the file. Nothing is sent."""

        async def connect(url: str) -> Upload:
            return await self._outbound.upload("PUT", url, {"Content-Type": "application/octet-stream"})

        return await self._namenodes.at_datanode(
            "PUT", "CREATE", self._partial, connect, overwrite="false", permission=_PERMISSION
        )

    async def _create(self, upload: Upload) -> None:
        """Send the request's head, and wait until the NameNode knows of the file."""
        try:
            await upload.begin()
        except OutboundError as exc:
            raise await self._cause(upload, exc) from exc
        pause = _FIRST_LOOK
        with trio.move_on_after(BEGIN_SECONDS):
            while await self._look(self._partial) is None:
                if await upload.answered():
                    raise await self._cause(upload, None)
                await trio.sleep(pause)
                pause = min(pause * 2, _LAST_LOOK)
            if await upload.answered():
                # The file is there, and is another attempt's.
                raise await self._cause(upload, None)
            return
        raise datanode_gone(self._store)

    async def _look(self, path: str) -> FileStatus | None:
        try:
            return await self._namenodes.status(path)
        except ObjectMissing:
            return None

    # --- ending ----------------------------------------------------------------------------------

    async def _closed(self) -> FileStatus:
        """The file as the NameNode has it once it is closed.

        The DataNodes of Hadoop 2.7 answer 201 also where they could not write or close the file.
        """
        pause = _FIRST_LOOK
        with trio.move_on_after(CLOSE_SECONDS):
            while not await self._insist(lambda: self._namenodes.is_closed(self._partial)):
                await trio.sleep(pause)
                pause = min(pause * 2, _LAST_LOOK)
            return await self._insist(lambda: self._namenodes.status(self._partial))
        raise StoreUnreachable(f"The store '{self._store}' does not close the file of this attempt")

    async def _publish(self) -> FileStatus:
        """Rename, whether or not an earlier try did it already."""
        renamed = await self._namenodes.rename(self._partial, self._path)
        status = await self._look(self._path)
        if status is not None and validator_of(status) == self._validator:
            return status
        if status is not None and not renamed:
            await self._give_up()
            raise self._exists()
        raise ObjectMissing(f"The store '{self._store}' no longer has the bytes of this attempt")

    async def _give_up(self) -> None:
        if (upload := self._upload) is not None:
            with trio.move_on_after(CUT_SECONDS):
                await upload.finish_by_cut()
            await self._leave()
        if not await self._namenodes.delete(self._partial) and self._validator:
            # Renamed already: no rename can come later, since there is nothing left to be renamed.
            status = await self._look(self._path)
            if status is not None and validator_of(status) == self._validator:
                await self._namenodes.delete(self._path)
        await remove_if_empty(self._namenodes, self._image)

    async def _leave(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            await upload.aclose()

    async def _insist(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do a step that may be done twice, again and again where no NameNode serves."""
        for delay in RETRY_DELAYS:
            try:
                return await step()
            except StoreUnreachable:
                self.on_retry()
                await trio.sleep(delay)
        return await step()

    # --- errors ----------------------------------------------------------------------------------

    def _usable(self) -> Upload:
        if self._upload is None or not self._open:
            raise StoreError("The attempt has failed or ended; nothing can be written to it")
        return self._upload

    async def _cause(self, upload: Upload, failure: OutboundError | None) -> StoreError:
        """Why a DataNode takes no more. It says so before the body is whole, if it lives; what it says may be 201."""
        answer = await upload.early_answer()
        if answer is not None and answer.status not in {200, 201}:
            return error_of(answer.status, answer.content, self._store)
        error = (
            StoreFull(f"The store '{self._store}' has no room") if await self._is_full() else datanode_gone(self._store)
        )
        error.__cause__ = failure
        return error

    async def _is_full(self) -> bool:
        """Whether the quota of the store's directory leaves less than one more block."""
        try:
            left = await self._namenodes.space_left(self._root)
            status = await self._namenodes.status(self._partial)
        except StoreError:
            return False
        return left is not None and left < status.block_size * status.replication

    def _exists(self) -> ObjectExists:
        return ObjectExists(f"The store '{self._store}' has an object of that key already")


async def remove_if_empty(namenodes: NameNodes, directory: str) -> None:
    """Remove a directory; one that is not empty, or not to be removed now, stays."""
    try:
        await namenodes.delete(directory)
    except StoreError:
        # Another attempt at the same image lives in it, or it goes with the next one that ends.
        return
