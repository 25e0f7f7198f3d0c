"""The live channel as a client sees it: `visor.progress.v1` over a WebSocket."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import trio
import trio_websocket
from canary import canary
from wire import Client, Value, raw, upgrade_headers
from wsproto.utilities import LocalProtocolError

PROTOCOL = "visor.progress.v1"
Message = dict[str, Any]


class Live:
    """One subscription. `seen` keeps every message that came."""

    def __init__(self, socket: trio_websocket.WebSocketConnection) -> None:
        self.socket = socket
        self.seen: list[Message] = []

    async def next(self, seconds: float = 60.0) -> Message:
        """The next message."""
        with trio.fail_after(seconds):
            text = await self.socket.get_message()
        assert isinstance(text, str), "frames are text"
        canary.look("a live message", text)
        message = json.loads(text)
        assert isinstance(message["type"], str)
        self.seen.append(message)
        return message

    async def until(self, wanted: Callable[[Message], Any], seconds: float = 60.0) -> Message:
        """The first message from here for which `wanted` is true."""
        with trio.fail_after(seconds):
            while True:
                message = await self.next(seconds)
                if wanted(message):
                    return message

    async def event(self, kind: str, transfer_id: str, seconds: float = 60.0) -> Message:
        """The event of that kind of one transfer."""
        return await self.until(
            lambda m: m["type"] == "event" and m["kind"] == kind and m["transfer"]["id"] == transfer_id, seconds
        )

    async def say(self, **message: Any) -> None:
        await self.socket.send_message(json.dumps(message))


@asynccontextmanager
async def subscribed(
    client: Client,
    *,
    target: str = "/transfers/ws",
    headers: Sequence[tuple[str, Value]] = (),
    protocols: Sequence[str] = (PROTOCOL,),
) -> AsyncGenerator[Live]:
    """Open the channel."""
    signed = [(name.encode(), raw(value)) for name, value in client.signed("GET", target, headers) if name != "Host"]
    parts = urlsplit(client.url)
    leaving = False
    try:
        # The stream is ours, and closed by us: the library forgets it when the gateway closes first.
        async with (
            await trio.open_tcp_stream(parts.hostname or "", parts.port or 80) as stream,
            trio.open_nursery() as nursery,
        ):
            socket = await trio_websocket.wrap_client_stream(
                nursery, stream, parts.netloc, target, subprotocols=list(protocols) or None, extra_headers=signed
            )
            try:
                yield Live(socket)
            finally:
                leaving = not nursery.cancel_scope.cancel_called
                with trio.move_on_after(2, shield=True):
                    await socket.aclose()
                nursery.cancel_scope.cancel()
    except* LocalProtocolError:
        # The library fails at a ping that crosses its goodbye.
        if not leaving:
            raise


def refusal(client: Client, *, target: str = "/transfers/ws", headers: Sequence[tuple[str, Value]] = ()) -> int:
    """The status with which an upgrade is refused, before anything is switched."""
    with client.start("GET", target, [*upgrade_headers(PROTOCOL), *headers]) as wire:
        answer = wire.read_head()
        assert answer.status != 101, "the upgrade was accepted"
        return answer.status
