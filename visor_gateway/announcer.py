"""What systemd is told of the gateway while it lives: state, status line, signs of life.

All of it leaves from one task of the event loop, so that systemd hears nothing more once the loop is stuck: then the
watchdog ends a gateway that serves, and the timeouts end one that starts or drains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from .server import systemd

REFRESH_SECONDS: Final = 2.0  # between two looks at the status line
PATIENCE_SECONDS: Final = 30.0  # without a sign of life, a gateway that starts or drains has hung


class Announcer:
    """Speaks to the service manager; without one every method does nothing.

    What the manager's full queue did not take is said again with the next sign of life.
    """

    def __init__(self, describe: Callable[[], str], *, silent: bool = False) -> None:
        """`describe` gives the status line. `silent`: nothing is said before `ready`: another process speaks."""
        self._is_silent = silent
        self._describe = describe
        self._owed: list[str] = []
        self._told = ""
        self._is_settled = False  # neither starting nor draining

    def ready(self) -> None:
        """The start, or a reload, is complete."""
        self._is_silent = False
        self._is_settled = True
        self._say(systemd.READY)

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        self._say(*systemd.reloading())

    def stopping(self) -> None:
        """The drain has begun."""
        self._is_settled = False
        self._say(systemd.STOPPING)
        systemd.extend_timeout(PATIENCE_SECONDS)

    def hush(self) -> None:
        """Say nothing more: another process speaks for the gateway."""
        self._is_silent = True

    async def serve(self) -> None:
        """Tell how things stand, until cancelled."""
        if not systemd.is_listening():
            return
        watchdog = systemd.watchdog_interval()
        pause = REFRESH_SECONDS if watchdog is None else min(REFRESH_SECONDS, watchdog / 2)
        while True:
            if not self._is_silent:
                systemd.alive()
                if not self._is_settled:
                    systemd.extend_timeout(PATIENCE_SECONDS)
                self._say()
            await trio.sleep(pause)

    def _say(self, *assignments: str) -> None:
        if self._is_silent:
            return
        self._owed += assignments
        status = " ".join(self._describe().split())
        if (self._owed or status != self._told) and systemd.notify(*self._owed, f"STATUS={status}"):
            self._owed, self._told = [], status
