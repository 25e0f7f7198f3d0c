"""The name of one attempt's object. Sans-IO.

Both ids are UUIDs in lower case, and nothing else ever becomes part of a path: no `..`, no encoding, no other scheme.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ..errors import ObjectMissing, StoreError

_UUID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_IMAGE_ID: Final = re.compile(rf"{_UUID}\Z")
_KEY: Final = re.compile(rf"({_UUID})/({_UUID})\Z")
_SCHEME: Final = "file:///"
_PARTIAL: Final = ".partial"


class ObjectKey(NamedTuple):
    """`<image id>/<attempt id>`, never used for a second attempt."""

    image_id: str
    attempt_id: str

    @classmethod
    def parse(cls, key: str) -> ObjectKey:
        """Read `<image id>/<attempt id>`. Raises `StoreError` for anything else."""
        found = _KEY.match(key)
        if found is None:
            raise StoreError("The key of an object is two UUIDs with a slash between")
        return cls(found[1], found[2])

    @classmethod
    def from_location(cls, location: str) -> ObjectKey:
        """Read `file:///<image id>/<attempt id>`. Raises `ObjectMissing` for anything else: nothing can be there."""
        found = _KEY.match(location.removeprefix(_SCHEME)) if location.startswith(_SCHEME) else None
        if found is None:
            raise ObjectMissing("The location names no object of this store")
        return cls(found[1], found[2])

    @classmethod
    def from_file(cls, image_id: str, name: str) -> ObjectKey | None:
        """The key whose object or partial file has this name, or None for a file that is no attempt's."""
        found = _KEY.match(f"{image_id}/{name.removesuffix(_PARTIAL)}")
        return cls(found[1], found[2]) if found else None

    def __str__(self) -> str:
        return f"{self.image_id}/{self.attempt_id}"

    @property
    def location(self) -> str:
        """The object's URI. Clients see it, so it says nothing of where on this host the store is."""
        return f"{_SCHEME}{self}"

    @property
    def partial(self) -> str:
        """The file's name in the image's directory before it is published."""
        return self.attempt_id + _PARTIAL


def is_key(text: str) -> bool:
    """Whether an object of this name can be an attempt's."""
    return _KEY.match(text) is not None


def is_image_id(name: str) -> bool:
    """Whether a directory of this name can be an image's."""
    return _IMAGE_ID.match(name) is not None
