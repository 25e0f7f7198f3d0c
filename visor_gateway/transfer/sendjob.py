"""One range of a file on its way to a socket by `sendfile`: what the pump and the readers share of it."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from contextlib import suppress
from typing import Final

import trio

from .growth import Growth
from .limits import Pace
from .meter import Meter, WaitKind
from .sendbuffer import SendBuffer

_libc: Final = ctypes.CDLL(None, use_errno=True)
_NOWHERE: Final = struct.pack("=H14x", socket.AF_UNSPEC)


class SendJob:
    """A range on its way. Only its pump's thread changes it, but for what is said below.

    It has descriptors of its own, so that nothing that its task does can let their numbers be used again under a
    call that hangs.

    Attributes:
        left: How many bytes are missing, from `offset` on.
        growth: How far the file may be sent; None if that is all of it.
        warm_until: Up to here the file was in the page cache when that was looked at.
        begun: Some of it was sent.
        buffer: The client's send buffer.
        granted: Bytes that the limits let it send in the call under way.
        result: What a call returned or raised whose thread had been left behind; written by that thread.
        cancelled: It is to end as soon as nobody works on it.
        busy: It is ready, parked, dry or with a reader: what its socket reports changes nothing.
        held: Another thread has its descriptors, and will hand it back.
        stuck: That thread has been silent for long: nobody waits for it any more.
        done: Its task goes on.
        error: What its task is told.
    """

    __slots__ = (
        "_task",
        "_token",
        "_waiting",
        "begun",
        "buffer",
        "busy",
        "cancelled",
        "done",
        "error",
        "file",
        "granted",
        "growth",
        "held",
        "left",
        "meter",
        "offset",
        "pace",
        "result",
        "sock",
        "stuck",
        "warm_until",
    )

    def __init__(
        self, sock: int, file: int, offset: int, length: int, meter: Meter, pace: Pace, growth: Growth | None = None
    ) -> None:
        """To be called in the task that will sleep. The descriptors stay the caller's. Raises `OSError`."""
        self.sock = os.dup(sock)
        try:
            self.file = os.dup(file)
        except OSError:
            os.close(self.sock)
            raise
        self.offset = offset
        self.left = length
        self.growth = growth
        self.meter = meter
        self.pace = pace
        self.warm_until = offset
        self.buffer = SendBuffer(offset, 0)
        self.granted = 0
        self.result: int | OSError = 0
        self.begun = self.cancelled = self.busy = self.held = self.stuck = self.done = False
        self.error: Exception | None = None
        self._waiting: WaitKind | None = None
        self._task = trio.lowlevel.current_task()
        self._token = trio.lowlevel.current_trio_token()

    def wait_for(self, kind: WaitKind | None) -> None:
        """Book what the job waits for from now on; None for nothing."""
        if kind != self._waiting:
            if self._waiting is not None:
                self.meter.end_wait(self._waiting)
            self._waiting = kind
            if kind is not None:
                self.meter.begin_wait(kind)

    def wake(self) -> None:
        """Let the task go on."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(trio.lowlevel.reschedule, self._task)

    def cut(self) -> None:
        """End the connection while a call on it hangs: by a RST, as no close could. Does nothing but on TCP."""
        _libc.connect(self.sock, _NOWHERE, len(_NOWHERE))  # connect(2): AF_UNSPEC dissolves the association

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.sock)
        os.close(self.file)
