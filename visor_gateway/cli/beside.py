"""What the gateway says of a transfer of ours, beside our own bar: whom it waits for there.

A bar that stands still does not tell whether the gateway queues, waits for its store or is limited. The gateway is
asked once a second for the transfer of the connection that is open, and once it refuses, no more: who may not see
transfers sees the bar alone.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from ..client import Client, Forbidden, VisorError
from .output import byte_count

ASK_SECONDS: Final = 1.0
SHARE_SHOWN: Final = 0.2  # of the last interval's waits, from which one is worth a word
_WAITS: Final = {
    "client": "waits for this side",
    "store": "waits for its store",
    "limit": "waits for its limit",
    "disk": "waits for its disk",
}


class Beside:
    """Follows one transfer after the other.

    Args:
        tell: Gets a few words, or none, each time they change.
    """

    def __init__(self, client: Client, tell: Callable[[str], None]) -> None:
        self._client = client
        self._tell = tell
        self._told = ""
        self._id: str | None = None

    def follow(self, transfer_id: str) -> None:
        """Look at another transfer from now on: each connection of a download has one of its own."""
        self._id = transfer_id

    @asynccontextmanager
    async def looking(self) -> AsyncGenerator[None, None]:
        """Ask while the block runs. What goes wrong with asking is not told."""
        failure: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._look)
            try:
                yield
            except Exception as exc:
                # Carried out of the group as it is, not wrapped.
                failure = exc
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _look(self) -> None:
        while True:
            await anyio.sleep(ASK_SECONDS)
            if self._id is None:
                continue
            try:
                self._say(note(await self._client.transfers.get(self._id)))
            except Forbidden:
                return
            except VisorError:
                self._say("")

    def _say(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._tell(text)


def note(transfer: dict[str, Any]) -> str:
    """What is worth saying of a transfer; nothing while it simply moves."""
    state = transfer.get("state")
    if state == "queued":
        position = transfer.get("position")
        return f"queued at the gateway, place {position}" if position else "queued at the gateway"
    if state == "paused":
        return "paused at the gateway"
    if state != "running":
        return ""
    words = _waits(transfer.get("wait") or {})
    limit = transfer.get("limit_bytes_per_s")
    if limit:
        words.append(f"limited to {byte_count(limit)}/s")
    if (attempt := transfer.get("attempt") or 1) > 1:
        words.append(f"try {attempt}")
    return f"gateway {', '.join(words)}" if words else ""


def _waits(wait: dict[str, int]) -> list[str]:
    """The longest wait, if it matters."""
    kind, ms = max(wait.items(), key=lambda item: item[1], default=("", 0))
    total = sum(wait.values())
    if not ms or kind not in _WAITS or ms < SHARE_SHOWN * 250:  # of the gateway's interval between two samples
        return []
    return [f"{_WAITS[kind]} ({100 * ms // total} %)"]
