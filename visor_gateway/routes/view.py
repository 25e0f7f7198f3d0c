"""A record as its clients see it in headers, made once for all who ask while it stays as it is."""

from __future__ import annotations

from typing import Final

import msgspec

from ..image import Image, to_headers
from . import entity
from .conditional import Validators
from .entity import Headers

_HEADER_SIZE: Final = 160  # bytes of two objects, their pair and its place, beside what they hold
_RECORD_SIZE: Final = 4096


class View(msgspec.Struct, frozen=True):
    """A record and what is always said of it. The lists are everybody's: they are not to be changed.

    Attributes:
        record: The record as headers.
        entity: Those that are the same of the whole and of any part of the bytes.
        whole: Those of the whole. Like `entity` meaningless while there are no bytes.
    """

    image: Image
    record: Headers
    entity: Headers
    whole: Headers
    validators: Validators


def view(image: Image, uri: str) -> View:
    """The view of a record that is to be had under `uri`."""
    whole = entity.layout(image, ()).headers
    return View(image, to_headers(image.shown(uri)), entity.description(image), whole, entity.validators(image))


def view_size(view: View) -> int:
    """About how many bytes a view takes with its record."""
    return _RECORD_SIZE + sum(map(headers_size, (view.record, view.entity, view.whole)))


def headers_size(headers: Headers) -> int:
    """About how many bytes a list of headers takes."""
    return sum(len(name) + len(value) + _HEADER_SIZE for name, value in headers)
