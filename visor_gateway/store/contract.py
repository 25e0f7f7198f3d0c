"""What a store is. This file is the specification; the contract suite in `tests/store` holds every store to it.

A store keeps objects: write-once sequences of bytes under a location, a URI that the store itself
made (`file:///...`, `s3://bucket/key`). A location never holds credentials. Writing is
`open_write` -> `write`... -> `commit` or `abort`:

* Nothing is visible before `commit`. `commit` returns only when the bytes are durable.
* After `abort`, or when a write handle is closed without `commit`, nothing is left.
* Each attempt writes under a key of its own, `<image id>/<attempt id>`, which is never used again,
  so no writer can overwrite another one's bytes. An object that exists is never overwritten: `ObjectExists`.
* Reading is by range. A read never returns bytes of another object than the one that was opened,
  also when the object is deleted meanwhile: it runs to its end.
* `delete` of something that is not there is a success: it may be called again after a crash.

Errors that may escape: `StoreError` and its children, nothing else (`OSError` and foreign exceptions
are translated inside). Every method is cancellable; a cancelled method leaves what its docstring says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec
import trio

Block: TypeAlias = bytes | bytearray | memoryview


class ObjectInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a store knows of one object.

    Attributes:
        size: Length in bytes; None where the origin does not tell.
        validator: A strong validator: changes whenever the bytes may have changed. For the file
            store made of inode, mtime_ns and ctime_ns; for an origin its strong ETag. None if there is none.
    """

    size: int | None
    validator: str | None = None

    def agrees_with(self, expected: ObjectInfo | None) -> bool:
        """Whether this can be the object that `expected` describes; what is None there expects nothing."""
        if expected is None:
            return True
        size_agrees = expected.size is None or expected.size == self.size
        return size_agrees and (expected.validator is None or expected.validator == self.validator)


class ReadStream(Protocol):
    """Bytes of one range of one object, in order.

    `receive_some` returns up to a block of bytes and b"" at the end of the range; it raises
    `StoreError` when fewer bytes come than the range has. The opener closes the stream with `aclose`,
    which is safe to call at any time and twice. A cancelled `receive_some` leaves the stream
    usable for nothing but `aclose`.
    """

    info: ObjectInfo

    async def receive_some(self) -> Block: ...

    async def aclose(self) -> None: ...


class Direct(msgspec.Struct, frozen=True, kw_only=True):
    """The next bytes of a read, where they can be taken from the socket that brings them.

    Attributes:
        sock: A plain TCP socket, non-blocking. It is the stream's; a thread works on a duplicate.
        length: How many of its next bytes belong to the read; at least 1. Who takes one more ruins the connection.
        stall_timeout: Seconds without a byte after which the peer is given up.
    """

    sock: int
    length: int
    stall_timeout: float


@runtime_checkable
class DirectReadStream(ReadStream, Protocol):
    """A read stream whose bytes somebody else may move from socket to socket. A store need not have it.

    The rule of use: before every block ask `direct`; where it offers nothing, `receive_some` brings the next block.
    An end or an error of the socket is met again, and told, by the next `receive_some`.
    """

    def direct(self) -> Direct | None:
        """The socket, if the next bytes are to be had from it: not under TLS, not in chunks, not where the size of the
        body is unknown, and not while bytes are left that were read ahead, which `receive_some` hands out first.

        Valid until the next call of any other method.
        """
        ...

    def advance(self, count: int) -> None:
        """Book `count` bytes that were taken from the socket as received. May be called several times."""
        ...


class WriteStream(Protocol):
    """One attempt to write one object. `location` is known from the start, so that it can be recorded first.

    The opener ends it with exactly one of `commit` and `abort`; `abort` is safe at any time,
    after a failed or cancelled `commit` too, and then leaves no object.
    """

    location: str

    async def write(self, data: Block) -> None:
        """Append `data`. Returns when the store has taken it (backpressure).

        Raises:
            StoreFull: No room.
            StoreError: The store failed. Only `abort` may follow.
        """
        ...

    async def commit(self) -> ObjectInfo:
        """Make the object visible and durable.

        Raises:
            ObjectExists: The key is taken; that object is untouched, nothing of this attempt is left.
        """
        ...

    async def abort(self) -> None:
        """Remove every trace of the attempt. Shield it with a deadline when called during a cancellation.

        After a `commit` that returned it does nothing: a record may name the object by then. `Store.delete` removes it.
        """
        ...


@runtime_checkable
class DirectWriteStream(WriteStream, Protocol):
    """A write stream that also takes bytes in a thread of its caller's. A store need not have it."""

    def write_now(self, data: Block) -> None:
        """`write`, blocking: appends `data` and raises the same errors.

        From one thread at a time, which has returned from it before any other method is called.
        """
        ...


@runtime_checkable
class RetryingStream(Protocol):
    """A read or write stream that tries steps of its own again where that is safe. A store's streams need not be such.

    Attributes:
        on_retry: Called before the delay of each further try, in the event loop; it neither waits nor raises. Whoever
            opened the stream may set it; the store sets one that does nothing.
    """

    on_retry: Callable[[], None]


class Store(Protocol):
    """A place where bytes live.

    Attributes:
        name: Its name in the configuration, the value of an image's `store`.
        writable: False for stores that only refer to bytes elsewhere (`http`).
    """

    name: str
    writable: bool

    async def check(self) -> None:
        """Tell whether the store can be used now. Raises `StoreError` if not. Has no side effect that stays."""
        ...

    async def stat(self, location: str) -> ObjectInfo:
        """Describe an object. Raises `ObjectMissing` if there is none."""
        ...

    async def open_read(
        self, location: str, offset: int = 0, length: int | None = None, *, expected: ObjectInfo | None = None
    ) -> ReadStream:
        """Open `length` bytes from `offset` (all the rest if None). The caller closes the stream.

        Args:
            expected: What the object has to be. Where the store's server can compare, the request carries it
                (`If-Match`), so that no other object is opened.

        Raises:
            ObjectMissing: No such object.
            ObjectChanged: Size or validator is not the expected one.
            StoreError: The range is outside the object, or the store failed.
        """
        ...

    async def open_write(self, key: str, *, size: int | None = None) -> WriteStream:
        """Begin to write the object `key` (`<image id>/<attempt id>`). `size` in bytes if it is known.

        Raises:
            ObjectExists: The key is taken.
            StoreFull: `size` is known not to fit.
        """
        ...

    async def delete(self, location: str) -> None:
        """Remove an object, and nothing else. A missing one is a success."""
        ...

    async def abandon(self, key: str) -> None:
        """Remove what a crashed attempt at `key` left, committed or not. Nothing there is a success."""
        ...

    async def leftovers(self, older_than: float) -> Sequence[str]:
        """Keys under our own prefix whose attempts were begun more than `older_than` seconds ago and that
        are candidates for the sweep; the caller removes (`abandon`) only those that no record and no lease names."""
        ...


@runtime_checkable
class ServedStore(Store, Protocol):
    """A store with tasks of its own. A store need not have them."""

    async def serve(self, task_status: trio.TaskStatus[None] = ...) -> None:
        """Own these tasks until cancelled. Nothing can be written before `task_status.started` is called, and nothing
        afterwards; all else can."""
        ...
