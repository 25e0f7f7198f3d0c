"""Connections of our own to a gateway, for what a pooled HTTP client can't do: talk in both directions at once."""

from __future__ import annotations

import os
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final
from urllib.parse import SplitResult, urlsplit

import httpcore2

from .errors import ConnectionBroken, Unreachable, VisorError

DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Origin:
    """Where a gateway is.

    Attributes:
        host: Name or address, without brackets.
        path: Prefix of every path, without a slash at its end.
        netloc: Value of the Host header.
    """

    def __init__(self, url: str) -> None:
        parts = _split(url)
        self.scheme = parts.scheme
        self.host = parts.hostname or ""
        self.port = parts.port or DEFAULT_PORTS[parts.scheme]
        self.path = parts.path.rstrip("/")
        name = f"[{self.host}]" if ":" in self.host else self.host
        self.netloc = name if self.port == DEFAULT_PORTS[self.scheme] else f"{name}:{self.port}"

    @property
    def url(self) -> str:
        """The URL in its normal form."""
        return f"{self.scheme}://{self.netloc}{self.path}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as exc:
        raise VisorError("The gateway's URL is not valid") from exc
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise VisorError("The gateway's URL must be of the form http://HOST:PORT or https://HOST:PORT")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise VisorError("The gateway's URL holds neither credentials nor a query")
    if not url.isascii():
        raise VisorError("The gateway's URL must be ASCII")
    return parts


async def dial(origin: Origin, tls: ssl.SSLContext, within: float) -> httpcore2.AsyncNetworkStream:
    """Connect, with TLS where the URL says https. The caller closes the stream.

    Args:
        within: Seconds for the connection and again for the handshake.

    Raises:
        Unreachable: No connection, or no handshake.
    """
    with translated(origin):
        stream = await httpcore2.AnyIOBackend().connect_tcp(origin.host, origin.port, timeout=within)
        if origin.scheme == "https":
            stream = await stream.start_tls(tls, server_hostname=origin.host, timeout=within)
        return stream


@contextmanager
def translated(origin: Origin) -> Generator[None, None, None]:
    """Errors of httpcore2's streams as ours."""
    try:
        yield
    except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as exc:
        raise Unreachable(unreachable(origin, exc)) from exc
    except (httpcore2.NetworkError, httpcore2.TimeoutException) as exc:
        raise ConnectionBroken(broken(exc)) from exc


def unreachable(origin: Origin, exc: BaseException) -> str:
    """The message for a connection that could not be made."""
    return f"Can't connect to {origin}: {_cause(exc)}"


def broken(exc: BaseException) -> str:
    """The message for a connection that ended early."""
    return f"The connection to the gateway broke: {_cause(exc)}"


def _cause(exc: BaseException) -> str:
    """The system's words for what happened, which stand deepest in the chain of causes."""
    words = ""
    current: BaseException | None = exc
    while current is not None:
        if isinstance(current, BaseExceptionGroup):
            current = current.exceptions[0]
        if isinstance(current, ssl.SSLError):
            return f"TLS: {getattr(current, 'verify_message', '') or current.reason or current}"
        if isinstance(current, OSError) and current.errno:
            words = os.strerror(current.errno) if current.errno > 0 else current.strerror or ""
        elif not words:
            words = str(current)
        current = current.__cause__ or current.__context__
    if "Timeout" in type(exc).__name__:
        return "it takes too long"
    return words or type(exc).__name__
