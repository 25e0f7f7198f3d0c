"""Those who wait for a fill: when they have their first byte, and what a first client that leaves or dawdles costs.

The origin is paced, and says when it sent the first byte, so that what a server adds can be told apart.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from .clients import Figures
from .fanout import CachingGateway, Varnish
from .machine import MIB
from .paced import PacedOrigin
from .peer import Target
from .rounds import Contender, Table, alternate
from .stand import Stand, present

CROWDS: Final = (8, 64, 500)
RATE: Final = 64 * MIB  # bytes per second of the origin
IMAGE_MIB: Final = 64
GATHER_SECONDS: Final = 2.0  # in which all of a crowd have asked, and for each of them:
GATHER_SECONDS_PER_STREAM: Final = 0.02
SLOW: Final = 2 * MIB  # bytes per second of a first client that dawdles
OTHERS: Final = 8

_names = itertools.count()
_Cache = CachingGateway | Varnish


def workloads(stand: Stand) -> Iterator[Table]:
    """The first byte of each of a crowd; and the others beside a first client that quits at 10 %, or is slow."""
    size = max(1, int(IMAGE_MIB * stand.options.scale)) * MIB
    origin = PacedOrigin(size, RATE)
    try:
        peers: list[_Cache] = present(
            stand.find(Varnish, lambda place: Varnish(place, origin), label="paced"),
            stand.find(CachingGateway, lambda place: CachingGateway(place, origin), label="paced"),
        )
        for streams in filter(stand.options.has_crowd, CROWDS):
            for key, title, measure in (
                ("held", "who all wait for it", _held),
                ("late", "who come while a first one is served", _late),
            ):
                contenders = [Contender(peer, partial(measure, stand, peer, origin, streams)) for peer in peers]
                title = f"The first byte of {streams} clients {title}, from when it could be had"
                yield alternate(f"first-{key}-{streams}", title, contenders, stand.options)
        for peer in peers:
            if isinstance(peer, CachingGateway):
                yield _beside(stand, peer, origin, size)
    finally:
        origin.close()


def _new(peer: _Cache) -> Target:
    """An image that no cache has."""
    return peer.target(f"paced-{next(_names)}")


def _held(stand: Stand, peer: _Cache, origin: PacedOrigin, streams: int) -> Figures:
    """All ask before the origin sends anything."""
    target = _new(peer)
    origin.hold()
    timer = threading.Timer(GATHER_SECONDS + streams * GATHER_SECONDS_PER_STREAM, origin.release)
    timer.start()
    try:
        figures = stand.programs.run("pull", peer.port, target.path, streams, 1, target.headers)
    finally:
        timer.cancel()
        origin.release()
    return {**_times(figures), "latencies": [first - origin.began_at for first in figures["first"]]}


def _late(stand: Stand, peer: _Cache, origin: PacedOrigin, streams: int) -> Figures:
    """All ask at once while the image is on its way: what they wait for is there."""
    target = _new(peer)
    origin.release()
    before = origin.sent
    with _First(peer, target, lambda sock, size: _read(sock, size)):
        while origin.sent - before < 4 * MIB:
            time.sleep(0.005)
        figures = stand.programs.run("pull", peer.port, target.path, streams, 1, target.headers)
    pairs = zip(figures["first"], figures["asked"], strict=True)
    return {**_times(figures), "latencies": [first - asked for first, asked in pairs]}


def _times(figures: Figures) -> Figures:
    return {key: figures[key] for key in ("seconds", "client_cpu")}


# --- the first client ----------------------------------------------------------------------------


def _beside(stand: Stand, peer: CachingGateway, origin: PacedOrigin, size: int) -> Table:
    firsts: dict[str, Callable[[socket.socket, int], None]] = {
        "the first reads on": _read,
        "the first quits at 10 %": lambda sock, size: _read(sock, size // 10),
        "the first reads at 2 MiB/s": _dawdle,
    }

    def measure(first: Callable[[socket.socket, int], None]) -> Figures:
        target = _new(peer)
        origin.release()
        before = origin.sent
        with _First(peer, target, first):
            while origin.sent == before:
                time.sleep(0.001)
            figures = stand.programs.run("pull", peer.port, target.path, OTHERS, 1, target.headers)
        return {**figures, "upstream": (origin.sent - before) / size}

    contenders = [Contender(peer, partial(measure, first), label=label) for label, first in firsts.items()]
    title = f"{OTHERS} streams of a new image at {RATE // MIB} MiB/s, {size // MIB} MiB, beside a first client"
    return alternate("first-client", title, contenders, stand.options)


class _First:
    """The client that begins a fill, in a thread. It is ended with the block."""

    def __init__(self, peer: _Cache, target: Target, read: Callable[[socket.socket, int], None]) -> None:
        self._sock = socket.create_connection(("127.0.0.1", peer.port))
        self._sock.sendall(f"GET {target.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{target.headers}\r\n".encode())
        self._thread = threading.Thread(target=self._run, args=(read,), daemon=True)

    def _run(self, read: Callable[[socket.socket, int], None]) -> None:
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                head += self._sock.recv(65536)
            text, _, begun = head.partition(b"\r\n\r\n")
            length = next(int(line[15:]) for line in text.split(b"\r\n") if line[:15].lower() == b"content-length:")
            read(self._sock, length - len(begun))
        except OSError:
            pass  # the block has ended
        self._sock.close()

    def __enter__(self) -> _First:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()


def _read(sock: socket.socket, count: int) -> None:
    while count > 0 and (data := sock.recv(min(count, 1 << 18))):
        count -= len(data)


def _dawdle(sock: socket.socket, count: int) -> None:
    while count > 0 and (data := sock.recv(1 << 16)):
        count -= len(data)
        time.sleep(len(data) / SLOW)
