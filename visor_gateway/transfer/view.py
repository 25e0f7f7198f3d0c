"""Which transfers somebody sees: owners their own, admins all, and of these what the filters ask for. Sans-IO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from ..errors import InvalidRequest
from .transfer import State, Transfer

#: Of transfers that ended, and of live ones.
ENDED_FILTERS: Final = ("image", "kind", "state", "store", "user")
FILTERS: Final = ("gateway", *ENDED_FILTERS)
VALUE_LIMIT: Final = 64  # values of all filters of one view

#: Filter name and the values of which one must be met, in order of the names.
Filters: TypeAlias = tuple[tuple[str, frozenset[str]], ...]


class Viewer(Protocol):
    """Who looks. Without an access key and without being an admin, one sees nothing."""

    @property
    def access_key(self) -> str | None: ...

    @property
    def is_admin(self) -> bool: ...

    @property
    def own_only(self) -> bool:
        """Whether transfers of other gateways do not exist for whoever looks: for another gateway they don't."""
        ...

    @property
    def rights(self) -> str | None:
        """A mark of the role and the secret by which he was let in; None where nothing can change in them."""
        ...


def filters_of(given: Iterable[tuple[str, str | Sequence[str]]], available: Sequence[str] = FILTERS) -> Filters:
    """Filters from names and values. Values of one name are alternatives; different names must all hold.

    Raises:
        InvalidRequest: There is no such filter, or there are too many values.
    """
    values: dict[str, set[str]] = {}
    for name, value in given:
        if name not in available:
            raise InvalidRequest(f"Unknown filter '{name[:64]}', available filters: {', '.join(available)}")
        values.setdefault(name, set()).update([value] if isinstance(value, str) else value)
    if sum(map(len, values.values())) > VALUE_LIMIT:
        raise InvalidRequest(f"Too many filter values, at most {VALUE_LIMIT}")
    return tuple((name, frozenset(values[name])) for name in available if name in values)


class Viewed(Protocol):
    """What a view asks of a transfer."""

    @property
    def user(self) -> str | None: ...

    @property
    def state(self) -> State: ...

    @property
    def foreign(self) -> bool: ...


class View(msgspec.Struct, frozen=True):
    """What one viewer sees under some filters. Equal views see the same.

    Attributes:
        user: Access key whose transfers are seen; None for all.
        nobody: Set for a viewer without any right.
        states: The states asked for; None for all.
        filters: The other filters; they are on what never changes in a transfer.
        own_only: Whether transfers of other gateways are left out.
    """

    user: str | None
    nobody: bool
    states: frozenset[str] | None
    filters: Filters
    own_only: bool = False

    @classmethod
    def of(cls, viewer: Viewer, filters: Filters = ()) -> View:
        """The view of `viewer`."""
        return cls(
            user=None if viewer.is_admin else viewer.access_key,
            nobody=not viewer.is_admin and viewer.access_key is None,
            states=dict(filters).get("state"),
            filters=tuple(item for item in filters if item[0] != "state"),
            own_only=viewer.own_only,
        )

    def may_see(self, transfer: Viewed) -> bool:
        """Whether the transfer exists for this viewer."""
        if self.nobody or (self.own_only and transfer.foreign):
            return False
        return self.user is None or transfer.user == self.user

    def covers(self, transfer: Viewed, *states: State) -> bool:
        """Whether the transfer is in the view when in one of `states`; without any, in its present one."""
        return (
            self.may_see(transfer)
            and all(getattr(transfer, name) in values for name, values in self.filters)
            and (self.states is None or not self.states.isdisjoint(states or (transfer.state,)))
        )

    def select(self, transfers: Iterable[Transfer]) -> list[Transfer]:
        """Those that are in the view."""
        return [transfer for transfer in transfers if self.covers(transfer)]


#: The view that has all transfers of all gateways.
EVERYTHING: Final = View(user=None, nobody=False, states=None, filters=())


def totals(transfers: Sequence[Transfer]) -> dict[str, Any]:
    """Sums over transfers: how many, bytes per second, bytes so far, and how many of each state and kind."""
    return {
        "transfers": len(transfers),
        "rate": round(sum(transfer.meter.rate for transfer in transfers)),
        "bytes": sum(transfer.meter.bytes for transfer in transfers),
        "by_state": dict(Counter(transfer.state for transfer in transfers)),
        "by_kind": dict(Counter(transfer.kind for transfer in transfers)),
    }
