"""SHA-256 or BLAKE3 of memory, and nothing else: what no server that hashes what it sends can be faster than."""

from __future__ import annotations

import socket
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Final

from .clients import SECONDS, Figures
from .machine import BOTH_CORES, SERVER_CORE
from .peer import Peer, Target
from .process import ServerProcess

_PROGRAM: Final = Path(__file__).parent / "programs" / "digest.py"


class HashAlone(Peer):
    """A process that hashes without moving a byte, on the servers' core."""

    name = "SHA-256 alone"
    digest = "sha256"
    cores: Collection[int] = (SERVER_CORE,)

    def start(self) -> ServerProcess:
        command = [sys.executable, str(_PROGRAM), str(self.port), self.digest]
        return ServerProcess(command, self.directory / "log", cores=self.cores)

    def version(self) -> str:
        if self.digest == "blake3":
            return f"blake3 {metadata.version('blake3')}"
        return f"hashlib of Python {sys.version.split()[0]}"

    def image(self, file: Path) -> Target:
        return Target("/")

    def hash(self, size: int, streams: int) -> Figures:
        """Hash so many bytes for each of some streams at the same time."""
        with ThreadPoolExecutor(streams) as pool:
            seconds = max(pool.map(self._hash, [size] * streams))
        return {"bytes": size * streams, "seconds": seconds, "client_cpu": 0.0}

    def _hash(self, size: int) -> float:
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as sock:
            sock.sendall(f"{size}\n".encode())
            return float(sock.makefile().readline())


class WideHashAlone(HashAlone):
    """The same, free to use the clients' core, too."""

    name = "SHA-256 alone, 2 cores"
    cores = BOTH_CORES


class Blake3Alone(HashAlone):
    """BLAKE3 in its place."""

    name = "BLAKE3 alone"
    digest = "blake3"
