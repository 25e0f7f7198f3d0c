"""Transfers that ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import msgspec


class EndedTransfer(msgspec.Struct, frozen=True, kw_only=True):
    """A transfer that ended. Most fields are those of the transfer object (docs/protocol.md).

    Attributes:
        number: Its place in the history; 0 before it is stored.
        state: How it ended.
        rate_avg: Bytes per second.
        duration_ms: From its admission to its end.
        wait_client, wait_store, wait_limit, wait_disk: Milliseconds that it waited in all.
    """

    number: int = 0
    id: str
    kind: str
    image: str
    store: str | None
    client: str | None
    user: str | None
    state: str
    bytes: int
    size: int | None
    offset: int
    rate_avg: int
    started_at: datetime
    ended_at: datetime
    duration_ms: int
    wait_client: int
    wait_store: int
    wait_limit: int
    wait_disk: int
    attempt: int
    error: str | None


class HistoryQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the history, the newest first.

    Attributes:
        user: Whose transfers; None for everybody's.
        filters: Names of fields (image, kind, state, store, user) and the values of which one must be met.
        before: The number that all must be below; None for the newest.
        limit: Transfers at most.
    """

    user: str | None = None
    filters: tuple[tuple[str, frozenset[str]], ...] = ()
    before: int | None = None
    limit: int = 100


class HistoryRepository(Protocol):
    """Transfers that ended, in the order of their ends as far as one process saw them."""

    async def add(self, ended: Sequence[EndedTransfer], *, keep: int) -> None:
        """Remember these, and forget all but the last `keep`."""
        ...

    async def find(self, query: HistoryQuery) -> list[EndedTransfer]:
        """What is remembered."""
        ...
