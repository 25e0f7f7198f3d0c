"""A store in memory for tests of what stands above stores. It is held to the same contract, and fails on purpose."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from visor_gateway.errors import ObjectChanged, ObjectExists, ObjectMissing, StoreError, StoreUnreachable
from visor_gateway.store.contract import Block, ObjectInfo

SCHEME = "memory:///"


@dataclass
class Faults:
    """What goes wrong, from now on. Offsets count bytes of one object.

    Attributes:
        open_error: Raised by `open_read` and `open_write`.
        write_fails_at: The write that would pass this offset takes nothing and raises `error`.
        read_fails_at: The read that would pass this offset brings what is before it; the next raises `error`.
        commit_error: Raised by `commit`; nothing becomes visible.
        abort_error: Raised by `abort`, `abandon` and `delete`, which leave everything.
        error: What failing writes and reads raise.
        write_stalls_at: A write that would pass this offset waits for `resume`.
        read_stalls_at: A read that would pass this offset brings what is before it; the next waits for `resume`.
        commit_stalls: `commit` waits for `resume` before anything becomes visible.
        stalled: Set once something waits.
        resume: Lets what waits go on.
        seconds_per_block: How long each write and read takes (by Trio's clock).
    """

    open_error: StoreError | None = None
    write_fails_at: int | None = None
    read_fails_at: int | None = None
    commit_error: StoreError | None = None
    abort_error: StoreError | None = None
    error: StoreError = field(default_factory=lambda: StoreUnreachable("The store failed"))
    write_stalls_at: int | None = None
    read_stalls_at: int | None = None
    commit_stalls: bool = False
    stalled: trio.Event = field(default_factory=trio.Event)
    resume: trio.Event = field(default_factory=trio.Event)
    seconds_per_block: float = 0.0

    async def stall(self) -> None:
        """Wait as a hung store does."""
        self.stalled.set()
        await self.resume.wait()


@dataclass(frozen=True)
class Kept:
    """One object."""

    content: bytes
    info: ObjectInfo
    begun: float


class MemoryStore:
    """Objects in a dictionary.

    Attributes:
        objects: Committed objects by key.
        partial: What attempts under way, or aborted badly, have written, by key.
        reads: Ranges that were opened: location, offset, length.
        open_streams: Read streams that nobody closed yet.
        faults: What goes wrong; may be changed at any time.
    """

    writable = True

    def __init__(self, name: str = "memory", *, block_size: int = 64 * 1024, faults: Faults | None = None) -> None:
        self.name = name
        self.block_size = block_size
        self.faults = faults or Faults()
        self.objects: dict[str, Kept] = {}
        self.partial: dict[str, bytearray] = {}
        self.reads: list[tuple[str, int, int | None]] = []
        self.open_streams = 0
        self._begun: dict[str, float] = {}
        self._versions = itertools.count(1)

    def put(self, key: str, content: bytes) -> str:
        """Put an object there unwritten, also over another one (under a new validator). Returns its location."""
        info = ObjectInfo(size=len(content), validator=f"version-{next(self._versions)}")
        self.objects[key] = Kept(content, info, time.time())
        return SCHEME + key

    async def check(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.faults.open_error is not None:
            raise self.faults.open_error

    async def stat(self, location: str) -> ObjectInfo:
        await trio.lowlevel.checkpoint()
        return self._get(location).info

    async def open_read(
        self, location: str, offset: int = 0, length: int | None = None, *, expected: ObjectInfo | None = None
    ) -> MemoryReadStream:
        await self.check()
        kept = self._get(location)
        if not kept.info.agrees_with(expected):
            raise ObjectChanged("The object is not the expected one")
        end = len(kept.content) if length is None else offset + length
        if not 0 <= offset <= end <= len(kept.content):
            raise ObjectChanged("The range is outside the object")
        self.reads.append((location, offset, length))
        return MemoryReadStream(self, kept, offset, end)

    async def open_write(self, key: str, *, size: int | None = None) -> MemoryWriteStream:
        await self.check()
        if key in self.objects or key in self.partial:
            raise ObjectExists("The store has an object of that key already")
        self.partial[key] = bytearray()
        self._begun[key] = time.time()
        return MemoryWriteStream(self, key)

    async def delete(self, location: str) -> None:
        await self._removing()
        self.objects.pop(location.removeprefix(SCHEME), None)

    async def abandon(self, key: str) -> None:
        await self._removing()
        self.objects.pop(key, None)
        self.partial.pop(key, None)

    async def leftovers(self, older_than: float) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        begun = {key: self._begun[key] for key in self.partial} | {key: it.begun for key, it in self.objects.items()}
        return sorted(key for key, when in begun.items() if when <= time.time() - older_than)

    async def _removing(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.faults.abort_error is not None:
            raise self.faults.abort_error

    def _get(self, location: str) -> Kept:
        kept = self.objects.get(location.removeprefix(SCHEME)) if location.startswith(SCHEME) else None
        if kept is None:
            raise ObjectMissing("The store has no such object")
        return kept


class MemoryReadStream:
    def __init__(self, store: MemoryStore, kept: Kept, position: int, end: int) -> None:
        self.info = kept.info
        self._store = store
        self._content = kept.content
        self._position = position
        self._end = end
        self._closed = False
        store.open_streams += 1

    async def receive_some(self) -> Block:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise StoreError("The stream is closed")
        faults = self._store.faults
        if faults.seconds_per_block:
            await trio.sleep(faults.seconds_per_block)
        if self._reached(faults.read_stalls_at) and not faults.resume.is_set():
            await faults.stall()
        if self._reached(faults.read_fails_at):
            raise faults.error
        end = min(self._end, self._position + self._store.block_size, *self._before(faults))
        block, self._position = self._content[self._position : end], end
        return block

    def _reached(self, offset: int | None) -> bool:
        return offset is not None and self._position >= offset and self._position < self._end

    def _before(self, faults: Faults) -> list[int]:
        return [at for at in (faults.read_stalls_at, faults.read_fails_at) if at is not None and at > self._position]

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.open_streams -= 1
        await trio.lowlevel.cancel_shielded_checkpoint()


class MemoryWriteStream:
    def __init__(self, store: MemoryStore, key: str) -> None:
        self.location = SCHEME + key
        self._store = store
        self._key = key
        self._usable = True
        self._committed = False

    async def write(self, data: Block) -> None:
        content = self._take()
        await trio.lowlevel.checkpoint()
        faults, length = self._store.faults, memoryview(data).nbytes
        if faults.seconds_per_block:
            await trio.sleep(faults.seconds_per_block)
        if faults.write_stalls_at is not None and len(content) + length > faults.write_stalls_at:
            await faults.stall()
        if faults.write_fails_at is not None and len(content) + length > faults.write_fails_at:
            raise faults.error
        content += bytes(data)
        self._usable = True

    async def commit(self) -> ObjectInfo:
        content = self._take()
        await trio.lowlevel.checkpoint()
        faults = self._store.faults
        if faults.commit_stalls:
            await faults.stall()
        if faults.commit_error is not None:
            raise faults.commit_error
        if self._key in self._store.objects:
            self._store.partial.pop(self._key, None)
            raise ObjectExists("The store has an object of that key already")
        self._committed = True
        self._store.put(self._key, bytes(content))
        self._store.partial.pop(self._key, None)
        return self._store.objects[self._key].info

    async def abort(self) -> None:
        self._usable = False
        if not self._committed and self._store.faults.abort_error is None:
            self._store.partial.pop(self._key, None)
        await trio.lowlevel.cancel_shielded_checkpoint()
        if not self._committed and self._store.faults.abort_error is not None:
            raise self._store.faults.abort_error

    def _take(self) -> bytearray:
        """The bytes so far, if the attempt is still good; it is again once the call that takes them has ended well."""
        content = self._store.partial.get(self._key)
        if not self._usable or content is None:
            raise StoreError("The attempt has failed or ended; nothing can be written to it")
        self._usable = False
        return content
