"""A fill: one read of a store into a file of the cache, and any number of readers that are served from it meanwhile.

Theory of operation. The fill runs in the engine's nursery, at the store's pace, and waits for no reader. Blocks are
hashed and written; `committed` says how far. Readers send from the file what is `released`, and wait for more:

    released = committed, but for the last `HELD_BACK` bytes of the image until the whole is known to be right

So no reader can have a whole image before its digest was compared. A fill ends in one of three ways, and its readers
with it:

    verified   everything is released
    failed     the store gave it up, the bytes are wrong, or it was cancelled: every reader gets the error
    broken     the cache's own disk failed: readers take what was released, then go on from the store by themselves
               (`detour.Detour`), and hold back their last block as any direct read does

The file is written once and only grows, so the kernel may send from it at any time.

Where another process fills the image, this one follows (`following.Following`): its readers send from the same file,
and one of them at a time looks how far that is. A fill whose process is gone is adopted by a follower: it hashes what
is there, and reads on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import trio

from ..errors import GatewayError, ObjectChanged, StoreError, StoreUnreachable
from ..image import Image
from ..store.cachedir import Refusal
from ..store.cachefiles import CacheFiles
from ..store.file import FileReadStream
from ..store.partial import Partial
from ..store.progress import Stage
from .digest import Digests
from .fillfile import FillFile
from .filling import CacheFailed, Filling, Open
from .following import Following
from .growth import Growth
from .telling import Telling
from .transfer import Transfer

NEAR: Final = 2 * 1024 * 1024  # bytes ahead of a fill that a range is waited for in any case
NEAR_SECONDS: Final = 1.0  # further ahead, what the fill will have by then at its present rate
HELD_BACK: Final = 512 * 1024  # bytes at the end of an image that wait for its digest
CLOSE_SECONDS: Final = 5.0
_ELSEWHERE: Final[Mapping[Stage, StoreError]] = {
    Stage.FAILED: StoreUnreachable("The store failed under the process that fills the cache"),
    Stage.CHANGED: ObjectChanged("The bytes in the store are not those that the record describes"),
}


class Fill:
    """One fill.

    Args:
        image: The image; its size is known.
        read: How the store is read.
        agree: Called with the image and the hex SHA-256 of all bytes before the last block is released, and raises
            where they are not the record's, or that can't be found out.
        keep: Called with it afterwards; makes an entry of the file, or not.
        adopted: Called when the fill of another process has become this one's: starts the transfer.
        closed: Called when it is closed: nobody is to find it any more.
        count: Told of bytes that came from the store.
        finish_share: A fill that nobody waits for any more goes on if so much of it is there, from 0 to 1.
        nice: How much its threads stand back behind others.

    Attributes:
        verified: Whether all of it is there, and right.
        broken: Whether readers have to go on from the store.
        error: What it failed of.
        refusal: Why it could not begin.
        opened: Set once the store gives bytes, or the fill is over.
        ended: Set once nothing of it is left but what its readers hold.
        wanted: Whether it goes on without readers in any case.
    """

    def __init__(
        self,
        image: Image,
        read: Open,
        *,
        agree: Callable[[Image, str], Awaitable[None]],
        keep: Callable[[str], Awaitable[None]],
        adopted: Callable[[], None],
        closed: Callable[[], None],
        count: Callable[[int], None] = lambda count: None,
        finish_share: float = 0.5,
        nice: int = 0,
    ) -> None:
        self.image = image
        self.size = image.size or 0
        self.verified = False
        self.broken = False
        self.error: StoreError | None = None
        self.refusal: Refusal | None = None
        self.opened = trio.Event()
        self.ended = trio.Event()
        self.wanted = False
        self._filling: Filling | None = None
        self._following: Following | None = None
        self._noted = 0  # bytes of which others were told
        self._read = read
        self._agree = agree
        self._keep = keep
        self._adopted = adopted
        self._closed = closed
        self._count = count
        self._finish_share = finish_share
        self._nice = nice
        self._file: FillFile | None = None
        self._transfer: Transfer | None = None
        self._readers = 0
        self._telling = Telling()
        self._follows = False
        self._is_foreign = False  # whether another process began it
        self._abandoned = False
        self._resumable = False  # whether another process may go on with it
        self._watched = False  # whether a reader looks at the other process's fill

    def enter(self, files: CacheFiles, partial: Partial) -> None:
        """Take the file, which was begun and is empty; `close` ends it."""
        self._file = FillFile(files, partial)

    def follow(self, files: CacheFiles, partial: Partial) -> None:
        """Take the file that another process fills; `close` ends it, once nobody reads it here any more."""
        self._file = FillFile(files, partial)
        self._following = Following(files, partial)
        self._follows = self._is_foreign = True
        self.opened.set()

    @property
    def committed(self) -> int:
        """Bytes in the file."""
        if self._filling is not None:
            return self._filling.committed
        return self._following.committed if self._following is not None else 0

    @property
    def released(self) -> int:
        """How many of the image's first bytes may be sent from the file."""
        if self.verified:
            return self.committed
        return max(0, min(self.committed, self.size - HELD_BACK))

    def is_far(self, offset: int) -> bool:
        """Whether a range that begins there is better read from the store than waited for."""
        rate = self._transfer.meter.rate if self._transfer is not None else 0.0
        return offset > self.released + max(NEAR, rate * NEAR_SECONDS)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.verified or self.broken or self.error is not None or (self.opened.is_set() and not self._is_open)

    @property
    def _is_open(self) -> bool:
        return self._file is not None and self._file.partial is not None

    @property
    def is_leaving(self) -> bool:
        """Whether it was cancelled: who comes now waits for its end, and begins anew."""
        return self._transfer is not None and self._transfer.cancel_reason is not None

    @property
    def is_forsaken(self) -> bool:
        """Whether nobody reads it here any more, and no transfer will close it."""
        return (self._follows or self._abandoned) and not self._readers

    # --- readers ---------------------------------------------------------------------------------

    def join(self) -> None:
        """Count a reader, also one that still waits for `opened`. Each one leaves with `leave`."""
        self._readers += 1
        self._show_readers()

    async def leave(self) -> None:
        """Count a reader less. With the last one the fill may end. To be shielded with a deadline."""
        self._readers -= 1
        self._show_readers()
        self._cancel_if_unneeded()
        if self.is_forsaken:
            await self.close()

    def give_up(self) -> None:
        """Nobody wants an entry of it any more: it goes on only for the readers that it has."""
        self.wanted = False
        self._finish_share = 1.0
        self._cancel_if_unneeded()

    async def lose(self) -> None:
        """Its file was found to be of no use: nobody is to find it any more, and it becomes no entry. Never raises."""
        self.give_up()
        self._closed()
        if self._file is not None:
            await self._file.disown()

    def _cancel_if_unneeded(self) -> None:
        unneeded = not (self._readers or self.wanted) and self.committed < self._finish_share * self.size
        if unneeded and not self.is_over and self._transfer is not None and not self._is_followed:
            self._transfer.cancel("unneeded")

    @property
    def _is_followed(self) -> bool:
        return self._file is not None and self._file.is_followed

    def _show_readers(self) -> None:
        if self._transfer is not None:
            self._transfer.waiters = self._readers

    def growing(self) -> FileReadStream | None:
        """A reader's own descriptor of the file; None where that is closed. The caller closes it. Raises `OSError`."""
        return None if self._file is None else self._file.growing()

    @property
    def growth(self) -> Growth | None:
        """What tells the threads that send the file how far it is; None where only `wait_beyond` does."""
        return None if self._follows or self.is_over else self._telling.growth

    async def wait_opened(self) -> None:
        """Wait until the store gives bytes, or the fill is over. Raises StoreError where it has failed."""
        await self.opened.wait()
        while self._is_foreign and not self.committed and not self.is_over:
            await self._wait()
        self.demand_sound()

    async def wait_beyond(self, position: int) -> int:
        """Wait until more than the first `position` bytes are released. Returns how many are.

        No more than `position` only where the fill is broken.

        Raises:
            StoreError: The fill has failed.
        """
        await trio.lowlevel.checkpoint()
        while self.released <= position and not self.broken:
            self.demand_sound()
            await self._wait()
        return self.released

    async def wait_settled(self) -> None:
        """Wait until all of it is verified, or it is broken. Raises StoreError where it has failed."""
        while not (self.verified or self.broken):
            self.demand_sound()
            await self._wait()

    async def _wait(self) -> None:
        """Wait until something may have changed."""
        if not self._follows or self._watched:
            await self._telling.wait()
            return
        self._watched = True
        try:
            await self._look()
        finally:
            self._watched = False
            self._tell_now()

    async def _look(self) -> None:
        """Take over what the process that fills tells; go on with its fill where that process is gone."""
        if self._file is None or self._following is None or not self._is_open:
            raise StoreUnreachable("The fill was left")
        stage = await self._following.look()
        if stage is Stage.VERIFIED:
            await self._seal_or_break(self._file)
        elif stage is Stage.BROKEN:
            self._break()
        elif stage is not Stage.FILLING:
            self._fail(_ELSEWHERE[stage])
        elif self._following.is_adopted:
            self._noted = self.committed
            self._follows = False
            self._adopted()

    async def _seal_or_break(self, file: FillFile) -> None:
        try:
            await file.seal()
        except OSError:
            self._break()
        else:
            self.verified = True

    def _break(self) -> None:
        """The file is of no use any more beyond what is in it: readers go on from the store."""
        self.broken = True
        self._closed()

    def _fail(self, error: StoreError) -> None:
        self.error = self.error or error
        self._closed()

    def demand_sound(self) -> None:
        """Raises the error of a fill that has failed, for each reader an own one."""
        if self.error is not None:
            kind = ObjectChanged if isinstance(self.error, ObjectChanged) else StoreUnreachable
            raise kind(self.error.message) from self.error

    def digests_at(self, position: int) -> Digests | None:
        """Digests of all bytes before `position`, where that is as far as a broken fill came, and they are known."""
        if not self.broken or position != self.committed or self._filling is None or self._filling.digests is None:
            return None
        return self._filling.digests.copy()

    async def demand_untouched(self, inner: FileReadStream) -> None:
        """Raises `ObjectChanged` where somebody has written to the file since it was verified."""
        if self._file is not None:
            await self._file.demand_untouched(inner)

    # --- the fill itself -------------------------------------------------------------------------

    async def run(self, transfer: Transfer) -> None:
        """Fill the file: the work of a transfer of the engine's.

        Raises:
            StoreError: It failed; readers are told.
            CacheFailed: The cache's disk did.
        """
        self._transfer = transfer
        self._show_readers()
        self._cancel_if_unneeded()
        failure: GatewayError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._telling.serve, self._note_growth, lambda: self._readers)
                failure = await self._fenced(transfer)
                nursery.cancel_scope.cancel(reason="the fill has ended")
        finally:
            resumable = not (self.verified or self.broken or self.error)
            if resumable:
                self.error = StoreUnreachable(f"The fill was cancelled: {transfer.cancel_reason or 'shutdown'}")
            self._resumable = resumable and transfer.cancel_reason in {None, "drain"}
            self._settle()
        if failure is not None:
            raise failure

    def _settle(self) -> None:
        """Tell everybody how it stands."""
        self.opened.set()
        self._tell_now()
        if self._file is not None and not (self._follows or self._resumable):
            self._file.tell(self.committed, self._stage)

    @property
    def _stage(self) -> Stage:
        if self.error is not None:
            return Stage.CHANGED if isinstance(self.error, ObjectChanged) else Stage.FAILED
        return Stage.VERIFIED if self.verified else Stage.BROKEN if self.broken else Stage.FILLING

    async def publish(self, sha256: str) -> bool:
        """Make an entry of the file. False where it was purged meanwhile. Raises `OSError`."""
        return self._file is not None and await self._file.publish(sha256)

    async def close(self) -> None:
        """Let go of the file; what was not published is gone when the last reader has left. To be shielded."""
        self._settle()
        try:
            if self._file is not None:
                await self._file.close(ours=not self._follows, resumable=self._resumable)
        finally:
            self._closed()
            self.ended.set()

    def abandon(self, error: StoreError) -> None:
        """Give up an adopted fill whose transfer could not be started. The last reader closes it."""
        self._abandoned = self._resumable = True
        self._fail(error)
        self._settle()

    async def _fenced(self, transfer: Transfer) -> GatewayError | None:
        """Fill, and settle how that ended. Returns what the transfer failed of."""
        try:
            sha256 = await self._fill(transfer)
            await self._agree(self.image, sha256)
        except CacheFailed as error:
            self._break()
            return error
        except GatewayError as error:
            self.error = error if isinstance(error, StoreError) else StoreUnreachable(error.message)
            return self.error
        self.verified = True
        self._settle()
        await self._keep(sha256)
        return None

    async def _fill(self, transfer: Transfer) -> str:
        file = self._file
        if file is None or file.partial is None:
            raise CacheFailed("The cache has no file for this fill")
        self._filling = Filling(self.size, file, file.partial, self._read, self._telling, nice=self._nice)
        try:
            return await self._filling.run(transfer, self.opened.set)
        finally:
            self._note_growth()

    def _note_growth(self) -> bool:
        """Tell everybody of bytes that were committed; whether there were any."""
        committed = self.committed
        if committed == self._noted or self._file is None:
            return False
        self._count(committed - self._noted)
        self._noted = committed
        self._file.tell(committed, self._stage)
        self._tell_now()
        return True

    def _tell_now(self) -> None:
        self._telling.wake()
        if not self._follows:
            self._telling.growth.tell(self.released, over=self.is_over)
