"""Fields of images and users as VISOR's servers have them: which there are, and what a value may be. Sans-IO."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from ..image import ACCESS, ARCHITECTURES, FORMATS, NAME_LIMIT, TYPES
from ..signature import ACCESS_KEY

STATUSES: Final = ("locked", "uploading", "error", "available")
#: Fields of an image in the order in which a Meta server writes them; custom attributes or `others` follow.
IMAGE_FIELDS: Final = (
    "_id",
    "uri",
    "name",
    "architecture",
    "access",
    "type",
    "format",
    "store",
    "location",
    "kernel",
    "ramdisk",
    "owner",
    "status",
    "size",
    "created_at",
    "uploaded_at",
    "updated_at",
    "checksum",
)
#: What its brief lists have. (Those of the gateway have more.)
BRIEF_IMAGE_FIELDS: Final = ("_id", "name", "architecture", "type", "format", "store", "size")
USER_FIELDS: Final = ("_id", "access_key", "secret_key", "email", "created_at", "updated_at")
READ_ONLY_IMAGE_FIELDS: Final = ("_id", "uri", "created_at", "updated_at", "accessed_at", "access_count")
READ_ONLY_USER_FIELDS: Final = ("_id", "secret_key", "created_at", "updated_at")
MANDATORY_IMAGE_FIELDS: Final = ("name", "architecture")
MANDATORY_USER_FIELDS: Final = ("access_key", "email")
#: Fields of an image that a peer may set.
SETTABLE_IMAGE_FIELDS: Final = (
    *MANDATORY_IMAGE_FIELDS,
    "owner",
    "status",
    "size",
    "checksum",
    "access",
    "type",
    "format",
    "uploaded_at",
    "store",
    "location",
    "kernel",
    "ramdisk",
)
NAMED: Final = frozenset({*IMAGE_FIELDS, "accessed_at", "access_count", "others"})

NO_ROUTE: Final = "Invalid operation or path."
NO_IMAGES: Final = "No public images found."
NO_IMAGES_FILTERED: Final = "No public images found with given parameters."
NO_USERS: Final = "No users found."
NO_USERS_FILTERED: Final = "No users found with given parameters."

TEXT_LIMIT: Final = 255  # characters of a store's name, a checksum, an owner
LOCATION_LIMIT: Final = 4096
SIZE_LIMIT: Final = (1 << 63) - 1

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_SECRET: Final = re.compile(r"[\x21-\x7e]{1,255}\Z")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+\Z")
CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")
_MOMENT: Final = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d{1,6})?\d* ?(Z|UTC|[+-]\d\d:?\d\d)\Z", re.ASCII)


class InvalidDocument(Exception):
    """What a server sent is no such document. The message names the field, and no value: it may be logged."""


# --- moments -----------------------------------------------------------------------------------


def format_moment(moment: datetime) -> str:
    """A moment as Ruby's `Time#to_s` writes it, in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S +0000")


def written_value(value: Any) -> Any:
    """A value as it is written: moments as Ruby writes them."""
    return format_moment(value) if isinstance(value, datetime) else value


def parse_moment(text: str) -> datetime:
    """An aware moment in UTC, from Ruby's form or RFC 3339's.

    Raises:
        InvalidDocument: It is neither.
    """
    found = _MOMENT.match(text)
    if found is None:
        raise InvalidDocument("a moment of another form")
    day, time, fraction, zone = found.groups()
    zone = "+00:00" if zone in {"Z", "UTC"} else zone
    try:
        return datetime.fromisoformat(
            f"{day}T{time}{(fraction or '').ljust(7, '0') if fraction else ''}{zone}"
        ).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise InvalidDocument("a moment that does not exist") from exc


def json_object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise InvalidDocument("no JSON") from exc
    if not isinstance(found, dict):
        raise InvalidDocument("no JSON object")
    return found


def under(body: bytes, key: str) -> Any:
    found = json_object(body)
    if key not in found:
        raise InvalidDocument(f"no '{key}'")
    return found[key]


def attribute_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return value if isinstance(value, str) and not CONTROLS.search(value) and _encodes(value) else None


def checked_value(name: str, value: Any, check: Callable[[Any], Any]) -> Any:
    if value is None:
        return None
    try:
        return check(value)
    except (InvalidDocument, TypeError, ValueError) as exc:
        raise InvalidDocument(f"invalid '{name}'") from exc


def _matching(pattern: re.Pattern[str], limit: int = TEXT_LIMIT) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > limit or not pattern.match(value):
            raise InvalidDocument("another form")
        return value

    return check


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise InvalidDocument("not one of its values")
        return value

    return check


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= NAME_LIMIT or CONTROLS.search(value) or not _encodes(value):
        raise InvalidDocument("another form")
    return value


def _encodes(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= SIZE_LIMIT:
        raise InvalidDocument("no count")
    return value


def _moment(value: Any) -> datetime:
    if not isinstance(value, str) or len(value) > TEXT_LIMIT:
        raise InvalidDocument("no moment")
    return parse_moment(value)


IMAGE_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "_id": _matching(_UUID),
    "name": _name,
    "architecture": _one_of(ARCHITECTURES),
    "access": _one_of(ACCESS),
    "type": _one_of(TYPES),
    "format": _one_of(FORMATS),
    "store": _matching(_VISIBLE),
    "location": _matching(_VISIBLE, LOCATION_LIMIT),
    "kernel": _matching(_UUID),
    "ramdisk": _matching(_UUID),
    "owner": _matching(ACCESS_KEY),
    "status": _one_of(STATUSES),
    "size": _count,
    "created_at": _moment,
    "uploaded_at": _moment,
    "updated_at": _moment,
    "accessed_at": _moment,
    "access_count": _count,
    "checksum": _matching(_VISIBLE),
}
USER_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "_id": _matching(_UUID),
    "access_key": _matching(ACCESS_KEY),
    "secret_key": _matching(_SECRET),
    "email": _matching(_VISIBLE),
    "created_at": _moment,
    "updated_at": _moment,
}
