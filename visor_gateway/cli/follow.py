"""Following transfers over the live channel: what is meant, and when it is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import anyio

from ..client import Client, ConnectionBroken, LiveChannel, Message, NotFound, Record, Unreachable, VisorError
from ..client.view import ENDED, TransferView

TRIES: Final = 8  # reconnects in a row that may bring nothing
PAUSE_SECONDS: Final = 1.0

#: Called with every message that matters, and with what all messages so far add up to.
Show = Callable[[Message, TransferView], None]


class Following:
    """What is followed, over as many connections as it takes.

    Args:
        wanted: A transfer's or an image's id; None to follow everything.
        filters: Fields of transfers to show, as the listing takes them.
        show: Where messages go.
        pause: Seconds before a lost channel is opened again.
    """

    def __init__(
        self,
        client: Client,
        wanted: str | None,
        filters: Mapping[str, str],
        show: Show,
        *,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        self._client = client
        self._wanted = wanted
        self._filters = dict(filters)
        self._show = show
        self._pause = pause
        self._field: str | None = None
        self._open: set[str] = set()
        self._outcomes: dict[str, str] = {}
        self._greeted = False
        self._silent = True

    async def run(self) -> int:
        """Follow until the transfer, or the last one of the image, has ended; for ever where everything is wanted.

        An image of which nothing moves yet is waited for.

        Returns:
            0; or 1 where a transfer failed or was cancelled.

        Raises:
            NotFound: There is neither a transfer nor an image of that id.
            VisorError: As its classes say.
        """
        failures = 0
        while True:
            try:
                async with self._client.watch() as channel:
                    if self._filters:
                        await channel.subscribe(only=self._filters)
                    if await self._read(channel):
                        return int(any(state != "finished" for state in self._outcomes.values()))
                if channel.bye == "auth":
                    raise VisorError("The gateway ended the live channel: the credentials are no longer valid")
            except (ConnectionBroken, Unreachable):
                if failures >= TRIES or not self._greeted:
                    raise
            # A gateway that accepts and hangs up at once is a failure, too; one that talked is not.
            failures = failures + 1 if self._silent else 0
            self._silent = True
            await anyio.sleep(self._pause)

    async def _read(self, channel: LiveChannel) -> bool:
        """Take messages until what was wanted is over, or the channel ends (False)."""
        view = TransferView()
        async for message in channel:
            self._greeted, self._silent = True, False
            view.apply(message)
            if message.get("type") == "snapshot":
                await self._settle(view)
            self._take(message, view)
            if self._wanted is not None and self._outcomes and not self._open:
                return True
        return False

    async def _settle(self, view: TransferView) -> None:
        """A snapshot shows what runs. Ask for the outcome of what was followed and does not run any more."""
        if self._wanted is not None and self._field is None:
            self._field = await self._meaning(self._wanted, view)
            if self._field == "id":
                self._open.add(self._wanted)
        self._open |= {key for key, transfer in view.transfers.items() if self._wanted and self._matches(transfer)}
        for key in self._open - view.transfers.keys():
            transfer = await self._client.transfers.get(key)
            if transfer["state"] in ENDED:
                self._take({"type": "event", "kind": transfer["state"], "transfer": transfer}, view)

    async def _meaning(self, wanted: str, view: TransferView) -> str:
        """The field of a transfer that holds `wanted`."""
        if wanted in view.transfers:
            return "id"
        try:
            await self._client.transfers.get(wanted)
        except NotFound:
            pass
        else:
            return "id"
        try:
            await self._client.head(wanted)
        except NotFound as exc:
            raise NotFound(f"No image or transfer found with id '{wanted}'.") from exc
        return "image"

    def _matches(self, transfer: Record) -> bool:
        return self._field is None or transfer.get(self._field) == self._wanted

    def _take(self, message: Message, view: TransferView) -> None:
        if self._wanted is not None:
            kept = self._kept(message, view)
            if kept is None:
                return
            message = kept
            self._note(message)
        self._show(message, view)

    def _note(self, message: Message) -> None:
        match message:
            case {"type": "event", "transfer": {"id": str(key), "state": str(state)}}:
                if state in ENDED:
                    self._open.discard(key)
                    self._outcomes[key] = state
                else:
                    self._open.add(key)

    def _kept(self, message: Message, view: TransferView) -> Message | None:
        """The part of a message that is about what is wanted; None where nothing of it is."""
        match message:
            case {"type": "snapshot", "transfers": list(transfers)}:
                return message | {"transfers": [transfer for transfer in transfers if self._matches(transfer)]}
            case {"type": "delta"}:
                kept = [update for update in message.get("u", ()) if self._matches(view.transfers.get(update[0], {}))]
                return message | {"u": kept} if kept else None
            case {"type": "event", "transfer": dict(transfer)}:
                return message if self._matches(transfer) else None
            case {"type": "error" | "bye"}:
                return message
        return None
