"""A process as the gateway, and as an older generation: what `generations` asks of whoever serves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from .announcer import Announcer
from .metrics import Families, Metrics
from .revision import Reviser
from .transfer.admission import Admission
from .transfer.hub import Hub
from .transfer.limits import Rates
from .transfer.plane import ControlPlane
from .transfer.reports import Verdict

if TYPE_CHECKING:  # a gateway without older generations loads nothing of it
    from .predecessors import Predecessors
    from .transfer.draining import DrainingMember

NEVER: Final = math.inf


class Sockets(Protocol):
    """Who listens.

    Attributes:
        owns_names: Whether names of Unix sockets are ours to remove.
    """

    owns_names: bool

    def passed_on(self) -> Mapping[int, str]:
        """Duplicates of the listening sockets' descriptors, with names. The caller closes them."""
        ...

    def leave_names(self) -> None:
        """Another process listens on them too, from now on: leave the names to it."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What a process has of the gateway, and its generations are told of.

    Attributes:
        stop: Set to have the process finish its transfers and end.
        complain: Tells whoever reads the status.
    """

    hub: Hub
    admission: Admission
    rates: Rates
    metrics: Metrics
    stop: trio.Event
    announcer: Announcer
    complain: Callable[[str], None]


class HubProcess:
    """`ServingProcess` of a process whose transfers are those of its hub.

    Attributes:
        duties: What is done by the youngest generation alone; cancelled when there is a younger one.
        retired: Whether there is a younger one.
        due: Set when an older generation has to end soon; `finish_at` says when.
    """

    def __init__(self, parts: Parts, predecessors: Predecessors | None) -> None:
        self.duties = trio.CancelScope()
        self.retired = False
        self.due = trio.Event()
        self.finish_at = NEVER
        self._parts = parts
        self._predecessors = predecessors
        self._reviser: Reviser | None = None
        self._sockets: Sockets | None = None
        self._own_plane: ControlPlane | None = None
        self._own_share = 0

    def serve_with(self, reviser: Reviser, sockets: Sockets) -> None:
        """What serves the clients."""
        self._reviser, self._sockets = reviser, sockets

    # --- the youngest ----------------------------------------------------------------------------

    @property
    def predecessors(self) -> Predecessors | None:
        return self._predecessors

    @property
    def is_stopping(self) -> bool:
        return self._parts.stop.is_set()

    def listening(self) -> Mapping[int, str]:
        return {} if self._sockets is None else self._sockets.passed_on()

    @property
    def owns_names(self) -> bool:
        return self._sockets is not None and self._sockets.owns_names

    def retire(self) -> None:
        self.retired = True
        self._parts.announcer.hush()
        self.duties.cancel(reason="there is a younger generation")
        if self._sockets is not None:
            self._sockets.leave_names()
        self._parts.stop.set()

    def complain(self, what: str) -> None:
        self._parts.complain(what)

    # --- an older one ----------------------------------------------------------------------------

    def draining_member(self) -> DrainingMember:
        from .transfer.draining import DrainingMember

        return DrainingMember(self._parts.hub, self._parts.admission, self)

    def joined(self, member: DrainingMember) -> None:
        from .transfer.remote_plane import RemotePlane

        if self._reviser is not None:
            # The youngest one keeps it: who is killed here is in it, too.
            self._reviser.services.history.recording = False
        self._own_share = self.share
        self._ask(RemotePlane(member.bus))

    def left(self) -> None:
        if self._reviser is not None:
            self._reviser.services.history.recording = True
        self.limit_rate(self._own_share)
        self._parts.admission.resume_slots()
        self._ask(None)

    def _ask(self, plane: ControlPlane | None) -> None:
        """Answer clients who are still here by another plane; by the own one if None."""
        if self._reviser is None:
            return
        if self._own_plane is None:
            self._own_plane = self._reviser.services.plane
        self._reviser.answer_by(plane or self._own_plane)

    @property
    def share(self) -> int:
        return (self._parts.rates if self._predecessors is None else self._predecessors.shares).bytes_per_s

    def limit_rate(self, bytes_per_s: int) -> None:
        if self._predecessors is None:
            self._parts.rates.limit(bytes_per_s)
        else:
            self._predecessors.shares.limit(bytes_per_s)

    def families(self) -> Families:
        own = self._parts.metrics.families()
        return own if self._predecessors is None else self._predecessors.families(own)

    def learn(self, verdict: Verdict) -> None:
        if self._reviser is not None:
            self._reviser.services.scrub.learn(verdict.attempt_id, verdict.good)

    def finish(self, seconds: float) -> None:
        self.finish_at = min(self.finish_at, trio.current_time() + seconds)
        self.due.set()
