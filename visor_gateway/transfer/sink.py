"""Where a watcher's messages can go without a task that fetches them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Sink(Protocol):
    """Takes messages while its client keeps up. Neither call waits."""

    def ready(self) -> bool:
        """Whether it would take messages now."""
        ...

    def put(self, texts: Sequence[str]) -> bool:
        """Take messages, all of them. False where the task has to see to the rest, or to the end of the client. Called
        only where it is ready."""
        ...
