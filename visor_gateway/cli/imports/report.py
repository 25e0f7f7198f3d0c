"""What an import tells: a line for each image as it is done, and what it comes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import click
import msgspec

from .. import output
from .importer import IMPORTED, PLANNED, PRESENT, SKIPPED, Outcome

_WORDS = {IMPORTED: "imported", PRESENT: "was imported", PLANNED: "would import", SKIPPED: "skipped"}


def print_outcome(outcome: Outcome) -> None:
    """One image, for people."""
    parts = [_WORDS[outcome.outcome], outcome.source_id or "-", output.text(outcome.name) or "-"]
    line = "  ".join(parts)
    if outcome.image:
        line += f"  as {output.text(outcome.image)}"
    if outcome.verified:
        line += f"  ({', '.join(outcome.verified)})"
    click.echo(f"{line}: {output.text(outcome.reason)}" if outcome.reason else line)
    for left_out in outcome.left_out:
        click.echo(f"  left out: {output.text(left_out)}")


def print_totals(outcomes: Sequence[Outcome], *, json: bool) -> None:
    """What it comes to; as JSON with every image."""
    counts = Counter(outcome.outcome for outcome in outcomes)
    if json:
        totals = {name: counts[name] for name in _WORDS}
        output.print_json({"import": {**totals, "images": msgspec.to_builtins(outcomes)}})
    else:
        click.echo(", ".join(f"{word}: {counts[name]}" for name, word in _WORDS.items() if counts[name]) or "no images")


def left_behind(outcomes: Sequence[Outcome]) -> int:
    """How many images of the source the gateway doesn't have, or would not have."""
    return sum(outcome.outcome == SKIPPED for outcome in outcomes)
