"""How much the kernel takes for one client: more once that client has shown that it is fast.

4 MiB make a fast pull cheaper, for whoever fills the buffer wakes up less often. But it is kernel memory, which one
that takes nothing would hold as well, so no client has it from the start.
"""

from __future__ import annotations

import socket
import sys
import time
from contextlib import suppress
from os import dup
from typing import Final

#: A client that takes so many bytes in so many seconds is fast.
FAST_BYTES: Final = 8 << 20
FAST_SECONDS: Final = 1.0


class SendBuffer:
    """The send buffer of the client of one transfer, for the thread that fills it.

    Attributes:
        milestone: The number of bytes sent, as its user counts them, from which on `look` is to be called. Compared by
            the user, since it is asked after every piece.
    """

    __slots__ = ("_looked_at", "_notsent_lowat", "milestone")

    def __init__(self, sent: int, notsent_lowat: int) -> None:
        """`sent` is the count at the start; `notsent_lowat` what a fast client gets, 0 to leave it alone."""
        self._notsent_lowat = notsent_lowat
        self.milestone = sent + FAST_BYTES if notsent_lowat else sys.maxsize
        self._looked_at = time.monotonic()

    def look(self, sent: int, sock: int) -> None:
        """See how long the client took for the last bytes, and enlarge its buffer if that was not long."""
        now = time.monotonic()
        if now - self._looked_at > FAST_SECONDS:
            self.milestone, self._looked_at = sent + FAST_BYTES, now
            return
        self.milestone = sys.maxsize
        # Does nothing but on TCP.
        with socket.socket(fileno=dup(sock)) as copy, suppress(OSError):
            copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, min(self._notsent_lowat, 2**31 - 1))
