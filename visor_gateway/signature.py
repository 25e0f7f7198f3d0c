"""Request signatures: the canonical text, signing and checking. Sans-IO.

Two schemes share one form (docs/protocol.md). `VISOR` is HMAC-SHA1 and what VISOR 2012 clients send.
`VISOR-HMAC-SHA256` also covers `content-digest`, `x-visor-nonce` and the query. The text is bytes: header names as
sent, lower-cased; values as received, outer blanks stripped; nothing is decoded or normalised:

    METHOD \\n
    one line per signed header, sorted by lower-case name (`name:value` for x-image-meta-*, the bare value else)
    path [? sorted query parts joined by &]
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

from .errors import InvalidRequest
from .image import HEADER_PREFIX

SHA1: Final = "VISOR"
SHA256: Final = "VISOR-HMAC-SHA256"
BEARER: Final = "Bearer"

# No `:`, which ends it in credentials. Dot segments would vanish from a URL's path (RFC 3986, 5.2.4).
ACCESS_KEY: Final = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,64}\Z")
_DATE_LENGTH: Final = 64  # bytes; the longest form of RFC 9110 has 33
NONCE_LENGTH: Final = range(16, 65)

Headers = Iterable[tuple[bytes, bytes]]

#: Signed headers other than x-image-meta-* and the date; absent ones sign an empty line.
_SIGNED: Final = {
    SHA1: (b"content-md5", b"content-type"),
    SHA256: (b"content-digest", b"content-md5", b"content-type", b"x-visor-nonce"),
}
_HASHES: Final = {SHA1: hashlib.sha1, SHA256: hashlib.sha256}


class Credentials(msgspec.Struct, frozen=True):
    """What an `Authorization` header of one of the VISOR schemes claims."""

    scheme: str
    access_key: str
    signature: str


def parse(value: str) -> Credentials | None:
    """The claim of an `Authorization` value; None where it is not of these schemes or malformed."""
    scheme, _, rest = value.strip().partition(" ")
    access_key, colon, signature = rest.strip().rpartition(":")
    if scheme not in _SIGNED or not colon or not access_key or not signature:
        return None
    return Credentials(scheme, access_key, signature)


def signed_headers(headers: Headers) -> dict[bytes, bytes]:
    """The headers that a signature can cover, by lower-case name.

    Raises:
        InvalidRequest: One of them is there twice, so that it is not known which one was signed.
    """
    found: dict[bytes, bytes] = {}
    singles = {*_SIGNED[SHA256], b"date", b"x-visor-date", b"authorization"}
    for raw_name, value in headers:
        name = raw_name.lower()
        if name in singles or name.startswith(HEADER_PREFIX):
            if name in found:
                raise InvalidRequest(f"The header '{name.decode('ascii', 'replace')}' is sent twice")
            found[name] = value.strip(b" \t")
    return found


def canonical_text(scheme: str, method: str, target: bytes, headers: Headers) -> bytes:
    """The bytes that are signed.

    Args:
        target: The request target as sent on the request line.

    Raises:
        InvalidRequest: A signed header is there twice.
    """
    return _text(scheme, method, target, signed_headers(headers), _SIGNED[scheme])


def _text(scheme: str, method: str, target: bytes, found: dict[bytes, bytes], singles: Sequence[bytes]) -> bytes:
    lines = {name: found.get(name, b"") for name in singles}
    lines[b"date"] = date_line(scheme, found)
    lines |= {name: name + b":" + value for name, value in found.items() if name.startswith(HEADER_PREFIX)}
    path, mark, query = target.partition(b"?")
    if mark and scheme == SHA256:
        path += b"?" + b"&".join(sorted(query.split(b"&")))
    return b"\n".join([method.encode("ascii"), *(lines[name] for name in sorted(lines)), path])


def date_line(scheme: str, found: Mapping[bytes, bytes]) -> bytes:
    """The date that counts: `X-Visor-Date`, which browsers can set, in the newer scheme; else `Date`."""
    if scheme == SHA256 and b"x-visor-date" in found:
        return found[b"x-visor-date"]
    return found.get(b"date", b"")


def sign(scheme: str, text: bytes, secret_key: str) -> str:
    """Base64 of the HMAC of `text`."""
    return base64.b64encode(hmac.digest(secret_key.encode(), text, _HASHES[scheme])).decode("ascii")


def authorization(scheme: str, method: str, target: bytes, headers: Headers, access_key: str, secret_key: str) -> str:
    """The `Authorization` value for a request that carries `headers`."""
    return f"{scheme} {access_key}:{sign(scheme, canonical_text(scheme, method, target, headers), secret_key)}"


def verify(credentials: Credentials, method: str, target: bytes, headers: Headers, secret_key: str) -> bool:
    """Whether the signature is right. The comparison takes the same time wherever the difference is.

    A request without nonce may have signed an empty line in its place, or no line: both are taken.
    """
    found = signed_headers(headers)
    singles = _SIGNED[credentials.scheme]
    texts = [_text(credentials.scheme, method, target, found, singles)]
    if b"x-visor-nonce" not in found and b"x-visor-nonce" in singles:
        texts.append(_text(credentials.scheme, method, target, found, singles[:-1]))
    claimed = credentials.signature.encode("utf-8", "replace")
    matches = [hmac.compare_digest(sign(credentials.scheme, text, secret_key).encode(), claimed) for text in texts]
    return any(matches)


def date_seconds(value: bytes) -> float | None:
    """POSIX seconds of an HTTP date (RFC 9110, 5.6.7); None where it is none."""
    return _known_date(value) if len(value) <= _DATE_LENGTH else _parsed_date(value)


@functools.lru_cache(maxsize=64)  # whoever sends a date sends that of this second
def _known_date(value: bytes) -> float | None:
    return _parsed_date(value)


def _parsed_date(value: bytes) -> float | None:
    try:
        return parsedate_to_datetime(value.decode("ascii")).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def link_signature(secret_key: str, image_id: str, access_key: str, expires: int) -> str:
    """Signature of a link that lets its bearer read one image until `expires` (POSIX seconds). URL-safe base64.

    It is made with the issuer's secret, so that it is void once the issuer is deleted or rotated.
    """
    text = "\n".join(("visor-link", image_id, access_key, str(expires)))
    digest = hmac.digest(secret_key.encode(), text.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
