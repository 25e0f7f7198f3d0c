"""The loop of `visor top`: messages, keys and the screen, until `q`."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Final

import anyio
from rich.console import Console
from rich.live import Live

from ...client import Client, ConnectionBroken, Forbidden, Message, NotFound, Unreachable, VisorError
from ...client.view import TransferView
from ..follow import PAUSE_SECONDS, Following
from . import keys, screen
from .board import Board, Wish

REFRESH_SECONDS: Final = 0.25


async def watch(client: Client) -> None:
    """Show what moves on the gateway until the person ends it. The terminal is as before, however it ends.

    Raises:
        VisorError: The gateway refuses, or was never reached. One that is lost later is waited for.
    """
    await _Top(client, Board(), Console()).run()


class _Top:
    def __init__(self, client: Client, board: Board, console: Console) -> None:
        self._client = client
        self._board = board
        self._console = console
        self._heard = False

    async def run(self) -> None:
        with (
            keys.unbuffered(sys.stdin.fileno()),
            Live(console=self._console, screen=True, auto_refresh=False, transient=True) as live,
        ):
            async with anyio.create_task_group() as group:
                group.start_soon(self._follow)
                group.start_soon(self._listen, live)
                group.start_soon(self._name)
                while not self._board.ended:
                    self._draw(live)
                    await anyio.sleep(REFRESH_SECONDS)
                group.cancel_scope.cancel()

    def _draw(self, live: Live) -> None:
        width, height = self._console.size
        live.update(screen.render(self._board, width, height), refresh=True)

    async def _follow(self) -> None:
        while True:
            try:
                await Following(self._client, None, {}, self._hear).run()
            except (ConnectionBroken, Unreachable):
                if not self._heard:
                    raise
            await anyio.sleep(PAUSE_SECONDS)

    def _hear(self, message: Message, view: TransferView) -> None:
        self._heard = True
        self._board.hear(message, view)

    async def _name(self) -> None:
        """Look up the names of what moves, once each. What this user may not see stays an id."""
        while True:
            for image in self._board.unnamed():
                with suppress(VisorError):  # asked again
                    self._board.name(image, await self._name_of(image))
            await anyio.sleep(PAUSE_SECONDS)

    async def _name_of(self, image: str) -> str | None:
        try:
            return (await self._client.head(image)).get("name")
        except (NotFound, Forbidden):
            return None

    async def _listen(self, live: Live) -> None:
        while True:
            found = await keys.pressed(sys.stdin.fileno())
            for key in found:
                wish = self._board.press(key)
                if wish is not None:
                    await self._grant(wish)
            self._draw(live)

    async def _grant(self, wish: Wish) -> None:
        """Ask the gateway. What it refuses is told in the last line."""
        try:
            for id in wish.ids:
                if wish.change is None:
                    await self._client.transfers.cancel(id)
                else:
                    await self._client.transfers.change(id, wish.change)
        except VisorError as error:
            self._board.notice = str(error)
