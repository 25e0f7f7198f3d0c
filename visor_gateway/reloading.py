"""Reading the configuration again on SIGHUP, and having what it says from then on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from . import config, log, wiring
from .announcer import Announcer
from .errors import GatewayError
from .revision import Reviser, Revision
from .transfer.admission import Admission
from .transfer.limits import Rates
from .transfer.stalls import Stalls

_log: Final = structlog.get_logger("visor_gateway.daemon")


class Reloader:
    """The settings that a process serves with, and how they change.

    Attributes:
        settings: What holds now.
        complaint: What was wrong with the configuration that was read last, or else is to be known; empty if nothing.
    """

    def __init__(
        self, settings: config.Settings, read: Callable[[], config.Settings] | None, announcer: Announcer
    ) -> None:
        """`read` reads them anew, in a thread; raises ConfigError. None: they don't change."""
        self.settings = settings
        self.complaint = ""
        self._read = read
        self._announcer = announcer
        self._prepared: Revision | None = None

    def serve_with(
        self,
        reviser: Reviser,
        admission: Admission,
        rates: Rates,
        stalls: Stalls,
        *,
        limit_rate: Callable[[int], None],
        moved: Callable[[], Awaitable[None]],
    ) -> None:
        """What follows the settings.

        Args:
            limit_rate: Changes the gateway's rate, in bytes a second.
            moved: Tells that clients find the gateway at another URL.
        """
        self.reviser = reviser
        self._admission = admission
        self._rates = rates
        self._stalls = stalls
        self._limit_rate = limit_rate
        self._moved = moved

    def complain(self, what: str) -> None:
        """Have the status say that something is wrong, until the configuration is read again."""
        self.complaint = what

    async def read_again(self) -> None:
        """Take from the configuration what can change while serving; one that is wrong changes nothing."""
        if self._read is None:
            return
        self._announcer.reloading()
        try:
            settings, waiting = config.reconciled(self.settings, await trio.to_thread.run_sync(self._read))
            await self.agree(settings)
        except Exception as error:
            self._refuse(error)
            return
        self.complaint = ""
        has_moved = settings.server.public_url != self.settings.server.public_url
        self.apply(settings)
        await self.applied()
        _log.info("configuration read again", changes_at_next_start=" ".join(waiting))
        self._announcer.ready()
        # Makes what a new store needs on its first day.
        await self.reviser.services.health.look()
        if has_moved:
            await self._moved()

    def _refuse(self, error: Exception) -> None:
        reason = error.message if isinstance(error, GatewayError) else "unexpected error, see the log"
        self.complaint = f"configuration refused: {reason}"
        unexpected = None if isinstance(error, GatewayError) else error
        _log.error("configuration refused, the old one stays", error=reason, exc_info=unexpected)
        self._announcer.ready()

    async def agree(self, settings: config.Settings) -> None:
        """Prepare to `apply` these settings. Raises `ConfigError`: they can't be served with, and nothing changes."""
        if self._prepared is not None:
            self.reviser.discard(self._prepared)
            self._prepared = None
        self._prepared = await self.reviser.prepare(settings)

    def has_agreed(self, settings: config.Settings) -> bool:
        """Whether these are the settings that were agreed upon last."""
        return self._prepared is not None and self._prepared.settings == settings

    def apply(self, settings: config.Settings) -> None:
        """Have the settings that were agreed upon from now on. Does not fail."""
        if self._prepared is not None:
            self.reviser.take(self._prepared)
            self._prepared = None
        log.configure(settings.log.level, settings.log.format)
        old, new = self.settings.limits, settings.limits
        self.settings = settings
        self._admission.change(wiring.slots(settings))
        self._rates.limit_each(new.bytes_per_s_per_transfer)
        self._stalls.min_bytes_per_s = new.min_bytes_per_s
        if new.bytes_per_s != old.bytes_per_s:
            # Unchanged in the configuration, one that an admin has set since stays.
            self._limit_rate(new.bytes_per_s)

    async def applied(self) -> None:
        """Wait until all processes of the gateway have the settings."""
        await trio.lowlevel.checkpoint()
