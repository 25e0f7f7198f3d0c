"""TLS in large pieces, with clients and with other servers.

Trio's own stream hands out one record, 16 KiB at most, for each pass through its machinery, which costs several times
what decrypting it does, and what it takes to send was a fifth of a pull. This one takes a large piece from the socket
and decrypts all that is in it, and encrypts a large piece and writes it to the socket at once. OpenSSL writing to the
socket itself would save a copy, but it sends single records, which costs more (docs/performance.md). The end of the
connection is taken for that of the stream, as HTTPS does: the framing of a message tells its end.
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress
from typing import Final

import trio

PIECE: Final = 256 * 1024  # bytes taken from the socket, or encrypted, at once; larger ones are no faster


class TlsStream(trio.abc.Stream):
    """A TLS connection over `transport`, which it owns. One task may send while another receives.

    Args:
        server_hostname: The peer's name, which its certificate must be for; None where the peer is the client.

    Error handling: as Trio's streams. What is wrong with the peer's TLS is a `trio.BrokenResourceError` with the cause.
    """

    def __init__(self, transport: trio.abc.Stream, context: ssl.SSLContext, *, server_hostname: str | None) -> None:
        self.transport = transport
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_hostname is None, server_hostname=server_hostname
        )
        self._sending = trio.Lock()
        self._buffer = memoryview(b"")

    @property
    def pending(self) -> bool:
        """Whether bytes were received that nobody has asked for yet."""
        return bool(self._incoming.pending or self._tls.pending())

    @property
    def is_certified(self) -> bool:
        """Whether the peer has shown a certificate. After the handshake: one that is not accepted has failed it."""
        return self._tls.getpeercert(binary_form=True) is not None

    async def do_handshake(self) -> None:
        """Agree on TLS and verify the peer. To be called once, before anything is sent or received."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except (ssl.SSLError, ssl.CertificateError) as exc:
                raise trio.BrokenResourceError from exc
            else:
                return await self._flush()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What there is, up to `max_bytes`; b"" at the end. Cancellation loses nothing."""
        room = self._room(PIECE if max_bytes is None else min(max_bytes, PIECE))
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            count, is_over = self._decrypted(room)
            if self._outgoing.pending:
                await self._flush()  # an answer of the protocol's own, such as to a change of keys
            if count or is_over:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return bytes(room[:count])
            await self._fill()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send all of `data`. What a plain socket takes at once is sent without a checkpoint: what was
        encrypted is still in the processor's cache."""
        view = memoryview(data)
        await self._begin_to_send()
        try:
            for start in range(0, len(view), PIECE):
                try:
                    self._tls.write(view[start : start + PIECE])
                except ssl.SSLError as exc:
                    raise trio.BrokenResourceError from exc
                await self._send(self._outgoing.read())
        finally:
            self._sending.release()

    async def send_end(self) -> None:
        """Tell the peer that nothing follows (close_notify). Its own farewell is not waited for."""
        try:
            with suppress(ssl.SSLWantReadError):  # for that farewell
                self._tls.unwrap()
        except ssl.SSLError as exc:
            raise trio.BrokenResourceError from exc
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        async with self._sending:
            await self.transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the transport, without a farewell: of a message its framing tells whether it is whole."""
        await self.transport.aclose()

    def _room(self, size: int) -> memoryview:
        if len(self._buffer) < size:
            self._buffer = memoryview(bytearray(size))
        return self._buffer[:size]

    def _decrypted(self, room: memoryview) -> tuple[int, bool]:
        """Decrypt into `room` what was received. Returns how many bytes, and whether the peer has ended the stream."""
        count = 0
        try:
            while count < len(room):
                got = self._tls.read(len(room) - count, room[count:])
                if not got:
                    return count, True
                count += int(got)
        except ssl.SSLWantReadError:
            return count, False
        except ssl.SSLEOFError:
            return count, True
        except ssl.SSLError as exc:
            raise trio.BrokenResourceError from exc
        return count, False

    async def _fill(self) -> None:
        """Take a piece from the socket, or its end."""
        data = await self.transport.receive_some(PIECE)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        """Send what was encrypted. Whoever comes later finds it sent, in order."""
        await self._begin_to_send()
        try:
            if data := self._outgoing.read():
                await self._send(data)
        finally:
            self._sending.release()

    async def _begin_to_send(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._sending.acquire_nowait()  # saves the checkpoint of `acquire`
        except trio.WouldBlock:
            await self._sending.acquire()

    async def _send(self, data: bytes) -> None:
        if not isinstance(self.transport, trio.SocketStream):
            return await self.transport.send_all(data)
        view, sock = memoryview(data), self.transport.socket
        while view:
            try:
                view = view[os.write(sock.fileno(), view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)
            except OSError as exc:
                raise trio.BrokenResourceError from exc
        return None
