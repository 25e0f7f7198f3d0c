"""What the processes of a gateway tell each other about transfers: one keeps the view of all (`center`), the others
move bytes and report (`branch`). Declared once, for both sides.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import msgspec

from .bus import Command, Topic
from .control import Change
from .messages import ByeReason, EventKind
from .meter import WAITS, WaitKind
from .scrub import Progress
from .transfer import Kind, State, Transfer
from .view import Filters

REPORT_SECONDS: Final = 0.25  # between two reports of counts, unless somebody watches more closely

#: The name under which every process knows the one that keeps the view of all.
CENTER: Final = "center"


class Who(msgspec.Struct, frozen=True):
    """A viewer, as far as it decides what he sees."""

    access_key: str | None
    is_admin: bool
    own_only: bool = False
    rights: str | None = None


class Description(msgspec.Struct, frozen=True):
    """What never changes in a transfer."""

    id: str
    kind: Kind
    image: str
    store: str | None
    client: str | None
    user: str | None
    size: int | None
    offset: int
    started_at: datetime

    @classmethod
    def of(cls, transfer: Transfer) -> Description:
        """The description of a transfer."""
        return cls(**{name: getattr(transfer, name) for name in cls.__struct_fields__})


class Counts(msgspec.Struct, array_like=True, frozen=True):
    """What changes while bytes move. Waits in the order of `WAITS`."""

    id: str
    bytes: int
    rate: float
    rate_avg: float
    wait: tuple[int, ...]
    waited: tuple[int, ...]
    size: int | None
    attempt: int
    waiters: int
    seconds: float

    @classmethod
    def of(cls, transfer: Transfer) -> Counts:
        """The counts as of the transfer's last sample; bytes as of now."""
        meter = transfer.meter
        return cls(
            transfer.id,
            meter.bytes,
            meter.rate,
            meter.rate_avg,
            _ordered(meter.wait),
            _ordered(meter.waited),
            transfer.size,
            transfer.attempt,
            transfer.waiters,
            meter.seconds,
        )

    @classmethod
    def news(cls, transfers: Iterable[Transfer], reported: dict[str, Counts]) -> list[Counts]:
        """Sample the transfers; the counts that are not those in `reported`, where they are from now on."""
        news = []
        for transfer in transfers:
            transfer.meter.sample()
            counts = cls.of(transfer)
            if counts != reported.get(transfer.id):
                reported[transfer.id] = counts
                news.append(counts)
        return news


class Step(msgspec.Struct, frozen=True):
    """A step in a transfer's life, and how the transfer stands after it."""

    kind: EventKind
    state: State
    error: str | None
    counts: Counts


class Adoption(msgspec.Struct, frozen=True):
    """A transfer that runs, or waits, in a process that another one is to be the center of from now on.

    Attributes:
        state: As it is now.
        placed: Whether it has its slot.
        limit: Its own limit, 0 for none.
    """

    description: Description
    state: State
    counts: Counts
    placed: bool
    limit: int


class Settled(msgspec.Struct, frozen=True):
    """All transfers of an older generation are told. `share`: the byte rate by which they move, 0 for any."""

    share: int


class Steering(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is to be done to a transfer, by whoever moves its bytes."""

    id: str
    cancel: str | None = None
    change: Change | None = None

    def apply(self, transfer: Transfer) -> None:
        """Do it to the transfer, which moves its bytes in this process."""
        if self.cancel is not None:
            transfer.cancel(self.cancel)
        if self.change is not None:
            if self.change.limit_bytes_per_s is not None:
                transfer.pace.limit(self.change.limit_bytes_per_s)
            if self.change.paused is not None:
                (transfer.pause if self.change.paused else transfer.resume)()


class Newcomer(msgspec.Struct, frozen=True):
    """Where a transfer would stand in line."""

    turn: str
    store: str


class Chosen(msgspec.Struct, frozen=True):
    """Transfers that exist for a viewer: one by its id, or all that filters name; and a change to make to them."""

    viewer: Who
    id: str = ""
    filters: Filters = ()
    change: Change | None = None


class Writers(msgspec.Struct, frozen=True):
    """Whatever writes an image, and why it is to be cancelled."""

    image_id: str
    reason: str


class Shown(msgspec.Struct, frozen=True):
    """A listing."""

    transfers: list[dict[str, Any]]
    totals: dict[str, Any]


class Delivery(msgspec.Struct, array_like=True, frozen=True):
    """The same messages for some watchers, each by its number. `farewell`: the reason, where they are the last."""

    watches: list[int]
    texts: list[str]
    farewell: ByeReason | None


class Watcher(msgspec.Struct, frozen=True):
    """Somebody who watches, under a number that his process chose."""

    number: int
    viewer: Who


class Said(msgspec.Struct, frozen=True):
    """What a watcher's client said; `complaint` where it can't be understood."""

    watch: int
    text: str | None = None
    complaint: str | None = None


class Verdict(msgspec.Struct, frozen=True):
    """What was found of the bytes of an attempt."""

    attempt_id: str
    good: bool


# --- from those who move bytes ---
ADMIT: Final = Command("admit", Description, bool)  # whether it has its slot at once
TURN: Final = Command("turn", str, type(None))
LEAVE: Final = Topic("leave", str)
ROOM: Final = Command("room", Newcomer, type(None))
STEP: Final = Topic("step", Step)
COUNTS: Final = Topic("counts", list[Counts])

# --- from an older generation ---
ADOPT: Final = Topic("adopt", Adoption)
SETTLED: Final = Topic("settled", Settled)
#: The last words, with all that it has counted. Answered when all that was said before has been heard.
DEPART: Final = Command("depart", list[Any], type(None))

# --- to it ---
#: To end within so many seconds, 0 for at once.
FINISH: Final = Topic("finish", float)

# --- to them ---
STEER: Final = Topic("steer", Steering)
CADENCE: Final = Topic("cadence", float)  # seconds between two reports of counts
SHARE: Final = Command("share", int, type(None))
FAMILIES: Final = Command("families", type(None), list[Any])

# --- on behalf of clients ---
FLUSH_HISTORY: Final = Command("flush history", type(None), type(None))
LIST: Final = Command("list", Chosen, Shown)
FIND: Final = Command("find", Chosen, dict[str, Any])
CHANGE: Final = Command("change", Chosen, dict[str, Any])
CHANGE_ALL: Final = Command("change all", Chosen, Shown)
CANCEL: Final = Command("cancel", Chosen, dict[str, Any])
CANCEL_ALL: Final = Command("cancel all", Chosen, Shown)
CANCEL_WRITERS: Final = Command("cancel writers", Writers, type(None))
GET_LIMIT: Final = Command("get limit", type(None), int)
SET_LIMIT: Final = Command("set limit", int, type(None))
WATCH: Final = Command("watch", Watcher, type(None))
#: Numbers of watchers whose client has been sent all that came.
MORE: Final = Topic("more", list[int])
DELIVER: Final = Topic("deliver", list[Delivery])
SAY: Final = Topic("say", Said)
UNWATCH: Final = Topic("unwatch", int)
DISMISS: Final = Command("dismiss", str, type(None))
EXPOSE: Final = Command("expose", type(None), bytes)
SCRUB_PROGRESS: Final = Command("scrub progress", type(None), Progress)
ASK_SCRUB: Final = Command("ask scrub", list[str], type(None))

# --- to all ---
VERDICT: Final = Topic("verdict", Verdict)


def named(waits: tuple[int, ...]) -> dict[WaitKind, int]:
    """Waits by their names."""
    return dict(zip(WAITS, waits, strict=True))


def _ordered(waits: dict[WaitKind, int]) -> tuple[int, ...]:
    return tuple(waits[kind] for kind in WAITS)
