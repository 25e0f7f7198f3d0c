"""Images as Glance's API (v2) lists them, and what they are here. Sans-IO."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from .item import UUID, Item, Skipped, Unfit, check_record, custom_attributes, each_once, quoted, text_value

ID_ATTRIBUTE: Final = "glance_id"
#: Fields that say something of Glance alone, of the bytes, or where they are; locations may hold credentials.
_OWN: Final = frozenset({
    *("self", "file", "schema", "direct_url", "locations", "stores", "virtual_size"),
    *("os_hash_algo", "os_hash_value", "checksum", "size", "status", "id", "name"),
    *("disk_format", "container_format", "visibility", "architecture", "kernel_id", "ramdisk_id"),
})  # fmt: skip
_INTERNAL: Final = "os_glance_"  # Glance's prefix for what it notes for itself
#: Fields of the same meaning under another name here, because a record has one of that name, or to say whose they are.
_RENAMED: Final = {
    "owner": "glance_owner",
    "visibility": "glance_visibility",
    "protected": "glance_protected",
    "created_at": "glance_created_at",
    "updated_at": "glance_updated_at",
}
_DISK_FORMATS: Final = frozenset({"ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso"})
_MACHINE_IMAGES: Final = frozenset({"ami", "ari", "aki"})  # their container has the name of the format
#: A shared or community image is private here: a record has no list of members.
_ACCESS: Final = {"public": "public", "private": "private", "shared": "private", "community": "private"}
#: Digits of a digest, by the names of its algorithms, which are those of hashlib.
_LENGTHS: Final = {"md5": 32, "sha1": 40, "sha224": 56, "sha256": 64, "sha384": 96, "sha512": 128}
_HEX: Final = re.compile(r"[0-9a-f]+\Z")


def read_pages(pages: Iterable[bytes]) -> list[Any]:
    """The images of one list: the bodies of `GET /v2/images` and of the pages after it, in their order.

    Raises:
        Unfit: A page is none, or the list goes on after the last of them.
    """
    images: list[Any] = []
    following = None
    for body in pages:
        try:
            page = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise Unfit("it is no JSON") from exc
        if not isinstance(page, dict) or not isinstance(page.get("images"), list):
            raise Unfit('it is no answer to GET /v2/images: it has no list "images"')
        images += page["images"]
        following = page.get("next")
    if following is not None:
        raise Unfit(f"the list goes on at {quoted(following)}: name the files with the pages that follow, too")
    return images


class Reader:
    """Makes items of what Glance tells.

    Args:
        architecture: That of images that name none; None for no such.
        renamed: Architectures here by the names that images use for them.
        store: The store that is to have the bytes; None for the gateway's default.
    """

    def __init__(self, *, architecture: str | None, renamed: Mapping[str, str], store: str | None) -> None:
        self._architecture = architecture
        self._renamed = renamed
        self._store = store

    def read(self, images: Iterable[Any]) -> list[Item | Skipped]:
        """Every image, in the order of the list; one that is listed again is skipped."""
        return each_once(images, self._read)

    def _read(self, image: Any) -> Item | Skipped:
        if not isinstance(image, dict):
            return Skipped(reason="it is no object")
        source_id, name = image.get("id"), image.get("name")
        if not isinstance(source_id, str) or not UUID.match(source_id):
            return Skipped(name=name if isinstance(name, str) else "", reason=f"id {quoted(source_id)} is no UUID")
        try:
            return self._item(source_id.lower(), image)
        except Unfit as exc:
            shown = name if isinstance(name, str) else ""
            return Skipped(source_id=source_id.lower(), name=shown, reason=str(exc))

    def _item(self, source_id: str, image: dict[str, Any]) -> Item:
        if image.get("status") != "active":
            raise Unfit(f"status {quoted(image.get('status'))}: only an active image has bytes to import")
        fields = {
            "name": _named_text(image, "name"),
            "architecture": self._architecture_of(image),
            "format": _format(image),
            "access": _one_of(image, "visibility", _ACCESS),
            **({} if self._store is None else {"store": self._store}),
        }
        attributes, left_out = _attributes(image)
        fields |= attributes | {ID_ATTRIBUTE: source_id}
        check_record(fields)
        return Item(
            source_id=source_id,
            fields=fields,
            size=_size(image),
            digests=_digests(image),
            requires={field: _id(image, key) for field, key in _REQUIRED.items() if image.get(key)},
            left_out=tuple(left_out),
        )

    def _architecture_of(self, image: dict[str, Any]) -> str:
        if image.get("architecture") is None:
            if self._architecture is None:
                raise Unfit("it names no architecture, and --architecture says none for such images")
            return self._architecture
        named = _named_text(image, "architecture")
        return self._renamed.get(named, named)


_REQUIRED: Final = {"kernel": "kernel_id", "ramdisk": "ramdisk_id"}


def _attributes(image: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    told = {
        name: value
        for name, value in image.items()
        if name not in _OWN and name not in _RENAMED and name != "tags" and not name.startswith(_INTERNAL)
    }
    for name in ("min_disk", "min_ram"):  # 0 is Glance's way to say: none
        if told.get(name) == 0:
            del told[name]
    for name in ("protected", "os_hidden"):  # what is not so needs no word
        if image.get(name) is False:
            told.pop(name, None)
    kept, left_out = custom_attributes(told, {ID_ATTRIBUTE, "tags", *_RENAMED.values()})
    renamed = {new: image[old] for old, new in _RENAMED.items() if image.get(old) not in (None, False)}
    if image.get("visibility") in {"public", "private"}:
        del renamed["glance_visibility"]
    more, worse = custom_attributes(renamed, ())
    if image.get("tags"):
        more["tags"] = _tags(image["tags"])
    return kept | more, left_out + worse


def _tags(tags: Any) -> str:
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise Unfit("tags are no list of texts")
    if any("," in tag for tag in tags):
        raise Unfit("a tag holds a comma")
    return text_value(",".join(tags))


def _format(image: Mapping[str, Any]) -> str:
    disk, container = image.get("disk_format"), image.get("container_format")
    if container == "ova":  # the bytes are those of the container, whatever disks it holds
        return "ova"
    if not isinstance(disk, str) or disk not in _DISK_FORMATS:
        raise Unfit(f"disk_format {quoted(disk)} has no counterpart here")
    if container != "bare" and (container != disk or disk not in _MACHINE_IMAGES):
        raise Unfit(f"container_format {quoted(container)} around {quoted(disk)} has no counterpart here")
    return disk


def _one_of(image: Mapping[str, Any], name: str, choices: Mapping[str, str]) -> str:
    found = image.get(name)
    if not isinstance(found, str) or found not in choices:
        raise Unfit(f"{name} {quoted(found)} has no counterpart here")
    return choices[found]


def _named_text(image: Mapping[str, Any], name: str) -> str:
    found = image.get(name)
    if not isinstance(found, str):
        raise Unfit(f"it has no {name}")
    try:
        return text_value(found)
    except Unfit as exc:
        raise Unfit(f"{name} {quoted(found)}: {exc}") from exc


def _id(image: Mapping[str, Any], name: str) -> str:
    found = image[name]
    if not isinstance(found, str) or not UUID.match(found):
        raise Unfit(f"{name} {quoted(found)} is no UUID")
    return found.lower()


def _size(image: Mapping[str, Any]) -> int | None:
    size = image.get("size")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
        raise Unfit(f"size {quoted(size)} is no count of bytes")
    return size


def _digests(image: Mapping[str, Any]) -> dict[str, str]:
    """MD5 as `checksum`, and what `os_hash_algo` names. Raises `Unfit` for one that can't be compared."""
    algorithm, value = image.get("os_hash_algo"), image.get("os_hash_value")
    if (algorithm is None) != (value is None):
        raise Unfit("of os_hash_algo and os_hash_value it has but one")
    if algorithm is not None and (not isinstance(algorithm, str) or algorithm not in _LENGTHS):
        raise Unfit(f"os_hash_algo {quoted(algorithm)} is not known here")
    digests: dict[str, str] = {}
    for name, digest in (("md5", image.get("checksum")), (algorithm, value)):
        if name is None or digest is None:
            continue
        if not isinstance(digest, str) or len(digest) != _LENGTHS[name] or not _HEX.match(digest.lower()):
            raise Unfit(f"{quoted(digest)} is no {name} digest")
        if digests.setdefault(name, digest.lower()) != digest.lower():
            raise Unfit("checksum and os_hash_value contradict each other")
    return digests
