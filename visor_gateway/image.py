"""The image record: its fields, what a client may set, and how it travels in headers.

Sans-IO. The table of fields and their header form: docs/protocol.md. A record is a
frozen value: changing one makes another.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from .errors import InvalidField, InvalidRequest

HEADER_PREFIX: Final = b"x-image-meta-"

ARCHITECTURES: Final = ("i386", "x86_64", "aarch64", "armv7l", "ppc64le", "s390x", "riscv64")
ACCESS: Final = ("public", "private")
TYPES: Final = ("none", "kernel", "ramdisk", "machine", "amazon", "eucalyptus", "openstack", "opennebula", "nimbus")
FORMATS: Final = ("none", "iso", "raw", "qcow2", "vhd", "vhdx", "vdi", "vmdk", "ova", "ami", "aki", "ari")

#: Values that a field may have, for the fields that have a closed list.
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "architecture": ARCHITECTURES,
    "access": ACCESS,
    "type": TYPES,
    "format": FORMATS,
}
#: VISOR called the Lunacloud store by two names.
STORE_ALIASES: Final[Mapping[str, str]] = {"lcs": "lunacloud"}

MANDATORY: Final = ("name", "architecture")
CLIENT_FIELDS: Final = (
    "name",
    "architecture",
    "access",
    "type",
    "format",
    "store",
    "location",
    "kernel",
    "ramdisk",
)
#: Set by the gateway. `accessed_at` and `access_count` are kept and never shown.
GATEWAY_FIELDS: Final = (
    "_id",
    "uri",
    "status",
    "size",
    "checksum",
    "sha256",
    "owner",
    "created_at",
    "updated_at",
    "uploaded_at",
    "accessed_at",
    "access_count",
)
#: Fields in the order in which they are shown; `sha256` only where `checksum` is another digest.
SHOWN: Final = (
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
BRIEF: Final = ("_id", "uri", "name", "architecture", "type", "format", "store", "size", "created_at")

NAME_LIMIT: Final = 255  # characters
ATTRIBUTE_LIMIT: Final = 32  # custom attributes of one record
RECORD_LIMIT: Final = 6 * 1024  # bytes of all names and values: the head that shows them must fit other servers' limits
ATTRIBUTE_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,63}\Z")


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """One image's record.

    Attributes:
        size: Bytes; None until they are known.
        checksum: Hex digest shown to clients; for an `http` reference the origin's ETag without quotes.
        sha256: Hex SHA-256 of the bytes; None until they are known.
        attempt_id: The writing attempt that holds the image while `uploading`, or that wrote its bytes.
        validator: The store's validator of the object at commit (`ObjectInfo.validator`).
        learned: "SHA-256:BLAKE3", hex: the BLAKE3 of bytes that were found to have that SHA-256; None while nobody
            looked. Clients are not shown it.
        scrubbed_at: When the bytes were last hashed again; None since they were stored.
        bad_since: When they were found to be no longer those that were stored; None while they are right.
        attributes: Custom attributes.
    """

    id: str
    name: str
    architecture: str
    owner: str
    created_at: datetime
    access: str = "public"
    status: str = "locked"
    type: str | None = None
    format: str | None = None
    store: str | None = None
    location: str | None = None
    kernel: str | None = None
    ramdisk: str | None = None
    size: int | None = None
    checksum: str | None = None
    sha256: str | None = None
    updated_at: datetime | None = None
    uploaded_at: datetime | None = None
    accessed_at: datetime | None = None
    access_count: int = 0
    attempt_id: str | None = None
    validator: str | None = None
    learned: str | None = None
    scrubbed_at: datetime | None = None
    bad_since: datetime | None = None
    attributes: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def blake3(self) -> str | None:
        """Hex BLAKE3 of the bytes that have `sha256`; None while it is not known. What was learned of other bytes does
        not count."""
        sha256, _, blake3 = (self.learned or "").partition(":")
        return blake3 if blake3 and sha256 == self.sha256 else None

    def shown(self, uri: str) -> dict[str, Any]:
        """The record as clients see it: every named field, None where unset, then the custom attributes."""
        values = {name: self._value(name, uri) for name in SHOWN}
        if self.sha256 is not None and self.sha256 != self.checksum:
            values["sha256"] = self.sha256
        return values | self.attributes

    def brief(self, uri: str) -> dict[str, Any]:
        """The fields that lists show."""
        return {name: self._value(name, uri) for name in BRIEF}

    def _value(self, name: str, uri: str) -> Any:
        if name == "uri":
            return uri
        value = getattr(self, "id" if name == "_id" else name)
        return timestamp(value) if isinstance(value, datetime) else value


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, with microseconds, so that the text sorts as the time does."""
    # Not by strftime, which takes ten times as long: each transfer is shown at its start and at its end.
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def new_id() -> str:
    """A fresh `_id`: a random UUID (version 4)."""
    return str(uuid.uuid4())


def to_headers(shown: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """A shown record as `x-image-meta-*` headers; unset fields are left out."""
    return [
        (HEADER_PREFIX + name.encode("ascii"), str(value).encode("utf-8"))
        for name, value in shown.items()
        if value is not None
    ]


def from_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The fields that a request's headers name, as text, unchecked but for their form.

    Raises:
        InvalidRequest: A value is not UTF-8, holds CR, LF or NUL, or two headers name one field.
    """
    fields: dict[str, str] = {}
    for raw_name, raw_value in headers:
        # `_` stands for `-` in the field alone: a name that signatures do not cover must not set a field.
        if not raw_name.lower().startswith(HEADER_PREFIX):
            continue
        field = raw_name[len(HEADER_PREFIX) :].lower().replace(b"-", b"_").decode("ascii", "replace")
        if field in fields:
            raise InvalidRequest(f"The field '{field}' is given twice")
        try:
            value = raw_value.decode("utf-8").strip(" \t")
        except UnicodeDecodeError as exc:
            raise InvalidRequest(f"The value of '{field}' is not UTF-8 text") from exc
        if any(character in value for character in "\r\n\0"):
            raise InvalidRequest(f"The value of '{field}' holds CR, LF or NUL")
        fields[field] = value
    return fields


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """Checked fields of a request: `named` for the table's, None to unset one; `attributes` for custom ones."""

    named: dict[str, str | None]
    attributes: dict[str, str]

    def __bool__(self) -> bool:
        return bool(self.named or self.attributes)


def checked(fields: Mapping[str, str]) -> Fields:
    """Check fields that a client sent. An empty value unsets an optional field.

    Raises:
        InvalidField: A field is read-only or its value is not allowed; the message names it.
    """
    read_only = [name for name in fields if name in GATEWAY_FIELDS]
    if read_only:
        raise InvalidField(f"These fields are read-only: {', '.join(read_only)}")
    named = {name: _checked_value(name, value) for name, value in fields.items() if name in CLIENT_FIELDS}
    attributes = {name: value for name, value in fields.items() if name not in CLIENT_FIELDS}
    for name in attributes:
        if not ATTRIBUTE_NAME.match(name):
            raise InvalidField(f"Invalid attribute name '{name}': lower-case letters, digits and _, at most 64")
    return Fields(named=named, attributes=attributes)


def _checked_value(name: str, value: str) -> str | None:
    if name == "name" and not 1 <= len(value) <= NAME_LIMIT:
        raise InvalidField(f"Invalid name: it must have 1 to {NAME_LIMIT} characters")
    if value == "" and name not in MANDATORY:
        return None
    if name in CHOICES and value not in CHOICES[name]:
        raise InvalidField(f"Invalid {name} '{value}', available options: {', '.join(CHOICES[name])}")
    if name == "store":
        return STORE_ALIASES.get(value, value)
    if name == "location":
        _check_location(value)
    return value


def _check_location(location: str) -> None:
    """Raises InvalidField where a location is no URI of another host, or carries credentials."""
    try:
        parts = urlsplit(location)
        _ = parts.port
    except ValueError as exc:
        raise InvalidField("Invalid location: it is not a URI") from exc
    if parts.scheme not in ("http", "https"):
        raise InvalidField("Invalid location: its scheme must be http or https")
    if not parts.hostname or not location.isascii() or any(c <= " " or c == "\x7f" for c in location):
        raise InvalidField("Invalid location: it is not a URI")
    if "@" in parts.netloc:
        raise InvalidField("Invalid location: it may not carry credentials")


def create(fields: Fields, *, owner: str, now: datetime) -> Image:
    """A new `locked` record from checked fields.

    Raises:
        InvalidField: A mandatory field is missing, or the record is too large.
    """
    missing = [name for name in MANDATORY if name not in fields.named]
    if missing:
        raise InvalidField(f"These fields are required: {', '.join(missing)}")
    named = {name: value for name, value in fields.named.items() if value is not None}
    image = msgspec.convert(
        {**named, "attributes": fields.attributes, "id": new_id(), "owner": owner, "created_at": now}, Image
    )
    _check_extent(image)
    return image


def change(image: Image, fields: Fields, *, now: datetime) -> Image:
    """The record with checked fields changed; attributes that are not named stay.

    Raises:
        InvalidField: The record would become too large.
    """
    named: dict[str, Any] = dict(fields.named)
    if named.get("access", "") is None:
        named["access"] = "public"
    changed = msgspec.structs.replace(
        image, **named, attributes={**image.attributes, **fields.attributes}, updated_at=now
    )
    _check_extent(changed)
    return changed


def _check_extent(image: Image) -> None:
    if len(image.attributes) > ATTRIBUTE_LIMIT:
        raise InvalidField(f"A record has at most {ATTRIBUTE_LIMIT} custom attributes, not {len(image.attributes)}")
    texts = [(name, getattr(image, name)) for name in CLIENT_FIELDS] + list(image.attributes.items())
    extent = sum(len(name.encode()) + len(value.encode()) for name, value in texts if value is not None)
    if extent > RECORD_LIMIT:
        raise InvalidField(f"All names and values of a record together may have {RECORD_LIMIT} bytes, not {extent}")
