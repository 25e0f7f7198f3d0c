"""Bodies of control requests: how long they may be, and that they are what was signed."""

from __future__ import annotations

from typing import Final

from ..errors import InvalidRequest
from ..signature import SHA256
from ..transfer.digest import Digests, expected_digests
from .entity import Headers

JSON_LIMIT: Final = 64 * 1024  # bytes


async def check(headers: Headers, body: bytes) -> None:
    """Check a body against the digests that came with it. `headers` have lower-case names.

    Raises:
        InvalidRequest: It is signed by a scheme that covers bodies, without a digest.
        DigestMismatch: It is not the body that was signed.
    """
    authorization = next((value for name, value in headers if name == b"authorization"), b"")
    is_signed = authorization.startswith(SHA256.encode() + b" ")
    if is_signed and not any(name == b"content-digest" for name, _ in headers):
        raise InvalidRequest("A signed request with a body must carry Content-Digest")
    expected = expected_digests(headers)
    digests = Digests(expected)
    await digests.update(body)
    digests.check(expected)
