"""The `http` store: references to images that other servers keep. It reads, and holds no bytes of its own.

Its locations come from clients. Whatever keeps one from being read, a client sees one and the same error: refused,
closed, filtered, denied by the policy and not found can't be told apart (by their words; their timing is not hidden).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NoReturn
from urllib.parse import urlsplit

from ..errors import InvalidField, InvalidRequest, NotFound, ObjectMissing, StoreUnreachable
from ..outbound import BadResponse, Outbound, OutboundError, SchemeRefused
from .contract import ObjectInfo, WriteStream
from .reference import ReferenceStream
from .representation import describe, unsatisfied_size

_log = logging.getLogger(__name__)


class LocationNotFound(NotFound, ObjectMissing):
    """No image file can be had at a location that a client named; the cause is never told."""

    retryable = False
    retry_after = None

    def __init__(self, location: str) -> None:
        super().__init__(_no_file(location))


class ReferenceInfo(ObjectInfo, frozen=True, kw_only=True):
    """What an origin tells of one location.

    Attributes:
        checksum: The origin's ETag without quotes, weak or strong; the record's `checksum`.
    """

    checksum: str | None = None


class HttpStore:
    """`Store` for http and https locations.

    Args:
        outbound: The way out, under the policy of `[locations]`. The caller closes it.
        name: The store's name in the configuration.
    """

    writable = False

    def __init__(self, outbound: Outbound, *, name: str = "http") -> None:
        self.name = name
        self._outbound = outbound

    async def check(self) -> None:
        """Nothing to check: every location has an origin of its own."""

    async def stat(self, location: str) -> ReferenceInfo:
        """Size, strong validator and checksum, from HEAD, or from a GET of one byte where HEAD tells too little.

        Raises:
            InvalidField: The policy does not allow the location's scheme.
            LocationNotFound: Everything else.
        """
        try:
            return await self._stat_by_head(location) or await self._stat_by_get(location)
        except SchemeRefused as exc:
            allowed = " or ".join(self._outbound.policy.allow)
            raise InvalidField(f"Invalid location: its scheme must be {allowed}") from exc
        except OutboundError as exc:
            _note(location, exc)
            raise LocationNotFound(location) from exc

    async def _stat_by_head(self, location: str) -> ReferenceInfo | None:
        async with self._outbound.request("HEAD", location) as response:
            if response.status in {404, 410}:
                raise BadResponse(f"status {response.status}")
            if response.status != 200:
                return None
            part = describe(response)
        # A length of 0 is what servers say that do not work out the length for HEAD.
        return ReferenceInfo(size=part.size, validator=part.validator, checksum=part.checksum) if part.size else None

    async def _stat_by_get(self, location: str) -> ReferenceInfo:
        async with self._outbound.request("GET", location, {"Range": "bytes=0-0"}) as response:
            if response.status == 416 and unsatisfied_size(response) == 0:
                return ReferenceInfo(size=0)
            part = describe(response)
            if part.size is None and not response.stream.framed:
                raise BadResponse("neither size nor end of the body can be known")
        return ReferenceInfo(size=part.size, validator=part.validator, checksum=part.checksum)

    async def open_read(
        self, location: str, offset: int = 0, length: int | None = None, *, expected: ObjectInfo | None = None
    ) -> ReferenceStream:
        """Open a range at its origin. The caller closes the stream.

        Args:
            location: The http or https URL.
            offset: First byte.
            length: Bytes; None for all the rest.
            expected: What the record says of the object; None fields expect nothing.

        Raises:
            ObjectChanged: Size or strong validator is not the expected one.
            ObjectMissing: The origin says that it has none; the words are those of StoreUnreachable.
            StoreError: The range is outside the object.
            StoreUnreachable: The origin gives no usable answer, for whatever cause.
        """
        stream = ReferenceStream(self._outbound, location, offset, length, expected)
        try:
            await stream.open()
        except OutboundError as exc:
            _note(location, exc)
            raise StoreUnreachable(_no_file(location)) from exc
        return stream

    async def open_write(self, key: str, *, size: int | None = None) -> WriteStream:
        """Raises InvalidRequest, always."""
        _refuse_bytes()

    async def delete(self, location: str) -> None:
        """Nothing: a reference keeps its origin."""

    async def abandon(self, key: str) -> None:
        """Nothing: no attempt writes here."""

    async def leftovers(self, older_than: float) -> Sequence[str]:
        """Nothing: no attempt writes here."""
        return ()


def _refuse_bytes() -> NoReturn:
    raise InvalidRequest("Cannot post an image file to a HTTP backend")


def _no_file(location: str) -> str:
    return f"No image file found at {location}"


def _note(location: str, cause: OutboundError) -> None:
    """Keep the cause for the operator. Path and query stay out: they may hold a key."""
    _log.debug("no image file at %s: %s", urlsplit(location).hostname, cause)
