"""What an import knows of one image of the other service. Sans-IO."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from ...errors import InvalidField
from ...image import ATTRIBUTE_NAME, CLIENT_FIELDS, GATEWAY_FIELDS, checked, create

UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SHOWN: Final = 80  # characters of a foreign value that a reason quotes


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """An image that can be imported.

    Attributes:
        source_id: Its id there.
        fields: What the gateway is told, custom attributes and the source's id among them.
        size: Bytes that it must have; None where the source doesn't know.
        digests: Hex digests that they must have, by hashlib name.
        has_bytes: False for a record without bytes, and for a reference to another server.
        requires: Ids there of the images that `kernel` and `ramdisk` name.
        left_out: What of the source's record is not taken over, each with the reason.
    """

    source_id: str
    fields: dict[str, str]
    size: int | None = None
    digests: dict[str, str] = msgspec.field(default_factory=dict)
    has_bytes: bool = True
    requires: dict[str, str] = msgspec.field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name."""
        return self.fields["name"]


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """An image that can't be imported. `source_id` and `name` are empty where the source has none that is valid."""

    source_id: str = ""
    name: str = ""
    reason: str


class Unfit(Exception):
    """An image, or a value of one, that can't be imported. The message says why."""


def quoted(value: object) -> str:
    """A foreign value for a reason: short, and nothing that a terminal obeys."""
    shown = str(value)
    return (
        "'"
        + "".join(c if c.isprintable() else "?" for c in shown[:_SHOWN])
        + ("..." if len(shown) > _SHOWN else "")
        + "'"
    )


def text_value(value: Any) -> str:
    """A value as the text of a field. Raises `Unfit` where that would not be the same value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise Unfit("it is no text")
    if not value or value != value.strip(" \t"):
        raise Unfit("it is empty, or begins or ends with a blank")
    if _UNFIT.search(value):
        raise Unfit("it holds a control character")
    return value


def custom_attributes(found: Mapping[str, Any], taken: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """What of `found` a record can have as custom attributes, and what not, with reasons. Nulls are nothing.

    Args:
        taken: Names that the import itself uses.
    """
    kept, left_out = {}, []
    for name, value in found.items():
        if value is None:
            continue
        try:
            _check_name(name, taken)
            kept[name] = text_value(value)
        except Unfit as exc:
            left_out.append(f"{quoted(name)}: {exc}")
    return kept, left_out


def _check_name(name: str, taken: Collection[str]) -> None:
    if not ATTRIBUTE_NAME.match(name):
        raise Unfit("no name that an attribute can have")
    if name in CLIENT_FIELDS or name in GATEWAY_FIELDS or name in taken:
        raise Unfit("the name means something else here")


def each_once(images: Iterable[Any], read: Callable[[Any], Item | Skipped]) -> list[Item | Skipped]:
    """What `read` makes of every image, in the order of the list; one that is listed again is skipped."""
    found: list[Item | Skipped] = []
    seen: set[str] = set()
    for image in images:
        item = read(image)
        if item.source_id and item.source_id in seen:
            item = Skipped(source_id=item.source_id, name=item.name, reason="it is listed twice")
        seen.add(item.source_id)
        found.append(item)
    return found


def check_record(fields: Mapping[str, str]) -> None:
    """Raises `Unfit` where the gateway would refuse a record of these fields, with the words that it would use."""
    try:
        create(checked(fields), owner="", now=_EPOCH)
    except InvalidField as exc:
        raise Unfit(exc.message) from exc
