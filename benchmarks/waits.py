"""How long others wait while images move: answers of the event loop, and cancellations."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from .clients import ClientFailed, Figures
from .gateway import Gateway
from .nginx import Nginx
from .peer import Peer
from .pulls import pull
from .rounds import Contender, Table, alternate
from .stand import Stand, present
from .uploads import push

_EVERY: Final = 20  # milliseconds between two questions of the probe
_IDLE_SECONDS: Final = 3.0
_CANCELS: Final = 5  # of one round


def _probed(stand: Stand, peer: Peer, work: Callable[[], Figures]) -> Figures:
    """Do something, and ask meanwhile at fixed times for what is answered from memory."""
    probe = stand.programs.start("probe", peer.port, peer.status, _EVERY)
    try:
        figures = work()
    finally:
        latencies = probe.finish()
    return {**figures, "latencies": latencies}


def _idle(stand: Stand) -> Figures:
    time.sleep(stand.seconds(_IDLE_SECONDS))
    return {"seconds": stand.seconds(_IDLE_SECONDS), "client_cpu": 0.0}


def _cold(stand: Stand, peer: Gateway | Nginx, file: Path) -> Figures:
    """Pull a file whose pages are not in memory."""
    descriptor = os.open(peer.stored(file), os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return pull(stand, peer, file, 1)


def latency(stand: Stand) -> Iterator[Table]:
    """Answers to GET /status every 20 ms: idle, and while images move."""
    large, middle = stand.file(1024), stand.file(256)
    peers = [peer for peer in present(stand.nginx, stand.gateway) if isinstance(peer, Gateway | Nginx)]
    for peer in peers:
        peer.image(large)
        peer.image(middle)
    works: list[tuple[str, str, Callable[[Gateway | Nginx], Figures]]] = [
        ("idle", "nothing else", lambda peer: _idle(stand)),
        ("pulls", "64 pulls of 256 MiB", lambda peer: pull(stand, peer, middle, 64)),
        ("cold", "a pull of 1 GiB that is not in the page cache", lambda peer: _cold(stand, peer, large)),
        ("uploads", "4 uploads of 1 GiB", lambda peer: push(stand, peer, large, 4)),
    ]
    for key, title, work in works:
        with stand.watched():
            contenders = [
                Contender(peer, partial(_probed, stand, peer, partial(work, peer)), peer.clean_uploads)
                for peer in peers
            ]
            yield alternate(
                f"latency-{key}", f"GET /status every {_EVERY} ms beside {title}", contenders, stand.options
            )


# --- cancellation --------------------------------------------------------------------------------


def _cancel(gateway: Gateway, file: Path) -> float:
    """Seconds from the request that cancels a pull until its client sees the reset."""
    transfer_id = str(uuid.uuid4())
    sock = socket.create_connection(("127.0.0.1", gateway.port), 10)
    head = f"GET {gateway.image(file).path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Transfer-Id: {transfer_id}\r\n\r\n"
    sock.sendall(head.encode())
    reset: list[float] = []
    flowing = threading.Event()

    def read() -> None:
        buffer = bytearray(1 << 16)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv_into(buffer):
                flowing.set()
                time.sleep(0.001)  # leaves the image unfinished until it is cancelled
            return
        reset.append(time.monotonic())

    reader = threading.Thread(target=read, name="reader")
    reader.start()
    flowing.wait(10)
    began = time.monotonic()
    try:
        gateway.request("DELETE", f"/transfers/{transfer_id}", headers=gateway.authorization)
        reader.join(10)
    finally:
        sock.close()
        reader.join(10)
    if not reset:
        raise ClientFailed("a cancelled pull was not reset")
    return reset[0] - began


def _cancelled(stand: Stand, gateway: Gateway, file: Path, work: Callable[[], Figures]) -> Figures:
    """Cancel a few pulls while `work` goes on."""
    figures: list[Figures] = []
    beside = threading.Thread(target=lambda: figures.append(work()), name="work")
    beside.start()
    try:
        latencies = [_cancel(gateway, file) for _ in range(_CANCELS)]
    finally:
        beside.join()
    if not figures:
        raise ClientFailed("the pulls beside the cancelled ones failed")
    return {**figures[0], "latencies": latencies}


def cancellation(stand: Stand) -> Iterator[Table]:
    """From `DELETE /transfers/{id}` to the reset at the client, on an idle gateway and beside 64 pulls."""
    gateway, large, middle = stand.gateway, stand.file(1024), stand.file(256)
    gateway.image(large)
    gateway.image(middle)
    works: list[tuple[str, Callable[[], Figures]]] = [
        ("idle", lambda: {"seconds": 1.0, "client_cpu": 0.0}),
        ("beside 64 pulls", lambda: pull(stand, gateway, middle, 64)),
    ]
    with stand.watched():
        contenders = [
            Contender(gateway, partial(_cancelled, stand, gateway, large, work), label=f"gateway, {label}")
            for label, work in works
        ]
        yield alternate("cancel", "A pull is cancelled: until its client sees the reset", contenders, stand.options)
