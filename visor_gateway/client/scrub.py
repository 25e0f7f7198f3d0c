"""Scrubs of a gateway's images. For admins."""

from __future__ import annotations

from collections.abc import Sequence

from .entity import Record
from .session import Reply, Session


class Scrub:
    """The scrub API of a gateway. Every method returns the state, and raises `VisorError` as its classes say."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def state(self) -> Record:
        """The image under way (`image`, `bytes`, `size`), how many are `waiting`, and the `bad` ones."""
        return self._state(await self._session.call("GET", "/scrub"))

    async def ask(self, image_ids: Sequence[str] | None = None) -> Record:
        """Have these images read and hashed again, or every one of the file stores, those of the longest ago first.

        Raises:
            NotFound, Conflict: One of them can't be scrubbed; none was asked for.
        """
        body = {} if image_ids is None else {"images": list(image_ids)}
        return self._state(await self._session.call("POST", "/scrub", json=body))

    @staticmethod
    def _state(reply: Reply) -> Record:
        state: Record = reply.json("scrub")
        return state
