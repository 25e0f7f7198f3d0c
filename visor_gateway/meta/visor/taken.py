"""What is believed of an image that a Meta server tells of: anybody who reaches that server can write to it. Sans-IO.

*Ours* is an image whose bytes this gateway wrote or may write: its owner, state, place, size and digests are what the
local database says. *Foreign* is one that somebody else registered.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ...errors import InvalidField
from ...image import CLIENT_FIELDS, GATEWAY_FIELDS, Fields, Image, change, checked
from ...visor_documents import ImageDocument
from .published import MARK

_PLAIN: Final = ("name", "architecture", "type")
_REFERENCES: Final = ("kernel", "ramdisk")
_OF_FOREIGN: Final = (*_PLAIN, "format", "access", "created_at", "updated_at")
_FIELDS: Final = frozenset({*CLIENT_FIELDS, *GATEWAY_FIELDS, MARK})


def merged(image: Image, base: ImageDocument, found: ImageDocument, local_ids: Mapping[str, str]) -> Image:
    """One of our images with what somebody else changed at the server since it was `base` there.

    Descriptions are taken over. An image becomes private, but never public: its owner may do that, through the gateway.
    The format of bytes that are there stays what they were checked to be.
    """
    named: dict[str, Any] = {}
    taken = (*_PLAIN, *_REFERENCES) if image.status == "available" else (*_PLAIN, *_REFERENCES, "format")
    for name in taken:
        value = getattr(found, name)
        if value == getattr(base, name):
            continue
        if name in _REFERENCES and value is not None:
            value = local_ids.get(value)
            if value is None:
                continue
        named[name] = value
    if found.access == "private" != base.access:
        named["access"] = "private"
    now, then = _custom(found), _custom(base)
    set_anew = {name: value for name, value in now.items() if then.get(name) != value}
    dropped = then.keys() - now.keys()
    if not (named or set_anew or dropped):
        return image
    kept = {name: value for name, value in image.attributes.items() if name not in dropped}
    try:
        return change(
            msgspec.structs.replace(image, attributes=kept),
            Fields(named=named, attributes=set_anew),
            now=found.updated_at or found.created_at,
        )
    except InvalidField:  # together with what only we know it is too large
        return image


def foreign(found: ImageDocument, known: Image | None, local_ids: Mapping[str, str]) -> Image:
    """A foreign image as a record. Its bytes can be pulled where its location is one that a client could have given,
    and only from there; its size and digest are what the first complete read finds.

    Args:
        known: The record that it has already. What was found of its bytes holds while its location stays.
    """
    values: dict[str, Any] = {
        name: getattr(found, name) for name in (*_PLAIN, "format", "access", "created_at", "updated_at")
    }
    for name in _REFERENCES:
        named = getattr(found, name)
        values[name] = None if named is None else local_ids.get(named)
    status, location = found.status, None
    if status == "available":
        location = _reference(found.location)
        status = "error" if location is None else "available"
    image = Image(
        id=found.id if known is None else known.id,
        owner=found.owner or "",
        status=status,
        location=location,
        store=None if location is None else "http",
        attempt_id=None if location is None else str(uuid.uuid4()),
        uploaded_at=None if location is None else found.uploaded_at,
        attributes=_custom(found),
        **values,
    )
    if known is not None and known.location == location and known.status == status:
        same = ("attempt_id", "size", "checksum", "sha256", "validator", "scrubbed_at", "bad_since", "learned")
        image = msgspec.structs.replace(image, **{name: getattr(known, name) for name in same})
    return image


def assignable(found: ImageDocument) -> bool:
    """Whether a foreign image waits for bytes, so that this gateway may give it some."""
    return found.status in {"locked", "error"}


def _reference(location: str | None) -> str | None:
    """The location, if a client might have set it: http or https, of a host, without credentials."""
    try:
        return None if location is None else checked({"location": location}).named["location"]
    except InvalidField:
        return None


def _custom(document: ImageDocument) -> dict[str, str]:
    """Custom attributes, but for those that would be shown in the place of a field."""
    return {name: value for name, value in document.attributes.items() if name not in _FIELDS}
