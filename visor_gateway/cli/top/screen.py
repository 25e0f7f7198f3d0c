"""A board as lines of a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from .. import output
from .board import Board, Row

BAR: Final = 10
_KEYS: Final = "s sort  r reverse  g group  / filter  p pause  l limit  c cancel  q quit"
_STYLES: Final = {"running": "green", "paused": "yellow", "queued": "yellow"}
#: Heading, least width, and whether to the right. The image takes what is left.
_COLUMNS: Final = (
    ("ID", 8, False),
    ("KIND", 6, False),
    ("IMAGE", 12, False),
    ("CLIENT", 15, False),
    ("STATE", 8, False),
    ("PROGRESS", BAR + 5, False),
    ("RATE", 12, True),
    ("AVERAGE", 12, True),
    ("LEFT", 8, True),
    ("WAITS FOR", 12, False),
    ("WAITERS", 7, True),
)
_IMAGE: Final = 2
#: What a narrow screen leaves out, the first of them first.
_SPARED: Final = (7, 10, 1, 3, 8, 0)
_SHORT_KEYS: Final = "s r g / p l c q"


def render(board: Board, width: int, height: int) -> Text:
    """The whole screen. A narrow one has fewer columns."""
    rows = board.rows()
    head = [_totals(board), Text(_keys(board, width), style="dim"), _heading(width)]
    room = max(1, height - len(head) - 1)
    place = board.place(rows)
    first = min(max(0, place - room // 2), max(0, len(rows) - room))
    lines = [_line(row, width, chosen=row is rows[place]) for row in rows[first : first + room]]
    lines += [Text("Nothing moves.", style="dim")] if not rows else []
    lines += [Text()] * (room - len(lines))
    for line in (*head, *lines):
        line.truncate(width, pad=True)
    return Text("\n").join([*head, *lines, _footer(board, width)])


def _totals(board: Board) -> Text:
    parts = [f"{output.text(name)} {count}, {output.byte_count(rate)}/s" for name, count, rate in board.totals()]
    line = Text("   ".join(parts), style="bold")
    return line if board.is_live else Text("connection lost, trying again   ", style="bold red") + line


def _keys(board: Board, width: int) -> str:
    order = f"by {board.sort}{', reversed' if board.reverse else ''}"
    grouped = f", one line for each {board.group}" if board.group else ""
    only = f", only '{output.text(board.filter)}'" if board.filter else ""
    shown = f"{order}{grouped}{only}"
    return f"{shown}   {_KEYS if len(shown) + 3 + len(_KEYS) <= width else _SHORT_KEYS}"


def _heading(width: int) -> Text:
    return Text(_cells([name for name, _, _ in _COLUMNS], width), style="reverse")


def _line(row: Row, width: int, *, chosen: bool) -> Text:
    most, ms = max(row.wait.items(), key=lambda item: item[1], default=("", 0))
    share = 100 * ms // sum(row.wait.values()) if ms else 0
    count = len(row.ids)
    cells = [
        row.key[:8] if count == 1 else f"{count} moves",
        row.kind,
        row.label,
        row.client,
        row.state,
        _bar(row),
        f"{output.byte_count(row.rate)}/s",
        f"{output.byte_count(row.average)}/s",
        "-" if row.left is None else output.duration(row.left),
        f"{most} {share} %" if ms else "-",
        str(row.waiters or "-"),
    ]
    style = "bold on blue" if chosen else _STYLES.get(row.state, "")
    return Text(_cells([output.text(each) for each in cells], width), style=style)


def _bar(row: Row) -> str:
    if not row.size:
        return output.byte_count(row.bytes)
    share = min(row.bytes / row.size, 1.0)
    full = int(share * BAR)
    return f"{'#' * full}{'.' * (BAR - full)} {int(share * 100):3}%"


def _cells(cells: Sequence[str], width: int) -> str:
    places = _fitting(width)
    spare = max(0, width - _needed(places))
    parts = []
    for place in places:
        cell, (_, least, right) = cells[place], _COLUMNS[place]
        room = least + (spare if place == _IMAGE else 0)
        padding = " " * max(0, room - cell_len(cell))
        parts.append(padding + set_cell_size(cell, min(room, cell_len(cell))) if right else set_cell_size(cell, room))
    return " ".join(parts)


def _fitting(width: int) -> list[int]:
    """The columns that a screen has room for, by their places."""
    places = list(range(len(_COLUMNS)))
    for place in _SPARED:
        if _needed(places) <= width:
            break
        places.remove(place)
    return places


def _needed(places: Sequence[int]) -> int:
    return sum(_COLUMNS[place][1] + 1 for place in places) - 1


def _footer(board: Board, width: int) -> Text:
    match board.prompt:
        case None:
            text = board.notice
        case prompt if prompt.kind == "cancel":
            count = len(board.selected.ids) if board.selected else 0
            text = f"Cancel {count} transfer{'s' if count != 1 else ''}? y for yes"
        case prompt:
            asked = "Filter" if prompt.kind == "filter" else "Bytes per second, such as 10MiB, or none"
            text = f"{asked}: {prompt.text}_"
    line = Text(output.text(text), style="bold")
    line.truncate(width, pad=True)
    return line
