"""The bus: what processes of one gateway say to each other.

A process knows others as members, by name. It publishes on topics for all who subscribed, and commands one member,
which answers. Who is connected with whom is the business of those who attach links: in a star the process in the middle
relays what its members publish.

Rules of order: what one member posts arrives as it was posted. Listeners, and servants that do not wait, run while the
frame is read, one after the other; so whatever was posted before a frame has had its effect when it is looked at.
Nothing waits for a slow member (`link`); a member that breaks the rules of the wire is cut off.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, Final, Generic, TypeVar

import msgspec
import structlog
import trio

from .. import errors
from ..errors import GatewayError
from .link import Answer, BrokenFrame, Frame, FrameReader, Interest, Link, Publication, Question, Refusal, Withdrawal

P = TypeVar("P")
Q = TypeVar("Q")
A = TypeVar("A")

SERVED_AT_ONCE: Final = 16_384  # commands of one member that wait for their answers

_log: Final = structlog.get_logger("visor_gateway.bus")


class MemberGone(GatewayError):
    """The member is not there, or went before it answered."""

    status = 503
    retryable = True
    retry_after = 5

    def __init__(self) -> None:
        super().__init__("A part of the gateway is not there, try again")


class Topic(Generic[P]):
    """Something to publish on, and what is published."""

    def __init__(self, name: str, payload: type[P]) -> None:
        self.name = name
        self.decoder: msgspec.msgpack.Decoder[P] = msgspec.msgpack.Decoder(payload)


class Command(Generic[Q, A]):
    """Something to ask of a member: what goes with it, and what comes back."""

    def __init__(self, name: str, question: type[Q], answer: type[A]) -> None:
        self.name = name
        self.question: msgspec.msgpack.Decoder[Q] = msgspec.msgpack.Decoder(question)
        self.answer: msgspec.msgpack.Decoder[A] = msgspec.msgpack.Decoder(answer)


class _Pending:
    """A command of ours that is not answered yet."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.outcome: Answer | Refusal | None = None


class _Member:
    """What is known of one member."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.pending: dict[int, _Pending] = {}
        self.served: dict[int, trio.CancelScope] = {}
        self.gone = trio.Event()
        self.interested = trio.Event()


class Bus:
    """One process's way to the others. All of it runs in the thread of the event loop."""

    def __init__(self, *, relays: bool = False) -> None:
        """`relays`: what one member publishes is handed on to the others."""
        self._relays = relays
        self._members: dict[str, _Member] = {}
        self._listeners: dict[str, list[Callable[[str, msgspec.Raw], None]]] = {}
        self._at_once: dict[str, Callable[[str, msgspec.Raw], Any]] = {}
        self._waiting: dict[str, Callable[[str, msgspec.Raw], Awaitable[Any]]] = {}
        self._numbers = itertools.count()
        self._encoder = msgspec.msgpack.Encoder()

    @property
    def members(self) -> Collection[str]:
        """Names of those that are attached."""
        return self._members.keys()

    async def wait_gone(self, name: str) -> None:
        """Wait until a member is not attached any more, and all that it said has been heard."""
        if name in self._members:
            await self._members[name].gone.wait()

    async def wait_heard(self, name: str, topic: Topic[P]) -> None:
        """Wait until a member has said that it listens to `topic`, or is gone."""
        while (member := self._members.get(name)) is not None and topic.name not in member.link.topics:
            await member.interested.wait()

    # --- what others hear ------------------------------------------------------------------------

    def publish(self, topic: Topic[P], payload: P, *, to: str | None = None) -> None:
        """Tell all who subscribed, or one of them. Never waits; who is not there is not told."""
        frame = Publication(topic.name, msgspec.Raw(self._encoder.encode(payload)))
        for name, member in self._members.items():
            if topic.name in member.link.topics and to in {None, name}:
                member.link.post(frame)

    async def command(self, name: str, command: Command[Q, A], question: Q) -> A:
        """Ask a member. The caller owns timeouts; cancelled, the command is withdrawn.

        Raises:
            MemberGone: It is not there, or went before it answered.
            GatewayError: What it raised.
        """
        member = self._members.get(name)
        if member is None:
            raise MemberGone
        number, pending = next(self._numbers), _Pending()
        member.pending[number] = pending
        member.link.post(Question(number, command.name, msgspec.Raw(self._encoder.encode(question))))
        try:
            await pending.answered.wait()
        finally:
            del member.pending[number]
            if not pending.answered.is_set():
                member.link.post(Withdrawal(number))
        if isinstance(pending.outcome, Answer):
            return command.answer.decode(pending.outcome.payload)
        raise MemberGone if pending.outcome is None else _error(pending.outcome)

    # --- what is heard here ----------------------------------------------------------------------

    def subscribe(self, topic: Topic[P], listener: Callable[[str, P], None]) -> None:
        """Have `listener` called with the member and what it published. It must not block."""
        self._listeners.setdefault(topic.name, []).append(
            lambda member, payload: listener(member, topic.decoder.decode(payload))
        )
        for member in self._members.values():
            member.link.post(Interest(topic.name))

    def answer(self, command: Command[Q, A], servant: Callable[[str, Q], A]) -> None:
        """Have `servant` answer a command while it is read. It must not block."""
        self._at_once[command.name] = lambda member, question: servant(member, command.question.decode(question))

    def serve(self, command: Command[Q, A], servant: Callable[[str, Q], Awaitable[A]]) -> None:
        """Have `servant` answer a command in a task of its own, cancelled when the command is withdrawn."""
        self._waiting[command.name] = lambda member, question: servant(member, command.question.decode(question))

    # --- members ---------------------------------------------------------------------------------

    async def attach(
        self, name: str, stream: trio.abc.Stream, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Have a member at the other end of `stream`, until it goes or this is cancelled.

        Resource handling: closes the stream. Error handling: returns however the member goes; its commands are
        cancelled, and ours to it fail with `MemberGone`.
        """
        member = _Member(Link(stream))
        self._members[name] = member
        for topic in self._listeners:
            member.link.post(Interest(topic))
        try:
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._write, member, nursery.cancel_scope)
                task_status.started()
                await self._read(name, member, nursery)
                nursery.cancel_scope.cancel(reason="the member is gone")
        finally:
            del self._members[name]
            member.gone.set()
            member.interested.set()
            for pending in member.pending.values():
                pending.answered.set()

    async def _write(self, member: _Member, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await member.link.write()
        scope.cancel(reason="the member takes nothing")

    async def _read(self, name: str, member: _Member, nursery: trio.Nursery) -> None:
        reader = FrameReader()
        try:
            while (frames := await member.link.receive(reader)) is not None:
                for frame in frames:
                    self._take(name, member, frame, nursery)
        except (BrokenFrame, msgspec.DecodeError):
            _log.error("member cut off: it sent what can't be understood", member=name)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def _take(self, name: str, member: _Member, frame: Frame, nursery: trio.Nursery) -> None:
        if isinstance(frame, Publication):
            self._hear(name, frame)
        elif isinstance(frame, Question):
            self._take_question(name, member, frame, nursery)
        elif isinstance(frame, Interest):
            member.link.topics.add(frame.topic)
            member.interested.set()
            member.interested = trio.Event()
        elif isinstance(frame, Withdrawal):
            if (scope := member.served.get(frame.number)) is not None:
                scope.cancel(reason="the command was withdrawn")
        elif (pending := member.pending.get(frame.number)) is not None:
            pending.outcome = frame
            pending.answered.set()

    def _hear(self, name: str, frame: Publication) -> None:
        for listener in self._listeners.get(frame.topic, ()):
            try:
                listener(name, frame.payload)
            except Exception:
                _log.exception("listener failed", topic=frame.topic)
        if self._relays:
            for other, member in self._members.items():
                if other != name and frame.topic in member.link.topics:
                    member.link.post(frame)

    def _take_question(self, name: str, member: _Member, frame: Question, nursery: trio.Nursery) -> None:
        if (servant := self._at_once.get(frame.name)) is not None:
            try:
                member.link.post(self._answer(frame.number, servant(name, frame.payload)))
            except Exception as exc:
                member.link.post(_refusal(frame, exc))
        elif len(member.served) >= SERVED_AT_ONCE:
            raise BrokenFrame
        else:
            scope = member.served[frame.number] = trio.CancelScope()
            nursery.start_soon(self._serve, name, member, frame, scope)

    async def _serve(self, name: str, member: _Member, frame: Question, scope: trio.CancelScope) -> None:
        try:
            with scope:
                servant = self._waiting.get(frame.name) or partial(_unknown, frame.name)
                member.link.post(self._answer(frame.number, await servant(name, frame.payload)))
        except Exception as exc:
            member.link.post(_refusal(frame, exc))
        finally:
            del member.served[frame.number]

    def _answer(self, number: int, payload: object) -> Answer:
        return Answer(number, msgspec.Raw(self._encoder.encode(payload)))


async def _unknown(command: str, member: str, question: msgspec.Raw) -> None:
    await trio.lowlevel.checkpoint()
    raise LookupError(f"no such command: {command}")


def _refusal(frame: Question, exc: Exception) -> Refusal:
    if isinstance(exc, GatewayError):
        return Refusal(frame.number, type(exc).__name__, exc.message)
    _log.error("command failed", command=frame.name, exc_info=exc)
    return Refusal(frame.number, GatewayError.__name__, "Internal error")


def _error(refusal: Refusal) -> GatewayError:
    """The error that the member raised, as the class of that name."""
    cls = getattr(errors, refusal.error, GatewayError)
    if not (isinstance(cls, type) and issubclass(cls, GatewayError)):
        cls = GatewayError
    error = cls.__new__(cls)
    GatewayError.__init__(error, refusal.message)
    return error
