"""Sends a watcher's messages to its client, at once or in a task, and tells a client that takes none.

Resource handling: the connection is closed at the end, and reset where the client takes nothing.
Error handling: a client that goes while it is served is no error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import trio

from ..transfer.contract import ClientConnection
from ..transfer.messages import Bye, ByeReason, encode
from ..transfer.plane import Watch

SLOW_SECONDS: Final = 10.0  # a subscriber that takes nothing for so long is closed
PING_SECONDS: Final = 5.0  # between a pong, or the opening, and the next ping
PING_SLACK: Final = 1.0  # for which a ping that is due waits for a message to go with
LOOK_SECONDS: Final = 1.0  # how often one that has not taken all is looked at
GLANCE_SECONDS: Final = 2.0  # the same for one that had: a look costs as much as a message
FAREWELL_SECONDS: Final = 1.0


class Outlet(Protocol):
    """What carries messages to a client.

    Attributes:
        sends_now: Whether its connection can be sent messages without waiting.
    """

    sends_now: bool

    async def send(self, texts: Sequence[str], *, ping: bool) -> None:
        """Send messages in one write, and with `ping` a question that every reader answers, where there is such."""
        ...

    @property
    def pinged_at(self) -> float | None:
        """When the question was sent that is not answered yet."""
        ...

    async def close(self, reason: ByeReason) -> None: ...


class Sender:
    """Sends a watcher's messages, and tells a client that takes none. It is the watcher's `Sink`, too: where the
    connection can be sent messages without waiting, its task sleeps until a look is due.

    A client that stopped reading is seen by the pong that does not come, and by the bytes that its kernel does not
    acknowledge: our own kernel would take hours of messages before `send` blocks. `_left` is how many there were at the
    last look.
    """

    def __init__(self, watch: Watch, outlet: Outlet, connection: ClientConnection) -> None:
        self._watch = watch
        self._outlet = outlet
        self._connection = connection
        self._left = 0
        self._unsent = False  # whether the connection holds part of a message that is to be sent yet
        self._pause = trio.CancelScope()  # in which the task waits
        self._took_at = trio.current_time()
        self._looked_at = self._took_at
        self._ping_at = self._took_at + PING_SECONDS
        self._ping_slack = 0.0
        if outlet.sends_now:
            self._ping_slack = PING_SLACK
            watch.attach(self)

    # --- at once ---------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether the connection takes messages at once, of a client that takes what it is sent."""
        if not self._connection.sends_now:
            return False
        return (self._left == 0 and trio.current_time() < self._looked_at + GLANCE_SECONDS) or self._takes()

    def put(self, texts: Sequence[str]) -> bool:
        """Send messages without waiting, and a ping with them when it is time for one. Whether all is sent."""
        now = trio.current_time()
        ping = self._is_ping_due(now)
        if self._left == 0:
            self._took_at = now
        whole = self._connection.send_texts_now(texts, ping=ping)
        if ping:
            self._pause.deadline = self._look_at()
        if self._left:
            self._left = self._connection.unacknowledged()
        self._unsent = not whole
        return whole

    def _is_ping_due(self, now: float) -> bool:
        """Whether to ping now. If so, the next one is due some time later."""
        if now < self._ping_at or self._outlet.pinged_at is not None:
            return False
        self._ping_at = now + PING_SECONDS
        return True

    # --- in a task -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send until all is said or the client is gone or too slow; then it is closed."""
        try:
            if await self._deliver() and self._watch.farewell is not None:
                await self._close(self._watch.farewell)
            else:
                await self._close_slow()
        except OSError:  # gone
            return

    async def _deliver(self) -> bool:
        """Send messages. True when all is said, False when the client takes nothing."""
        while self._takes():
            text: str | None = ""
            with trio.CancelScope(deadline=self._look_at()) as self._pause:
                text = await self._watch.next_text()
            if text is None:
                return True
            await self._send([text, *self._watch.further_texts()] if text else [])
        return False

    def _look_at(self) -> float:
        """When to look at the client, though there is nothing to send."""
        now, pinged_at = trio.current_time(), self._outlet.pinged_at
        due = self._ping_at + self._ping_slack
        if pinged_at is not None and self._ping_at <= now:
            due = pinged_at + SLOW_SECONDS
        return min(due, now + LOOK_SECONDS) if self._left else due

    def _takes(self) -> bool:
        """Whether the client took something in the last `SLOW_SECONDS`, as far as there was something to take, and has
        answered its ping within them."""
        left, now = self._connection.unacknowledged(), trio.current_time()
        if left == 0 or left < self._left:
            self._took_at = now
        self._left, self._looked_at = left, now
        pinged_at = self._outlet.pinged_at
        return now - (self._took_at if pinged_at is None else min(pinged_at, self._took_at)) < SLOW_SECONDS

    async def _send(self, texts: Sequence[str]) -> None:
        """Send messages; a ping goes with them when it is time for one."""
        ping = self._is_ping_due(trio.current_time())
        if not (texts or ping or self._unsent):
            return
        self._unsent = False
        waits = self._left > 0
        if waits:
            self._takes()
        else:
            self._took_at = trio.current_time()
        with trio.move_on_after(SLOW_SECONDS) as bound:
            await self._outlet.send(texts, ping=ping)
        if bound.cancelled_caught:
            # Half a message may be out: nothing can follow it.
            self._connection.reset()
            raise ConnectionAbortedError
        if waits:
            # What was added is no sign that it took nothing of what there was.
            self._left = self._connection.unacknowledged()

    async def _close_slow(self) -> None:
        with trio.move_on_after(FAREWELL_SECONDS):
            await self._outlet.send([encode(Bye("slow"))], ping=False)
            await self._close("slow")
        self._connection.reset()

    async def _close(self, reason: ByeReason) -> None:
        with trio.move_on_after(FAREWELL_SECONDS) as bound:
            await self._outlet.close(reason)
        if bound.cancelled_caught:
            self._connection.reset()
