"""Threads that a dead disk may keep for ever, and how to go on without them.

A system call on a file can't be interrupted: where the disk does not answer, the thread that made it is gone until
it does. Whoever depends on such a thread watches its calls. One that has been silent for long is left behind, by
which everything but that one call is taken from it: when it comes back it is told so, and touches nothing any more
that others could have closed or used again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

LOOK_SECONDS: Final = 1.0
#: So many looks at one and the same call, and its thread is taken for lost. Looks are counted, not seconds: a process
#: that was stopped for a while finds nothing amiss.
SILENT_LOOKS: Final = 5


class Calls:
    """The calls of one thread, of which each may hang.

    The thread puts each between `begin` and `end`; one watcher calls `look` every `LOOK_SECONDS`, and `leave_behind`.
    """

    __slots__ = ("_count", "_left_behind", "_lock", "_looks", "_seen", "_under_way")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._under_way = False
        self._left_behind = False
        self._seen = 0
        self._looks = 0

    def begin(self) -> None:
        """A call begins."""
        self._count += 1
        self._under_way = True

    def end(self) -> bool:
        """The call has returned. False: the thread was left behind meanwhile, and its work is others' now."""
        with self._lock:
            self._under_way = False
            return not self._left_behind

    def look(self) -> int:
        """How many looks in a row have found the same call under way."""
        if self._under_way and self._count == self._seen:
            self._looks += 1
        else:
            self._seen, self._looks = self._count, 0
        return self._looks

    def leave_behind(self, then: Callable[[], None] = lambda: None) -> bool:
        """Take the thread's work away, if a call is still under way. Whether that was so.

        `then` is called before the thread can learn of it; it must not block.
        """
        with self._lock:
            if not self._under_way or self._left_behind:
                return False
            self._left_behind = True
            then()
            return True
