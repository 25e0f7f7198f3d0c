"""The control socket of the data directory: what programs of this host ask of the running daemon.

One line of JSON is asked and one is answered. `upgrade` is answered when its outcome is known; after `join` the
connection is the bus of an older generation. A signal would take no answer, and a socket at a path of its own follows
whoever is the gateway: the name passes from one generation to the next by `rename`. Whoever is neither root nor the
gateway's own user is not heard.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from .errors import ConfigError

LINE_BYTES: Final = 64 * 1024
RETRY_SECONDS: Final = 1.0
ASK_SECONDS: Final = 10.0  # for the line of somebody who connected
_CREDENTIALS: Final = struct.Struct("3i")

Request = Mapping[str, Any]
#: Answers a request; what it does with the stream afterwards is its own affair. The stream is closed when it returns.
Servant = Callable[[Request, trio.SocketStream], Awaitable[None]]

_log: Final = structlog.get_logger("visor_gateway.control")


class ControlSocket:
    """The listening end."""

    def __init__(self, path: Path, servant: Servant) -> None:
        self._path = path
        self._servant = servant
        self._listener: trio.SocketListener | None = None
        self._inode = 0

    def listen(self) -> None:
        """Take the name, also from another process. Blocks for an instant.

        Raises:
            ConfigError: The socket can't be made.
        """
        beside = f"{self._path.name}.{os.getpid()}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with _near(self._path) as place:
                with suppress(FileNotFoundError):
                    os.unlink(f"{place}/{beside}")
                sock.bind(f"{place}/{beside}")
                os.chmod(f"{place}/{beside}", 0o600)
                sock.listen(64)
                self._inode = os.stat(f"{place}/{beside}").st_ino
                os.rename(f"{place}/{beside}", f"{place}/{self._path.name}")
        except OSError as exc:
            sock.close()
            raise ConfigError(f"{self._path}: expected a place for a socket: {exc.strerror}") from exc
        sock.setblocking(False)
        self.close()
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))

    def close(self) -> None:
        """Listen no more. Connections go on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.socket.close()

    def remove(self) -> None:
        """Listen no more, and take the name away unless another process has it."""
        self.close()
        with suppress(OSError):
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)

    async def serve(self) -> None:
        """Answer until cancelled, which ends the connections and takes the name away. After `close` nobody new is
        answered."""
        try:
            async with trio.open_nursery() as nursery:
                while (listener := self._listener) is not None:
                    await self._accept(listener, nursery)
                await trio.sleep_forever()
        finally:
            self.remove()

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        try:
            nursery.start_soon(self._serve_one, await listener.accept())
        except trio.ClosedResourceError:
            return
        except OSError as exc:
            _log.warning("control socket: accept failed", error=str(exc))
            await trio.sleep(RETRY_SECONDS)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                request = await self._request(stream)
                if request is not None:
                    await self._servant(request, stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            except Exception:
                _log.exception("control request failed")

    async def _request(self, stream: trio.SocketStream) -> Request | None:
        _, user, _ = _CREDENTIALS.unpack(
            stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if user not in {0, os.geteuid()}:
            _log.warning("control request refused", uid=user)
            return None
        with trio.move_on_after(ASK_SECONDS):
            return await receive_line(stream)
        return None


async def receive_line(stream: trio.SocketStream) -> Request | None:
    """The next line; None for none, or for what is no JSON object. No byte behind it is read."""
    data = bytearray()
    while not data.endswith(b"\n"):
        # One at a time: what follows is another one's to read.
        piece = await stream.receive_some(1)
        if not piece or len(data) > LINE_BYTES:
            return None
        data += piece
    with suppress(ValueError):
        read = json.loads(data)
        return read if isinstance(read, dict) else None
    return None


async def send_line(stream: trio.SocketStream, **values: object) -> None:
    """Say something. Raises `trio.BrokenResourceError`."""
    await stream.send_all(json.dumps(values).encode() + b"\n")


async def connect(path: Path) -> trio.SocketStream:
    """Connect to who is the gateway now. The caller closes the stream. Raises `OSError`."""
    with _near(path) as place:
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await sock.connect(f"{place}/{path.name}")
        except BaseException:
            sock.close()
            raise
    return trio.SocketStream(sock)


@contextmanager
def _near(path: Path) -> Generator[str]:
    """A short path to the directory: names of sockets may have 107 bytes."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def ask(path: Path, timeout: float, **request: object) -> Request | None:
    """Ask the running daemon, and wait for its answer. Blocks. None where it ends without one.

    Raises:
        OSError: Nobody listens, or there was no answer in time.
    """
    with _near(path) as place, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect(f"{place}/{path.name}")
        sock.sendall(json.dumps(request).encode() + b"\n")
        with sock.makefile("rb") as answers:
            line = answers.readline(LINE_BYTES)
    if not line.endswith(b"\n"):
        return None
    answer = json.loads(line)
    return answer if isinstance(answer, dict) else None
