"""Examples of the documents, made to run on loopback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def replaced(example: Path, changes: Mapping[str, str]) -> str:
    """The text of an example with each key of `changes`, which has to be in it exactly once, become its value."""
    text = example.read_text("utf-8")
    for before, after in changes.items():
        assert text.count(before) == 1, (example.name, before)
        text = text.replace(before, after)
    return text
