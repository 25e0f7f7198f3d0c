"""Writing an S3 object in parts, several of them at a time (Amazon S3 API Reference, CreateMultipartUpload).

A part waits whole in memory or in the spool until the service has stored it, so that a try that failed is repeated with
the same bytes. Whoever writes waits while `PARALLEL` parts are on their way.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import trio

from .attempt import Attempt
from .parts import Part, PartSizes, open_part
from .s3_objects import S3Objects
from .s3_signing import UNSIGNED
from .spool import Spool

PARALLEL: Final = 3


class MultipartUpload:
    """One upload in parts under a key that no other attempt uses.

    Args:
        attempt: Where requests run.
        sizes: How large the parts are.
        first: The first part, which is full. It belongs to the upload from now on.
    """

    def __init__(
        self, objects: S3Objects, key: str, attempt: Attempt, spool: Spool, sizes: PartSizes, first: Part
    ) -> None:
        self.length = first.length
        self._objects = objects
        self._key = key
        self._attempt = attempt
        self._spool = spool
        self._sizes = sizes
        self._part: Part | None = first
        self._number = 1
        self._upload_id: str | None = None
        self._begun = False
        self._etags: dict[int, str] = {}
        self._slots = trio.Semaphore(PARALLEL)

    async def add(self, data: memoryview) -> None:
        """Copy `data` into parts; a part that is full is on its way when more comes.

        Raises:
            StoreError: The service or the spool failed; only `discard` may follow.
        """
        while len(data):
            part = self._part
            if part is None or not part.room:
                part = await self._next_part()
            piece, data = data[: part.room], data[part.room :]
            await part.append(piece)
            self.length += len(piece)

    async def finish(self) -> None:
        """Send the last part, and put the object together.

        Raises:
            ObjectExists: The key is taken.
            StoreError: The service failed.
        """
        await self._send_part()
        for _ in range(PARALLEL):
            await self._slots.acquire()
        self._attempt.raise_failure()
        await self._attempt.run(self._complete)
        self._begun = False

    async def discard(self) -> None:
        """Remove all parts that the service has. To be called when no request of the attempt runs any more.

        Raises:
            StoreError: The service failed; something may be left of the upload.
        """
        if self._begun:
            await self._objects.abort_uploads(self._key, self._upload_id)
            self._begun = False

    async def aclose(self) -> None:
        """Give back the part that is being filled. Safe twice."""
        part, self._part = self._part, None
        if part is not None:
            await part.aclose()

    async def _next_part(self) -> Part:
        await self._send_part()
        self._part = await open_part(self._spool, self._sizes.of(self._number))
        return self._part

    async def _send_part(self) -> None:
        """Give the present part to a task of its own, once there is room for one."""
        if self._upload_id is None:
            await self._attempt.run(self._create)
        await self._slots.acquire()
        part, self._part = self._part, None
        if part is None:
            self._slots.release()
        else:
            self._attempt.start(partial(self._store_part, part, self._number))
            self._number += 1
        self._attempt.raise_failure()

    async def _create(self) -> None:
        self._begun = True
        self._upload_id = await self._objects.create_upload(self._key, self._attempt.retried)

    async def _store_part(self, part: Part, number: int) -> None:
        try:
            digest = await part.digest() if self._objects.bucket.signs_bodies else UNSIGNED
            self._etags[number] = await self._objects.put_part(
                self._key, self._upload_id or "", number, part.body, digest, self._attempt.retried
            )
        finally:
            await part.aclose()
            self._slots.release()

    async def _complete(self) -> None:
        await self._objects.complete(self._key, self._upload_id or "", self.length, self._etags, self._attempt.retried)
