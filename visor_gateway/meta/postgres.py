"""What is PostgreSQL's own: the connections, the writers' lock, and what a lost connection leaves.

Writers of all gateways queue at one advisory lock, as SQLite's queue at its one: the statements of the repositories
look before they write, and the lock makes both one step in every database. Readers wait for nobody: each sees one
snapshot.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Final, NoReturn, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from ..errors import ConfigError, InvalidRequest, MetadataUnavailable
from . import migrations
from .schema import _DatabaseTime, changes, database_time

T = TypeVar("T")

EXPECTED: Final = "[metadata] url: expected postgresql://USER:PASSWORD@HOST:PORT/NAME"
CONNECT_SECONDS: Final = 5
#: A statement that runs, or waits for the lock of the writers, for longer fails. A migration may take longer.
STATEMENT_SECONDS: Final = 10
#: How long the server waits for the next statement of a gateway that is paused before it gives its lock to another:
#: less than those wait who want the lock.
IDLE_SECONDS: Final = 5
#: Silence of a host after which its connection is given up.
SILENT_SECONDS: Final = 10
#: How long the end of a commit is asked for whose answer was lost.
DOUBT_SECONDS: Final = 15.0
#: Between two tries to connect to a database that is away: doubled from the first to the second.
PAUSE_SECONDS: Final = (0.1, 2.0)
_OLDEST: Final = 130000  # the first that tells how a transaction ended by a number that does not wrap
_jitter: Final = random.SystemRandom()
_LOCK: Final = 0x7669736F72  # of this program's writers in a database
_TAKE_LOCK: Final = sa.text(f"SELECT pg_current_xact_id()::text, pg_advisory_xact_lock({_LOCK})")
_VERSION: Final = sa.select(changes.c.mark, database_time())
_OUTCOME: Final = sa.text("SELECT pg_xact_status(CAST(CAST(:number AS text) AS xid8))")


@compiles(_DatabaseTime, "postgresql")
def _database_time(element: _DatabaseTime, compiler: Any, **options: Any) -> str:
    # The statement's time and not the transaction's: that began before it waited for the writers' lock.
    shift = compiler.process(element.clauses, **options)
    moment = f"timezone('UTC', clock_timestamp()) + CAST({shift} AS interval)"
    return f'to_char({moment}, \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\')'


class Postgres:
    """A PostgreSQL database (`database.Engine`). Used in worker threads; whoever opens it closes it."""

    is_shared = True

    def __init__(self, url: str, connections: int) -> None:
        """Holds at most `connections`. Connects to nothing yet.

        Raises:
            ConfigError: The URL is not one of PostgreSQL, or its driver is not installed.
        """
        self._pauses = _Pauses()
        try:
            self._engine = sa.create_engine(
                _parsed(url),
                connect_args=_CONNECT,
                pool_size=connections,
                max_overflow=0,
                hide_parameters=True,  # they would stand in logs
            )
        except ImportError as exc:
            raise ConfigError("[metadata] url: PostgreSQL needs the extra 'postgres' of visor-gateway") from exc
        self._reading = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._asking = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writing = self._engine.execution_options(isolation_level="READ COMMITTED")

    def migrate(self) -> None:
        """Bring the schema up to date. Raises as `Database.open`."""
        with self._connected(self._writing) as connection, connection.begin():
            _check(connection)
            connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
            connection.execute(_TAKE_LOCK)
            migrations.upgrade(connection)

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """As `database.Engine`. A connection that went while nobody used it is replaced, once."""
        try:
            return self._read(work)
        except sa.exc.DBAPIError as exc:
            if not exc.connection_invalidated:
                raise
            return self._read(work)

    def _read(self, work: Callable[[sa.Connection], T]) -> T:
        with _refusing(), self._connected(self._reading) as connection, connection.begin():
            return work(connection)

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """As `database.Engine`. Where the answer to a commit is lost, the database is asked how it ended.

        Raises:
            MetadataUnavailable: Also where it did not tell within `DOUBT_SECONDS`: only then the caller is in doubt.
        """
        with _refusing(), self._locked() as (connection, number):
            outcome = work(connection)
            try:
                connection.commit()
            except sa.exc.DBAPIError as exc:
                if not exc.connection_invalidated or not self._was_committed(number):
                    raise
        return outcome

    @contextmanager
    def _locked(self) -> Generator[tuple[sa.Connection, str], None, None]:
        """A connection whose transaction holds the writers' lock, and the transaction's number."""
        for last in (False, True):
            with self._connected(self._writing) as connection:
                try:
                    number = connection.execute(_TAKE_LOCK).scalar_one()
                except sa.exc.DBAPIError as exc:
                    # One that went while nobody used it: nothing was done, so all of it can be done again.
                    if last or not exc.connection_invalidated:
                        raise
                    continue
                yield connection, str(number)
                return

    def _was_committed(self, number: str) -> bool:
        deadline = time.monotonic() + DOUBT_SECONDS
        while (outcome := self._outcome(number)) not in {"committed", "aborted"}:
            if time.monotonic() > deadline:
                return False
            time.sleep(PAUSE_SECONDS[0])  # a worker thread's time
        return outcome == "committed"

    def _outcome(self, number: str) -> str | None:
        try:
            with self._reading.connect() as connection:
                return connection.execute(_OUTCOME, {"number": number}).scalar_one_or_none()
        except sa.exc.DBAPIError:
            return None

    @contextmanager
    def _connected(self, engine: sa.Engine) -> Generator[sa.Connection, None, None]:
        self._pauses.check()
        try:
            connection = engine.connect()
        except sa.exc.DBAPIError:
            self._pauses.failed()
            raise
        self._pauses.ended()
        with connection:
            yield connection

    def version(self) -> int | None:
        """None: the network is waited for in threads alone."""
        return None

    def ask_version(self) -> tuple[str, datetime]:
        """As `database.Engine`: the mark of the last change that was committed. One statement, in no transaction of its
        own. A connection that went while nobody used it is replaced, once."""
        try:
            return self._ask_version()
        except sa.exc.DBAPIError as exc:
            if not exc.connection_invalidated:
                raise
            return self._ask_version()

    def _ask_version(self) -> tuple[str, datetime]:
        with self._connected(self._asking) as connection:
            mark, now = connection.execute(_VERSION).one()
            return mark, now

    def rows(self, statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]] | None:
        """None: the network is waited for in threads alone."""
        return None

    def wipe_log(self) -> None:
        """Remove overwritten rows of accounts. What the server archived of them stays, sealed under a dropped key."""
        with self._writing.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(sa.text("VACUUM accounts"))

    def listen(self, channel: str) -> _Listening:
        """As `database.Engine`. Its connection is not one of the pool's."""
        self._pauses.check()
        engine = sa.create_engine(self._engine.url, connect_args=_CONNECT, poolclass=sa.NullPool, hide_parameters=True)
        return _Listening(engine.execution_options(isolation_level="AUTOCOMMIT").connect(), channel)

    def close(self) -> None:
        """Close every connection. No call is under way."""
        self._engine.dispose()


class _Listening:
    """A connection that listens (`database.Notices`)."""

    def __init__(self, connection: sa.Connection, channel: str) -> None:
        self._connection = connection
        try:
            connection.execute(sa.text(f"LISTEN {channel}"))
            self._line: Any = connection.connection.driver_connection
            self._errors = connection.dialect.loaded_dbapi.Error
        except BaseException:
            connection.close()
            raise

    def fileno(self) -> int:
        return int(self._line.fileno())

    def take(self) -> int:
        try:
            self._line.pgconn.consume_input()
            count = 0
            while self._line.pgconn.notifies() is not None:
                count += 1
        except self._errors as exc:
            raise sa.exc.OperationalError("LISTEN", None, exc, connection_invalidated=True) from exc
        return count

    def close(self) -> None:
        with suppress(sa.exc.DBAPIError):
            self._connection.close()


class _Pauses:
    """Between two tries to connect to a database that is away, everybody is refused at once.

    Else each request would hold a thread until a connection attempt times out.
    """

    def __init__(self) -> None:
        self._pause = 0.0
        self._until = 0.0

    def check(self) -> None:
        if time.monotonic() < self._until:
            _refuse()

    def failed(self) -> None:
        first, most = PAUSE_SECONDS
        self._pause = min(most, max(first, self._pause * 2))
        self._until = time.monotonic() + self._pause * _jitter.uniform(0.5, 1)

    def ended(self) -> None:
        self._pause = self._until = 0.0


@contextmanager
def _refusing() -> Generator[None, None, None]:
    try:
        yield
    except sa.exc.DataError as exc:
        raise InvalidRequest("A value can't be stored: it has a NUL character, or is too long or too large") from exc


def _refuse() -> NoReturn:
    raise MetadataUnavailable("The metadata database can't be used now")


_SETTINGS: Final = {
    "statement_timeout": STATEMENT_SECONDS * 1000,
    "idle_in_transaction_session_timeout": IDLE_SECONDS * 1000,
    "timezone": "UTC",
    # Records are in memory: with the cost of a disk's random reads, all rows are read rather than few by an index.
    "random_page_cost": 1.1,
    # Lists are short: to compile them, or to begin other processes, takes longer.
    "jit": "off",
    "max_parallel_workers_per_gather": 0,
}
_CONNECT: Final = {
    "options": " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items()),
    "connect_timeout": CONNECT_SECONDS,
    "application_name": "visor-gateway",
    "keepalives_idle": SILENT_SECONDS,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": SILENT_SECONDS * 1000,
}


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as exc:  # the latter for a port that is no number
        raise ConfigError(EXPECTED) from exc
    if parsed.drivername not in {"postgresql", "postgresql+psycopg"} or not parsed.database:
        raise ConfigError(EXPECTED)
    return parsed.set(drivername="postgresql+psycopg")


def _check(connection: sa.Connection) -> None:
    """Raises ConfigError where the server can't hold the records."""
    number = connection.execute(sa.text("SELECT current_setting('server_version_num')::int")).scalar_one()
    if number < _OLDEST:
        raise ConfigError(
            f"[metadata] url: expected PostgreSQL {_OLDEST // 10000} or newer, but it is {number // 10000}"
        )
    encoding = connection.execute(sa.text("SHOW server_encoding")).scalar_one()
    if encoding != "UTF8":
        raise ConfigError(f"[metadata] url: expected a database in UTF8, but it is in {encoding}")
