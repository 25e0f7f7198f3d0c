"""A relay between a client and a gateway that lets an image through to some byte, and holds it there."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Generator
from urllib.parse import urlsplit

BLOCK = 65536
# Set, since the kernel lets a buffer that is read quickly grow by megabytes, and what is held back must stay in the
# gateway.
RECEIVE_BUFFER = 1 << 16


class Relay:
    """Forwards connections to `url`.

    Attributes:
        url: Where clients connect to.
        allowance: Bytes that may still go to clients; None for all there are.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.allowance: int | None = None
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()

    def serve(self) -> None:
        """Accept until `stop`."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._forward, args=[client])
                thread.start()
                self._threads.append(thread)

    def stop(self) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.socket() as gateway, selectors.DefaultSelector() as ready:
            gateway.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            gateway.connect(self._target)
            ready.register(client, selectors.EVENT_READ)
            ready.register(gateway, selectors.EVENT_READ)
            with contextlib.suppress(OSError):
                while not self._stop.is_set():
                    for key, _ in ready.select(0.05):
                        if key.fileobj is client:
                            data = client.recv(BLOCK)
                            gateway.sendall(data)
                        elif self.allowance == 0:
                            continue
                        else:
                            data = gateway.recv(min(BLOCK, self.allowance or BLOCK))
                            client.sendall(data)
                            if self.allowance is not None:
                                self.allowance -= len(data)
                        if not data:
                            return


@contextlib.contextmanager
def relaying(url: str) -> Generator[Relay]:
    """A relay for the length of a block."""
    relay = Relay(url)
    thread = threading.Thread(target=relay.serve)
    thread.start()
    try:
        yield relay
    finally:
        relay.stop()
        thread.join()
