"""Turns: of many tasks that are to begin something costly, one at a time goes on.

Trio runs all tasks that can go on before it looks for input again. Where the heads of 64 pulls arrive together, each
millisecond of a pull's start would be 64 for everybody else: for who asks for the status, and for who cancels.
"""

from __future__ import annotations

import trio


class Turns:
    """Gives turns in the order in which they are asked for, and lets everybody else run between two of them.

    A turn is no lock: nobody has to give it back, and who waits for a disk or a client meanwhile delays no other turn.
    """

    def __init__(self) -> None:
        self._waiting = trio.lowlevel.ParkingLot()
        self._is_taken = False

    async def take(self) -> None:
        """Return when it is the caller's turn: at once where nobody had one since the event loop looked for input.

        Cancelled while it waits it takes none. A checkpoint only where it waits.
        """
        if self._is_taken:
            await self._waiting.park()
        self._is_taken = True
        # Called after the caller's next wait, and after the event loop has looked for input.
        trio.lowlevel.current_trio_token().run_sync_soon(self._pass_on)

    def _pass_on(self) -> None:
        self._is_taken = bool(self._waiting.unpark())
