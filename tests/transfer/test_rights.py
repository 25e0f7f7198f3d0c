"""Watchers whose account was changed elsewhere: who is told goodbye, and what is asked."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

import pytest

from visor_gateway.errors import MetadataUnavailable
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.reports import Who
from visor_gateway.transfer.rights import RightsWatch
from visor_gateway.transfer.subscription import Subscription


class Accounts:
    """What rights there are, and what was asked."""

    def __init__(self) -> None:
        self.version: int | None = 1
        self.now = {"anne": "a", "bob": "b"}
        self.asked: list[set[str]] = []
        self.versions_asked = 0
        self.away = False

    async def tell_version(self) -> int | None:
        self.versions_asked += 1
        return self.version

    async def rights(self, access_keys: Collection[str]) -> dict[str, str]:
        self.asked.append(set(access_keys))
        if self.away:
            raise MetadataUnavailable("away")
        return {key: value for key, value in self.now.items() if key in access_keys}


async def test_who_would_not_be_let_in_as_he_was_is_told_goodbye() -> None:
    hub, accounts = Hub(), Accounts()
    watch = RightsWatch(hub, accounts, accounts.tell_version)  # type: ignore[arg-type]
    await watch.look()
    assert accounts.versions_asked == 0
    with ExitStack() as stack:

        def watching(access_key: str | None, rights: str | None) -> Subscription:
            return stack.enter_context(hub.subscribe(Who(access_key, False, rights=rights)))

        anne, bob, peer = watching("anne", "a"), watching("bob", "b"), watching(None, None)
        await watch.look()
        await watch.look()
        assert accounts.asked == [{"anne", "bob"}]  # nothing has changed since
        # By rights that were others when he came: between them and the look at them lay a change that was seen.
        late = watching("anne", "before")
        await watch.look()
        assert (late.farewell, anne.farewell) == ("auth", None)
        accounts.version, accounts.now = 2, {"anne": "a"}
        again = watching("bob", "b")
        await watch.look()
        assert [each.farewell for each in (anne, bob, again, peer)] == [None, "auth", "auth", None]
        # What can't be told now changes nothing, and is looked at again.
        accounts.version = None
        accounts.now = {}
        await watch.look()
        accounts.version, accounts.away = 3, True
        with pytest.raises(MetadataUnavailable):
            await watch.look()
        assert anne.farewell is None
        accounts.away = False
        await watch.look()
        assert (anne.farewell, peer.farewell) == ("auth", None)
