"""How far a file that grows may be sent: told by the event loop, read by the threads that send it.

So a crowd that waits for the same bytes is woken by one message, and not reader by reader in the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager


class Growth:
    """One such file. All but the attributes is of the event loop.

    Attributes:
        released: Bytes from its beginning that may be sent. It only rises.
        over: Whether it rises no more. Set after the last rise: who reads both reads this one first.
    """

    def __init__(self) -> None:
        self.released = 0
        self.over = False
        self._listeners: dict[Callable[[Growth], None], int] = {}

    def tell(self, released: int, *, over: bool) -> None:
        """Note how far it is, and let those know who wait."""
        if released > self.released or over > self.over:
            self.released = max(released, self.released)
            self.over = over
            for listener in self._listeners:
                listener(self)

    @contextmanager
    def heard(self, listener: Callable[[Growth], None]) -> Generator[None]:
        """Call `listener` for the length of the block each time that there is more, once for all that ask for it. It
        must not block."""
        self._listeners[listener] = self._listeners.get(listener, 0) + 1
        try:
            yield
        finally:
            self._listeners[listener] -= 1
            if not self._listeners[listener]:
                del self._listeners[listener]
