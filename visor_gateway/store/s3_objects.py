"""The objects of a bucket and the uploads under way, as operations: each is one request, or one for each page."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Final
from xml.sax.saxutils import escape

import structlog

from ..errors import ObjectExists, ObjectMissing, StoreError
from ..outbound import BadResponse, BytesBody, RequestBody, Response
from .contract import ObjectInfo
from .representation import Representation, describe, partial_of
from .s3_answers import Listed, listed, text, upload_ids
from .s3_bucket import TRIES, Bucket, Call

COMPLETE_SECONDS: Final = 600.0  # services put large objects together before they answer
CHECK_SECONDS: Final = 10.0
ABORT_ROUNDS: Final = 3
_PAGES: Final = 10_000
_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"

OnRetry = Callable[[], None]

_log: Final = structlog.get_logger("visor_gateway.s3")


class S3Objects:
    """Operations on one bucket. All raise StoreError where the service refuses or fails."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        #: What keeps a writing request from overwriting; empty for services that do not know the header.
        self._never_overwrite: Mapping[str, str] = {"If-None-Match": "*"} if bucket.dialect.conditional else {}

    async def head(self, key: str) -> ObjectInfo | None:
        """Describe an object; None where there is none."""
        answer = await self.bucket.ask(Call(method="HEAD", key=key, taken=frozenset({404})))
        return None if answer.status == 404 else self.info(key, answer.head)

    def info(self, key: str, response: Response) -> ObjectInfo:
        """What an answer to GET or HEAD tells of an object."""
        part = self.part(response)
        return ObjectInfo(size=part.size, validator=validator(key, part, response))

    def part(self, response: Response) -> Representation:
        """Which bytes of its object an answer to GET or HEAD holds."""
        try:
            # Some servers send a range and call it 200.
            ranged = response.header("content-range") is not None
            part = partial_of(response) if ranged else describe(response)
        except BadResponse as exc:
            raise self.bucket.unreachable(exc) from exc
        if part.size is None:
            raise self.bucket.nonsense()
        return part

    async def get(self, key: str, headers: Mapping[str, str], tries: int) -> Response:
        """Open an object; 412 and 416 are the caller's to judge."""
        call = Call(method="GET", key=key, headers=headers, taken=frozenset({412, 416}))
        return await self.bucket.open(call, tries=tries)

    async def remove(self, key: str) -> None:
        """Delete an object; a missing one is a success."""
        try:
            await self.bucket.ask(Call(method="DELETE", key=key))
        except ObjectMissing:
            return

    async def check(self) -> None:
        """Ask for the bucket, once. A service that knows no list of it answers with an error of its own kind."""
        try:
            await self.bucket.ask(Call(method="GET", query={"max-keys": "1"}, head_seconds=CHECK_SECONDS), tries=1)
        except ObjectMissing:
            return

    async def list_all(self) -> tuple[list[Listed], float | None]:
        """All objects, and the service's clock (seconds since 1970) when it began to list them, if it tells.

        A service that has no list of the bucket has no objects here.
        """
        found: list[Listed] = []
        now: float | None = None
        marker: str | None = ""
        for _ in range(_PAGES):
            query = {"encoding-type": "url", "max-keys": "1000"} | ({"marker": marker} if marker else {})
            try:
                root, answer = await self.bucket.ask_for_xml(Call(method="GET", query=query))
            except ObjectMissing:
                break
            now = _date(answer.head) if now is None else now
            try:
                page, marker = listed(root)
            except ValueError as exc:
                raise self.bucket.nonsense() from exc
            found += page
            if marker is None:
                break
        return found, now

    # --- writing ----------------------------------------------------------------------------------

    async def put(
        self,
        key: str,
        size: int,
        body: Callable[[], RequestBody],
        digest: str,
        on_retry: OnRetry,
        *,
        tries: int = TRIES,
    ) -> None:
        """Write an object in one request.

        Args:
            size: Bytes of the body.
            body: Makes the body, anew for each try.
            digest: Hex SHA-256 of the body, or `UNSIGNED`.

        Raises:
            ObjectExists: The key is taken.
        """
        call = Call(
            method="PUT",
            key=key,
            headers={"Content-Type": "application/octet-stream"},
            body=body,
            digest=digest,
            head_seconds=COMPLETE_SECONDS,
        )
        await self._publish(call, key, size, on_retry, tries)

    async def create_upload(self, key: str, on_retry: OnRetry) -> str:
        """Begin an upload in parts. Returns its id."""
        call = Call(method="POST", key=key, query={"uploads": ""})
        root, answer = await self.bucket.ask_for_xml(call, on_retry=on_retry)
        upload_id = text(root, "UploadId")
        # Not every server gives the answer the name that it should have.
        if not upload_id:
            raise self.bucket.nonsense()
        if answer.tries > 1:
            # An upload that an earlier try began without telling its id must not stay behind.
            for other in await self.uploads(key):
                if other != upload_id:
                    await self._abort(key, other)
        return upload_id

    async def put_part(
        self, key: str, upload_id: str, number: int, body: Callable[[], RequestBody], digest: str, on_retry: OnRetry
    ) -> str:
        """Store a part. Returns its ETag."""
        query = {"partNumber": str(number), "uploadId": upload_id}
        call = Call(method="PUT", key=key, query=query, body=body, digest=digest)
        answer = await self.bucket.ask(call, on_retry=on_retry)
        etag = answer.head.header("etag")
        if not etag:
            raise self.bucket.nonsense()
        return etag

    async def complete(self, key: str, upload_id: str, size: int, etags: Mapping[int, str], on_retry: OnRetry) -> None:
        """Put the parts together.

        Raises:
            ObjectExists: The key is taken.
        """
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
            for number, etag in sorted(etags.items())
        )
        document = f'<CompleteMultipartUpload xmlns="{_NAMESPACE}">{parts}</CompleteMultipartUpload>'.encode()
        call = Call(
            method="POST",
            key=key,
            query={"uploadId": upload_id},
            headers={"Content-Type": "application/xml"},
            body=partial(BytesBody, document),
            digest=hashlib.sha256(document).hexdigest(),
            head_seconds=COMPLETE_SECONDS,
        )
        await self._publish(call, key, size, on_retry, TRIES)

    async def _publish(self, call: Call, key: str, size: int, on_retry: OnRetry, tries: int) -> None:
        """Send the request that makes an object visible.

        A try whose answer was lost may have done it. Then the next one finds its upload gone, or the key taken; nobody
        but this attempt writes under the key, so an object of that size is its own.
        """
        call = call.changed(taken=frozenset({404, 412, 501}))
        conditional = call.changed(headers={**call.headers, **self._never_overwrite})
        answer = await self.bucket.ask(conditional, tries=tries, on_retry=on_retry)
        if answer.status == 501 and self._never_overwrite and tries > 1:
            self._never_overwrite = {}
            answer = await self.bucket.ask(call, tries=tries, on_retry=on_retry)
        if answer.status < 300:
            return
        if answer.tries > 1 and answer.status != 501:
            there = await self.head(key)
            if there is not None and there.size == size:
                return
        if answer.status == 412:
            raise ObjectExists("The store has an object of that key already")
        raise self.bucket.refused(answer)

    # --- uploads under way ------------------------------------------------------------------------

    async def uploads(self, key: str) -> list[str]:
        """Ids of the uploads under way for exactly that key. None for a service that does not list uploads."""
        query = {"uploads": "", "prefix": key}
        call = Call(method="GET", query=query, taken=frozenset({404, 405, 501}))
        answer = await self.bucket.ask(call)
        if answer.status >= 300:
            return []
        try:
            return upload_ids(self.bucket.parsed(answer), key)
        except ValueError as exc:
            raise self.bucket.nonsense() from exc

    async def abort_uploads(self, key: str, upload_id: str | None = None) -> None:
        """Remove all uploads for exactly that key, of which one may be known by id.

        A part that was on its way may come in after an abort, so it is looked at again (S3, AbortMultipartUpload).
        """
        if upload_id is not None:
            await self._abort(key, upload_id)
        for _ in range(ABORT_ROUNDS):
            left = await self.uploads(key)
            if not left:
                return
            for other in left:
                await self._abort(key, other)
        raise StoreError(f"The store '{self.bucket.name}' keeps parts of an upload that was aborted")

    async def _abort(self, key: str, upload_id: str) -> None:
        try:
            await self.bucket.ask(Call(method="DELETE", key=key, query={"uploadId": upload_id}))
        except ObjectMissing:
            return


def validator(key: str, part: Representation, response: Response) -> str | None:
    """Tells objects apart: the attempt that wrote it, and the strong ETag, or when it was written where there is none.

    An ETag alone is the same for all objects of the same bytes.
    """
    known = part.validator or response.header("last-modified")
    return f"{key.rpartition('/')[2]}:{known}" if known else None


def etag_of(validator: str | None) -> str | None:
    """The strong ETag in a validator, where there is one."""
    etag = (validator or "").partition(":")[2]
    return etag if etag.startswith('"') else None


def _date(response: Response) -> float | None:
    try:
        return parsedate_to_datetime(response.header("date") or "").timestamp()
    except ValueError:
        return None
