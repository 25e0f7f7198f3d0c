"""Clients that take or send nothing, or too little: watchers are told, and where there is a minimum rate they are cut.

What counts is the time that a transfer has waited for its client (`Meter.waited`). Time in which the gateway had
nothing to offer, because of a store, a disk, a limit or the queue, is not in it. A client that is gone or takes nothing
at all is cut at the socket, with or without a minimum rate; this module only tells of it beforehand.
"""

from __future__ import annotations

from typing import Final

import trio

from .engine import Board
from .transfer import Transfer

LOOK_SECONDS: Final = 1.0
TOLD_AFTER: Final = 0.25  # of the stall timeout


class Stalls:
    """Looks at the clients of all transfers of one daemon.

    Attributes:
        min_bytes_per_s: As given; may be changed.
    """

    def __init__(self, hub: Board, *, stall_timeout: float, min_bytes_per_s: int = 0) -> None:
        """`min_bytes_per_s`: what a client must take or send on average over `stall_timeout` of waiting; 0 for any."""
        self._hub = hub
        self._stall_timeout = stall_timeout
        self.min_bytes_per_s = min_bytes_per_s
        self._vigils: dict[Transfer, _Vigil] = {}

    async def serve(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Look at every running transfer that serves a client: tell of stalls, and cut what is too slow."""
        served = [each for each in self._hub.live() if each.state == "running" and each.client is not None]
        self._vigils = {each: self._vigils.get(each) or _Vigil(each) for each in served}
        for transfer, vigil in self._vigils.items():
            vigil.look()
            stalled = vigil.silence >= self._stall_timeout * TOLD_AFTER
            if stalled != vigil.told:
                vigil.told = stalled
                self._hub.publish("stalled" if stalled else "resumed", transfer)
            if vigil.window >= self._stall_timeout:
                if vigil.rate < self.min_bytes_per_s:
                    transfer.cancel("stall")
                vigil.begin_window()


class _Vigil:
    """What is known of one client. Times are seconds of waiting for it.

    Attributes:
        told: Whether the watchers know that it has stalled.
        silence: How long it was waited for since its last byte.
    """

    def __init__(self, transfer: Transfer) -> None:
        self._meter = transfer.meter
        self._bytes = -1
        self._heard_at = 0.0
        self.told = False
        self.silence = 0.0
        self.begin_window()

    @property
    def _waited(self) -> float:
        return self._meter.waited["client"] / 1000

    def look(self) -> None:
        count = self._meter.bytes
        if count != self._bytes:
            self._bytes, self._heard_at = count, self._waited
        self.silence = self._waited - self._heard_at

    def begin_window(self) -> None:
        """Begin to measure the mean rate."""
        self._window_at, self._window_bytes = self._waited, self._meter.bytes

    @property
    def window(self) -> float:
        """How long it was waited for since the window began."""
        return self._waited - self._window_at

    @property
    def rate(self) -> float:
        """Bytes per second of waiting in the window, which must not be empty."""
        return (self._meter.bytes - self._window_bytes) / self.window
