"""The database as coroutines: statements run in worker threads, errors are translated, once, here. A few rows by their
key, and whether anything has changed, can be had at once from SQLite, in the event loop."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator, Hashable, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar

import sqlalchemy as sa
import trio

from ..errors import MetadataUnavailable
from .last_read import NEVER, Seen
from .shared import Shared
from .sqlite import Sqlite

T = TypeVar("T")

READERS: Final = 4  # threads; a read takes far less than a millisecond, so more would only contend for the GIL


class Engine(Protocol):
    """What is a kind of database's own. All but `version` and `rows` block, and are called in worker threads.

    Attributes:
        is_shared: Whether other gateways may use it too.
    """

    is_shared: bool

    def migrate(self) -> None:
        """Bring the schema up to date. Raises `ConfigError`, SQLAlchemy's errors."""

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in a transaction that sees one state. Raises SQLAlchemy's errors, and what `work` raises."""

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in a transaction beside which nobody else writes. Raises as `read`."""

    def version(self) -> int | None:
        """A number that is another one after any change by any process; None where that can't be told at once."""

    def ask_version(self) -> tuple[str, datetime] | None:
        """A mark that is another one after any change by any process, and what the clock of the database shows; None
        where `version` is all there is. Raises SQLAlchemy's errors."""

    def rows(self, statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]] | None:
        """The few rows that one statement of `reader.text` selects, at once; None where that can't be had."""

    def wipe_log(self) -> None:
        """Remove overwritten rows from where the database keeps them."""

    def listen(self, channel: str) -> Notices:
        """What others notify of on a channel, by a connection of its own. Raises SQLAlchemy's errors."""

    def close(self) -> None:
        """Close every connection. Call it when no call is under way."""


class Notices(Protocol):
    """A connection that listens. Not for several threads at a time; whoever opens it closes it."""

    def fileno(self) -> int:
        """Its socket, readable when there may be something to take."""

    def take(self) -> int:
        """How many notices came since the last call. Does not wait. Raises SQLAlchemy's errors."""

    def close(self) -> None:
        """Close the connection."""


class News:
    """Waits for notices of the database."""

    def __init__(self, notices: Notices) -> None:
        self._notices = notices

    async def wait(self) -> None:
        """Wait for the next notice. Raises `MetadataUnavailable` when the connection is lost."""
        while True:
            await trio.lowlevel.wait_readable(self._notices.fileno())
            with _translated():
                if self._notices.take():
                    return


class Database:
    """An open database.

    A call waits for a thread, and can be cancelled while it does. Once its thread has begun it runs to its end, and
    its outcome is returned even if the caller was cancelled meanwhile; `Cancelled` is raised at the caller's next
    checkpoint. So no caller is ever in doubt whether a statement took effect, but where a server does not tell.

    Whoever opens it closes it with `aclose`.

    Attributes:
        seen: The version that a server told last. What is read from now on is of it, or newer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._readers = trio.CapacityLimiter(READERS)
        # Every database has one writer at a time: tasks queue here, in order and cancellable.
        self._writer = trio.CapacityLimiter(1)
        # Whoever waits for an answer waits for no read.
        self._asker = trio.CapacityLimiter(1)
        self._asking: Shared[tuple[str, datetime] | None] = Shared(self._ask)
        self._failures = 0
        self._clock: datetime | None = None
        self.seen = NEVER

    @classmethod
    async def open(cls, url: str) -> Database:
        """Open the database and bring its schema up to date.

        Raises:
            ConfigError: The URL or the database can't be used, or the schema is a newer version's.
            MetadataUnavailable: The database failed, is away, or stayed locked.
        """
        return cls(await trio.to_thread.run_sync(_open, url))

    @property
    def is_shared(self) -> bool:
        """Whether other gateways may use it too."""
        return self._engine.is_shared

    async def version(self) -> Hashable | None:
        """What is another value once any change by any process has been acknowledged, or a read has failed: what is
        used in place of a failed read is of no version. It was right at some moment since the call. None where it
        can't be told now. All who ask a server at the same time share one question."""
        number = self._engine.version()
        if number is not None:
            return self._failures, number
        answer = await self._asking.answer()
        return None if answer is None else (self._failures, answer[0])

    async def _ask(self) -> tuple[str, datetime] | None:
        moment = time.monotonic()
        try:
            answer = await trio.to_thread.run_sync(self._ask_version, limiter=self._asker)
        except MetadataUnavailable:
            return None  # whoever reads now is told why
        if answer is not None:
            self._clock = answer[1]
            self.seen = Seen((self._failures, answer[0]), moment)
        return answer

    def _ask_version(self) -> tuple[str, datetime] | None:
        with _translated():
            return self._engine.ask_version()

    def now(self) -> datetime:
        """What the clock of the database showed when it told its version the last time."""
        return datetime.now(UTC) if self._clock is None else self._clock

    def read_now(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]] | None:
        """What `Engine.rows` finds: where that is None, `read` is the way, which also tells what is wrong."""
        return self._engine.rows(statement, parameters)

    async def aclose(self) -> None:
        """Close every connection. Call it when no call is under way."""
        await trio.to_thread.run_sync(self._engine.close, limiter=self._writer)

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in a transaction that sees one state of the database. Raises `MetadataUnavailable`."""
        try:
            return await trio.to_thread.run_sync(self._run, self._engine.read, work, limiter=self._readers)
        except MetadataUnavailable:
            self._failures += 1
            raise

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in a writing transaction. It is durable when this returns; what `work` raises undoes it.

        Raises:
            MetadataUnavailable: The database failed, or another process kept it locked.
        """
        return await trio.to_thread.run_sync(self._run, self._engine.write, work, limiter=self._writer)

    async def wipe_log(self) -> None:
        """Leave no overwritten row in the write-ahead log."""
        await trio.to_thread.run_sync(self._wipe_log, limiter=self._writer)

    @asynccontextmanager
    async def listening(self, channel: str) -> AsyncGenerator[News, None]:
        """Hear what others notify of on a channel, within the block. Raises `MetadataUnavailable`."""
        notices = await trio.to_thread.run_sync(self._listen, channel)
        try:
            yield News(notices)
        finally:
            notices.close()

    def _listen(self, channel: str) -> Notices:
        with _translated():
            return self._engine.listen(channel)

    @staticmethod
    def _run(way: Callable[[Callable[[sa.Connection], T]], T], work: Callable[[sa.Connection], T]) -> T:
        with _translated():
            return way(work)

    def _wipe_log(self) -> None:
        with _translated():
            self._engine.wipe_log()


def _open(url: str) -> Engine:
    engine = _engine(url)
    try:
        with _translated():
            engine.migrate()
    except BaseException:
        engine.close()
        raise
    return engine


def _engine(url: str) -> Engine:
    if url.startswith("postgresql"):
        # Imported here: its driver is an extra.
        from .postgres import Postgres

        return Postgres(url, connections=READERS + 2)
    return Sqlite(url, connections=READERS + 1)


@contextmanager
def _translated() -> Generator[None, None, None]:
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as exc:
        raise MetadataUnavailable("The metadata database can't be used now") from exc
