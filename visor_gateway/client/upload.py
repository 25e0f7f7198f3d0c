"""One image on its way to a gateway."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from contextlib import aclosing
from typing import Final

import anyio

from ..image import HEADER_PREFIX
from .body import Body, Source, opened
from .credentials import Header
from .download import Progress
from .entity import Record
from .errors import BadRequest, ConnectionBroken, DigestMismatch, VisorError
from .session import Reply, Session
from .transfers import Transfers

REASON_SECONDS: Final = 5.0  # to ask why an upload broke; the break itself is told anyway


class Upload:
    """Bytes for one image. `run` may be called once.

    Args:
        sha256: Hex digest that the bytes must have; the gateway refuses others.
        transfer_id: UUID under which the gateway lists the transfer; random where None.
    """

    def __init__(
        self, session: Session, *, sha256: str | None = None, transfer_id: str | None = None, progress: Progress
    ) -> None:
        self._session = session
        self._sha256 = sha256
        self._transfer_id = transfer_id or str(uuid.uuid4())
        self._progress = progress

    async def run(self, method: str, path: str, fields: Mapping[str, str], source: Source) -> Record:
        """Send the bytes of `source`, which is closed afterwards, and return the image's record.

        Nothing is tried twice: a gateway keeps no part of a cut upload. A cancellation leaves the image in `error`.

        Raises:
            DigestMismatch: The gateway says that it holds other bytes than were sent. The image is left as it is.
            VisorError: As its classes say.
            OSError: The source can't be read.
        """
        headers = field_headers(fields)
        headers.append((b"x-transfer-id", self._transfer_id.encode("ascii")))
        if self._sha256 is not None:
            headers.append((b"repr-digest", repr_digest(self._sha256)))
        async with aclosing(await opened(source)) as body:
            image: Record = (await self._sent(method, path, headers, body)).json("image")
            _check_stored(image, body.sha256())
        return image

    async def _sent(self, method: str, path: str, headers: list[Header], body: Body) -> Reply:
        self._progress(0, body.size)
        try:
            return await self._session.upload(method, path, headers, body, lambda sent: self._progress(sent, body.size))
        except ConnectionBroken as exc:
            broken = exc
        reason = await self._reason()
        if reason is None:
            raise broken
        raise ConnectionBroken(f"{broken.message}. The gateway says: {reason}") from broken

    async def _reason(self) -> str | None:
        """Why the gateway ended the transfer; None where it does not tell."""
        with anyio.move_on_after(REASON_SECONDS):
            try:
                transfer = await Transfers(self._session).get(self._transfer_id)
            except VisorError:
                return None
            return transfer.get("error")
        return None


def field_headers(fields: Mapping[str, str]) -> list[Header]:
    """Fields as `x-image-meta-*` headers (docs/protocol.md).

    Raises:
        BadRequest: A name or value that no header can carry.
    """
    return [(_header_name(name), _header_value(name, value)) for name, value in fields.items()]


def repr_digest(sha256: str) -> bytes:
    """`Repr-Digest` (RFC 9530) for a hex SHA-256. Raises `BadRequest` where it is none."""
    try:
        digest = bytes.fromhex(sha256)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise BadRequest("A SHA-256 is written as 64 hexadecimal digits")
    return b"sha-256=:%s:" % base64.b64encode(digest)


def _header_name(name: str) -> bytes:
    if not name or not name.isascii() or not name.replace("_", "").replace("-", "").isalnum():
        raise BadRequest(f"Invalid field name '{name}': letters, digits and _")
    # Some proxies drop names with `_`; the gateway reads `-` as `_`.
    return HEADER_PREFIX + name.lower().replace("_", "-").encode("ascii")


def _header_value(name: str, value: str) -> bytes:
    if any(character < " " and character != "\t" for character in value) or "\x7f" in value:
        raise BadRequest(f"The value of '{name}' holds a control character")
    return value.strip(" \t").encode("utf-8")


def _check_stored(image: Record, sent: str) -> None:
    """`checksum` is the SHA-256 unless the operator chose VISOR's MD5; then `sha256` stands beside it."""
    stored = image.get("sha256") or image.get("checksum") or ""
    if len(stored) == len(sent) and stored.lower() != sent:
        raise DigestMismatch(f"The gateway holds bytes with SHA-256 {stored}, those that were sent have {sent}")
