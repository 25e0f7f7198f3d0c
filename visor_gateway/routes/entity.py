"""Image bytes as an HTTP entity: the headers that describe them, and the layout of an answer. Sans-IO (RFC 9110, 8 and
14; RFC 9530).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

import msgspec

from ..image import Image
from ..transfer.digest import repr_digest
from .conditional import Span, Validators

OCTETS: Final = b"application/octet-stream"

Headers = list[tuple[bytes, bytes]]


class Part(msgspec.Struct, frozen=True):
    """A run of bytes of an image, and what stands before it.

    Attributes:
        prefix: The delimiter and head of a part of several; else empty.
        offset: Where in the image it begins.
        length: Bytes of the image; None for all there are, where their number is not known.
    """

    prefix: bytes
    offset: int
    length: int | None


class Layout(msgspec.Struct, frozen=True):
    """What an answer consists of.

    Attributes:
        headers: Those that describe the body, with its length where that is known.
        parts: In the order in which they are sent.
        suffix: What closes the body.
        whole: Whether every byte of the image is in it, in one piece.
    """

    status: int
    headers: Headers
    parts: tuple[Part, ...]
    suffix: bytes = b""
    whole: bool = False

    @property
    def image_bytes(self) -> int | None:
        """How many bytes of the image are in it; None where nobody knows."""
        lengths = [part.length for part in self.parts if part.length is not None]
        return sum(lengths) if len(lengths) == len(self.parts) else None


def validators(image: Image) -> Validators:
    """What tells this version of an available image's bytes from another."""
    if image.sha256 is not None:
        etag: str | None = f'"{image.sha256}"'
    else:
        etag = image.validator if image.validator and image.validator.startswith('"') else None
    return Validators(etag, image.uploaded_at)


def guidance(image: Image) -> Headers:
    """What a cache is told, by 200, 206 and 304 alike (RFC 9110, 15.4.5)."""
    headers = validators(image).headers()
    if image.access == "private":
        headers.append((b"cache-control", b"private"))
    return headers


def description(image: Image) -> Headers:
    """What is the same of the whole and of any part: all but type, length and range."""
    name = quote(_file_name(image), safe="")
    headers = [(b"content-disposition", f"attachment; filename*=UTF-8''{name}".encode("ascii")), *guidance(image)]
    if image.size is not None:
        headers.append((b"accept-ranges", b"bytes"))
    if image.sha256 is not None:
        headers.append((b"repr-digest", repr_digest(image.sha256).encode("ascii")))
    return headers


def layout(image: Image, spans: Sequence[Span]) -> Layout:
    """The answer with these ranges of an image, or with the whole where there are none."""
    if not spans:
        headers = [(b"content-type", OCTETS), *([] if image.size is None else [_length(image.size)])]
        return Layout(200, headers, (Part(b"", 0, image.size),), whole=True)
    if len(spans) == 1:
        return _single(spans[0], image.size or 0)
    return _multipart(spans, image.size or 0, secrets.token_hex(16))


def _single(span: Span, size: int) -> Layout:
    headers = [(b"content-type", OCTETS), (b"content-range", _content_range(span, size)), _length(span.length)]
    return Layout(206, headers, (Part(b"", span.offset, span.length),), whole=span.length == size)


def _multipart(spans: Sequence[Span], size: int, boundary: str) -> Layout:
    """One body with several ranges (RFC 9110, 14.6). `boundary` is random, so that no image can hold it on purpose."""
    delimiter = b"\r\n--" + boundary.encode("ascii")
    heads = [
        b"%s\r\nContent-Type: %s\r\nContent-Range: %s\r\n\r\n" % (delimiter, OCTETS, _content_range(span, size))
        for span in spans
    ]
    heads[0] = heads[0].removeprefix(b"\r\n")
    suffix = delimiter + b"--\r\n"
    length = sum(map(len, heads)) + sum(span.length for span in spans) + len(suffix)
    kind = f"multipart/byteranges; boundary={boundary}".encode("ascii")
    parts = tuple(Part(head, span.offset, span.length) for head, span in zip(heads, spans, strict=True))
    return Layout(206, [(b"content-type", kind), _length(length)], parts, suffix)


def _content_range(span: Span, size: int) -> bytes:
    return b"bytes %d-%d/%d" % (span.offset, span.offset + span.length - 1, size)


def _length(length: int) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % length


def _file_name(image: Image) -> str:
    """A name to save the image under, which leads to no other directory and hides no file."""
    name = re.sub(r"[/\\\x00-\x1f\x7f]", "_", image.name)
    name = re.sub(r"^\.+", "_", name)
    return name if image.format in (None, "none") else f"{name}.{image.format}"
