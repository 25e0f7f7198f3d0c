"""One image on its way to a file or a stream, over as many connections as it takes.

Rules. Bytes are continued only under the strong validator they began with (`If-Range`, RFC 9110, 13.1.5). A 200 is the
whole image from its first byte, whatever was asked for: it starts over and is never appended. A download is whole when
its size and, where the gateway tells it, its SHA-256 agree; until then nothing has the name that was asked for.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from .body import BLOCK
from .credentials import Header
from .entity import Entity, Record, entity, record
from .errors import (
    ConnectionBroken,
    DigestMismatch,
    NoBytes,
    ProtocolViolation,
    RangeNotSatisfiable,
    Unavailable,
    Unreachable,
    VisorError,
)
from .fetch import Fetched, fetched
from .part import Validator
from .session import Session, segment
from .sink import Sink

Progress = Callable[[int, int | None], None]

FLUSH_SECONDS: Final = 0.2  # bytes wait no longer for a full block: a cut loses little, and progress shows
_JITTER: Final = secrets.SystemRandom()


Began = Callable[[str], None]


def no_begin(transfer_id: str) -> None:
    """A `Began` that does nothing. Others get the id under which the gateway lists the transfer, of each connection."""


def no_progress(done: int, size: int | None) -> None:
    """A `Progress` that shows nothing. Others get the bytes that are there and the size, None while unknown."""


class Downloaded(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished download was.

    Attributes:
        record: The image's record.
        size: Bytes.
        sha256: Hex digest of the bytes.
        verified: Whether the gateway told the digest, so that it was compared.
        resumed_at: Bytes of an earlier download that this one continued.
    """

    record: Record
    size: int
    sha256: str
    verified: bool
    resumed_at: int


class Download:
    """One image into one sink. `run` may be called once; the caller closes the sink.

    Args:
        transfer_id: UUID under which the gateway lists the transfer of the first connection; random where None.
    """

    def __init__(
        self,
        session: Session,
        image_id: str,
        sink: Sink,
        *,
        progress: Progress,
        transfer_id: str | None = None,
        began: Began = no_begin,
    ) -> None:
        self._session = session
        self._path = f"/images/{segment(image_id)}"
        self._uri = session.origin.url + self._path
        self._id = image_id
        self._sink = sink
        self._progress = progress
        self._transfer_id = transfer_id
        self._began = began
        self._answered = False
        self._resumed_at = 0

    async def run(self) -> Downloaded:
        """Fetch, check, finish.

        A cancellation leaves what has arrived, to be continued.

        Raises:
            DigestMismatch: The bytes are wrong; nothing of them is left.
            VisorError: As its classes say; what has arrived stays, to be continued.
            OSError: The sink can't take the bytes; what it took stays.
        """
        await self._take_up()
        whole = await self._fetch()
        digest = self._sink.sha256()
        expected = whole.sha256 or (self._sink.validator.sha256 if self._sink.validator else None)
        if expected not in {None, digest}:
            await anyio.to_thread.run_sync(self._sink.discard)
            raise DigestMismatch(f"The bytes that arrived have SHA-256 {digest}, the image has {expected}")
        await anyio.to_thread.run_sync(self._sink.finish)
        return Downloaded(
            record=whole.record,
            size=self._sink.length,
            sha256=digest,
            verified=expected is not None,
            resumed_at=self._resumed_at,
        )

    async def _take_up(self) -> None:
        """Keep what an earlier download of this image left, and nothing else."""
        validator = self._sink.validator
        if self._sink.length and (validator is None or validator.uri != self._uri):
            await self._start_over(None)
        while await anyio.to_thread.run_sync(self._sink.hash_some):
            pass
        self._resumed_at = self._sink.length

    async def _fetch(self) -> Entity:
        failures, furthest = 0, self._sink.length
        while True:
            try:
                found = await self._attempt()
            except (ConnectionBroken, Unavailable, Unreachable, RangeNotSatisfiable) as exc:
                # Only bytes that were never there before are progress: a gateway that always cuts at one place,
                # and starts over each time, must not be asked for ever.
                failures = 1 if self._sink.length > furthest else failures + 1
                furthest = max(furthest, self._sink.length)
                await self._recover(exc, failures)
            else:
                if found is not None:
                    return found

    async def _recover(self, exc: VisorError, failures: int) -> None:
        timing = self._session.timing
        if failures > timing.retries or (isinstance(exc, Unreachable) and not self._answered):
            raise exc
        if isinstance(exc, RangeNotSatisfiable):
            await self._start_over(None)
        longest = min(timing.longest_pause, timing.pause * 2 ** (failures - 1))
        asked = exc.retry_after if isinstance(exc, Unavailable) else None
        await anyio.sleep(min(asked or 0.0, timing.longest_pause) or longest * _JITTER.uniform(0.5, 1.0))

    async def _attempt(self) -> Entity | None:
        """One connection's worth. None where a further one is needed, though nothing broke."""
        validator = self._sink.validator
        if self._sink.length and validator is None:
            await self._start_over(None)
        if validator is not None and validator.size == self._sink.length:
            return await self._recheck(validator)
        async with fetched(self._session, self._path, self._request_headers()) as answer:
            self._answered = True
            found = entity(answer.status, answer.headers)
            await self._place(answer.status, found)
            await self._copy(answer, found)
        return found if found.size in {None, self._sink.length} else None

    async def _recheck(self, validator: Validator) -> Entity | None:
        """Every byte is there, of a download that ended before it was finished: ask whether it is still the image."""
        reply = await self._session.call("HEAD", self._path)
        self._answered = True
        self._check_available(record(reply.headers))
        found = entity(200, reply.headers)
        if found.etag == validator.etag and found.size == validator.size:
            return found
        await self._start_over(None)
        return None

    def _request_headers(self) -> list[Header]:
        transfer_id, self._transfer_id = self._transfer_id or str(uuid.uuid4()), None
        self._began(transfer_id)
        headers: list[Header] = [(b"x-transfer-id", transfer_id.encode("ascii"))]
        if self._sink.length and self._sink.validator is not None:
            headers.append((b"range", b"bytes=%d-" % self._sink.length))
            headers.append((b"if-range", self._sink.validator.etag.encode("latin-1")))
        return headers

    async def _place(self, status: int, found: Entity) -> None:
        """Make the sink stand where the body begins."""
        if status == 200:
            if not found.length:
                self._check_available(found.record)
            await self._start_over(found)
            return
        validator = self._sink.validator
        if status != 206 or validator is None or found.offset != self._sink.length or not self._sink.length:
            raise ProtocolViolation("The answer holds another part of the image than was asked for")
        if found.etag != validator.etag or found.size != (validator.size or found.size):
            raise ProtocolViolation("The answer holds a part of another state of the image than was asked for")

    def _check_available(self, shown: Record) -> None:
        status = shown.get("status", "available")
        if status != "available":
            raise NoBytes(f"Image '{self._id}' has no bytes: status is '{status}'")

    async def _start_over(self, found: Entity | None) -> None:
        validator = None
        if found is not None and found.etag is not None:
            validator = Validator(uri=self._uri, etag=found.etag, size=found.size, sha256=found.sha256)
        self._resumed_at = 0
        await anyio.to_thread.run_sync(self._sink.begin, validator)

    async def _copy(self, answer: Fetched, found: Entity) -> None:
        self._progress(self._sink.length, found.size)
        blocks: list[bytes] = []
        held, flushed = 0, anyio.current_time()
        broken: ConnectionBroken | None = None
        try:
            while block := await answer.receive_some():
                blocks.append(block)
                held += len(block)
                if held >= BLOCK or anyio.current_time() - flushed >= FLUSH_SECONDS:
                    await self._flush(blocks, found)
                    held, flushed = 0, anyio.current_time()
        except ConnectionBroken as exc:
            broken = exc
        await self._flush(blocks, found)
        if broken is not None:
            raise broken

    async def _flush(self, blocks: list[bytes], found: Entity) -> None:
        if blocks:
            await anyio.to_thread.run_sync(self._sink.append, blocks)
            blocks.clear()
            self._progress(self._sink.length, found.size)
