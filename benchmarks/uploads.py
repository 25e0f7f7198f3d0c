"""Uploads: whole images, synced and hashed as each server does it, to a disk and to memory, on one core and on two."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from .clients import Figures
from .gateway import FreeMd5Gateway
from .machine import MIB, SERVER_CORE, pinned
from .peer import Peer
from .rounds import Contender, Table, alternate
from .stand import Stand

STREAMS: Final = (1, 4)


def push(stand: Stand, peer: Peer, file: Path, streams: int) -> Figures:
    """Upload a file that many times at once."""
    targets = peer.uploads(file, streams)
    first = targets[0]
    paths = [target.path for target in targets]
    return stand.programs.run("push", peer.port, first.method, file, first.headers, *paths)


def workloads(stand: Stand) -> Iterator[Table]:
    """One and four streams: to the disk, and to memory, where what a server costs is not hidden behind the disk."""
    for streams in STREAMS:
        yield _table(stand, "uploads", "Uploads", stand.uploaders(), streams)
    for streams in STREAMS:
        yield _table(stand, "uploads-memory", "Uploads to memory", stand.uploaders_in_memory(), streams)
    for streams in STREAMS:
        title = "Uploads to memory, servers on both cores"
        yield _table(stand, "uploads-cores", title, stand.free_uploaders(), streams)
    yield from _both_digests(stand)


def _table(stand: Stand, key: str, title: str, peers: Iterable[Peer], streams: int) -> Table:
    file = stand.file(1024)
    contenders = [Contender(peer, partial(push, stand, peer, file, streams), peer.clean_uploads) for peer in peers]
    title = f"{title}: {streams} stream{'s' * (streams > 1)}, {file.stat().st_size >> 20} MiB each"
    return alternate(f"{key}-{streams}", title, contenders, stand.options)


def _both_digests(stand: Stand) -> Iterator[Table]:
    """An upload with SHA-256 and MD5 beside MD5 alone, the slower of the two, on one core and without moving a byte."""
    gateway = stand.find_in_memory(FreeMd5Gateway)
    if gateway is None:
        return
    file = stand.file(1024)
    contenders = [
        Contender(gateway, partial(_md5_alone, file), label="MD5 alone, one thread"),
        Contender(gateway, partial(push, stand, gateway, file, 1), gateway.clean_uploads),
    ]
    title = f"An upload with SHA-256 and MD5, both cores, to memory: {file.stat().st_size >> 20} MiB"
    yield alternate("uploads-digests", title, contenders, stand.options)


def _md5_alone(file: Path) -> Figures:
    """MD5 of a file's bytes, from one buffer that is filled between: only the digest is timed."""
    digest = hashlib.md5(usedforsecurity=False)
    seconds = 0.0
    with pinned(SERVER_CORE), file.open("rb", buffering=0) as bytes_of:
        while block := bytes_of.read(MIB):
            began = time.perf_counter()
            digest.update(block)
            seconds += time.perf_counter() - began
    return {"bytes": file.stat().st_size, "seconds": seconds, "client_cpu": 0.0}
