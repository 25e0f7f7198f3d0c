"""Where a watcher's messages can go without a task that fetches them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import trio


class Sink(Protocol):
    """Takes messages while its client keeps up. Neither call waits."""

    def ready(self) -> bool:
        """Whether it would take messages now."""
        ...

    def put(self, texts: Sequence[str]) -> bool:
        """Take messages, all of them. False where the task has to see to the rest, or to the end of the client. Called
        only where it is ready."""
        ...


class Handover:
    """Hands messages to a sink while the task that would fetch them waits, and wakes that task for what is left.

    Attributes:
        is_stuck: Whether the sink left something to the task.
    """

    def __init__(self) -> None:
        self.is_stuck = False
        self._sink: Sink | None = None
        self._waits = False  # whether the task waits for something to take, or there is none
        self._wakeup = trio.Event()

    def attach(self, sink: Sink, *, has_task: bool = True) -> None:
        """Hand messages to `sink`; without a task, at any time."""
        self._sink = sink
        self._waits = not has_task

    def is_open(self) -> bool:
        """Whether messages can be handed over now."""
        return self._waits and self._sink is not None and self._sink.ready()

    def put(self, texts: Sequence[str]) -> None:
        """Hand messages over. Only where `is_open`."""
        if texts and self._sink is not None:
            self.is_stuck = not self._sink.put(texts)

    def wake(self) -> None:
        """Let the task look."""
        self._wakeup.set()

    def unstick(self) -> bool:
        """Leave to the task what the sink left over; whether there was anything."""
        was_stuck, self.is_stuck = self.is_stuck, False
        return was_stuck

    async def wait(self) -> None:
        """Wait, in the task, until it is woken by a `wake` from now on."""
        self._wakeup = trio.Event()
        self._waits = True
        try:
            await self._wakeup.wait()
        finally:
            self._waits = False
