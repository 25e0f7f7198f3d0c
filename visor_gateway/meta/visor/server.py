"""A VISOR server asked over HTTP: one bounded exchange at a time, on a connection of its own, as VISOR's clients do."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote, urlencode

import trio

from ...errors import ConfigError, MetadataUnavailable
from ...outbound import CONFIGURED, BytesBody, Outbound, OutboundError
from ...visor_documents import read_error

EXPECTED: Final = "expected visor+http://HOST[:PORT] or visor+https://[:KEY@]HOST[:PORT]"
DOCUMENT_BYTES: Final = 64 << 10
LIST_BYTES: Final = 64 << 20
#: For a whole exchange, so that an answer that drips ends too.
DOCUMENT_SECONDS: Final = 10.0
LIST_SECONDS: Final = 60.0
#: The link to the next page, of which the query alone is taken: VISOR's own server has no pages.
_NEXT: Final = re.compile(r"<[^>?\s]*\?([A-Za-z0-9_.~%&=+-]{1,4096})>; rel=\"next\"\Z")
_PORTS: Final = {"Meta": 4567, "Auth": 4566}
_URL: Final = re.compile(r"visor\+(https?)://(?::([^@/\s]+)@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?/?\Z")


def way_to(url: str) -> Outbound:
    """The way to a server, which the caller closes."""
    # Over plain HTTP nothing is verified, so the authorities, which take long to load, are left alone.
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if url.startswith("visor+http:") else None
    return Outbound(CONFIGURED, ssl_context=plain)


class Answer(NamedTuple):
    """A status, the body of that answer, and the query of the list's next page, if it has one."""

    status: int
    body: bytes
    following: str | None = None

    @property
    def message(self) -> str:
        """What the server says went wrong: for logs."""
        return read_error(self.body)


class VisorServer:
    """A Meta or Auth server. Its opener closes `outbound`."""

    def __init__(self, url: str, outbound: Outbound, *, kind: str = "Meta") -> None:
        """Raises `ConfigError` where the URL is of another form; it is not shown, as a key may be in it."""
        found = _URL.match(url)
        if found is None:
            raise ConfigError(f"[{'metadata' if kind == 'Meta' else 'accounts'}] url: {EXPECTED}")
        scheme, key, host, port = found.groups()
        self.kind = kind
        self.name = f"{host}:{port or _PORTS[kind]}"
        self._base = f"{scheme}://{self.name}"
        self._headers = {"Accept": "application/json", "Content-Type": "application/json", "Connection": "close"}
        if key:
            self._headers["Authorization"] = f"Bearer {unquote(key)}"
        self._outbound = outbound
        self.document_seconds = DOCUMENT_SECONDS
        self.list_seconds = LIST_SECONDS
        self.list_bytes = LIST_BYTES

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """One exchange about one document.

        Raises:
            MetadataUnavailable: There was no answer, or none of the server's kind. What was asked may have been done.
        """
        return await self._exchange(method, path, body, DOCUMENT_BYTES, self.document_seconds)

    async def list(self, path: str, query: Mapping[str, str] | None = None) -> Answer:
        """A list. Raises as `ask`."""
        return await self.page(f"{path}?{urlencode(query)}" if query else path)

    async def page(self, asked: str) -> Answer:
        """A page of a list: path and query. Raises as `ask`."""
        return await self._exchange("GET", asked, None, self.list_bytes, self.list_seconds)

    async def _exchange(self, method: str, path: str, body: bytes | None, limit: int, seconds: float) -> Answer:
        try:
            with trio.fail_after(seconds):
                async with self._outbound.request(
                    method,
                    self._base + path,
                    self._headers,
                    body=None if body is None else BytesBody(body),
                    follow=False,
                    head_seconds=seconds,
                ) as response:
                    received = bytearray()
                    while data := await response.stream.receive_some():
                        received += data
                        if len(received) > limit:
                            raise MetadataUnavailable(f"The {self.kind} server sends too much")
                    if not response.stream.framed:
                        raise MetadataUnavailable(f"The {self.kind} server's answer has no length")
                    status, link = response.status, response.header("link")
        except trio.TooSlowError as exc:
            raise MetadataUnavailable(f"The {self.kind} server is too slow") from exc
        except OutboundError as exc:
            raise MetadataUnavailable(f"The {self.kind} server can't be reached now") from exc
        if status not in {200, 400, 404, 409}:
            raise MetadataUnavailable(f"The {self.kind} server failed: status {status}")
        found = None if link is None else _NEXT.match(link)
        return Answer(status, bytes(received), None if found is None else found.group(1))
