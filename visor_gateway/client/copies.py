"""Where an image's bytes are, beside its first location."""

from __future__ import annotations

from collections.abc import Sequence

from .entity import Record
from .session import Reply, Session, segment


class Copies:
    """The copies API of a gateway. Every method raises `VisorError` as its classes say."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def list(self, image_id: str) -> Sequence[Record]:
        """The image's locations in the order in which they are read: `store`, `status` (`available`, `copying`, `bad`),
        `size`, `location`, `verified_at`. Raises `NotFound`."""
        return self._copies(await self._session.call("GET", self._path(image_id)))

    async def add(self, image_id: str, store: str) -> Record:
        """Have an image's bytes copied into another store, in the background.

        Returns:
            The transfer.

        Raises:
            NotFound: There is no such image.
            Conflict: It has no bytes, or they are in that store already or on the way there.
        """
        reply = await self._session.call("POST", self._path(image_id), json={"store": store})
        transfer: Record = reply.json("transfer")
        return transfer

    async def remove(self, image_id: str, store: str) -> Sequence[Record]:
        """Remove an image's bytes from one of its stores. Returns the locations that are left.

        Raises:
            NotFound: There is no such image, or it is not in that store.
            Conflict: Its bytes are nowhere else, or it is being copied.
        """
        return self._copies(await self._session.call("DELETE", f"{self._path(image_id)}/{segment(store)}"))

    @staticmethod
    def _path(image_id: str) -> str:
        return f"/images/{segment(image_id)}/copies"

    @staticmethod
    def _copies(reply: Reply) -> Sequence[Record]:
        copies: Sequence[Record] = reply.json("copies")
        return copies
