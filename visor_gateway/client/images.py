"""Lists of images, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from .entity import Record
from .errors import NotFound
from .session import Reply, Session

PAGE: Final = 1000  # records of one answer: the most that a gateway gives

Filters = Mapping[str, str] | Sequence[tuple[str, str]]


class ImagePages:
    """Records of images in order, fetched page by page as they are asked for.

    Args:
        limit: Records in all; None for every one.
    """

    def __init__(
        self,
        session: Session,
        path: str,
        filters: Filters | None,
        *,
        sort: str | None,
        descending: bool,
        limit: int | None,
        marker: str | None,
    ) -> None:
        self._session = session
        self._path = path
        self._query = list(filters.items() if isinstance(filters, Mapping) else filters or ())
        self._query += [("sort", sort)] if sort else []
        self._query += [("dir", "desc")] if descending else []
        self._left = limit
        self._marker = marker
        self._page: list[Record] = []
        self._last = False

    def __aiter__(self) -> AsyncIterator[Record]:
        return self

    async def __anext__(self) -> Record:
        while not self._page:
            if self._last or self._left == 0:
                raise StopAsyncIteration
            await self._fetch()
        if self._left is not None:
            self._left -= 1
        return self._page.pop(0)

    async def collect(self) -> list[Record]:
        """Every record."""
        return [record async for record in self]

    async def _fetch(self) -> None:
        count = PAGE if self._left is None else min(PAGE, self._left)
        query = [*self._query, ("limit", str(count))]
        query += [("marker", self._marker)] if self._marker else []
        try:
            reply = await self._session.call("GET", self._path, query=query)
        except NotFound as exc:
            # Section 4: a list without a match is a 404 of this message. Any other 404 means a wrong address.
            if not exc.message.startswith("No public images found"):
                raise
            self._last = True
            return
        self._page = list(reply.json("images"))
        self._last = not self._page or not _has_next(reply)
        if self._page:
            self._marker = str(self._page[-1]["_id"])


def _has_next(reply: Reply) -> bool:
    return any(part.strip() == 'rel="next"' for part in reply.named.get("link", "").replace(",", ";").split(";"))
