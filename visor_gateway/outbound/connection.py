"""One HTTP/1.1 connection in httpcore2's pool.

The pool is httpcore2's; the connection is ours, because httpcore2's own reads heads of up to 100 KiB, reads bodies
in 64 KiB pieces through nested async generators, and dials by name. It moves through four states::

    NEW -> ACTIVE -> IDLE -> ACTIVE ...          any of them -> CLOSED

Rules: `ACTIVE` is entered before the first await, so two requests can't share a connection; a connection becomes
`IDLE` only when request and answer are whole and nothing is left over; every failure closes it. Each exchange has a
parser of its own, since a body may be read past the parser.
"""

from __future__ import annotations

import enum
import ssl
from typing import Final

import h11
import httpcore2
import trio

from ..tls import TlsStream
from .body import Body
from .dialer import CONNECT_SECONDS, Dialer
from .errors import BadResponse, StaleConnection, Unreachable, Untrusted
from .sending import RequestBody, send_body

HEAD_LIMIT: Final = 32 * 1024  # bytes of an answer's head, interim answers included; proxies in use send up to 16 KiB
HEAD_SECONDS: Final = 30.0  # from the request to the end of the answer's head
CUT_SECONDS: Final = 5.0  # for the answer of a peer that took less than the request
IDLE_SECONDS: Final = 15.0  # below the keep-alive of common servers, so that they seldom close first
_HEAD_PIECE: Final = 4096

_BODILESS: Final = frozenset({204, 304})


class State(enum.Enum):
    NEW = "new"
    ACTIVE = "active"
    IDLE = "idle"
    CLOSED = "closed"


class Connection(httpcore2.AsyncConnectionInterface):
    """A connection to one origin, which the pool drives.

    Resource handling: the pool closes it, or the end of an exchange that leaves it unusable. A cancelled exchange
    closes it.
    """

    def __init__(
        self, origin: httpcore2.Origin, *, dialer: Dialer, ssl_context: ssl.SSLContext, stall_timeout: float
    ) -> None:
        self._origin = origin
        self._dialer = dialer
        self._ssl_context = ssl_context
        self._stall_timeout = stall_timeout
        self._state = State.NEW
        self._stream: trio.abc.Stream | None = None
        self._idle_since = 0.0
        self._keep_alive = False

    async def handle_async_request(self, request: httpcore2.Request) -> httpcore2.Response:
        """Send a request and receive the head of its answer; the answer's `stream` is a `Body`.

        The request's extensions may hold `body`, a `RequestBody`, and `head_seconds`.

        Raises:
            OutboundError: AddressDenied, Unreachable, StaleConnection or BadResponse; the connection is closed.
        """
        if self._state not in {State.NEW, State.IDLE}:
            raise httpcore2.ConnectionNotAvailable
        reused = self._state is State.IDLE
        self._state = State.ACTIVE
        try:
            if self._stream is None:
                self._stream = await self.connect()
            return await self._exchange(request, self._stream, reused=reused)
        except BaseException:
            await self.aclose()
            raise

    async def connect(self) -> trio.abc.Stream:
        """A new stream to the origin, which the caller closes.

        Raises:
            OutboundError: AddressDenied or Unreachable.
        """
        host, port = self._origin.host.decode("ascii"), self._origin.port
        try:
            with trio.fail_after(CONNECT_SECONDS):
                stream = await self._dialer.dial(host, port)
                return await self._encrypted(stream, host) if self._origin.scheme == b"https" else stream
        except trio.TooSlowError as exc:
            raise Unreachable(f"{host} was not connected within {CONNECT_SECONDS:g} s") from exc

    async def _encrypted(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        # A name is written without the dot of the root in certificates.
        encrypted = TlsStream(stream, self._ssl_context, server_hostname=host.removesuffix("."))
        try:
            await encrypted.do_handshake()
        except trio.BrokenResourceError as exc:
            await trio.aclose_forcefully(stream)
            if isinstance(exc.__cause__, ssl.SSLCertVerificationError):
                # What follows the comma names the host.
                raise Untrusted(host, exc.__cause__.verify_message.partition(",")[0]) from exc
            raise Unreachable(f"no TLS with {host}: {exc.__cause__}") from exc
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return encrypted

    async def _exchange(
        self, request: httpcore2.Request, stream: trio.abc.Stream, *, reused: bool
    ) -> httpcore2.Response:
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        seconds: float = request.extensions.get("head_seconds", HEAD_SECONDS)
        head = parser.send(h11.Request(method=request.method, target=request.url.target, headers=request.headers))
        sent = True
        try:
            # Taken out of the request, which the answer refers to, in a circle: what was sent must not wait for the
            # collector of such garbage.
            sent = await self._send(stream, parser, head or b"", request.extensions.pop("body", None))
            with trio.fail_after(seconds if sent else CUT_SECONDS):
                answer = await receive_head(stream, parser)
        except trio.TooSlowError as exc:
            if not sent:
                raise Unreachable("the peer takes no more of the request, and gives no answer") from exc
            raise BadResponse(f"no head within {seconds:g} s") from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError) as exc:
            if reused:  # closed while it idled, or it holds the rest of an earlier answer, such as a body sent to HEAD
                raise StaleConnection("a connection of the pool gives no answer") from exc
            if isinstance(exc, h11.RemoteProtocolError):
                raise BadResponse(f"not HTTP/1.1: {exc}") from exc
            raise Unreachable("the peer closed the connection without an answer") from exc
        length, framed = framing_of(request.method, answer)
        self._keep_alive = sent and framed and _persistent(answer)
        body = Body(stream, parser, length=length, framed=framed, stall_timeout=self._stall_timeout)
        return httpcore2.Response(
            answer.status_code,
            headers=list(answer.headers),
            content=_Exchange(self, body, parser),
            extensions={"body": body},
        )

    async def _send(
        self, stream: trio.abc.Stream, parser: h11.Connection, head: bytes, body: RequestBody | None
    ) -> bool:
        """Send head and body. False where the peer took less than the body: it may have refused it before its end."""
        with trio.fail_after(HEAD_SECONDS):
            await stream.send_all(head)
        if body is None:
            parser.send(h11.EndOfMessage())
            return True
        try:
            await send_body(stream, parser, body, stall_timeout=self._stall_timeout)
        except trio.BrokenResourceError:
            return False
        return True

    async def release(self, *, whole: bool) -> None:
        """End an exchange; `whole` if nothing of it is left on the connection."""
        if self._state is not State.ACTIVE:
            return
        if whole and self._keep_alive:
            self._state = State.IDLE
            self._idle_since = trio.current_time()
        else:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the socket, without a TLS farewell. Safe at any time and twice."""
        self._state = State.CLOSED
        stream, self._stream = self._stream, None
        if stream is not None:
            await trio.aclose_forcefully(stream)

    def can_handle_request(self, origin: httpcore2.Origin) -> bool:
        return origin == self._origin

    def is_connected(self) -> bool:
        """Whether there is a socket. The pool forgets a connection that has none and that no request waits for."""
        return self._stream is not None

    def is_available(self) -> bool:
        return self._state is State.IDLE

    def is_idle(self) -> bool:
        return self._state is State.IDLE

    def is_closed(self) -> bool:
        return self._state is State.CLOSED

    def has_expired(self) -> bool:
        """Whether it idles for too long, or the peer closed it or sent something nobody asked for."""
        if self._state is not State.IDLE:
            return False
        return trio.current_time() - self._idle_since > IDLE_SECONDS or self._readable()

    def _readable(self) -> bool:
        stream = self._stream
        if isinstance(stream, TlsStream):
            if stream.pending:
                return True
            stream = stream.transport
        return isinstance(stream, trio.SocketStream) and stream.socket.is_readable()

    def info(self) -> str:
        return f"{self._origin}, {self._state.value}"


class _Exchange:
    """What the pool closes when an answer is over. It could be iterated, but bodies are read as `Body`."""

    def __init__(self, connection: Connection, body: Body, parser: h11.Connection) -> None:
        self._connection = connection
        self._body = body
        self._parser = parser

    def __aiter__(self) -> Body:
        return self._body

    async def aclose(self) -> None:
        await self._connection.release(whole=self._body.complete and not self._parser.trailing_data[0])


async def receive_head(stream: trio.abc.ReceiveStream, parser: h11.Connection) -> h11.Response:
    """The head of the final answer; interim ones (1xx) are passed over and count towards the limit.

    Raises:
        BadResponse: The head is too large.
        h11.RemoteProtocolError: It is none.
        trio.BrokenResourceError: The peer closed or cut the connection.
    """
    received = 0
    while not isinstance(event := parser.next_event(), h11.Response):
        if event is h11.NEED_DATA:
            data = await stream.receive_some(_HEAD_PIECE)
            if not data:
                raise trio.BrokenResourceError
            received += len(data)
            if received > HEAD_LIMIT:
                raise BadResponse(f"the head has more than {HEAD_LIMIT} bytes")
            parser.receive_data(bytes(data))
    return event


def framing_of(method: bytes, head: h11.Response) -> tuple[int | None, bool]:
    """Length of the body, if it is known, and whether its end is marked (RFC 9112, 6.3).

    Raises:
        BadResponse: `Transfer-Encoding` together with `Content-Length`: two servers read such an answer differently.
    """
    if method == b"HEAD" or head.status_code in _BODILESS:
        return 0, True
    names = {name: value for name, value in head.headers if name in {b"content-length", b"transfer-encoding"}}
    if len(names) > 1:
        raise BadResponse("Content-Length and Transfer-Encoding together")
    if b"content-length" in names:
        return int(names[b"content-length"]), True
    return None, b"transfer-encoding" in names


def _persistent(head: h11.Response) -> bool:
    options = [value.lower() for name, value in head.headers if name == b"connection"]
    return head.http_version == b"1.1" and not any(b"close" in value for value in options)
