"""One request with a body that is sent while the answer is listened for.

A gateway may refuse at any time: before the body (`Expect: 100-continue`, RFC 9110, 10.1.1), or in the middle of it. A
client that sends first and reads afterwards then finds a broken pipe where the reason was. Here three tasks share the
connection: one reads the source a block ahead, one sends, one listens. An answer ends the other two.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import anyio
import h11
import httpcore2
from anyio.abc import ObjectReceiveStream, ObjectSendStream

from .body import Body
from .errors import ConnectionBroken, ProtocolViolation, SourceChanged
from .network import broken
from .wire import Wire

CONTINUE_SECONDS: Final = 5.0  # RFC 9110: a client does not wait for 100 for ever; some servers never send it
LAST_WORDS_SECONDS: Final = 5.0  # an answer that was sent before the connection broke is here by then
CONTENT_LIMIT: Final = 16 * 1024 * 1024  # bytes of an answer to an upload


class Answer(NamedTuple):
    """A whole answer. Header names are in lower case."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    content: bytes


class Exchange:
    """One request and its answer on a connection of its own, which the caller closes afterwards: it is never reused.

    Args:
        stall: Seconds for which the gateway may take nothing of the body.
        answer_within: Seconds from the end of the body to the answer.
        on_sent: Called with the count of bytes of the body handed to the kernel so far.
    """

    def __init__(
        self,
        stream: httpcore2.AsyncNetworkStream,
        *,
        stall: float,
        answer_within: float,
        on_sent: Callable[[int], None],
    ) -> None:
        self._wire = Wire(stream)
        self._stall = stall
        self._answer_within = answer_within
        self._on_sent = on_sent
        self._go = anyio.Event()
        self._listening = anyio.CancelScope()
        self._answer: Answer | None = None
        self._failure: Exception | None = None

    async def run(self, head: h11.Request, body: Body) -> Answer:
        """Send `head` and `body`, and return the final answer, also one that came early.

        Raises:
            ConnectionBroken: It broke or stalled, and no answer had come.
            ProtocolViolation: The answer is no HTTP.
            Exception: Whatever the source of the body raises; the gateway then sees a body that was cut.
        """
        # Size 0: one block is read while another is sent, and none waits between them.
        ahead, blocks = anyio.create_memory_object_stream[bytes](0)
        async with anyio.create_task_group() as group:
            end = group.cancel_scope.cancel
            group.start_soon(self._guarded, end, lambda: self._read(body, ahead))
            group.start_soon(self._guarded, end, lambda: self._send(head, blocks))
            group.start_soon(self._guarded, end, lambda: self._listen(end))
        if self._answer is not None:
            return self._answer
        raise self._failure or ConnectionBroken("The gateway gave no answer in time")

    async def _guarded(self, end: Callable[[], None], step: Callable[[], Awaitable[None]]) -> None:
        """Run a task; its failure ends the exchange and is kept, so that callers see it and no group of errors."""
        try:
            await step()
        except Exception as exc:
            self._failure = self._failure or exc
            end()

    async def _read(self, body: Body, ahead: ObjectSendStream[bytes]) -> None:
        async with ahead:
            while block := await body.receive_some():
                await ahead.send(block)

    async def _send(self, head: h11.Request, blocks: ObjectReceiveStream[bytes]) -> None:
        async with blocks:
            try:
                await self._send_all(head, blocks)
                patience = self._answer_within
            except (httpcore2.WriteError, httpcore2.WriteTimeout) as exc:
                self._failure = ConnectionBroken(broken(exc))
                patience = LAST_WORDS_SECONDS
            self._listening.deadline = anyio.current_time() + patience
            if self._failure is not None:
                # The reader of the source must not wait for a taker, nor fail for want of one.
                await anyio.sleep_forever()

    async def _send_all(self, head: h11.Request, blocks: ObjectReceiveStream[bytes]) -> None:
        await self._write(head)
        with anyio.move_on_after(CONTINUE_SECONDS):
            await self._go.wait()
        sent = 0
        async for block in blocks:
            await self._write(h11.Data(data=block))
            sent += len(block)
            self._on_sent(sent)
        await self._write(h11.EndOfMessage())

    async def _write(self, event: h11.Event) -> None:
        try:
            await self._wire.send(event, within=self._stall)
        except h11.LocalProtocolError as exc:
            raise SourceChanged("The source gave more or fewer bytes than it announced") from exc

    async def _listen(self, end: Callable[[], None]) -> None:
        with self._listening:
            self._answer = await self._receive()
        end()

    async def _receive(self) -> Answer:
        response: h11.Response | None = None
        content = bytearray()
        while True:
            event = await self._wire.next_event()
            match event:
                case h11.InformationalResponse():
                    self._go.set()
                case h11.Response():
                    response = event
                case h11.Data() if len(content) < CONTENT_LIMIT:
                    content += event.data
                case h11.EndOfMessage() if response is not None:
                    return Answer(response.status_code, list(response.headers), bytes(content))
                case _:
                    raise ProtocolViolation("The gateway's answer is not one that an upload can have")
