"""Requests to one gateway: built, signed, sent, and their failures told in our terms."""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote, urlencode

import anyio
import h11
import httpx2
import msgspec

from .. import __version__
from .body import Body
from .credentials import SAFE, Credentials, Header, Signer
from .errors import ConnectionBroken, ProtocolViolation, Unreachable, VisorError, refusal
from .exchange import Exchange
from .network import Origin, broken, dial, translated, unreachable

ERROR_LIMIT: Final = 65536  # bytes of an error's body that are read


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait, in seconds, and how often to try again.

    Attributes:
        connect: For a connection, and again for a TLS handshake.
        answer: For the answer to a request without an image's bytes.
        stall: While an image's bytes move, for the next of them.
        commit: From the last byte of an upload to the answer: the gateway makes the bytes durable meanwhile.
        retries: Tries of a download in a row that may bring nothing new.
        pause: Before the first of them; doubled each time, up to `longest_pause`.
    """

    connect: float = 10.0
    answer: float = 60.0
    stall: float = 120.0
    commit: float = 900.0
    retries: int = 8
    pause: float = 0.5
    longest_pause: float = 10.0


class Session:
    """A pool of connections to one gateway, and what every request carries. End it with `aclose`.

    Redirects are never followed, and proxies from the environment are not used: signatures and tokens are for the
    gateway alone.
    """

    def __init__(
        self, url: str, credentials: Credentials | None = None, *, tls: ssl.SSLContext | None = None, timing: Timing
    ) -> None:
        self.origin = Origin(url)
        self.timing = timing
        self.tls = tls or default_tls(self.origin)
        self._signer = Signer(credentials)
        self._http = httpx2.AsyncClient(verify=self.tls, trust_env=False, follow_redirects=False)

    async def aclose(self) -> None:
        """Close every pooled connection."""
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        json: object = None,
        headers: Iterable[Header] = (),
    ) -> Reply:
        """Send a request without an image's bytes. A GET or HEAD whose connection breaks is sent once more.

        Args:
            path: Already quoted; see `segment`.
            json: Becomes the body, unless None.

        Raises:
            VisorError: As its classes say.
        """
        content = b"" if json is None else msgspec.json.encode(json)
        sent = [*headers, *_json_headers(content)]
        target = self.target(path, query)
        try:
            return await self._once(method, target, sent, content)
        except ConnectionBroken:
            if method not in SAFE:
                raise
            return await self._once(method, target, sent, content)

    async def _once(self, method: str, target: bytes, headers: list[Header], content: bytes) -> Reply:
        timeout = httpx2.Timeout(self.timing.answer, connect=self.timing.connect, pool=None)
        request = httpx2.Request(
            method,
            str(self.origin),
            headers=self.headers(method, target, headers),
            content=content or None,
            extensions={"target": target, "timeout": timeout.as_dict()},
        )
        with self._translated():
            response = await self._http.send(request, stream=True, auth=None, follow_redirects=False)
            try:
                if not response.is_success:
                    raise await _refusal(response)
                return Reply(response.status_code, response.headers.raw, await response.aread())
            finally:
                with anyio.move_on_after(1, shield=True):
                    await response.aclose()

    async def upload(
        self, method: str, path: str, headers: Iterable[Header], body: Body, on_sent: Callable[[int], None]
    ) -> Reply:
        """Send a request with an image's bytes. The caller closes `body`.

        Raises:
            VisorError: As its classes say. An early refusal is told as such, not as a broken connection.
            Exception: Whatever `body` raises.
        """
        target = self.target(path)
        framing: Header = (
            (b"transfer-encoding", b"chunked") if body.size is None else (b"content-length", b"%d" % body.size)
        )
        fields: list[Header] = [
            (b"content-type", b"application/octet-stream"),
            framing,
            (b"expect", b"100-continue"),
            (b"connection", b"close"),
            *headers,
        ]
        head = h11.Request(method=method, target=target, headers=self.headers(method, target, fields))
        stream = await dial(self.origin, self.tls, self.timing.connect)
        try:
            exchange = Exchange(stream, stall=self.timing.stall, answer_within=self.timing.commit, on_sent=on_sent)
            with translated(self.origin):
                answer = await exchange.run(head, body)
        finally:
            await stream.aclose()
        reply = Reply(*answer)
        if not 200 <= reply.status < 300:
            raise refusal(reply.status, reply.named, reply.content)
        return reply

    def target(self, path: str, query: Sequence[tuple[str, str]] = ()) -> bytes:
        """The request target for a quoted path."""
        text = f"{self.origin.path}{path}"
        return (f"{text}?{urlencode(query, quote_via=quote)}" if query else text).encode("ascii")

    def headers(self, method: str, target: bytes, headers: Iterable[Header]) -> list[Header]:
        """`headers` with those that every request carries, and the signature over them."""
        fields: list[Header] = [
            (b"host", self.origin.netloc.encode("ascii")),
            (b"user-agent", f"visor/{__version__}".encode()),
            (b"accept", b"application/json"),
            (b"accept-encoding", b"identity"),
            *headers,
        ]
        return fields + self._signer.headers(method, target, fields)

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as exc:
            raise Unreachable(unreachable(self.origin, exc)) from exc
        except (httpx2.LocalProtocolError, httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.DecodingError) as exc:
            raise ProtocolViolation(str(exc)) from exc
        except httpx2.TransportError as exc:
            raise ConnectionBroken(broken(exc)) from exc


class Reply:
    """A whole successful answer.

    Attributes:
        headers: As received.
        content: The body.
    """

    def __init__(self, status: int, headers: Sequence[Header], content: bytes) -> None:
        self.status = status
        self.headers = headers
        self.content = content

    @property
    def named(self) -> dict[str, str]:
        """Headers as text by lower-case name."""
        return {
            name.decode("ascii", "replace").lower(): value.decode("utf-8", "replace") for name, value in self.headers
        }

    def json(self, *keys: str) -> Any:
        """The decoded body, or what `keys` lead to in it.

        Raises:
            ProtocolViolation: It is no JSON of that form.
        """
        try:
            value = msgspec.json.decode(self.content)
            for key in keys:
                value = value[key]
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as exc:
            raise ProtocolViolation("The gateway's answer does not have the form that was expected") from exc
        return value


def segment(name: str) -> str:
    """`name` as one segment of a path."""
    return quote(name, safe="") if name not in {".", ".."} else name.replace(".", "%2E")


def default_tls(origin: Origin) -> ssl.SSLContext:
    """What the system trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` count). Loading that takes time: only for https."""
    return ssl.create_default_context() if origin.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _json_headers(content: bytes) -> list[Header]:
    if not content:
        return []
    digest = base64.b64encode(hashlib.sha256(content).digest())
    return [(b"content-type", b"application/json"), (b"content-digest", b"sha-256=:%s:" % digest)]


async def _refusal(response: httpx2.Response) -> VisorError:
    content = bytearray()
    async for block in response.aiter_raw():
        content += block
        if len(content) > ERROR_LIMIT:
            break
    return refusal(response.status_code, dict(response.headers.items()), bytes(content))
