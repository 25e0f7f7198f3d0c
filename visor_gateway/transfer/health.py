"""Whether the stores can be used: looked at in the background, so that nobody who asks makes a store work.

What is found is told by `/ready`, by `visor_store_up` and, when it changes, in the log. Nothing depends on it: a store
that is said to have failed is asked all the same, since it may be back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
import trio

from ..errors import GatewayError
from ..metrics import Metrics
from ..store.contract import Store

CHECK_SECONDS: Final = 5.0  # a store that takes longer to answer is not well
INTERVAL_SECONDS: Final = 15.0  # between two looks
FRESH_SECONDS: Final = 2.0  # how old an answer may be that somebody waits for

_log: Final = structlog.get_logger("visor_gateway.health")


class StoreHealth:
    """The health of one daemon's stores."""

    def __init__(self, stores: Mapping[str, Store], metrics: Metrics) -> None:
        self._stores = stores
        self._metrics = metrics
        self._well: dict[str, bool] = {}
        self._looking = trio.Lock()
        self._looked_at = float("-inf")

    async def serve(self) -> None:
        """Look every `INTERVAL_SECONDS`, until cancelled."""
        while True:
            await trio.sleep(INTERVAL_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Ask all stores at once. Takes `CHECK_SECONDS` at most; those who ask meanwhile wait for the same answer."""
        async with self._looking:
            await self._ask_all()

    async def told(self) -> dict[str, str]:
        """`ok` or `failed` by the name of the store, not older than `FRESH_SECONDS`."""
        async with self._looking:
            late = trio.current_time() - self._looked_at > FRESH_SECONDS
            if late or self._well.keys() != self._stores.keys():
                await self._ask_all()
        return {name: "ok" if well else "failed" for name, well in sorted(self._well.items())}

    def failed(self) -> list[str]:
        """The names of stores that could not be used when they were last looked at."""
        return sorted(name for name, well in self._well.items() if not well)

    async def _ask_all(self) -> None:
        for name in self._well.keys() - self._stores.keys():
            del self._well[name]
            self._metrics.store_up.remove(name)
        async with trio.open_nursery() as nursery:
            for name, store in self._stores.items():
                nursery.start_soon(self._ask, name, store)
        self._looked_at = trio.current_time()

    async def _ask(self, name: str, store: Store) -> None:
        cause: str | None = f"no answer within {CHECK_SECONDS:g} s"
        with trio.move_on_after(CHECK_SECONDS):
            try:
                await store.check()
                cause = None
            except GatewayError as error:
                cause = error.message
        self._note(name, cause)

    def _note(self, name: str, cause: str | None) -> None:
        before, self._well[name] = self._well.get(name, True), cause is None
        self._metrics.store_up.labels(name).set(cause is None)
        if cause is not None and before:
            _log.warning("store can't be used", store=name, error=cause)
        elif cause is None and not before:
            _log.info("store can be used again", store=name)
