"""Watchers whose account was changed through another gateway.

The gateway that changes an account says bye to its own watchers at once. The others see in the mark of their common
database that something has changed, and compare what each watcher was let in by with what holds now.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Final

import structlog
import trio

from ..errors import GatewayError
from ..meta.contract import AccountRepository
from .hub import Hub

LOOK_SECONDS: Final = 1.0

_log: Final = structlog.get_logger("visor_gateway.rights")


class RightsWatch:
    """Says bye to watchers who would not be let in any more as they were. Nothing is asked while nobody watches, and
    one row a second while nothing changes."""

    def __init__(
        self, hub: Hub, accounts: AccountRepository, version: Callable[[], Awaitable[Hashable | None]]
    ) -> None:
        """`version` is `Database.version`."""
        self._hub = hub
        self._accounts = accounts
        self._version = version
        self._seen: Hashable | None = None
        self._held: set[tuple[str, str]] = set()  # what was found to hold, at the version that was seen

    async def serve(self) -> None:
        """Look until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except GatewayError as error:
                # They stay, as those do whose account is kept while the database is away.
                _log.warning("rights of watchers can't be looked at", error=error.message)

    async def look(self) -> None:
        """Say bye to those whose rights are others now. Raises `MetadataUnavailable`."""
        watching = self._hub.watching()
        if not watching:
            return
        version = await self._version()
        if version is None:
            return
        if version != self._seen:
            self._seen, self._held = version, set()
        self._held &= watching
        unsure = watching - self._held
        if not unsure:
            return
        rights = await self._accounts.rights({access_key for access_key, _ in unsure})
        for access_key, came_by in unsure:
            if rights.get(access_key) == came_by:
                self._held.add((access_key, came_by))
            else:
                self._hub.dismiss(access_key, came_by)
