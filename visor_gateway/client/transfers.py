"""What moves on a gateway (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Mapping

from .entity import Record
from .session import Reply, Session, segment


class Transfers:
    """The transfers API of a gateway. Every method raises `VisorError` as its classes say."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def list(self, filters: Mapping[str, str] | None = None) -> Record:
        """`{"transfers": [...], "totals": {...}}`; filters are image, kind, state, store and user."""
        return await self._listing("GET", filters or {})

    async def history(self, filters: Mapping[str, str] | None = None, *, limit: int = 100) -> Record:
        """`{"transfers": [...]}` of what ended, the newest first; the same filters, and at most `limit`, up to 1000."""
        query = [*(filters or {}).items(), ("limit", str(limit))]
        listing: Record = (await self._session.call("GET", "/transfers/history", query=query)).json()
        return listing

    async def get(self, transfer_id: str) -> Record:
        """One transfer, also for a while after it ended. Raises `NotFound`."""
        return await self._transfer("GET", transfer_id)

    async def cancel(self, transfer_id: str) -> Record:
        """End a transfer; its peer sees a reset connection. Raises `NotFound`."""
        return await self._transfer("DELETE", transfer_id)

    async def cancel_all(self, filters: Mapping[str, str]) -> Record:
        """End every transfer under way that the filters name, at least one. Returns a listing as `list` does."""
        return await self._listing("DELETE", filters)

    async def change(self, transfer_id: str, change: Mapping[str, object]) -> Record:
        """Change a transfer under way: `paused`, and `limit_bytes_per_s` (0 for no limit of its own).

        Raises `NotFound`, and `Conflict` where it has ended.
        """
        return await self._transfer("PATCH", transfer_id, change)

    async def change_all(self, filters: Mapping[str, str], change: Mapping[str, object]) -> Record:
        """The same for every transfer under way that the filters name, at least one. Returns a listing."""
        return await self._listing("PATCH", filters, change)

    async def limit(self) -> int | None:
        """Bytes per second of all transfers of the gateway together; None for no limit. For admins."""
        return self._limit(await self._session.call("GET", "/limits"))

    async def set_limit(self, bytes_per_s: int | None) -> int | None:
        """Change that limit. Returns the new one. For admins."""
        return self._limit(await self._session.call("PATCH", "/limits", json={"limit_bytes_per_s": bytes_per_s}))

    @staticmethod
    def _limit(reply: Reply) -> int | None:
        limit: int | None = reply.json("limits")["limit_bytes_per_s"]
        return limit

    async def _listing(
        self, method: str, filters: Mapping[str, str], json: Mapping[str, object] | None = None
    ) -> Record:
        reply = await self._session.call(method, "/transfers", query=list(filters.items()), json=json)
        listing: Record = reply.json()
        return listing

    async def _transfer(self, method: str, transfer_id: str, json: Mapping[str, object] | None = None) -> Record:
        reply = await self._session.call(method, f"/transfers/{segment(transfer_id)}", json=json)
        transfer: Record = reply.json("transfer")
        return transfer
