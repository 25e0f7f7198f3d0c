"""The cache of a gateway. For admins."""

from __future__ import annotations

from collections.abc import Sequence

from .entity import Record
from .session import Session, segment


class Cache:
    """The cache API of a gateway. Every method raises `VisorError` as its classes say."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def state(self) -> Record:
        """How many bytes it may have (`max_bytes`, 0 where it is off) and has, and its `entries`, the least recently
        used first: `image`, `size`, `sha256`, `used_at`."""
        state: Record = (await self._session.call("GET", "/cache")).json("cache")
        return state

    async def warm(self, image_id: str) -> Record:
        """Have an image filled in, ahead of those who will ask for it; the fill shows among the transfers.

        Returns:
            The state.

        Raises:
            NotFound, Conflict: There is no such image, or it can't be cached.
        """
        state: Record = (await self._session.call("POST", "/cache", json={"image": image_id})).json("cache")
        return state

    async def purge(self, image_id: str | None = None) -> Sequence[Record]:
        """Remove an image, or all. Pulls under way run on.

        Returns:
            The entries that were removed.

        Raises:
            NotFound: That image is not there.
        """
        path = "/cache" if image_id is None else f"/cache/{segment(image_id)}"
        removed: Sequence[Record] = (await self._session.call("DELETE", path)).json("removed")
        return removed
