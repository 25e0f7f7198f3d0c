"""The engine: every movement of bytes runs here, in a nursery of its own, and can be seen and cancelled.

A transfer that serves a client's request runs in that request's task (`run`), so that it ends with its client; one
that serves nobody in particular (an import) runs in the engine's own nursery (`start`). Either way its outcome is
settled here and nowhere else.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol, TypeVar

import structlog
import trio

from ..errors import Draining, GatewayError, QueueFull, Side, TransferCancelled
from ..metrics import Metrics
from .admission import Admission, Place, turn_of
from .contract import ClientConnection
from .hub import Hub
from .limits import Rates
from .messages import EventKind
from .transfer import UNCOUNTED, Ended, Incident, Transfer

T = TypeVar("T")
Work = Callable[[Transfer], Awaitable[T]]

UNSTARTED_SECONDS: Final = 20.0

_log: Final = structlog.get_logger("visor_gateway.transfer")


class Board(Protocol):
    """Where the transfers of this process are announced: the hub, or what tells the hub of another process."""

    def live(self) -> Sequence[Transfer]:
        """The transfers that are under way, the oldest first."""
        ...

    def publish(self, kind: EventKind, transfer: Transfer) -> None:
        """Tell of a step in a transfer's life; `Hub.publish` says what holds then."""
        ...


class Recorder(Protocol):
    """Who remembers transfers that ended."""

    def add(self, transfer: Transfer) -> None:
        """Take in a transfer that was settled. Does not wait."""
        ...


class Gate(Protocol):
    """Who admits transfers, in this process or in another one."""

    @property
    def waiting(self) -> int:
        """How many transfers wait here for a slot."""
        ...

    async def check_room(self, turn: str, store: str) -> None:
        """Raises `QueueFull` where a newcomer would be refused."""
        ...

    def admit(self, transfer: Transfer) -> AbstractAsyncContextManager[Place]:
        """Make a transfer known and give it a place, which it has until the block ends.

        Raises:
            QueueFull: It serves a client, would have to wait, and the queue is full.
            Conflict: Its id is taken.
        """
        ...


class HubGate:
    """Admits to the hub and the slots of this process."""

    def __init__(self, hub: Hub, admission: Admission) -> None:
        self._hub = hub
        self._admission = admission

    @property
    def waiting(self) -> int:
        return self._admission.waiting

    async def check_room(self, turn: str, store: str) -> None:
        self._admission.check_room(turn, store)

    @asynccontextmanager
    async def admit(self, transfer: Transfer) -> AsyncGenerator[Place, None]:
        turn, store = turn_of(transfer.user, transfer.client), transfer.store or ""
        if transfer.client is not None:
            self._admission.check_room(turn, store)
        with self._admission.place(turn, store, counted=transfer.kind not in UNCOUNTED) as place:
            self._hub.add(transfer)
            yield place


class Engine:
    """Admission, nurseries, outcomes.

    Resource handling: `run` and `start` own the transfer object's life; what the work opens, the work closes.
    Error handling: `run` re-raises what the work raised, and `TransferCancelled` where the transfer was cancelled;
    errors of background work are logged and end with it.
    """

    def __init__(
        self,
        board: Board,
        metrics: Metrics,
        *,
        admission: Admission | None = None,
        rates: Rates | None = None,
        gate: Gate | None = None,
    ) -> None:
        """Without `admission` any number of transfers runs at a time; without `rates` as fast as they can.

        Args:
            board: The hub, or what tells another process's.
            gate: Who admits; None for `admission` and the hub of this process.
        """
        self._board = board
        self._metrics = metrics
        self._recorder: Recorder | None = None
        self._rates = rates or Rates()
        if gate is None:
            if not isinstance(board, Hub):
                raise TypeError("The board of another process needs a gate to it")
            gate = HubGate(board, admission or Admission())
        self._gate = gate
        metrics.transfers_queued.set_function(lambda: gate.waiting)
        metrics.catch_up = self._book
        self._background: trio.Nursery | None = None
        self._draining = False

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the nursery of background transfers until cancelled."""
        async with trio.open_nursery() as nursery:
            self._background = nursery
            task_status.started()
            await trio.sleep_forever()

    def record_in(self, recorder: Recorder) -> None:
        """Have every transfer that ends from now on remembered there."""
        self._recorder = recorder

    @property
    def limit_bytes_per_s(self) -> int:
        """What all transfers together may move; 0 for any number."""
        return self._rates.bytes_per_s

    def limit(self, bytes_per_s: int) -> None:
        """Change what all transfers together may move, 0 for any number. Those that run follow at once."""
        self._rates.limit(bytes_per_s)

    def drain(self) -> None:
        """Admit nothing from now on; what runs goes on."""
        self._draining = True

    async def check_room(self, *, store: str, user: str | None, client: str | None) -> None:
        """Look whether a transfer would be admitted now, before anything is done that only its end can undo.

        Raises:
            QueueFull: It would be refused.
        """
        try:
            await self._gate.check_room(turn_of(user, client), store)
        except QueueFull:
            self._metrics.transfers_refused.inc()
            raise

    def cancel_background(self, reason: str) -> list[Transfer]:
        """Cancel every transfer that serves no connection."""
        unattended = [t for t in self._board.live() if t.client is None]
        for transfer in unattended:
            transfer.cancel(reason)
        return unattended

    def start(
        self, transfer: Transfer, work: Work[object], *, unstarted: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        """Run a transfer in the background. It is never refused for a full queue: `check_room` is the way to ask.

        Args:
            unstarted: Called in place of `work` where the transfer ends before its turn has come; to be done at once.

        Raises:
            Draining: The gateway is stopping.
        """
        if self._background is None or self._draining:
            raise Draining("The gateway is stopping")
        self._background.start_soon(self._run_fenced, transfer, work, unstarted)

    async def _run_fenced(
        self, transfer: Transfer, work: Work[object], unstarted: Callable[[], Awaitable[object]] | None
    ) -> None:
        has_begun = False

        async def begun(transfer: Transfer) -> None:
            nonlocal has_begun
            has_begun = True
            await work(transfer)

        try:
            try:
                await self.run(transfer, begun)
            finally:
                if unstarted is not None and not has_begun:
                    with trio.move_on_after(UNSTARTED_SECONDS, shield=True):
                        await unstarted()
        except GatewayError as error:
            _log.info("background transfer ended", transfer_id=transfer.id, image=transfer.image, error=error.message)
        except Exception:
            _log.exception("background transfer failed", transfer_id=transfer.id, image=transfer.image)

    async def run(self, transfer: Transfer, work: Work[T], connection: ClientConnection | None = None) -> T:
        """Run a transfer to its end in the caller's task, as soon as there is a slot for it.

        Args:
            connection: Of the client that is served: one that leaves while the transfer is queued gives up its place.

        Returns:
            What `work` returned.

        Raises:
            Draining: The gateway is stopping; `work` was not called.
            QueueFull: All slots are taken, and the queue before them is full; `work` was not called.
            Conflict: A transfer of this id is known already.
            OSError: The client left the queue; `work` was not called.
            TransferCancelled: It was cancelled by `Transfer.cancel`; `work` has cleaned up, if it was called.
        """
        if self._draining:
            raise Draining("The gateway is stopping")
        # Before it is known to anybody: from then on it can be limited and paused.
        transfer.pace = self._rates.pace()
        try:
            async with self._gate.admit(transfer) as place:
                transfer.told_by(lambda incident: self._note(incident, transfer))
                transfer.place = place
                return await self._run_admitted(transfer, work, place, connection)
        except QueueFull:
            if transfer.place is None and transfer.state == "queued":  # it was refused, and not one that it waited for
                self._metrics.transfers_refused.inc()
            raise

    async def _run_admitted(
        self, transfer: Transfer, work: Work[T], place: Place, connection: ClientConnection | None
    ) -> T:
        state: Ended = "cancelled"
        error: str | None = "connection"
        try:
            with structlog.contextvars.bound_contextvars(transfer_id=transfer.id):
                result = await self._supervise(transfer, work, place, connection)
            state, error = "finished", None
        except TransferCancelled as cancelled:
            error = cancelled.reason
            raise
        except Exception as failure:
            state, error = "failed", _public(failure)
            if isinstance(failure, GatewayError) and failure.side is Side.STORE:
                self._metrics.store_errors.labels(transfer.store).inc()
            raise
        else:
            return result
        finally:
            self._settle(transfer, state, error)

    async def _supervise(
        self, transfer: Transfer, work: Work[T], place: Place, connection: ClientConnection | None
    ) -> T:
        outcome: list[T] = []
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            transfer.enter(nursery.cancel_scope)
            try:
                if place.waits:
                    await self._queue(transfer, place, connection)
                    transfer.begin(nursery.cancel_scope)
                    self._board.publish("resumed", transfer)
                else:
                    transfer.begin(nursery.cancel_scope)
                    self._board.publish("started", transfer)
                with self._metrics.transfers_active.labels(transfer.kind, transfer.store).track_inprogress():
                    outcome.append(await work(transfer))
            except Exception as exc:
                # Carried out of the nursery as it is, not wrapped into a group.
                failure = exc
        if failure is not None:
            raise failure
        if not outcome:
            raise TransferCancelled(transfer.cancel_reason or "cancelled")
        return outcome[0]

    async def _queue(self, transfer: Transfer, place: Place, connection: ClientConnection | None) -> None:
        """Wait for the slot. Raises `OSError` when the client leaves first."""
        self._board.publish("started", transfer)
        if connection is None:
            await place.turn()
            return
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await connection.wait_gone()
                nursery.cancel_scope.cancel(reason="the client is gone")

            nursery.start_soon(watch)
            await place.turn()
            nursery.cancel_scope.cancel(reason="it is the transfer's turn")
        if place.waits:
            raise ConnectionAbortedError(errno.ECONNABORTED, "The client left the queue")

    def _note(self, incident: Incident, transfer: Transfer) -> None:
        if incident == "retrying":
            self._metrics.retries.labels(transfer.kind, transfer.store).inc()
        self._board.publish(incident, transfer)

    def _book(self) -> None:
        """Count what has moved by now, so that rates are seen while transfers run and not at their ends."""
        for transfer in self._board.live():
            transfer.book(self._metrics)

    def _settle(self, transfer: Transfer, state: Ended, error: str | None) -> None:
        transfer.settle(state, error)
        self._metrics.transfers.labels(transfer.kind, transfer.store, state).inc()
        transfer.book(self._metrics)
        self._metrics.transfer_seconds.labels(transfer.kind).observe(transfer.meter.seconds)
        if self._recorder is not None:
            self._recorder.add(transfer)
        self._board.publish(state, transfer)
        transfer.ended.set()


def _public(failure: Exception) -> str:
    """What may be told of a failure: our own errors are written for clients, foreign ones are not."""
    if isinstance(failure, GatewayError):
        return failure.message
    if isinstance(failure, OSError):
        return "the client is gone or takes nothing"
    return "internal error"
