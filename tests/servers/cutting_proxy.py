"""A TCP proxy before a real server that cuts connections by a reset, after so many bytes of their answers."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager

_PIECE = 64 * 1024


class CuttingProxy:
    """A running proxy.

    Attributes:
        port: Where it listens on 127.0.0.1.
        cuts: How many connections are still to be cut.
        after: Bytes of answers after which one is.
    """

    def __init__(self, target: int, cuts: int, after: int, replaced: Mapping[bytes, bytes]) -> None:
        self.cuts = cuts
        self.after = after
        self._target = target
        self._replaced = replaced
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(60)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            thread = threading.Thread(target=self._serve, args=(client, server), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        """One connection, both ways in one thread: a socket that another one reads from can't be reset by a close."""
        passed = 0
        with client, server, contextlib.suppress(OSError):
            while True:
                for sock in select.select([client, server], [], [])[0]:
                    data = sock.recv(_PIECE)
                    if not data:
                        return
                    if sock is client:
                        server.sendall(data)
                        continue
                    for old, new in self._replaced.items():
                        data = data.replace(old, new)
                    client.sendall(data)
                    passed += len(data)
                    if passed >= self.after and self._takes_cut():
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return

    def _takes_cut(self) -> bool:
        with self._lock:
            if not self.cuts:
                return False
            self.cuts -= 1
            return True


@contextmanager
def start(
    target: int, *, cuts: int, after: int, replaced: Mapping[bytes, bytes] | None = None
) -> Generator[CuttingProxy]:
    """A proxy to a port of 127.0.0.1 for the length of a block.

    Args:
        replaced: What else stands in answers for these bytes, of the same length.
    """
    proxy = CuttingProxy(target, cuts, after, replaced or {})
    try:
        yield proxy
    finally:
        proxy.close()
