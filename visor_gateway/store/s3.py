"""Stores of the S3 family: a bucket of a service that speaks S3, or spoke the S3 of its time.

An object's key is the attempt's, `<image id>/<attempt id>`; its location `s3://<bucket>/<key>`, without credentials.
What differs between services is in `s3_dialect`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import msgspec
import trio

from ..errors import ObjectChanged, ObjectMissing, StoreError, StoreUnreachable
from ..outbound import Outbound, Response
from .attempt import Attempt
from .contract import ObjectInfo
from .objectkey import ObjectKey, is_key
from .parts import MAX_PARTS
from .s3_bucket import Bucket
from .s3_dialect import Dialect
from .s3_objects import S3Objects, etag_of
from .s3_read import S3ReadStream
from .s3_signing import Signer
from .s3_write import S3WriteStream
from .spool import Spool

READ_TRIES: Final = 3  # to open a read; whoever reads may open it again
REMOVE_SECONDS: Final = 15.0
#: A list of the whole bucket is a request for every 1000 objects: it is made 24 times within the age that is asked for.
LISTS_PER_AGE: Final = 24


class S3Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where a store's bucket is.

    Attributes:
        endpoint: URL of the service, without a slash at its end.
        max_size: Bytes of the largest object.
        max_parts: How many parts of one object the service takes.
    """

    endpoint: str
    bucket: str
    max_size: int
    max_parts: int = MAX_PARTS


class S3Store:
    """`Store` for one bucket.

    Args:
        name: Its name in the configuration.
        dialect: Which service.
        signer: Signs requests.
        outbound: The way out, for servers that the operator configured. The caller closes it.
        spool: Where bytes wait that are too many for memory.

    Resource handling: `serve` has to run while objects are written; it owns the tasks that do so.
    """

    writable = True

    def __init__(
        self, name: str, settings: S3Settings, dialect: Dialect, signer: Signer, outbound: Outbound, spool: Spool
    ) -> None:
        self.name = name
        self.dialect = dialect
        self.spool = spool
        self.max_size = settings.max_size
        self.max_parts = settings.max_parts
        self.objects = S3Objects(Bucket(outbound, dialect, settings.endpoint, settings.bucket, signer, name=name))
        self._prefix = f"{dialect.scheme}://{settings.bucket}/"
        self._nursery: trio.Nursery | None = None
        self._writing: dict[str, tuple[float, S3WriteStream]] = {}
        self._listed_at = -float("inf")

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks of those who write, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def location(self, key: str) -> str:
        """The URI of an object."""
        return self._prefix + key

    async def check(self) -> None:
        """Tell whether the bucket is there and the keys are good. One request, which is not tried again."""
        await self.objects.check()

    async def stat(self, location: str) -> ObjectInfo:
        """Describe an object. Raises `ObjectMissing` if there is none."""
        info = await self.objects.head(self._key(location))
        if info is None:
            # The answer to HEAD has no words: this tells a missing bucket.
            await self.objects.check()
            raise ObjectMissing(f"The store '{self.name}' has no such object")
        return info

    async def open_read(
        self, location: str, offset: int = 0, length: int | None = None, *, expected: ObjectInfo | None = None
    ) -> S3ReadStream:
        """Open `length` bytes from `offset` (all the rest if None). The caller closes the stream.

        A service that ignores `Range` is read from the start, and what is before the range is dropped; one that
        ignores `If-Match` is judged by what it says of the object.

        Raises:
            ObjectMissing: No such object.
            ObjectChanged: Size or validator is not the expected one.
            StoreError: The range is outside the object, or the service failed.
        """
        key = self._key(location)
        if offset < 0 or (length is not None and length < 0):
            raise _outside()
        if length == 0:
            return self._empty(await self.stat(location), offset, expected)
        response = await self.objects.get(key, self._conditions(offset, length, expected), READ_TRIES)
        if response.status in {412, 416}:
            await response.aclose()
            if response.status == 412:
                raise _changed()
            # Nothing is after the last byte, which is a range too.
            return self._empty(await self.stat(location), offset + (length or 0), expected)
        try:
            return self._stream(response, self.objects.info(key, response), offset, length, expected)
        except BaseException:
            await response.aclose()
            raise

    async def open_write(self, key: str, *, size: int | None = None) -> S3WriteStream:
        """Begin to write the object `key`. Nothing is asked of the service yet."""
        ObjectKey.parse(key)
        if self._nursery is None:
            raise StoreError(f"The store '{self.name}' takes no bytes now")
        if key in self._writing:
            raise StoreError("The key of an attempt is used for one attempt")
        writer = S3WriteStream(self, key, size, Attempt(self._nursery))
        self._writing[key] = time.monotonic(), writer
        await trio.lowlevel.cancel_shielded_checkpoint()
        return writer

    async def delete(self, location: str) -> None:
        """Remove an object. A missing one is a success; so is a location that can't be this store's.

        A cancellation is heeded before the request and not during it, so that who is cancelled here knows that the
        object is still there.
        """
        try:
            key = self._key(location)
        except ObjectMissing:
            return
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(REMOVE_SECONDS, shield=True) as scope:
            await self.objects.remove(key)
        if scope.cancelled_caught:
            raise StoreUnreachable(f"The store '{self.name}' does not answer")

    async def abandon(self, key: str) -> None:
        """Remove what an attempt at `key` left, committed or not, here or in a process that is gone."""
        ObjectKey.parse(key)
        if key in self._writing:
            await self._writing[key][1].stop()
        if self.dialect.multipart:
            await self.objects.abort_uploads(key)
        await self.objects.remove(key)

    async def leftovers(self, older_than: float) -> Sequence[str]:
        """Keys of objects by when they were written, and of attempts of this process.

        Uploads in parts are not among them: those of ours that a crash left are named by their leases. The bucket is
        listed at most `LISTS_PER_AGE` times within `older_than` seconds; nothing is reported in between.
        """
        now = time.monotonic()
        if now - self._listed_at < older_than / LISTS_PER_AGE:
            return []
        found, clock = await self.objects.list_all()
        self._listed_at = now
        # The service's clock is told without fractions of a second.
        before = (time.time() if clock is None else clock + 1) - older_than
        kept = {each.key for each in found if is_key(each.key) and each.modified.timestamp() <= before}
        return sorted(kept | {key for key, (begun, _) in self._writing.items() if begun <= now - older_than})

    def ended(self, key: str) -> None:
        """An attempt is over."""
        self._writing.pop(key, None)

    def _key(self, location: str) -> str:
        key = location.removeprefix(self._prefix)
        if key == location or not is_key(key):
            raise ObjectMissing("The location names no object of this store")
        return key

    def _conditions(self, offset: int, length: int | None, expected: ObjectInfo | None) -> dict[str, str]:
        headers = {}
        if self.dialect.ranges and (offset or length is not None):
            headers["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        if (etag := etag_of(None if expected is None else expected.validator)) is not None:
            headers["If-Match"] = etag
        return headers

    def _stream(
        self, response: Response, info: ObjectInfo, offset: int, length: int | None, expected: ObjectInfo | None
    ) -> S3ReadStream:
        if not info.agrees_with(expected):
            raise _changed()
        size = info.size or 0
        end = size if length is None else offset + length
        if not offset <= end <= size:
            raise _outside()
        first = self.objects.part(response).first
        if first > offset:
            raise self.objects.bucket.nonsense()
        return S3ReadStream(response, info, skip=offset - first, left=end - offset, store=self.name)

    def _empty(self, info: ObjectInfo, end: int, expected: ObjectInfo | None) -> S3ReadStream:
        """A range without bytes, if it is inside the object."""
        if not info.agrees_with(expected):
            raise _changed()
        if end > (info.size or 0):
            raise _outside()
        return S3ReadStream(None, info, skip=0, left=0, store=self.name)


def _changed() -> ObjectChanged:
    return ObjectChanged("The object is not the one that was stored")


def _outside() -> StoreError:
    return ObjectChanged("The range is outside the object")
