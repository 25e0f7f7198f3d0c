"""Pulls: one to many streams, with slow and stalled clients among them, and over TLS."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from .clients import SECONDS, ClientFailed, Figures
from .gateway import VerifyingGateway
from .machine import CLIENT_CORE, pinned, socket_memory
from .peer import Peer, Target
from .registry import Registry
from .rounds import Contender, Table, alternate
from .stand import Stand, present

#: Streams, MiB of the image, how often one after the other.
MANY: Final = ((1, 1024, 4), (8, 1024, 1), (64, 256, 1), (256, 64, 1))
#: The same with images as large as those of one stream: what the start of a pull costs counts for less.
LARGE: Final = ((64, 1024), (256, 1024))
#: Up to so many streams are measured with a digest for every pull, too: beyond, each waits for the same hashes.
VERIFIED: Final = 8
STALLED: Final = 100
_SLOW_BYTES: Final = 1024  # a second


def pull(stand: Stand, peer: Peer, file: Path, streams: int, repeats: int = 1) -> Figures:
    """Pull the image of a file. Raises `ClientFailed`, also where other bytes came than there are."""
    target = peer.image(file)
    figures = stand.programs.run("pull", peer.port, target.path, streams, repeats, target.headers)
    expected = file.stat().st_size * streams * repeats
    if figures["bytes"] != expected:
        raise ClientFailed(f"{peer.name}: {figures['bytes']} bytes came instead of {expected}")
    return figures


def workloads(stand: Stand) -> Iterator[Table]:
    """One to 256 streams, the gateway's transfers followed at 4 Hz."""
    for streams, mib, repeats in MANY:
        if not stand.chosen(streams):
            continue
        file = stand.file(mib)
        peers = stand.pullers()
        if streams <= VERIFIED:
            peers += present(stand.find(VerifyingGateway))
        if streams == 1:
            peers += present(stand.glance, stand.find(Registry))
        with stand.watched():
            contenders = [Contender(peer, partial(pull, stand, peer, file, streams, repeats)) for peer in peers]
            for peer in peers:
                peer.image(file)
            title = f"Pulls: {streams} stream{'s' * (streams > 1)}, {file.stat().st_size >> 20} MiB each"
            yield alternate(f"pulls-{streams}", title, contenders, stand.options)


def large(stand: Stand) -> Iterator[Table]:
    """Many streams of a large image: up to 256 GiB in one measurement."""
    for streams, mib in LARGE:
        if not stand.chosen(streams):
            continue
        file = stand.file(mib)
        peers = present(stand.nginx, stand.gateway)
        for peer in peers:
            peer.image(file)
        with stand.watched():
            contenders = [Contender(peer, partial(pull, stand, peer, file, streams)) for peer in peers]
            title = f"Pulls: {streams} streams, {file.stat().st_size >> 20} MiB each"
            yield alternate(f"large-{streams}", title, contenders, stand.options)


# --- slow and stalled clients --------------------------------------------------------------------


def ask(peer: Peer, target: Target, receive_buffer: int | None = None) -> socket.socket:
    """A connection on which an image was asked for, and nothing of it read."""
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(5)
    sock.connect(("127.0.0.1", peer.port))
    sock.sendall(f"GET {target.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{target.headers}\r\n".encode())
    return sock


class SlowClient:
    """A client at 1 KB/s. It lives until `close`, which tells how it fared."""

    def __init__(self, peer: Peer, file: Path) -> None:
        self._sock = ask(peer, peer.image(file), receive_buffer=4096)
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._broken: float | None = None
        self._received = 0
        self._thread = threading.Thread(target=self._read, name="slow client")
        self._thread.start()

    def _read(self) -> None:
        while not self._ended.wait(1):
            try:
                got = len(self._sock.recv(_SLOW_BYTES))
            except OSError:
                got = 0
            if not got:
                self._broken = time.monotonic() - self._began
                return
            self._received += got

    def close(self) -> Figures:
        """Seconds that it lived, bytes that it got, and whether the server cut it."""
        lived = self._broken if self._broken is not None else time.monotonic() - self._began
        self._ended.set()
        self._thread.join()
        self._sock.close()
        return {"slow_seconds": lived, "slow_bytes": self._received, "slow_cut": self._broken is not None}


def slow(stand: Stand) -> Iterator[Table]:
    """Eight streams with a client at 1 KB/s in the mix, which lives longer than any `stall_timeout`."""
    file = stand.file(1024)
    peers = present(stand.nginx, stand.gateway)
    clients = {peer.name: SlowClient(peer, file) for peer in peers}
    began = time.monotonic()
    contenders = [Contender(peer, partial(pull, stand, peer, file, 8)) for peer in peers]
    try:
        table = alternate("slow", "Pulls: 8 streams, 1 GiB each, beside a client at 1 KB/s", contenders, stand.options)
        time.sleep(max(0.0, stand.seconds(75) - (time.monotonic() - began)))
    finally:
        fared = {name: client.close() for name, client in clients.items()}
    for name, figures in fared.items():
        for last in table.figures(name)[-1:]:
            last.update(figures)
    yield table


def _among_stalled(stand: Stand, peer: Peer, file: Path) -> Figures:
    """Pull while a hundred clients have asked for the image and read nothing."""
    target = peer.image(file)
    memory, kernel = peer.process.memory(), socket_memory()
    with contextlib.ExitStack() as stack:
        for _ in range(STALLED):
            stack.enter_context(ask(peer, target))
        time.sleep(0.5)
        grown = {
            "stalled_memory": peer.process.memory() - memory,
            "stalled_kernel_memory": socket_memory() - kernel,
        }
        return {**pull(stand, peer, file, 8), **grown}


def stalled(stand: Stand) -> Iterator[Table]:
    """Eight streams beside a hundred clients that read nothing; the same without them as reference."""
    file = stand.file(1024)
    contenders = []
    for peer in present(stand.gateway, stand.nginx):
        peer.image(file)
        alone = Contender(peer, partial(pull, stand, peer, file, 8), label=f"{peer.name} alone")
        among = Contender(peer, partial(_among_stalled, stand, peer, file), label=f"{peer.name} beside them")
        contenders += [alone, among]
    yield alternate(
        "stalled", f"Pulls: 8 streams, 1 GiB each, beside {STALLED} stalled clients", contenders, stand.options
    )


# --- TLS -----------------------------------------------------------------------------------------


def _curl(peer: Peer, file: Path, streams: int) -> Figures:
    """Pull over TLS by curl, one process a stream."""
    url = f"https://127.0.0.1:{peer.port}{peer.image(file).path}"
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--cacert",
        str(peer.certificate),
        "--http1.1",
        "--fail",
        "--output",
        "/dev/null",
        url,
    ]
    before, began = os.times(), time.monotonic()
    with pinned(CLIENT_CORE):
        running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(streams)]
    took = []
    for process in running:
        _, complaint = process.communicate(timeout=SECONDS)
        if process.returncode:
            raise ClientFailed(f"curl: {complaint.decode(errors='replace').strip()}")
        took.append(time.monotonic() - began)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"bytes": file.stat().st_size * streams, "seconds": max(took), "client_cpu": cpu}


def tls(stand: Stand) -> Iterator[Table]:
    """Pulls over TLS, HTTP/1.1."""
    if shutil.which("curl") is None:
        stand.absent["curl"] = "not installed (Debian: apt install curl): no pulls over TLS"
        return
    file = stand.file(1024)
    for streams in (1, 8):
        peers = stand.tls()
        for peer in peers:
            peer.image(file)
        contenders = [Contender(peer, partial(_curl, peer, file, streams)) for peer in peers]
        title = f"Pulls over TLS: {streams} stream{'s' * (streams > 1)}, {file.stat().st_size >> 20} MiB each"
        yield alternate(f"tls-{streams}", title, contenders, stand.options)
