"""The socket of one client: sending, receiving, ending, and what the kernel knows of the client.

A wire ends in one of two ways. `finish` is the ordinary end: FIN, then a bounded wait for the client to close, so
that an answer is not destroyed by a reset. `reset` is the end of everything that is not whole: RST, so that no client
can take what it has for all there is. Once a send has failed or was cancelled an unknown part of it is on the wire,
so the wire resets itself and nothing more is written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import ssl
import struct
import termios
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from ..tls import TlsStream

#: Trio's 16 KiB costs twice the CPU for bulk; no bound at all, megabytes for each stalled client (docs/performance.md).
NOTSENT_LOWAT: Final = 1 << 20
LINGER_SECONDS: Final = 5.0
LINGER_BYTES: Final = 1 << 20
LINGER_BLOCK: Final = 64 * 1024
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 60, 15, 4  # a dead peer of an idle WebSocket is noticed in 2 min
JOIN_BELOW: Final = 64 * 1024  # joining pieces below this is cheaper than a second system call

# struct tcp_info of Linux: tcpi_bytes_acked is the u64 after 8 bytes, 24 u32 and two u64 of pacing.
_BYTES_ACKED: Final = struct.Struct("120xQ")
_MAX_INT: Final = 2**31 - 1
_ABORT: Final = struct.pack("ii", 1, 0)

Block = bytes | bytearray | memoryview

_Broken = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class ClientGone(ConnectionAbortedError):
    """The client has closed or reset the connection, or the connection was cut. An `OSError`, as ASGI 2.4 asks."""

    def __init__(self) -> None:
        super().__init__(errno.ECONNABORTED, "The client is gone")


class Wire:
    """One client's socket, TLS or not.

    Attributes:
        encrypted: Whether the client speaks TLS.
        lends: Whether the socket can be lent.
        closed: Set by `finish`, `reset` or a failed send; nothing passes any more.
        address: The client's address and port, None on a Unix socket.
        server: The address and port that the client reached, or the path of the Unix socket and None.
    """

    def __init__(
        self,
        stream: trio.SocketStream,
        tls: ssl.SSLContext | None = None,
        *,
        patience: float = 60.0,
        notsent_lowat: int = NOTSENT_LOWAT,
    ) -> None:
        """
        Args:
            patience: Seconds after which a client that takes nothing is to be given up; the kernel gets twice that.
            notsent_lowat: Bytes that the kernel takes beyond those that are under way to the client.
        """
        self._socket = stream.socket
        self._tls = None if tls is None else TlsStream(stream, tls, server_hostname=None)
        self.encrypted = tls is not None
        self.closed = False
        self._is_tcp = self._socket.family != socket.AF_UNIX
        # Bytes that a borrower sends are not counted here, and without TCP_INFO that count is the only sign of life.
        self.lends = self._is_tcp and not self.encrypted
        self._sending = trio.Lock()
        self._rest = b""  # of what was to be sent at once
        self._handed = 0
        self._acked = -1
        self._quiet_since: float | None = None
        self._undelivered = 0
        self._lent: trio.CancelScope | None = None
        self.address = _readable(self._socket.getpeername()) if self._is_tcp else None
        self.server = _readable(self._socket.getsockname())
        self._tune(round(patience * 2000), notsent_lowat)

    def _tune(self, user_timeout: int, notsent_lowat: int) -> None:
        if self._is_tcp:
            for option, value in (
                (socket.TCP_NODELAY, 1),
                (socket.TCP_NOTSENT_LOWAT, min(notsent_lowat, _MAX_INT)),
                (socket.TCP_USER_TIMEOUT, user_timeout),  # also bounds what the kernel still sends after our close
                (socket.TCP_KEEPIDLE, KEEPALIVE_IDLE),
                (socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL),
                (socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
            ):
                self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._socket.fileno()

    async def handshake(self) -> None:
        """Agree on TLS, if the wire is encrypted. The caller owns the deadline.

        Raises:
            ClientGone: The client is gone or does not speak TLS with us.
        """
        if self._tls is not None:
            try:
                await self._tls.do_handshake()
            except _Broken as exc:
                raise ClientGone from exc

    def is_client_certified(self) -> bool:
        """Whether the client has shown a certificate. After the handshake: one that is not accepted has failed it."""
        return self._tls is not None and self._tls.is_certified

    async def receive(self, size: int) -> bytes:
        """At most `size` bytes, b"" once the client has sent FIN. Cancellation loses nothing.

        Raises:
            ClientGone: The connection is broken or was cut meanwhile.
        """
        if self.closed:
            raise ClientGone
        try:
            return await (self._receive_plain(size) if self._tls is None else self._tls.receive_some(size))
        except _Broken as exc:
            raise ClientGone from exc

    async def _receive_plain(self, size: int) -> bytes:
        """Wait first: mostly there is nothing yet, and asking for it would cost a system call and an exception."""
        while True:
            await trio.lowlevel.wait_readable(self._socket.fileno())
            if self.closed:  # its number may be another's by now
                raise ClientGone
            with suppress(BlockingIOError):
                return os.read(self._socket.fileno(), size)

    async def send(self, pieces: Sequence[Block], *, last: bool = False) -> None:
        """Send all of `pieces`, in as few segments as possible. Senders wait for each other.

        Args:
            last: Somebody waits for the client next: what the kernel takes at once is sent without a checkpoint.

        Raises:
            ClientGone: The client took not all of it; the wire is reset. A cancelled send resets it as well.
        """
        try:
            self._sending.acquire_nowait()  # saves the checkpoint of `acquire`; sending has one
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            await self._send_or_reset(pieces, last)
        finally:
            self._sending.release()

    @property
    def sends_now(self) -> bool:
        """Whether `send_now` is to be had: without TLS, while nobody sends and nothing is left over."""
        return not (self.closed or self.encrypted or self._rest or self._sending.locked())

    def send_now(self, piece: bytes) -> bool:
        """Send without waiting: what the kernel does not take goes out before whatever `send` sends next. Only where
        `sends_now`.

        Returns:
            Whether the kernel took all. False as well where the client is gone; the wire is reset then.
        """
        try:
            self._rest = piece[self._send_now(piece) :]
        except OSError:
            self.reset()
            return False
        return not self._rest

    @asynccontextmanager
    async def lend(self) -> AsyncGenerator[int, None]:
        """A duplicate of the socket, for somebody else to send through; nothing else is sent meanwhile.

        A duplicate, so that no close elsewhere lets its number be reused under the borrower. A reset cancels the
        block; leaving the block by an exception resets the wire. Either way the duplicate is closed last, by which
        the RST goes out.

        Raises:
            ClientGone: The wire is closed, or was reset meanwhile.
        """
        async with self._sending:
            if self.closed:
                raise ClientGone
            duplicate = os.dup(self._socket.fileno())
            self._lent = trio.CancelScope()
            try:
                with self._lent:
                    yield duplicate
            except BaseException:
                self.reset()
                raise
            finally:
                self._lent = None
                if self.closed:
                    self._undelivered = _queued(duplicate)
                os.close(duplicate)
            if self.closed:
                raise ClientGone

    @asynccontextmanager
    async def lend_reading(self) -> AsyncGenerator[int, None]:
        """A duplicate of the socket, for somebody else to read from; nobody else reads meanwhile.

        A reset cancels the block, and goes out when the duplicate is closed at its end. Left by an exception the wire
        stays as it is: its borrower knows how far it has read.

        Raises:
            ClientGone: The wire is closed, or was reset meanwhile.
        """
        if self.closed:
            raise ClientGone
        duplicate = os.dup(self._socket.fileno())
        self._lent = trio.CancelScope()
        try:
            with self._lent:
                yield duplicate
        finally:
            self._lent = None
            os.close(duplicate)
        if self.closed:
            raise ClientGone

    async def _send_or_reset(self, pieces: Sequence[Block], last: bool) -> None:
        if self.closed:
            raise ClientGone
        try:
            await self._send_all(pieces, last)
        except _Broken as exc:
            self.reset()
            raise ClientGone from exc
        except BaseException:
            self.reset()
            raise

    async def _send_all(self, pieces: Sequence[Block], last: bool) -> None:
        if self._rest:
            pieces, self._rest = [self._rest, *pieces], b""
        if sum(map(len, pieces)) <= JOIN_BELOW:
            piece = b"".join(pieces)
            sent = self._send_now(piece) if last and not self.encrypted else 0
            if sent == len(piece):
                return
            pieces = [piece[sent:]]
        if self._tls is None:
            await self._send_gathered(pieces)
        else:
            for block in pieces:
                await self._tls.send_all(block)

    def _send_now(self, piece: bytes) -> int:
        """Send what the kernel takes of `piece` without waiting. Trio's socket would let others run in between."""
        try:
            sent = os.write(self._socket.fileno(), piece)
        except BlockingIOError:
            return 0
        self._handed += sent
        return sent

    async def _send_gathered(self, pieces: Sequence[Block]) -> None:
        views = [memoryview(piece) for piece in pieces if piece]
        while views:
            sent = await self._socket.sendmsg(views)
            self._handed += sent
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if views:
                views[0] = views[0][sent:]

    def unacknowledged(self) -> int:
        """Bytes handed to the kernel that the client's kernel has not acknowledged (SIOCOUTQ).

        Once the wire was reset: those that never were, so that what is counted as arrived did arrive.
        """
        return self._undelivered if self.closed else _queued(self._socket.fileno())

    def stalled(self, now: float) -> float:
        """For how many seconds the client has taken nothing of what waits for it; 0 while nothing waits.

        Called at regular times. The sign of life is growth of `tcpi_bytes_acked`: with TCP_NOTSENT_LOWAT a socket
        becomes writable only after a good part of it has drained, so writability tells nothing about slow clients.
        """
        waiting = self.unacknowledged()
        if waiting == 0:
            self._quiet_since = None
            return 0.0
        acked = self._acknowledged(waiting)
        if acked != self._acked or self._quiet_since is None:
            self._acked, self._quiet_since = acked, now
        return now - self._quiet_since

    def _acknowledged(self, waiting: int) -> int:
        """A number that changes when the client takes something."""
        with suppress(OSError):
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            if len(info) >= _BYTES_ACKED.size:
                return int(_BYTES_ACKED.unpack_from(info)[0])
        return self._handed - waiting  # a Unix socket has no TCP_INFO, and its peer no kernel of its own

    def reset(self) -> None:
        """Cut: SO_LINGER 0 and close, so a RST. Whatever is being sent or received fails with `ClientGone`. Does not
        block; a second call changes nothing."""
        if not self.closed:
            self._undelivered = self.unacknowledged()
            self.closed = True
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            self._socket.close()
            if self._lent is not None:
                self._lent.cancel(reason="the wire was reset")

    def close(self) -> None:
        """Close without waiting: for connections on which nothing is under way."""
        if not self.closed:
            self.closed = True
            self._socket.close()

    async def finish(self) -> None:
        """Half-close, discard what the client still sends, then close (RFC 9112, 9.6).

        Bounded: at most `LINGER_BYTES` are discarded and at most `LINGER_SECONDS` waited. More than that is left
        unread, which stops the client by its window while the answer can still be read. When cancelled the
        wire is closed at once. Never raises for what the client does.
        """
        try:
            with trio.move_on_after(LINGER_SECONDS), suppress(*_Broken):
                await self._send_end()
                await self._discard()
        finally:
            self.close()

    async def _send_end(self) -> None:
        if self._tls is not None:
            with suppress(*_Broken):
                await self._tls.send_end()
        self._socket.shutdown(socket.SHUT_WR)

    async def _discard(self) -> None:
        left = LINGER_BYTES
        while left > 0:
            data = await self._socket.recv(LINGER_BLOCK)
            if not data:
                return
            left -= len(data)
        await trio.sleep_forever()  # until LINGER_SECONDS are over, or the watcher sees the client hang up


def _queued(fd: int) -> int:
    try:
        answer = fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0")
    except OSError:
        return 0
    return int.from_bytes(answer, "little", signed=True)


def _readable(name: object) -> tuple[str, int | None]:
    """A socket name as ASGI shows it. IPv4 clients of a dual-stack listener get their IPv4 address."""
    if isinstance(name, tuple):
        return name[0].removeprefix("::ffff:") if "." in name[0] else name[0], name[1]
    return (name if isinstance(name, str) else ""), None
