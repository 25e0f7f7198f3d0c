"""One question for all who ask at the same time, with no answer that is older than who asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

V = TypeVar("V")


class _Question(Generic[V]):
    """A question that is under way."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.done = trio.Event()
        self.answers: list[V] = []


class Shared(Generic[V]):
    """Asks at most one question at a time. An answer is for those alone who asked before the question was sent: who
    comes while one is under way waits for its end, and shares the next one with all who came meanwhile."""

    def __init__(self, ask: Callable[[], Awaitable[V]]) -> None:
        self._ask = ask
        self._sent = 0
        self._under_way: _Question[V] | None = None

    async def answer(self) -> V:
        """The answer to a question that was sent after this call began. Who is cancelled leaves the others as they are.

        Raises:
            Exception: What asking raises, to the one whose question it was; the others ask for themselves.
        """
        sent_before = self._sent
        while (question := self._under_way) is not None:
            await question.done.wait()
            if question.number > sent_before and question.answers:
                return question.answers[0]
        return await self._send()

    async def _send(self) -> V:
        self._sent += 1
        question = self._under_way = _Question(self._sent)
        try:
            answer = await self._ask()
            question.answers.append(answer)
        finally:
            self._under_way = None
            question.done.set()
        return answer
