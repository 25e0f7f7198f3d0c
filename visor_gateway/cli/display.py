"""Transfers on the screen: a live table on a terminal, lines elsewhere, JSON for machines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Final

import click

from ..client import Message, Record
from ..client.view import TransferView
from . import output
from .follow import Show

LINE_SECONDS: Final = 5.0  # between lines about one transfer that runs
WAITS_SHOWN: Final = 50  # ms in the last interval from which a wait is worth a word
#: Ids come last: they are long, and a narrow terminal cuts lines at their end.
COLUMNS: Final = ("KIND", "STATE", "PROGRESS", "RATE", "LEFT", "WAITS FOR", "USER", "CLIENT", "TRANSFER", "IMAGE")
_ENDED: Final = ("KIND", "STATE", "BYTES", "AVERAGE", "TOOK", "WAITED FOR", "ENDED", *COLUMNS[-4:])


@contextmanager
def display(*, json: bool) -> Generator[Show]:
    """Where messages of the live channel go."""
    if json:
        yield lambda message, view: output.print_json(message)
    elif sys.stdout.isatty():
        with _live_table() as show:
            yield show
    else:
        yield Lines()


def print_transfers(listing: Mapping[str, Any]) -> None:
    """A listing as a table."""
    for line in lines(listing["transfers"]):
        click.echo(line)


def print_history(listing: Mapping[str, Any]) -> None:
    """What ended, as a table."""
    for line in output.table(_ENDED, [_ended_row(transfer) for transfer in listing["transfers"]]):
        click.echo(line)


def _ended_row(transfer: Record) -> list[str]:
    return [
        output.text(transfer["kind"]),
        output.text(transfer["state"]),
        output.byte_count(transfer["bytes"]),
        f"{output.byte_count(transfer['rate_avg'])}/s",
        output.duration(transfer["duration_s"]),
        _waits(transfer),
        output.text(transfer["ended_at"]),
        output.cell("user", transfer.get("user")),
        output.cell("client", transfer.get("client")),
        output.text(transfer["id"]),
        output.text(transfer["image"]),
    ]


def lines(transfers: Iterable[Record]) -> list[str]:
    """A table of transfers, as lines."""
    return output.table(COLUMNS, [_row(transfer) for transfer in transfers])


def _row(transfer: Record) -> list[str]:
    seconds = transfer.get("eta_s")
    return [
        output.text(transfer["kind"]),
        _state(transfer),
        _progress(transfer),
        _rate(transfer),
        "-" if seconds is None else output.duration(seconds),
        _waits(transfer),
        output.cell("user", transfer.get("user")),
        _client(transfer),
        output.text(transfer["id"]),
        output.text(transfer["image"]),
    ]


def _client(transfer: Record) -> str:
    """Who is served: the client, or how many readers a fill has."""
    if waiters := transfer.get("waiters"):
        return f"{output.text(waiters)} waiting"
    return output.cell("client", transfer.get("client"))


def _state(transfer: Record, word: str | None = None) -> str:
    """The state, or a word in its place, with the place in the queue."""
    position = transfer.get("position")
    shown = output.text(word or transfer["state"])
    return shown if position is None else f"{shown} (place {output.text(position)})"


def _rate(transfer: Record) -> str:
    return f"{output.byte_count(transfer.get('rate') or 0)}/s"


def _progress(transfer: Record) -> str:
    done, size = transfer.get("bytes") or 0, transfer.get("size")
    if not size:
        return output.byte_count(done)
    return f"{100 * done // size:3} % of {output.byte_count(size)}"


def _waits(transfer: Record) -> str:
    waits = transfer.get("wait") or {}
    name, spent = max(waits.items(), key=lambda item: item[1], default=("", 0))
    return output.text(name) if spent >= WAITS_SHOWN else "-"


class Lines:
    """A line for every event, and one every few seconds for what runs."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic, write: Callable[[str], None] = click.echo) -> None:
        self._now = now
        self._write = write
        self._due: dict[str, float] = {}

    def __call__(self, message: Message, view: TransferView) -> None:
        match message:
            case {"type": "snapshot", "transfers": list(transfers)}:
                for transfer in transfers:
                    self._line(transfer, str(transfer["state"]))
            case {"type": "event", "kind": str(kind), "transfer": dict(transfer)}:
                self._line(transfer, kind)
            case {"type": "delta"}:
                for key, *_ in message.get("u", ()):
                    transfer = view.transfers.get(key)
                    if transfer is not None and self._now() >= self._due.get(key, 0.0):
                        self._line(transfer, str(transfer["state"]))
                for key in self._due.keys() - view.transfers.keys():
                    del self._due[key]

    def _line(self, transfer: Record, word: str) -> None:
        self._due[transfer["id"]] = self._now() + LINE_SECONDS
        named = [_state(transfer, word), *(transfer[field] for field in ("kind", "id", "image"))]
        parts = [*named, _progress(transfer), _rate(transfer), transfer.get("error") or ""]
        self._write("  ".join(output.text(part) for part in parts if part))


@contextmanager
def _live_table() -> Generator[Show]:
    from rich.live import Live
    from rich.text import Text

    with Live(Text("\n".join(lines([])), no_wrap=True), refresh_per_second=4) as live:
        yield lambda message, view: live.update(Text("\n".join(lines(view.transfers.values())), no_wrap=True))
