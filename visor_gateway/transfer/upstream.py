"""The healing read: an image's bytes from its locations, over as many connections as it takes.

A read that breaks is continued where it broke: at the same location or at another one, after a delay with full jitter
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), until no byte has come for a while. Whoever
reads only waits. Three rules keep bytes of different objects apart:

* A location is opened as what the record says of it: size and strong validator. Where the record says nothing, what its
  first answer told counts from then on. Another object there is `ObjectChanged`, which is final for that location.
* A location without a strong validator can't be continued, but where the reader compares a digest of the whole at the
  end and withholds the last block until then (`verified`).
* All locations of an image were hashed when they were written: they hold the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import SystemRandom
from typing import Final, Protocol, runtime_checkable

import structlog
import trio

from ..errors import ObjectChanged, ObjectMissing, StoreError, StoreUnreachable
from ..store.contract import Block, Direct, DirectReadStream, ObjectInfo, ReadStream
from .setbacks import Candidate, Setbacks
from .transfer import Transfer

RETRY_SECONDS: Final = 60.0
FIRST_DELAY: Final = 0.5  # seconds; the most that the first delay at a location may be, doubled with each further one
LONGEST_DELAY: Final = 10.0
PROGRESS: Final = 64 * 1024  # bytes after which delays begin small again: an origin may drip and break
OPEN_SECONDS: Final = 10.0  # a try that was begun gets this long, whatever is left of the time
CLOSE_SECONDS: Final = 5.0

_RANDOM: Final = SystemRandom()
_log: Final = structlog.get_logger("visor_gateway.upstream")


@runtime_checkable
class _Checking(Protocol):
    async def check(self) -> None: ...


@runtime_checkable
class _Narrowing(Protocol):
    def narrow(self, offset: int, length: int) -> None: ...


class _Place:
    """A candidate in the course of one read."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.expected = candidate.expected
        self.is_final = False  # nothing more can be had here
        self.tries = 0
        self.ready_at = float("-inf")
        self.proven = 0  # where the count of tries began

    def learn(self, info: ObjectInfo) -> None:
        """From now on the object is the one that was opened."""
        known = self.expected
        self.expected = ObjectInfo(
            size=info.size if known.size is None else known.size, validator=known.validator or info.validator
        )


class Upstream:
    """Bytes `offset` to `offset + length` of an image; a `DirectReadStream`.

    Args:
        candidates: The image's locations, the one to read first coming first. At least one.
        transfer: Whose read it is: it is told of every further try.
        offset: First byte.
        length: Bytes; None for all the rest.
        verified: The attribute.
        setbacks: Where failures are remembered for other reads.
        retry_timeout: Seconds without a byte after which a broken read is given up. With 0 each location is tried once.
        random: Draws from 0 to 1, for the delays.

    Attributes:
        position: Offset in the image of the next byte.
        end: Offset at which the range ends; None while nobody knows.
        verified: The reader compares a digest of everything that it was given, from the image's first byte, before it
            lets the last block go.
        healed: Whether bytes came from more than one opened read.
        sources: The candidates that brought bytes, in the order of their first.
        info: What is known of the object where it reads: by the record, and by the answers so far.
        stream: The open read; None before `open`, and between two.
        candidate: Where it reads, or read last.

    Resource handling: whoever makes it closes it. A cancelled call leaves nothing to do but `aclose`.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        transfer: Transfer,
        offset: int = 0,
        length: int | None = None,
        *,
        verified: bool = False,
        setbacks: Setbacks | None = None,
        retry_timeout: float = RETRY_SECONDS,
        random: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self._setbacks = setbacks or Setbacks()
        self._places = [_Place(candidate) for candidate in self._setbacks.ordered(candidates)]
        self._place = self._places[0]
        self._transfer = transfer
        self.verified = verified
        self.healed = False
        self.sources: list[Candidate] = []
        self._retry_timeout = retry_timeout
        self._random = random
        self._first = self.position = offset
        self._length = length
        self.end: int | None = None
        self.info = self._place.expected
        self.stream: ReadStream | None = None
        self._broke_at: int | None = None
        self._given_up_at = 0.0
        self._settle_end(self._place.expected.size)

    @property
    def candidate(self) -> Candidate:
        return self._place.candidate

    # --- reading ---------------------------------------------------------------------------------

    async def open(self) -> ReadStream:
        """Open the first location that can be opened. Each is tried once, without a delay: nobody was promised
        anything yet.

        Returns:
            `stream`, which stays this read's own.

        Raises:
            StoreError: What the first location said, or the first of those where trying again later can help.
        """
        failures: list[StoreError] = []
        for place in self._places:
            if self._is_open_to(place):
                try:
                    return await self._connect(place)
                except StoreError as error:
                    self._fail(place, error)
                    failures.append(error)
        if not failures:
            raise ObjectChanged("No location of this image can be read from here on")
        raise next((error for error in failures if error.retryable), failures[0])

    async def receive_some(self) -> Block:
        """The next block, valid until the next call; b"" at the end of the range. Heals by itself.

        Raises:
            ObjectChanged: Every location has other bytes now.
            StoreError: The read broke, and could not be continued.
        """
        while True:
            try:
                return await self._next_block()
            except StoreError as error:
                await self.heal(error)

    def direct(self) -> Direct | None:
        """The socket that brings the next bytes, where there is one."""
        return self.stream.direct() if isinstance(self.stream, DirectReadStream) else None

    def advance(self, count: int) -> None:
        """Book `count` bytes of `stream` that somebody else has moved."""
        # Not a protocol that is asked about: `isinstance` takes 30 microseconds for that.
        advance: Callable[[int], None] | None = getattr(self.stream, "advance", None)
        if advance is not None:
            advance(count)
        self._moved(count)

    async def turn_to(self, offset: int, length: int | None) -> None:
        """Read another range of the image next. An open file serves them all, so that a delete can't come between."""
        self._first = self.position = offset
        self._length, self.end, self._broke_at = length, None, None
        self._settle_end(self._place.expected.size)
        if isinstance(self.stream, _Narrowing) and self.end is not None:
            self.stream.narrow(offset, self.end - offset)
        else:
            await self.aclose()

    async def heal(self, error: StoreError) -> None:
        """Go on at `position` after `error` has ended `stream`.

        Returns once a location was opened again. `Transfer.retrying` is called for each try. An object that changed
        while it was read can't be left for another one: what came of it is in doubt.

        Raises:
            StoreError: `error`, or that of a later try: no location has the bytes any more, none can be continued, or
                no byte has come for `retry_timeout`.
        """
        self._fail(self._place, error)
        if self.position != self._first and not self.verified:
            await self._demand_unchanged(error)
        await self.aclose()
        self.healed = self.healed or self.position != self._first
        self._count_down()
        while True:
            place = self._next_place(error)
            self._transfer.retrying()
            cause = str(error.__cause__ or error)
            _log.debug("read broke", image=self._transfer.image, position=self.position, cause=cause)
            try:
                await trio.sleep_until(min(place.ready_at, self._given_up_at))
                with trio.fail_at(max(self._given_up_at, trio.current_time() + OPEN_SECONDS)):
                    await self._connect(place)
            except trio.TooSlowError:
                error = StoreUnreachable(f"The store '{place.candidate.store.name}' does not answer")
            except StoreError as exc:
                error = exc
            else:
                return
            self._fail(place, error)

    async def aclose(self) -> None:
        """Close the open read, cancelled or not. Safe at any time and twice."""
        stream, self.stream = self.stream, None
        if stream is not None:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await stream.aclose()

    # --- one location ----------------------------------------------------------------------------

    async def _connect(self, place: _Place) -> ReadStream:
        candidate, self._place = place.candidate, place
        length = self._length if self.end is None else self.end - self.position
        stream = await candidate.store.open_read(candidate.location, self.position, length, expected=place.expected)
        if hasattr(stream, "on_retry"):  # a `RetryingStream`
            stream.on_retry = self._transfer.retrying
        self.stream = stream
        place.learn(stream.info)
        self.info = place.expected
        self._settle_end(self.info.size)
        return stream

    def _settle_end(self, size: int | None) -> None:
        if self.end is None:
            self.end = size if self._length is None else self._first + self._length

    async def _next_block(self) -> Block:
        stream = self.stream or await self.open()
        block = await stream.receive_some()
        if not block and self.end is not None and self.position < self.end:
            raise StoreUnreachable(f"The read from the store broke off at byte {self.position}")
        if block:
            self._moved(len(block))
        else:
            self.end = self.position
        return block

    def _moved(self, count: int) -> None:
        self.position += count
        if self._place.candidate not in self.sources:
            self.sources.append(self._place.candidate)
        self._setbacks.clear(self._place.candidate)
        self._transfer.resumed()

    # --- after a failure -------------------------------------------------------------------------

    def _fail(self, place: _Place, error: StoreError) -> None:
        """Book a failure: whether and when the location may be tried again."""
        self._setbacks.note(place.candidate, error)
        if not error.retryable or isinstance(error, ObjectMissing) or not place.candidate.retried:
            place.is_final = True
        if self.position - place.proven >= PROGRESS:
            place.tries, place.proven = 0, self.position
        place.ready_at = trio.current_time() + self._random() * min(LONGEST_DELAY, FIRST_DELAY * 2**place.tries)
        place.tries += 1

    async def _demand_unchanged(self, error: StoreError) -> None:
        """Raise where what came so far is in doubt, and nobody compares a digest at the end."""
        if isinstance(error, ObjectChanged):
            raise error
        if isinstance(self.stream, _Checking):
            await self.stream.check()

    def _count_down(self) -> None:
        """The time that is left begins anew with each byte."""
        if self._broke_at != self.position:
            self._broke_at = self.position
            self._given_up_at = trio.current_time() + self._retry_timeout

    def _next_place(self, error: StoreError) -> _Place:
        """Where to try next: what has waited the longest, which is a location that was not tried yet.

        Raises `error` where that is pointless.
        """
        left = [place for place in self._places if self._is_open_to(place)]
        if trio.current_time() >= self._given_up_at:
            left = [place for place in left if not place.tries]
        if not left:
            raise error
        return min(left, key=lambda place: place.ready_at)

    def _is_open_to(self, place: _Place) -> bool:
        """Whether the read may go on at a location."""
        return not place.is_final and (
            self.position == self._first or self.verified or place.expected.validator is not None
        )
