"""What one attempt to write does in the background: requests that go on while the writer takes more bytes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ..errors import StoreError

#: For a request that makes an object visible, once the writer was cancelled: it is better known how it ended.
GRACE_SECONDS: Final = 10.0

Work = Callable[[], Awaitable[None]]


class Attempt:
    """The tasks of one attempt, in a nursery that its store owns.

    Attributes:
        on_retry: Called before the pause of each further try of a request.

    Error handling: the first error of a task ends the others and is raised by the next `raise_failure`.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.on_retry: Callable[[], None] = _nothing
        self._nursery = nursery
        self._scopes: set[trio.CancelScope] = set()
        self._idle = trio.Event()
        self._idle.set()
        self._failure: BaseException | None = None
        self._stopped = False

    def retried(self) -> None:
        """Tell whoever wants to know that a request is tried again."""
        self.on_retry()

    def start(self, work: Work) -> None:
        """Begin to do `work`."""
        self._begin(_Task(work, self._fail))

    async def run(self, work: Work) -> None:
        """Do `work` and raise what it raises. A cancellation waits `GRACE_SECONDS` for its end first."""
        task = _Task(work, None)
        self._begin(task)
        try:
            await task.ended.wait()
        finally:
            with trio.move_on_after(GRACE_SECONDS, shield=True):
                await task.ended.wait()
        if task.failure is not None:
            raise task.failure
        if not task.done:
            self.raise_failure()
            raise StoreError("The attempt was stopped")

    def raise_failure(self) -> None:
        """Raise the first error of the tasks so far."""
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """End all tasks and wait for their end. Nothing can be begun from now on."""
        self._stopped = True
        self._cancel()
        await self._idle.wait()

    def _begin(self, task: _Task) -> None:
        if self._stopped:
            raise StoreError("The attempt has ended")
        if not self._scopes:
            self._idle = trio.Event()
        self._scopes.add(task.scope)
        task.ending = self._ended
        self._nursery.start_soon(task.run)

    def _ended(self, scope: trio.CancelScope) -> None:
        self._scopes.discard(scope)
        if not self._scopes:
            self._idle.set()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            self._cancel()

    def _cancel(self) -> None:
        for scope in self._scopes:
            scope.cancel()


class _Task:
    def __init__(self, work: Work, on_failure: Callable[[BaseException], None] | None) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.done = False
        self.failure: Exception | None = None
        self.ending: Callable[[trio.CancelScope], None] = lambda scope: None
        self._work = work
        self._on_failure = on_failure

    async def run(self) -> None:
        try:
            with self.scope:
                await self._work()
                self.done = True
        # Whoever waits for the work is told, whatever it is; nothing else may end with it.
        except Exception as error:
            self.failure = error
            if self._on_failure is not None:
                self._on_failure(error)
        finally:
            self.ending(self.scope)
            self.ended.set()


def _nothing() -> None:
    pass
