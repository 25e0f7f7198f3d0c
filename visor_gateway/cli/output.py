"""What commands print: records and tables for people, JSON for machines.

Text that comes from a gateway may have been written by anyone: control characters, which a terminal would obey, are
replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click
import msgspec

UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_GAP: Final = "  "


def print_json(value: object) -> None:
    """One line of JSON on standard output."""
    click.echo(msgspec.json.encode(value))


def print_record(record: Mapping[str, Any]) -> None:
    """One line for each field that is set."""
    shown = {name: text(value) for name, value in record.items() if value is not None}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        click.echo(f"{text(name):>{width}}: {value}")


def print_table(columns: Mapping[str, str], records: Iterable[Mapping[str, Any]]) -> None:
    """Records as lines under a heading.

    Args:
        columns: Heading by field.
    """
    for line in table(
        list(columns.values()), [[cell(name, record.get(name)) for name in columns] for record in records]
    ):
        click.echo(line)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    return [
        _GAP.join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()
        for row in (heading, *rows)
    ]


def cell(name: str, value: object) -> str:
    """One value of a table."""
    if value is None:
        return "-"
    if name == "size" and isinstance(value, int):
        return byte_count(value)
    if name.endswith("_at") and isinstance(value, str):
        return text(value)[:19].replace("T", " ")
    return text(value)


def text(value: object) -> str:
    """`value` as text that a terminal only shows."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def byte_count(count: float) -> str:
    """Bytes in binary units, three digits or four."""
    for unit in UNITS:
        if abs(count) < 1024 or unit == UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
