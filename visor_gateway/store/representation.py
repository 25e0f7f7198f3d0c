"""What one HTTP answer says of the bytes behind a location (RFC 9110, 8 and 14.4). Sans-IO."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from ..outbound import BadResponse, Response

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\Z")
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d{1,19})\Z")
_STRONG: Final = re.compile(r'"[\x21\x23-\x7e]{1,256}"\Z')
_SHOWABLE: Final = re.compile(r"[\x20-\x7e]{1,256}\Z")


class Representation(msgspec.Struct, frozen=True, kw_only=True):
    """One answer's part of a representation.

    Attributes:
        first: Offset of the body's first byte.
        size: Bytes of the whole representation; None where the answer does not tell.
        etag: The `ETag` as it was sent.
    """

    first: int
    size: int | None
    etag: str | None

    @property
    def validator(self) -> str | None:
        """The strong ETag with its quotes; None where it is weak, malformed, empty or absent."""
        return self.etag if _STRONG.match(self.etag or "") else None

    @property
    def checksum(self) -> str | None:
        """The ETag without quotes, whatever its strength."""
        text = (self.etag or "").replace('"', "").strip()
        return text if _SHOWABLE.match(text) else None


def describe(response: Response) -> Representation:
    """Read a 200 or 206.

    Raises:
        BadResponse: Another status, a coded body, several ranges, or lengths that contradict each other.
    """
    if response.status not in {200, 206}:
        raise BadResponse(f"status {response.status}")
    coding = (response.header("content-encoding") or "identity").strip().lower()
    if coding != "identity":
        raise BadResponse("a coded body, though identity was asked for")
    if response.status == 206:
        return partial_of(response)
    return Representation(first=0, size=declared_length(response), etag=response.header("etag"))


def partial_of(response: Response) -> Representation:
    """Read the answer to a request for one range, by its `Content-Range`.

    Raises:
        BadResponse: There is none, or it contradicts itself or the length of the body.
    """
    match = _CONTENT_RANGE.match(response.header("content-range") or "")
    if match is None:
        raise BadResponse("a 206 without a usable Content-Range")
    first, last = int(match[1]), int(match[2])
    size = None if match[3] == "*" else int(match[3])
    if first > last or (size is not None and last >= size):
        raise BadResponse("a Content-Range that contradicts itself")
    if declared_length(response) not in {None, last - first + 1}:
        raise BadResponse("Content-Length contradicts Content-Range")
    return Representation(first=first, size=size, etag=response.header("etag"))


def declared_length(response: Response) -> int | None:
    """`Content-Length` (of a HEAD too), where it is one number of sane size."""
    text = response.header("content-length") or ""
    return int(text) if text.isdecimal() and len(text) <= 19 else None


def unsatisfied_size(response: Response) -> int | None:
    """The size that a 416 tells (RFC 9110, 15.5.17)."""
    match = _UNSATISFIED.match(response.header("content-range") or "")
    return int(match[1]) if match else None
