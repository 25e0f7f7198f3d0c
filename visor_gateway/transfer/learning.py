"""What all bytes of an image are held to: the record's SHA-256, or the BLAKE3 that was learned together with it.

SHA-256 costs more than moving the bytes does, BLAKE3 less than half of that. So whoever reads all of an image and
finds its SHA-256 right has hashed it by BLAKE3 as well, and keeps that. Later reads are held to the BLAKE3 alone: to
pass, other bytes would have to collide with those that the SHA-256 has let pass.
"""

from __future__ import annotations

import hmac
from typing import Final

import structlog
import trio

from ..errors import MetadataUnavailable, ObjectChanged
from ..image import Image
from ..meta.contract import ImageRepository
from .digest import Digests

#: How long a client waits for its last block because of what later ones will gain.
LEARN_SECONDS: Final = 1.0

_log: Final = structlog.get_logger("visor_gateway.learning")


def digests_for(image: Image) -> Digests:
    """The digests that a read of all of an image has to run."""
    if image.sha256 is None:
        return Digests(("sha256",))
    return Digests(("blake3",) if image.blake3 is not None else ("sha256", "blake3"))


async def demand_right(images: ImageRepository, image: Image, digests: Digests) -> None:
    """Compare digests of all bytes of an image with its record, which has a SHA-256. Learn its BLAKE3 where it is new.

    Where bytes have another BLAKE3 than was learned, that is forgotten: the next read is held to the SHA-256 again,
    which is what the record promises.

    Args:
        image: The record from which `digests_for` has made the digests.

    Raises:
        ObjectChanged: They differ.
    """
    if "sha256" in digests:
        if _are(digests, "sha256", image.sha256):
            await _learn(images, image, digests.hex("blake3"))
            return
    elif _are(digests, "blake3", image.blake3):
        return
    else:
        await _learn(images, image, None)
    raise ObjectChanged("The bytes in the store are not those that the record describes: their digest differs")


def _are(digests: Digests, name: str, expected: str | None) -> bool:
    return expected is not None and hmac.compare_digest(digests.hex(name), expected)


async def _learn(images: ImageRepository, image: Image, blake3: str | None) -> None:
    """A database that is away or slow keeps no client from its bytes: a later read learns it."""
    try:
        with trio.move_on_after(LEARN_SECONDS):
            await images.learn(image, blake3)
    except MetadataUnavailable as error:
        _log.warning("BLAKE3 of an image not recorded", image=image.id, error=error.message)
