"""What a Meta or Auth server answers: composed, and read with every value checked. Sans-IO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from ..image import ATTRIBUTE_LIMIT, ATTRIBUTE_NAME, RECORD_LIMIT, Image
from .fields import (
    BRIEF_IMAGE_FIELDS,
    CONTROLS,
    IMAGE_CHECKS,
    IMAGE_FIELDS,
    MANDATORY_IMAGE_FIELDS,
    NAMED,
    TEXT_LIMIT,
    USER_CHECKS,
    USER_FIELDS,
    InvalidDocument,
    attribute_text,
    checked_value,
    json_object,
    under,
    written_value,
)


class ImageDocument(msgspec.Struct, frozen=True, kw_only=True):
    """An image as a Meta server has it. Fields are those of `Image`; what is `None` there may be None here.

    Attributes:
        owner: Access key, or None where the server knows none.
        access_count, accessed_at: Only in the answer to DELETE.
        attributes: Custom attributes. Those whose name or value a record can't have are left out.
    """

    id: str
    name: str
    architecture: str
    created_at: datetime
    access: str = "public"
    status: str = "locked"
    type: str | None = None
    format: str | None = None
    store: str | None = None
    location: str | None = None
    kernel: str | None = None
    ramdisk: str | None = None
    owner: str | None = None
    size: int | None = None
    checksum: str | None = None
    uploaded_at: datetime | None = None
    updated_at: datetime | None = None
    accessed_at: datetime | None = None
    access_count: int = 0
    attributes: dict[str, str] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, image: Image) -> ImageDocument:
        """A record as a document."""
        return cls(**{name: getattr(image, name) for name in cls.__struct_fields__})


class UserDocument(msgspec.Struct, frozen=True, kw_only=True):
    """An account as an Auth server has it, with its secret in clear."""

    id: str
    access_key: str
    secret_key: str
    email: str
    created_at: datetime
    updated_at: datetime | None = None

    def __repr__(self) -> str:
        return f"UserDocument(access_key={self.access_key!r})"  # never the secret: it may be logged


# --- writing -----------------------------------------------------------------------------------


def error(code: int, message: str) -> dict[str, Any]:
    """The body of an error."""
    return {"code": code, "message": message}


def image(document: ImageDocument, uri: str) -> dict[str, Any]:
    """One image, as GET, POST, PUT and detailed lists write it."""
    return {**_fields(document, uri), **(document.attributes or {"others": None})}


def brief_image(document: ImageDocument) -> dict[str, Any]:
    """One image, as brief lists write it."""
    written = _fields(document, "")
    return {name: written[name] for name in BRIEF_IMAGE_FIELDS}


def deleted_image(document: ImageDocument, uri: str) -> dict[str, Any]:
    """One image, as DELETE writes it: with what is kept of accesses, and custom attributes as one text."""
    written = _fields(document, uri)
    checksum = written.pop("checksum")
    accesses = {"accessed_at": written_value(document.accessed_at), "access_count": document.access_count}
    others = msgspec.json.encode(document.attributes).decode() if document.attributes else None
    return {**written, **accesses, "checksum": checksum, "others": others}


def _fields(document: ImageDocument, uri: str) -> dict[str, Any]:
    named = {"_id": document.id, "uri": uri}
    return {name: named[name] if name in named else written_value(getattr(document, name)) for name in IMAGE_FIELDS}


def user(document: UserDocument) -> dict[str, Any]:
    """One user, as every route of an Auth server writes it."""
    return {name: written_value(getattr(document, "id" if name == "_id" else name)) for name in USER_FIELDS}


# --- reading answers -----------------------------------------------------------------------------


def read_image(body: bytes) -> ImageDocument:
    """The image of `{"image": {...}}`. Raises `InvalidDocument`."""
    return _image(under(body, "image"))


def read_images(body: bytes) -> tuple[list[ImageDocument], int]:
    """The images of a detailed `{"images": [...]}`, and how many more there were that are no image, or one that came
    before.

    Raises:
        InvalidDocument: The whole is no such list.
    """
    return _each(under(body, "images"), _image, lambda one: one.id)


def read_user(body: bytes) -> UserDocument:
    """The user of `{"user": {...}}`. Raises `InvalidDocument`."""
    return _user(under(body, "user"))


def read_users(body: bytes) -> tuple[list[UserDocument], int]:
    """The users of `{"users": [...]}`, as `read_images` does."""
    return _each(under(body, "users"), _user, lambda one: one.access_key)


def read_error(body: bytes) -> str:
    """The message of an error, on one line and short; empty where there is none. It is another server's text."""
    try:
        found = json_object(body).get("message")
    except InvalidDocument:
        return ""
    return CONTROLS.sub(" ", found)[:TEXT_LIMIT] if isinstance(found, str) else ""


def _each(found: Any, read: Callable[[Any], Any], identity: Callable[[Any], str]) -> tuple[list[Any], int]:
    if not isinstance(found, list):
        raise InvalidDocument("no list")
    documents: dict[str, Any] = {}
    refused = 0
    for one in found:
        try:
            document = read(one)
        except InvalidDocument:
            refused += 1
            continue
        if identity(document) in documents:
            refused += 1
        else:
            documents[identity(document)] = document
    return list(documents.values()), refused


def _image(found: Any) -> ImageDocument:
    if not isinstance(found, dict):
        raise InvalidDocument("an image that is no object")
    values = {
        ("id" if name == "_id" else name): checked_value(name, found.get(name), check)
        for name, check in IMAGE_CHECKS.items()
    }
    # Where nobody says that an image is public, it is not.
    values["access"] = values["access"] or "private"
    values["status"] = values["status"] or "error"
    values["access_count"] = values["access_count"] or 0
    for name in ("_id", *MANDATORY_IMAGE_FIELDS, "created_at"):
        if found.get(name) is None:
            raise InvalidDocument(f"no '{name}'")
    document = ImageDocument(**values, attributes=_attributes(found))
    texts = [document.name, document.store, document.location, *document.attributes, *document.attributes.values()]
    if sum(len(text.encode()) for text in texts if text) > RECORD_LIMIT:
        raise InvalidDocument("more text than a record may have")
    return document


def _attributes(found: Mapping[str, Any]) -> dict[str, str]:
    custom = {name: value for name, value in found.items() if name not in NAMED}
    others = found.get("others")
    if isinstance(others, str):
        try:
            others = msgspec.json.decode(others)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise InvalidDocument("invalid 'others'") from exc
    if isinstance(others, dict):
        custom = {name: value for name, value in others.items() if name not in NAMED} | custom
    elif others is not None:
        raise InvalidDocument("invalid 'others'")
    kept = {
        name: text
        for name, value in custom.items()
        if ATTRIBUTE_NAME.match(name) and (text := attribute_text(value)) is not None
    }
    if len(kept) > ATTRIBUTE_LIMIT:
        raise InvalidDocument("more custom attributes than a record may have")
    return kept


def _user(found: Any) -> UserDocument:
    if not isinstance(found, dict):
        raise InvalidDocument("a user that is no object")
    values = {}
    for name, check in USER_CHECKS.items():
        value = checked_value(name, found.get(name), check)
        if value is None and name != "updated_at":
            raise InvalidDocument(f"no '{name}'")
        values["id" if name == "_id" else name] = value
    return UserDocument(**values)
