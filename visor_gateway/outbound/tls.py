"""TLS to other servers, in large pieces.

Trio's own stream hands out one record, 16 KiB at most, for each pass through its machinery, which costs several times
what decrypting it does. This one takes a large piece from the socket and decrypts all that is in it. It is a client's,
sends no farewell (a body's framing tells its end), and takes the end of the connection for that of the stream, as HTTPS
clients do.
"""

from __future__ import annotations

import ssl
from typing import Final

import trio

PIECE: Final = 256 * 1024  # bytes taken from the socket, or encrypted, at once; larger ones are no faster


class TlsStream(trio.abc.Stream):
    """A TLS connection over `transport`, which it owns. One task may send while another receives.

    Error handling: as Trio's streams. What is wrong with the peer's TLS is a `trio.BrokenResourceError` with the cause.
    """

    def __init__(self, transport: trio.abc.Stream, context: ssl.SSLContext, *, server_hostname: str) -> None:
        self.transport = transport
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._sending = trio.Lock()
        self._buffer = memoryview(bytearray(PIECE))

    @property
    def pending(self) -> bool:
        """Whether bytes were received that nobody has asked for yet."""
        return bool(self._incoming.pending or self._tls.pending())

    async def do_handshake(self) -> None:
        """Agree on TLS and verify the peer's name. To be called once, before anything is sent or received."""
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
        """What there is, up to `max_bytes`; b"" at the end."""
        room = self._buffer if max_bytes is None else self._buffer[:max_bytes]
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
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            try:
                self._tls.write(view[start : start + PIECE])
            except ssl.SSLError as exc:
                raise trio.BrokenResourceError from exc
            await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        async with self._sending:
            await self.transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.transport.aclose()

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
        async with self._sending:
            if data := self._outgoing.read():
                await self.transport.send_all(data)
