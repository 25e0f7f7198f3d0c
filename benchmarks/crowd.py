"""`python -m benchmarks.crowd PORT TOKEN COUNT [CUTS]`: many subscribers of the live channel, until the input ends.

One thread follows all of them and answers their pings. It prints what came as one JSON object: how many messages of
each type, and what each subscriber saw of the ends of transfers, in short (`Record`). With CUTS, a subscriber breaks
its connection so many times a second, each in turn, comes back and resumes.
"""

from __future__ import annotations

import base64
import functools
import os
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import msgspec

PROTOCOL: Final = "visor.progress.v1"
ENDED: Final = frozenset({"finished", "failed", "cancelled"})
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
_BLOCK: Final = 1 << 18
_OPENED_AT_ONCE: Final = 5


class _Message(msgspec.Struct):
    """What is looked at of any message."""

    type: str
    seq: int = 0
    epoch: str = ""
    kind: str = ""
    transfer: _Named | None = None
    transfers: list[_Named] = []
    removed: list[str] = []


class _Named(msgspec.Struct):
    id: str
    state: str


class Record(msgspec.Struct):
    """What one subscriber saw.

    Attributes:
        ends: Ids of final events, in the order in which they came.
        again: Final events that came a second time.
        disorder: Messages whose `seq` did not rise, but for events that a resume brought.
        gaps: How often it was told that events are lost.
        cuts: How often it came back.
        live: What is under way, as far as it knows.
        closed: The code with which it was closed.
    """

    ends: list[str] = []
    again: int = 0
    disorder: int = 0
    gaps: int = 0
    cuts: int = 0
    live: dict[str, str] = {}
    closed: int | None = None


#: Most get the same messages, and what reading them costs here is taken from the server's cores.
_decode: Final = functools.lru_cache(maxsize=256)(msgspec.json.Decoder(_Message).decode)


class Subscriber:
    """One client: a socket, and what came over it."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self.record = Record(ends=[], live={})
        self.seen: Counter[str] = Counter()
        self._ended: set[int] = set()  # seq of final events
        self._epoch, self._seen_at = "", 0
        self._open()

    def _open(self) -> None:
        self.sock = socket.create_connection(("127.0.0.1", self._port), 30)
        key = base64.b64encode(os.urandom(16)).decode()
        self.sock.sendall(
            f"GET /transfers/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n"
            f"Authorization: Bearer {self._token}\r\n\r\n".encode()
        )
        head = bytearray()
        while b"\r\n\r\n" not in head:
            head += self.sock.recv(1)
        if b" 101 " not in head.partition(b"\r\n")[0]:
            raise SystemExit(f"no WebSocket: {bytes(head[:100])!r}")
        self.sock.setblocking(False)
        self._buffer = bytearray()
        self._highest = self._opened_at = 0  # the latter: of the snapshot with which the connection began
        self._replayed_to = self._seen_at

    def come_back(self) -> None:
        """Break the connection, open another one, and resume."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self.record.cuts += 1
        self._open()
        self._say(_TEXT, msgspec.json.encode({"type": "resume", "epoch": self._epoch, "seq": self._seen_at}))

    def read(self) -> bool:
        """Take in what there is. Whether it is still open."""
        try:
            data = self.sock.recv(_BLOCK)
        except BlockingIOError:
            return True
        except ConnectionError:
            data = b""
        self._buffer += data
        for opcode, payload in self._frames():
            if opcode == _TEXT:
                self._hear(payload)
            elif opcode == _PING:
                with suppress(ConnectionError):  # seen by the next read
                    self._say(_PONG, payload)
            elif opcode == _CLOSE:
                self.record.closed = int.from_bytes(payload[:2], "big")
        return bool(data)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        at = 0
        while len(self._buffer) >= at + 2:
            length, start = self._buffer[at + 1], at + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                length = int.from_bytes(self._buffer[at + 2 : start], "big")
            if len(self._buffer) < start + length:
                break
            yield self._buffer[at] & 15, bytes(self._buffer[start : start + length])
            at = start + length
        del self._buffer[:at]

    def _say(self, opcode: int, payload: bytes) -> None:
        """One masked frame; by zero, which changes nothing."""
        head = bytes([0x80 | opcode, 0x80 | len(payload)] if len(payload) < 126 else [0x80 | opcode, 0xFE])
        more = b"" if len(payload) < 126 else len(payload).to_bytes(2, "big")
        self.sock.send(head + more + bytes(4) + payload)

    def _hear(self, payload: bytes) -> None:
        message, record = _decode(payload), self.record
        self.seen[message.type] += 1
        if message.type == "hello":
            self._epoch = message.epoch
        elif message.type == "snapshot":
            record.live = {each.id: each.state for each in message.transfers}
            self._opened_at = self._opened_at or message.seq
        elif message.type == "gap":
            record.gaps += 1
        elif message.transfer is not None:
            self._hear_event(message, message.transfer)
        for id in message.removed:
            record.live.pop(id, None)
        if message.type == "event" and self.record.cuts and message.seq < self._opened_at:
            # Brought by a resume: it goes back behind the snapshot.
            record.disorder += message.seq <= self._replayed_to
            self._replayed_to = message.seq
        elif message.seq:
            record.disorder += message.seq <= self._highest
            self._highest = message.seq
        self._seen_at = max(self._seen_at, message.seq)

    def _hear_event(self, message: _Message, transfer: _Named) -> None:
        if message.seq < self._highest:
            pass  # replayed: the snapshot before it is newer
        elif message.kind in ENDED:
            self.record.live.pop(transfer.id, None)
        else:
            self.record.live[transfer.id] = transfer.state
        if message.kind in ENDED:
            self.record.again += message.seq in self._ended
            self._ended.add(message.seq)
            self.record.ends.append(transfer.id)


def follow(port: int, token: str, count: int, cuts: float) -> dict[str, Any]:
    """Follow until standard input ends."""
    poller = select.epoll()
    crowd: dict[int, Subscriber] = {}
    everybody = []
    for _ in range(count):
        subscriber = Subscriber(port, token)
        everybody.append(subscriber)
        crowd[subscriber.sock.fileno()] = subscriber
        poller.register(subscriber.sock, select.EPOLLIN)
        if len(crowd) % _OPENED_AT_ONCE == 0:
            _take(poller, crowd, 0)
    print("ready", file=sys.stderr, flush=True)
    poller.register(sys.stdin, select.EPOLLIN)
    period = 1 / cuts if cuts else 0.0
    due, turn = time.monotonic() + period, 0
    while _take(poller, crowd, min(1.0, max(0.0, due - time.monotonic())) if cuts else 1.0):
        if cuts and time.monotonic() >= due:
            due += period
            subscriber = everybody[turn % count]
            turn += 1
            if crowd.pop(subscriber.sock.fileno(), None):
                subscriber.come_back()
                crowd[subscriber.sock.fileno()] = subscriber
                poller.register(subscriber.sock, select.EPOLLIN)
    seen: Counter[str] = Counter()
    for subscriber in everybody:
        seen += subscriber.seen
    return {
        "messages": seen,
        "records": [msgspec.structs.asdict(each.record) for each in everybody],
        "cpu": time.process_time(),
    }


def _take(poller: select.epoll, crowd: dict[int, Subscriber], seconds: float) -> bool:
    """Read what is ready. Whether standard input is still open."""
    for descriptor, _ in poller.poll(seconds):
        if descriptor == sys.stdin.fileno():
            return False
        subscriber = crowd.get(descriptor)
        if subscriber is not None and not subscriber.read():
            poller.unregister(descriptor)
            del crowd[descriptor]
    return True


if __name__ == "__main__":
    found = follow(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]) if len(sys.argv) > 4 else 0.0)
    sys.stdout.buffer.write(msgspec.json.encode(found))
