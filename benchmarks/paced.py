"""An origin that sends at a given rate, and only once it is told to: so it is known when bytes could be had."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from typing import Final

_PIECE: Final = 256 * 1024
_TIMEOUT: Final = 60.0


class PacedOrigin:
    """Serves an image of `size` bytes under any name, over connections that it closes after each answer.

    Resource handling: `close` ends it; what it is sending then is cut.

    Attributes:
        port: Where it listens on 127.0.0.1.
        sent: Bytes of all bodies so far.
        began_at: When the first byte of a body was sent since `hold`, by the monotonic clock; 0 before.
    """

    def __init__(self, size: int, bytes_per_s: float) -> None:
        self.sent = 0
        self.began_at = 0.0
        self._rate = bytes_per_s
        self._data = os.urandom(_PIECE)
        self._size = size
        self._released = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """Send no body from now on."""
        self._released.clear()
        self.began_at = 0.0

    def release(self) -> None:
        """Send what was held."""
        self._released.set()

    def close(self) -> None:
        """Take no more connections."""
        self._released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(_TIMEOUT)
            asked = b""
            while b"\r\n\r\n" not in asked:
                if not (data := sock.recv(65536)):
                    return
                asked += data
            name = asked.split(b" ", 2)[1].strip(b"/").decode("ascii")
            span = re.search(rb"\r\nrange: *bytes=(\d+)-", asked, re.IGNORECASE)
            first = int(span[1]) if span else 0
            head = [f"HTTP/1.1 {'206 Partial Content' if span else '200 OK'}", f'ETag: "{name}"', "Connection: close"]
            head += [f"Content-Length: {self._size - first}", "Accept-Ranges: bytes"]
            if span:
                head.append(f"Content-Range: bytes {first}-{self._size - 1}/{self._size}")
            sock.sendall("\r\n".join([*head, "", ""]).encode("ascii"))
            if asked.startswith(b"GET"):
                self._send(sock, first)

    def _send(self, sock: socket.socket, first: int) -> None:
        """Bytes of the image depend on their offset alone."""
        self._released.wait(_TIMEOUT)
        began, position = time.monotonic(), first
        self.began_at = self.began_at or began
        while position < self._size:
            at = position % _PIECE
            piece = self._data[at : at + min(_PIECE - at, self._size - position)]
            sock.sendall(piece)
            position += len(piece)
            self.sent += len(piece)
            ahead = (position - first) / self._rate - (time.monotonic() - began)
            if ahead > 0:
                time.sleep(ahead)
