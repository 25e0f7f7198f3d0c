"""Preconditions and ranges of image bytes. Sans-IO (RFC 9110, 13 and 14)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from email.utils import format_datetime
from itertools import pairwise
from typing import Final

import msgspec

from .. import signature
from ..errors import InvalidRequest, PreconditionFailed, RangeNotSatisfiable

MAX_RANGES: Final = 16  # in one request; who asks for more gets the whole
_TAG: Final = re.compile(rb'(W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_RANGE: Final = re.compile(rb"[ \t]*([0-9]*)-([0-9]*)[ \t]*\Z")


class Validators(msgspec.Struct, frozen=True):
    """What tells one version of the bytes from another. `etag` is strong, with its quotes; None where there is none."""

    etag: str | None
    modified: datetime | None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """`ETag` and `Last-Modified`."""
        found = []
        if self.etag is not None:
            found.append((b"etag", self.etag.encode("utf-8")))
        if self.modified is not None:
            found.append((b"last-modified", format_datetime(self.modified, usegmt=True).encode("ascii")))
        return found


class Span(msgspec.Struct, frozen=True):
    """A run of bytes of an image."""

    offset: int
    length: int


def not_modified(headers: Sequence[tuple[bytes, bytes]], validators: Validators) -> bool:
    """Evaluate the preconditions of a GET or HEAD, in the order of RFC 9110, 13.2.2.

    Returns:
        Whether to answer 304.

    Raises:
        PreconditionFailed: `If-Match` or `If-Unmodified-Since` does not hold.
        InvalidRequest: A list of entity tags is malformed.
    """
    match = _joined(headers, b"if-match")
    if match is not None:
        if not _matches(match, validators.etag, weak=False):
            raise PreconditionFailed("If-Match: the image has another ETag")
    elif _later(validators.modified, _joined(headers, b"if-unmodified-since")):
        raise PreconditionFailed("If-Unmodified-Since: the image was written later")
    none_match = _joined(headers, b"if-none-match")
    if none_match is not None:
        return _matches(none_match, validators.etag, weak=True)
    since = _joined(headers, b"if-modified-since")
    return since is not None and _later(validators.modified, since) is False


def spans(headers: Sequence[tuple[bytes, bytes]], size: int | None, validators: Validators) -> tuple[Span, ...]:
    """The ranges to answer with, in the order of the bytes; none for the whole.

    A `Range` that is malformed, or comes with an `If-Range` that does not hold, is answered with the whole, which
    RFC 9110, 14.2 allows. So is one that looks like an attack or a mistake: more than `MAX_RANGES`, ranges that overlap
    or run backwards, or that together are the whole.

    Raises:
        RangeNotSatisfiable: No byte of it exists.
    """
    value = _joined(headers, b"range")
    if value is None or not size or not _if_range_holds(_joined(headers, b"if-range"), validators):
        return ()
    asked = _parsed(value)
    if not 1 <= len(asked) <= MAX_RANGES:
        return ()
    found = [span for bounds in asked if (span := _resolved(*bounds, size)) is not None]
    if not found:
        raise RangeNotSatisfiable(size)
    ordered = all(one.offset + one.length <= next.offset for one, next in pairwise(found))
    if len(found) > 1 and (not ordered or sum(span.length for span in found) == size):
        return ()
    return tuple(found)


def _parsed(value: bytes) -> list[tuple[int | None, int | None]]:
    """First and last position of each range, one of them None where it is not given; nothing where one is malformed."""
    unit, equals, listed = value.partition(b"=")
    if unit.strip().lower() != b"bytes" or not equals:
        return []
    found: list[tuple[int | None, int | None]] = []
    for spec in listed.split(b","):
        if not spec.strip(b" \t"):
            continue  # a list may have empty elements (RFC 9110, 5.6.1)
        match = _RANGE.match(spec)
        first, last = map(_number, match.groups()) if match is not None else (None, None)
        if (first is None and last is None) or (first is not None and last is not None and last < first):
            return []
        found.append((first, last))
    return found


def _number(digits: bytes) -> int | None:
    """A number that may be absurdly long: beyond 20 digits only its greatness counts."""
    return int(digits.lstrip(b"0")[:20] or b"0") if digits else None


def _resolved(first: int | None, last: int | None, size: int) -> Span | None:
    """The bytes that a range means; None where there are none."""
    if first is None:
        length = min(last or 0, size)
        return Span(size - length, length) if length else None
    end = size - 1 if last is None else min(last, size - 1)
    return Span(first, end - first + 1) if first < size else None


def _if_range_holds(value: bytes | None, validators: Validators) -> bool:
    if value is None:
        return True
    if value.lstrip().startswith((b'"', b"W/")):
        # The comparison is strong: a weak tag never holds.
        return validators.etag is not None and value.strip() == validators.etag.encode("utf-8")
    asked = signature.date_seconds(value)
    return asked is not None and validators.modified is not None and int(validators.modified.timestamp()) == int(asked)


def _joined(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    values = [value for key, value in headers if key == name]
    return b", ".join(values) if values else None


def _matches(value: bytes, etag: str | None, *, weak: bool) -> bool:
    if value.strip() == b"*":
        return True
    tags = [match.group() for match in _TAG.finditer(value)]
    if not tags:
        raise InvalidRequest("A list of entity tags is malformed")
    if etag is None:
        return False
    own = etag.encode("utf-8")
    return any(own == (tag.removeprefix(b"W/") if weak else tag) for tag in tags)


def _later(modified: datetime | None, value: bytes | None) -> bool | None:
    """Whether the bytes are younger than an HTTP date; None where that can't be said."""
    asked = signature.date_seconds(value) if value is not None else None
    if asked is None or modified is None:
        return None
    return int(modified.timestamp()) > int(asked)
