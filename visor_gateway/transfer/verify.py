"""No false success: the last block of what is read comes only once the bytes are known to be right.

A client that lacks the last block can't take what it has for the whole. So whatever is found wrong up to then can
still be told, by a reset.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, cast

import msgspec
import trio

from ..errors import StoreError
from ..store.contract import Block, Direct
from .digest import INLINE, Digests, Hash
from .pump import Source
from .relay import DirectSource

#: Bytes before the end from which on nothing is moved unseen. Each pull needs as much memory for them, and copies them.
HELD: Final = 64 * 1024


class _Passing:
    """A source over another one, whose socket it passes on if that has one."""

    def __init__(self, source: Source) -> None:
        self._source = source
        # By the type, which is remembered: `isinstance` looks through the protocol each time.
        self._direct = cast(DirectSource, source) if issubclass(type(source), DirectSource) else None

    def direct(self) -> Direct | None:
        """The socket behind it, where the next bytes may be moved unseen."""
        return self._direct.direct() if self._direct is not None else None

    def advance(self, count: int) -> None:
        """Book bytes that were taken from the socket."""
        if self._direct is not None:
            self._direct.advance(count)

    async def heal(self, error: StoreError) -> None:
        """Go on after the socket failed. Raises `error` where that can't be."""
        if self._direct is None:
            raise error
        await self._direct.heal(error)


class Verified(_Passing):
    """A source of `length` bytes that keeps the last block back until `agree` returns.

    What `agree` raises is raised in place of the last block. The last block is read before `agree` is called, so that
    what it finds out holds for every byte that was read. It never passes from socket to socket.
    """

    def __init__(self, source: Source, length: int, agree: Callable[[], Awaitable[None]]) -> None:
        super().__init__(source)
        self._left = length
        self._agree = agree

    async def receive_some(self) -> Block:
        block = await self._source.receive_some()
        self._left -= len(block)
        if block and self._left <= 0:
            await self._agree()
        return block

    def direct(self) -> Direct | None:
        offered = super().direct() if self._left > HELD else None
        if offered is None or offered.length <= self._left - HELD:
            return offered
        return msgspec.structs.replace(offered, length=self._left - HELD)

    def advance(self, count: int) -> None:
        super().advance(count)
        self._left -= count


class Hashed(_Passing):
    """A source whose bytes are hashed as they pass, from the very buffer that is handed on.

    A block is hashed in a thread while its receiver works on it. Who moves bytes from the socket gives them to `hashes`
    before `advance`.
    """

    def __init__(self, source: Source, digests: Digests | None = None) -> None:
        """`digests` have taken what comes before the source; without them it is the whole, and SHA-256."""
        super().__init__(source)
        self._digests = digests or Digests(("sha256",))
        self._hashing: trio.Event | None = None
        self._error: BaseException | None = None

    @property
    def hashes(self) -> Sequence[Hash]:
        """The running digests, for whoever was offered `direct`."""
        return self._digests.running()

    async def receive_some(self) -> Block:
        await self._settle()
        block = await self._source.receive_some()
        self._begin(block)
        return block

    def direct(self) -> Direct | None:
        return super().direct() if self._hashing is None or self._hashing.is_set() else None

    async def digests(self) -> Digests:
        """The digests of the bytes so far."""
        await self._settle()
        return self._digests

    async def sha256(self) -> str:
        """The hex SHA-256 of the bytes so far, where that is among the digests."""
        return (await self.digests()).hex("sha256")

    def _begin(self, block: Block) -> None:
        running = self._digests.running()
        if len(block) <= INLINE:
            for digest in running:
                digest.update(block)
            return
        done = self._hashing = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def update() -> None:
            try:
                for digest in running:
                    digest.update(block)
            except Exception as error:
                self._error = error

        def deliver(_: object) -> None:
            with suppress(trio.RunFinishedError):  # nobody waits any more
                token.run_sync_soon(done.set)

        trio.lowlevel.start_thread_soon(update, deliver, name="hash")

    async def _settle(self) -> None:
        """Wait until the last block is hashed: its buffer is the source's again."""
        if self._hashing is not None:
            await self._hashing.wait()
        if self._error is not None:
            raise self._error
