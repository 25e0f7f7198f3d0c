"""What a peer asks a Meta or Auth server for: composed, and read with every value checked. Sans-IO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..errors import InvalidField, InvalidRequest
from ..image import ACCESS, ARCHITECTURES, ATTRIBUTE_NAME, FORMATS, TYPES
from .fields import (
    CONTROLS,
    IMAGE_CHECKS,
    MANDATORY_IMAGE_FIELDS,
    MANDATORY_USER_FIELDS,
    NAMED,
    READ_ONLY_IMAGE_FIELDS,
    READ_ONLY_USER_FIELDS,
    SETTABLE_IMAGE_FIELDS,
    STATUSES,
    TEXT_LIMIT,
    InvalidDocument,
    attribute_text,
    checked_value,
    under,
    written_value,
)


class ImageChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer sets. `named` has fields of `Image` by their names, None to unset one."""

    named: dict[str, Any]
    attributes: dict[str, str]


def image_request(fields: Mapping[str, Any]) -> bytes:
    """The body of POST or PUT of an image. Moments are written as Ruby does."""
    return msgspec.json.encode({"image": {name: written_value(value) for name, value in fields.items()}})


def user_request(fields: Mapping[str, Any]) -> bytes:
    """The body of POST or PUT of a user."""
    return msgspec.json.encode({"user": dict(fields)})


def read_image_request(body: bytes, *, new: bool) -> ImageChanges:
    """What the body of POST (`new`) or PUT of an image asks for.

    Raises:
        InvalidRequest: It is no `{"image": {...}}`.
        InvalidField: A field is read-only, missing or has a value that it may not have; the message is that of VISOR.
    """
    found = _requested(body, "image", READ_ONLY_IMAGE_FIELDS, MANDATORY_IMAGE_FIELDS if new else ())
    named: dict[str, Any] = {}
    for name in SETTABLE_IMAGE_FIELDS:
        if name not in found:
            continue
        value = found[name]
        if name in MANDATORY_IMAGE_FIELDS and value is None:
            raise InvalidField(f"These fields are required: {name}")
        try:
            named[name] = checked_value(name, value, IMAGE_CHECKS[name])
        except InvalidDocument as exc:
            raise InvalidField(_refusal(name, value)) from exc
    custom = {name: value for name, value in found.items() if name not in NAMED}
    attributes = {}
    for name, value in custom.items():
        text = attribute_text(value)
        if not ATTRIBUTE_NAME.match(name) or text is None:
            raise InvalidField("Invalid custom attribute: lower-case letters, digits and _, at most 64, and a text")
        attributes[name] = text
    return ImageChanges(named=named, attributes=attributes)


def read_user_request(body: bytes, *, new: bool) -> dict[str, str]:
    """What the body of POST (`new`) or PUT of a user asks for: access key and email, unchecked but for their type.

    Raises:
        InvalidRequest: It is no `{"user": {...}}`.
        InvalidField: A field is read-only, missing or no text.
    """
    found = _requested(body, "user", READ_ONLY_USER_FIELDS, MANDATORY_USER_FIELDS if new else ())
    for name, value in found.items():
        if name not in MANDATORY_USER_FIELDS:
            raise InvalidField("These fields are not known: only access_key and email can be set")
        if not isinstance(value, str):
            raise InvalidField(f"Invalid {name}: it must be text")
    return found


def _requested(body: bytes, key: str, read_only: tuple[str, ...], mandatory: tuple[str, ...]) -> dict[str, Any]:
    try:
        found = under(body, key)
    except InvalidDocument as exc:
        raise InvalidRequest(f'The body must be a JSON object with the key "{key}"') from exc
    if not isinstance(found, dict):
        raise InvalidRequest(f'"{key}" must be a JSON object')
    if refused := [name for name in found if name in read_only]:
        raise InvalidField(f"These fields are read-only: {', '.join(refused)}")
    if missing := [name for name in mandatory if name not in found]:
        raise InvalidField(f"These fields are required: {', '.join(missing)}")
    return found


_CHOICES: Final = {
    "architecture": ARCHITECTURES,
    "access": ACCESS,
    "type": TYPES,
    "format": FORMATS,
    "status": STATUSES,
}


def _refusal(name: str, value: Any) -> str:
    if name not in _CHOICES:
        return f"Invalid {name}"
    shown = CONTROLS.sub(" ", str(value))[:TEXT_LIMIT].encode("utf-8", "replace").decode()
    return f"Invalid {name} '{shown}', available options: {', '.join(_CHOICES[name])}"
