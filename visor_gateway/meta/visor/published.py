"""What a Meta server is told of an image. Sans-IO.

The server of 2012 puts every value into a statement of SQL as it is, has columns that are narrow, refuses what it does
not know, and fails on null. So it is told nothing that could be more than a value there, and what it can't hold is left
out: the local record keeps it. What it made of it is compared with later, so that this looks like nobody's change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ...image import Image

#: The custom attribute by which a record is found again whose registration was not answered.
MARK: Final = "visor_gateway_id"
_COLUMN: Final = 45  # characters of most columns
_LONG_COLUMN: Final = 255  # of location, checksum and `others`
_MOST: Final = (1 << 31) - 1  # what its `size` holds
_TYPES: Final = frozenset({"kernel", "ramdisk", "machine"})
_FORMATS: Final = frozenset({"iso", "vhd", "vdi", "vmdk", "ami", "aki", "ari"})
_STORES: Final = frozenset({"s3", "cumulus", "walrus", "hdfs", "http", "file"})
#: Characters that end a text there, or that its character set may not have.
_UNSAFE: Final = re.compile(r"[^\x20\x21\x23-\x26\x28-\x5b\x5d-\x7e]")
_RESERVED: Final = frozenset({"others", "sort", "dir", MARK})


def description(image: Image, remote_ids: Mapping[str, str]) -> dict[str, Any]:
    """The fields that say what an image is.

    Args:
        remote_ids: By `_id`, those that the server has for the images that `kernel` and `ramdisk` name.
    """
    fields: dict[str, Any] = {
        "name": _UNSAFE.sub("_", image.name)[:_COLUMN],
        "architecture": image.architecture,
        "access": image.access,
    }
    if image.owner and len(image.owner) <= _COLUMN:
        fields["owner"] = image.owner
    if image.type in _TYPES:
        fields["type"] = image.type
    if image.format in _FORMATS:
        fields["format"] = image.format
    for name in ("kernel", "ramdisk"):
        if (named := remote_ids.get(getattr(image, name) or "")) is not None:
            fields[name] = named
    return fields | _attributes(image)


def least(image: Image) -> dict[str, Any]:
    """The fields that are left where the server refuses one of `description`'s."""
    fields = description(msgspec.structs.replace(image, attributes={}), {})
    return {name: fields[name] for name in ("name", "architecture", "access", "owner", MARK) if name in fields}


def state(image: Image) -> dict[str, Any]:
    """The fields that say how an image is."""
    fields: dict[str, Any] = {"status": image.status}
    if image.store in _STORES:
        fields["store"] = image.store
    elif image.store == "lunacloud":
        fields["store"] = "lcs"
    for name in ("location", "checksum"):
        value = getattr(image, name)
        if value is not None and len(value) <= _LONG_COLUMN and not _UNSAFE.search(value):
            fields[name] = value
    if image.size is not None and image.size <= _MOST:
        fields["size"] = image.size
    if image.uploaded_at is not None:
        fields["uploaded_at"] = image.uploaded_at
    return fields


def _attributes(image: Image) -> dict[str, str]:
    """Custom attributes, as many as fit into the one column that they share there as JSON."""
    kept = {MARK: image.id}
    for name, value in sorted(image.attributes.items()):
        more = {**kept, name: value}
        if name not in _RESERVED and not _UNSAFE.search(value) and len(msgspec.json.encode(more)) <= _LONG_COLUMN:
            kept = more
    return kept
