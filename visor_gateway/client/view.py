"""The present state of transfers, kept from the messages of a live channel. Sans-IO."""

from __future__ import annotations

from typing import Any, Final

from .entity import Record
from .live import Message

ENDED: Final = frozenset({"finished", "failed", "cancelled"})
_DELTA: Final = ("bytes", "rate", "eta_s", "state", "wait")


class TransferView:
    """What the messages so far add up to.

    Attributes:
        transfers: Transfer objects by id; those that ended are no longer in it.
        totals: The last totals that the gateway told.
    """

    def __init__(self) -> None:
        self.transfers: dict[str, Record] = {}
        self.totals: Record = {}

    def apply(self, message: Message) -> None:
        """Take in one message, of whatever type."""
        match message:
            case {"type": "snapshot", "transfers": list(transfers)}:
                self.transfers = {transfer["id"]: transfer for transfer in transfers if transfer["state"] not in ENDED}
                self.totals = message.get("totals") or {}
            case {"type": "delta"}:
                self._change(message.get("u") or [], message.get("removed") or [])
            case {"type": "event", "transfer": {"id": str(key), "state": str(state)} as transfer}:
                if state in ENDED:
                    self.transfers.pop(key, None)
                else:
                    self.transfers[key] = transfer

    def _change(self, updates: list[list[Any]], removed: list[str]) -> None:
        for key, *values in updates:
            if key in self.transfers:
                self.transfers[key] |= dict(zip(_DELTA, values, strict=False))
        for key in removed:
            self.transfers.pop(key, None)
