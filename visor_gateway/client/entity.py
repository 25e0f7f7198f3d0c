"""What the head of an answer says about the bytes that follow. Sans-IO."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from .. import image
from ..errors import InvalidRequest
from .credentials import Header
from .errors import ProtocolViolation

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)\Z")
_SHA256: Final = re.compile(r"(?:\A|[,\s])sha-256=:([A-Za-z0-9+/=]+):", re.IGNORECASE)

Record = dict[str, Any]


class Entity(msgspec.Struct, frozen=True, kw_only=True):
    """A representation, or a part of one.

    Attributes:
        record: The image's record.
        offset: Where in the image the body begins.
        length: Bytes of the body; None where it is chunked.
        size: Bytes of the whole image; None where unknown.
        etag: Strong entity tag; None where there is none, or a weak one.
        sha256: Hex digest of the whole, from `Repr-Digest` (RFC 9530); None where unknown.
    """

    record: Record
    offset: int
    length: int | None
    size: int | None
    etag: str | None
    sha256: str | None


def entity(status: int, headers: Sequence[Header]) -> Entity:
    """Read the head of a 200 or 206.

    Raises:
        ProtocolViolation: It has no length and no chunks, so that a cut could not be told from the end; or its parts
            contradict each other.
    """
    named = {name.lower(): value.decode("latin-1").strip() for name, value in headers}
    length = _length(named)
    if named.get(b"content-encoding", "identity").lower() != "identity":
        raise ProtocolViolation("The answer has a content coding that was not asked for")
    offset, size = _place(named, length) if status == 206 else (0, length)
    etag = named.get(b"etag", "")
    return Entity(
        record=record(headers),
        offset=offset,
        length=length,
        size=size,
        etag=etag if etag.startswith('"') else None,
        sha256=_digest(named.get(b"repr-digest", "")),
    )


def record(headers: Sequence[Header]) -> Record:
    """The record that `x-image-meta-*` headers hold."""
    try:
        fields: Record = dict(image.from_headers(headers))
        if "size" in fields:
            fields["size"] = int(fields["size"])
    except (InvalidRequest, ValueError) as exc:
        raise ProtocolViolation("The record in the answer's headers is not valid") from exc
    return fields


def _length(named: dict[bytes, str]) -> int | None:
    if named.get(b"transfer-encoding", "").lower() == "chunked":
        return None
    value = named.get(b"content-length", "")
    if not (value.isascii() and value.isdigit()):
        raise ProtocolViolation("The answer does not say where it ends")
    return int(value)


def _place(named: dict[bytes, str], length: int | None) -> tuple[int, int]:
    match = _CONTENT_RANGE.match(named.get(b"content-range", ""))
    if match is None:
        raise ProtocolViolation("The answer is a part of the image and does not say which")
    first, last, size = (int(group) for group in match.groups())
    if not first <= last < size or length not in {None, last - first + 1}:
        raise ProtocolViolation("The answer contradicts itself about the part of the image that it holds")
    return first, size


def _digest(value: str) -> str | None:
    match = _SHA256.search(value)
    try:
        digest = base64.b64decode(match[1], validate=True) if match else b""
    except binascii.Error:
        return None
    return digest.hex() if len(digest) == 32 else None
