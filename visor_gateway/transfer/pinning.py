"""The digest of a reference: nobody told it, so the first complete read finds it, and every later one is held to it."""

from __future__ import annotations

import hmac
from typing import Final

import structlog

from ..errors import MetadataUnavailable, ObjectChanged
from ..image import Image
from ..meta.contract import ImageRepository

_log: Final = structlog.get_logger("visor_gateway.pinning")


async def pin(images: ImageRepository, image: Image, sha256: str, size: int) -> None:
    """Record the hex SHA-256 of all bytes of a reference, `size` of them, if nobody has done so before.

    A database that is away keeps no client from its bytes: a later read pins them.

    Raises:
        ObjectChanged: Another read has found other bytes meanwhile.
    """
    try:
        known = await images.pin(image, sha256=sha256, size=size)
    except MetadataUnavailable as error:
        _log.warning("digest of a reference not recorded", image=image.id, error=error.message)
        return
    if known is not None and not hmac.compare_digest(known, sha256):
        raise ObjectChanged("The image file at its location has changed")
