"""What S3 services answer: errors and lists in XML (Amazon S3 API Reference, "Error Responses"). Sans-IO."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final
from urllib.parse import unquote_plus
from xml.etree import ElementTree  # ruff: ignore[suspicious-xml-etree-import] - declarations are refused below

import msgspec

from ..errors import ObjectMissing, StoreError, StoreFull, StoreUnreachable

Element = ElementTree.Element

_CODE: Final = re.compile(r"[A-Za-z0-9.]{1,64}\Z")

_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING_CODES: Final = frozenset({
    "ConditionalRequestConflict", "InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable",
    "SlowDown", "ThrottlingException",
})  # fmt: skip
_FULL: Final = frozenset({
    "EntityTooLarge", "InsufficientCapacity", "QuotaExceeded", "QuotaExceededException", "StorageFull",
    "TooManyBuckets", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded",
})  # fmt: skip
_SKEWED: Final = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_REFUSED: Final = frozenset({
    "AccessDenied", "AccountProblem", "AllAccessDisabled", "InvalidAccessKeyId", "InvalidSecurity",
    "SignatureDoesNotMatch",
})  # fmt: skip
_ELSEWHERE: Final = frozenset({
    "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "Redirect",
    "TemporaryRedirect",
})  # fmt: skip


class Refusal(msgspec.Struct, frozen=True):
    """An answer that is none.

    Attributes:
        error: What it means to us. Its words name the store and the service's error code, nothing else of the answer.
        passing: Whether the same request may succeed soon.
    """

    error: StoreError
    passing: bool


def refusal(store: str, status: int, content: bytes) -> Refusal:
    """Read an error."""
    code = error_code(content)
    if status in _PASSING or code in _PASSING_CODES:
        return Refusal(StoreUnreachable(f"The store '{store}' failed with {_shown(status, code)}"), True)
    return Refusal(_error(store, status, code), False)


def _error(store: str, status: int, code: str | None) -> StoreError:
    where = f"The store '{store}'"
    shown = _shown(status, code)
    if code == "NoSuchBucket":
        return StoreError(f"{where} has not the bucket that is configured")
    if code in _SKEWED:
        return StoreError(f"{where} refuses requests: its clock and that of the gateway differ too much")
    if code in _FULL or status == 507:
        return StoreFull(f"{where} has no room: {shown}")
    if code in _ELSEWHERE or 300 <= status < 400:
        return StoreError(f"{where} is to be asked elsewhere, endpoint or region are wrong: {shown}")
    if code in _REFUSED or status in {401, 403}:
        return StoreError(f"{where} refuses the gateway's keys or their rights: {shown}")
    if status == 404:
        return ObjectMissing(f"{where} has no such object")
    return StoreError(f"{where} refused a request: {shown}")


def _shown(status: int, code: str | None) -> str:
    return f"{status} {code}" if code else str(status)


def error_code(content: bytes) -> str | None:
    """The `Code` of an error, where there is one; also in an answer of status 200, as CompleteMultipartUpload gives."""
    try:
        root = parse(content)
    except ValueError:
        return None
    code = text(root, "Code") if tag(root) == "Error" else ""
    return code if _CODE.match(code) else None


def true_status(status: int, content: bytes) -> int:
    """The status that an answer should have had: services begin some with 200 and then find that they failed."""
    if not 200 <= status < 300 or b"<Error" not in content[:512]:
        return status
    code = error_code(content)
    return {None: status, "NoSuchUpload": 404, "PreconditionFailed": 412}.get(code, 500)


def parse(content: bytes) -> Element:
    """The root of an XML answer.

    Raises:
        ValueError: It is no XML, or declares entities: no service does, and expanding them can take all memory.
    """
    if b"<!" in content:
        raise ValueError("a document type where none belongs")
    try:
        return ElementTree.fromstring(content)  # ruff: ignore[suspicious-xml-element-tree-usage]
    except ElementTree.ParseError as exc:
        raise ValueError("not XML") from exc


def tag(element: Element) -> str:
    """An element's name without its namespace: services differ in it."""
    return element.tag.rpartition("}")[2]


def children(element: Element, name: str) -> Iterator[Element]:
    return (child for child in element if tag(child) == name)


def text(element: Element, name: str) -> str:
    """The text of the first child of that name; "" where there is none."""
    return next((child.text or "" for child in children(element, name)), "").strip()


class Listed(msgspec.Struct, frozen=True):
    """One object of a list."""

    key: str
    modified: datetime


def listed(root: Element) -> tuple[list[Listed], str | None]:
    """A page of ListObjects: objects, and the marker of the next page, None on the last.

    Raises:
        ValueError: It is no such list.
    """
    if tag(root) != "ListBucketResult":
        raise ValueError("not a list of objects")
    decoded = unquote_plus if text(root, "EncodingType") == "url" else str
    found = [
        Listed(decoded(text(item, "Key")), _time(text(item, "LastModified"))) for item in children(root, "Contents")
    ]
    more = text(root, "IsTruncated").lower() == "true" and found
    return found, (decoded(text(root, "NextMarker")) or found[-1].key) if more else None


def upload_ids(root: Element, key: str) -> list[str]:
    """The uploads under way for exactly that key.

    Raises:
        ValueError: It is no list of uploads.
    """
    if tag(root) != "ListMultipartUploadsResult":
        raise ValueError("not a list of uploads")
    return [text(item, "UploadId") for item in children(root, "Upload") if text(item, "Key") == key]


def _time(written: str) -> datetime:
    time = datetime.fromisoformat(written)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
