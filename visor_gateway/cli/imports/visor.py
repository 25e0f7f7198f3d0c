"""Images as VISOR's Meta server and its database have them, and what they are here. Sans-IO."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from ...image import timestamp
from ...visor_documents import NAMED, ImageDocument, InvalidDocument, read_image
from .item import UUID, Item, Skipped, Unfit, check_record, custom_attributes, each_once, quoted, text_value

ID_ATTRIBUTE: Final = "visor_id"
_OWNER: Final = "visor_owner"
_MOMENTS: Final = {
    "created_at": "visor_created_at",
    "uploaded_at": "visor_uploaded_at",
    "updated_at": "visor_updated_at",
}
#: Columns of a dump whose values have no zone; Ruby wrote them in UTC unless its host was elsewhere.
_ZONELESS: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?\Z")
_ALGORITHMS: Final = {32: "md5", 64: "sha256"}  # VISOR's digest, and that of a gateway in the role of a Meta server
_HEX: Final = re.compile(r"[0-9a-f]+\Z")


def read_list(body: bytes) -> list[Any]:
    """The images of `{"images": [...]}`. Raises `Unfit`."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Unfit("the answer is no JSON") from exc
    if not isinstance(found, dict) or not isinstance(found.get("images"), list):
        raise Unfit('the answer has no list "images"')
    images: list[Any] = found["images"]
    return images


def with_zone(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a dump as the Meta API would show it: its moments in UTC."""
    return {
        name: f"{value} +0000"
        if (name in _MOMENTS or name == "accessed_at") and isinstance(value, str) and _ZONELESS.match(value)
        else value
        for name, value in row.items()
    }


class Reader:
    """Makes items of what VISOR tells.

    Args:
        store: The store that is to have the bytes; None for the gateway's default.
    """

    def __init__(self, *, store: str | None) -> None:
        self._store = store

    def read(self, images: Iterable[Any]) -> list[Item | Skipped]:
        """Every image, in the order of the list; one that is listed again is skipped."""
        return each_once(images, self._read)

    def _read(self, image: Any) -> Item | Skipped:
        if not isinstance(image, dict):
            return Skipped(reason="it is no object")
        source_id, name = image.get("_id"), image.get("name")
        shown = name if isinstance(name, str) else ""
        if not isinstance(source_id, str) or not UUID.match(source_id):
            return Skipped(name=shown, reason=f"_id {quoted(source_id)} is no UUID")
        try:
            return self._item(image, read_image(msgspec.json.encode({"image": image})))
        except InvalidDocument as exc:
            reason = _why(image, exc)
        except Unfit as exc:
            reason = str(exc)
        return Skipped(source_id=source_id, name=shown, reason=reason)

    def _item(self, image: Mapping[str, Any], document: ImageDocument) -> Item:
        if document.status not in {"available", "locked"}:
            raise Unfit(f"status '{document.status}': it has no bytes that are whole")
        reference = document.status == "available" and document.store == "http"
        has_bytes = document.status == "available" and not reference
        attributes, left_out = _attributes(image, document)
        fields = {"name": _name(document.name), "architecture": document.architecture, "access": document.access}
        fields |= {name: value for name in ("type", "format") if (value := getattr(document, name)) is not None}
        if reference:
            if document.location is None:
                raise Unfit("it is a reference without a location")
            fields |= {"store": "http", "location": document.location}
        elif has_bytes and self._store is not None:
            fields["store"] = self._store
        fields |= attributes | {ID_ATTRIBUTE: document.id}
        check_record(fields)
        return Item(
            source_id=document.id,
            fields=fields,
            size=document.size if has_bytes else None,
            digests=_digests(document.checksum) if has_bytes else {},
            has_bytes=has_bytes,
            requires={name: value for name in ("kernel", "ramdisk") if (value := getattr(document, name)) is not None},
            left_out=tuple(left_out),
        )


def _attributes(image: Mapping[str, Any], document: ImageDocument) -> tuple[dict[str, str], list[str]]:
    told = {name: value for name, value in image.items() if name not in NAMED}
    others = image.get("others")
    if isinstance(others, str):  # `read_image` has found it to be an object
        others = msgspec.json.decode(others)
    if isinstance(others, dict):
        told = others | told
    moments = {new: getattr(document, old) for old, new in _MOMENTS.items()}
    own = {new: timestamp(moment) for new, moment in moments.items() if moment is not None}
    if document.owner is not None:
        own[_OWNER] = document.owner
    kept, left_out = custom_attributes(told, {ID_ATTRIBUTE, _OWNER, *_MOMENTS.values()})
    return kept | own, left_out


def _why(image: Mapping[str, Any], exc: InvalidDocument) -> str:
    """Its message, which names the field alone, with the value."""
    named = re.match(r"invalid '(\w+)'", str(exc))
    return f"{exc}: {quoted(image.get(named.group(1)))}" if named else str(exc)


def _name(name: str) -> str:
    try:
        return text_value(name)
    except Unfit as exc:
        raise Unfit(f"name {quoted(name)}: {exc}") from exc


def _digests(checksum: str | None) -> dict[str, str]:
    if checksum is None:
        return {}
    algorithm = _ALGORITHMS.get(len(checksum))
    if algorithm is None or not _HEX.match(checksum.lower()):
        raise Unfit(f"checksum {quoted(checksum)} is neither MD5 nor SHA-256")
    return {algorithm: checksum.lower()}
