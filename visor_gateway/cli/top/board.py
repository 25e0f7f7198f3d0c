"""What `visor top` shows and what its keys do. Sans-IO: messages and keys go in, rows and wishes come out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

import msgspec

from ...client import Message, Record
from ...client.view import TransferView
from ...config import kinds

SORTS: Final = ("rate", "left", "image", "client", "state", "wait", "started")
SILENCE_SECONDS: Final = 12.0
_RATE: Final = kinds.size(zero=True)

Grouping = Literal["", "image", "client", "store"]
GROUPS: Final[tuple[Grouping, ...]] = ("", "image", "client", "store")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line: a transfer, or several that a group holds.

    Attributes:
        key: What the selection sticks to: a transfer's id, or the group's value.
        ids: The transfers.
        average: Bytes per second since the start.
        name: That of the image; None where it is not known, or where there are several.
        left: Seconds to the end; None where nobody can tell.
        wait: What is waited for, in ms of the last interval.
    """

    key: str
    ids: tuple[str, ...]
    kind: str
    image: str
    client: str
    store: str
    state: str
    bytes: int
    size: int | None
    rate: float
    average: float
    left: float | None
    wait: dict[str, int]
    waiters: int
    started: str
    limit: int | None
    name: str | None = None

    @property
    def label(self) -> str:
        """The image as people know it: its name, and the beginning of its id, since names need not differ."""
        return self.image if self.name is None else f"{self.name} {self.image[:8]}"


class Wish(msgspec.Struct, frozen=True):
    """What a key asks of the gateway: a `change` of transfers; None cancels them."""

    ids: tuple[str, ...]
    change: dict[str, object] | None


class Board:
    """The state of the screen.

    Attributes:
        notice: One line for the person: an error, or what was done.
        prompt: What is being typed after `/` or `l`, or asked before a cancel; None while keys are commands.
        ended: Set by `q`.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self.notice = ""
        self.prompt: Prompt | None = None
        self.ended = False
        self.sort = SORTS[0]
        self.reverse = False
        self.group: Grouping = ""
        self.filter = ""
        self._now = now
        self._heard_at = -SILENCE_SECONDS
        self._view = TransferView()
        self._clocks: dict[str, tuple[float, float]] = {}  # seconds it had run when it was seen first, and when
        self._selected: str | None = None
        self._names: dict[str, str | None] = {}

    # --- in ------------------------------------------------------------------------------------

    def hear(self, message: Message, view: TransferView) -> None:
        """Take in a message of the live channel, which `view` has taken in already."""
        del message
        self._heard_at = self._now()
        self._view = view
        for id, transfer in view.transfers.items():
            if id not in self._clocks:
                rate = transfer.get("rate_avg") or 0
                self._clocks[id] = (transfer["bytes"] / rate if rate else 0.0, self._now())
        self._clocks = {id: clock for id, clock in self._clocks.items() if id in view.transfers}
        images = self._images()
        self._names = {id: name for id, name in self._names.items() if id in images}

    def unnamed(self) -> list[str]:
        """Images that move and of which nothing was said to `name`."""
        return sorted(self._images() - self._names.keys())

    def name(self, image: str, name: str | None) -> None:
        """Take in an image's name; None where there is none for whoever looks. It is forgotten when the image moves
        no more.
        """
        self._names[image] = name

    def _images(self) -> set[str]:
        return {transfer["image"] for transfer in self._view.transfers.values()}

    def press(self, key: str) -> Wish | None:
        """Act on a key: a character, or `up`, `down`, `enter`, `escape`, `backspace`. Returns what it asks for."""
        if self.prompt is not None:
            return self._type(self.prompt, key)
        self.notice = ""
        match key:
            case "q":
                self.ended = True
            case "up" | "k":
                self._move(-1)
            case "down" | "j":
                self._move(1)
            case "s":
                self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
            case "r":
                self.reverse = not self.reverse
            case "g":
                self.group = GROUPS[(GROUPS.index(self.group) + 1) % len(GROUPS)]
                self._selected = None
            case "/":
                self.prompt = Prompt("filter", self.filter)
            case "l" if self.selected is not None:
                self.prompt = Prompt("limit", "")
            case "c" if self.selected is not None:
                self.prompt = Prompt("cancel", "")
            case "p" if self.selected is not None:
                return Wish(self.selected.ids, {"paused": self.selected.state != "paused"})
        return None

    def _type(self, prompt: Prompt, key: str) -> Wish | None:
        if prompt.kind == "cancel":
            self.prompt = None
            return Wish(self.selected.ids, None) if key in ("y", "Y") and self.selected is not None else None
        if key == "escape":
            self.prompt = None
        elif key == "enter":
            self.prompt = None
            return self._entered(prompt)
        elif key == "backspace":
            self.prompt = msgspec.structs.replace(prompt, text=prompt.text[:-1])
        elif len(key) == 1 and key.isprintable():
            self.prompt = msgspec.structs.replace(prompt, text=prompt.text + key)
        return None

    def _entered(self, prompt: Prompt) -> Wish | None:
        if prompt.kind == "filter":
            self.filter = prompt.text
            return None
        if self.selected is None:
            return None
        try:
            limit = 0 if prompt.text in ("", "none") else int(str(_RATE.parse(prompt.text)))
        except ValueError:
            self.notice = f"'{prompt.text}' is not {_RATE.expected}"
            return None
        return Wish(self.selected.ids, {"limit_bytes_per_s": limit})

    def _move(self, step: int) -> None:
        rows = self.rows()
        if rows:
            place = self.place(rows)
            self._selected = rows[min(max(place + step, 0), len(rows) - 1)].key

    # --- out -----------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """Whether the gateway was heard of not long ago: it says something every ten seconds."""
        return self._now() - self._heard_at < SILENCE_SECONDS

    @property
    def selected(self) -> Row | None:
        """The row that keys act on."""
        rows = self.rows()
        return rows[self.place(rows)] if rows else None

    def place(self, rows: Sequence[Row]) -> int:
        """Where the selected row is among `rows`; the first where it is gone."""
        return next((place for place, row in enumerate(rows) if row.key == self._selected), 0)

    def rows(self) -> list[Row]:
        """What is shown, in order."""
        wanted = self.filter.lower()
        shown = [row for row in map(self._row, self._view.transfers.values()) if wanted in _searched(row)]
        if self.group:
            shown = _grouped(shown, self.group)
        return sorted(shown, key=_order(self.sort), reverse=self.reverse != (self.sort == "rate"))

    def totals(self) -> list[tuple[str, int, float]]:
        """Name, transfers and bytes per second: of all, then of each store."""
        transfers = list(self._view.transfers.values())
        stores = sorted({transfer.get("store") or "-" for transfer in transfers})
        sums = [("all", len(transfers), sum(transfer["rate"] for transfer in transfers))]
        for store in stores:
            own = [transfer["rate"] for transfer in transfers if (transfer.get("store") or "-") == store]
            sums.append((store, len(own), sum(own)))
        return sums

    def _row(self, transfer: Record) -> Row:
        ran, seen = self._clocks.get(transfer["id"], (0.0, self._now()))
        seconds = ran + self._now() - seen
        return Row(
            key=transfer["id"],
            ids=(transfer["id"],),
            kind=transfer["kind"],
            image=transfer["image"],
            client=transfer.get("client") or "-",
            store=transfer.get("store") or "-",
            state=transfer["state"],
            bytes=transfer["bytes"],
            size=transfer.get("size"),
            rate=transfer["rate"],
            average=transfer["bytes"] / seconds if seconds > 0 else 0.0,
            left=transfer.get("eta_s"),
            wait=dict(transfer.get("wait") or {}),
            waiters=transfer.get("waiters") or 0,
            started=transfer["started_at"],
            limit=transfer.get("limit_bytes_per_s"),
            name=self._names.get(transfer["image"]),
        )


class Prompt(msgspec.Struct, frozen=True):
    """What is being asked, and what was typed so far."""

    kind: Literal["filter", "limit", "cancel"]
    text: str


def _searched(row: Row) -> str:
    return " ".join((row.key, row.kind, row.image, row.name or "", row.client, row.store, row.state)).lower()


def _order(sort: str) -> Callable[[Row], Any]:
    """The key by which rows are sorted. Ids make the order one that does not jump."""
    if sort == "left":
        return lambda row: (row.left is None, row.left or 0.0, row.key)
    if sort == "wait":
        return lambda row: (max(row.wait.items(), key=lambda item: item[1], default=("", 0))[0], row.key)
    if sort == "image":
        return lambda row: (row.label, row.key)
    return lambda row: (getattr(row, sort), row.key)


def _grouped(rows: Iterable[Row], group: str) -> list[Row]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(getattr(row, group), []).append(row)
    return [_sum(value, members) for value, members in groups.items()]


def _sum(value: str, rows: Sequence[Row]) -> Row:
    """One row for several."""
    sizes = [row.size for row in rows]
    wait: dict[str, int] = {}
    for row in rows:
        for kind, ms in row.wait.items():
            wait[kind] = wait.get(kind, 0) + ms
    return Row(
        key=value,
        ids=tuple(id for row in rows for id in row.ids),
        kind=_common(row.kind for row in rows),
        image=_common(row.image for row in rows),
        client=_common(row.client for row in rows),
        store=_common(row.store for row in rows),
        state=_common(row.state for row in rows),
        bytes=sum(row.bytes for row in rows),
        size=None if None in sizes else sum(size for size in sizes if size is not None),
        rate=sum(row.rate for row in rows),
        average=sum(row.average for row in rows),
        left=max((row.left for row in rows if row.left is not None), default=None),
        wait=wait,
        waiters=sum(row.waiters for row in rows),
        started=min(row.started for row in rows),
        limit=None,
        name=rows[0].name if len({row.image for row in rows}) == 1 else None,
    )


def _common(values: Iterable[str]) -> str:
    """What all have, or how many different ones there are."""
    found = set(values)
    return found.pop() if len(found) == 1 else f"{len(found)} different"
