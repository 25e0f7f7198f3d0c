"""Small requests that prepare a measurement."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 1 << 20
_SECONDS = 120


class Refused(Exception):
    """A server did not do what a measurement needs."""


class Reply:
    """An answer that was a success."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def request(
    port: int,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | BinaryIO | None = None,
    certificate: Path | None = None,
) -> Reply:
    """One request over a connection of its own; with a certificate over TLS, which trusts that one alone.

    Raises:
        Refused: The status is none of success.
    """
    connection = _connection(port, certificate)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        reply = Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()
    if reply.status // 100 != 2:
        raise Refused(f"{method} {path}: {reply.status} {reply.body[:200].decode(errors='replace')}")
    return reply


def _connection(port: int, certificate: Path | None) -> http.client.HTTPConnection:
    if certificate is None:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS, blocksize=_BLOCK)
    context = ssl.create_default_context(cafile=certificate)
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=_SECONDS, blocksize=_BLOCK, context=context)


def send_file(
    port: int, method: str, path: str, file: Path, headers: Mapping[str, str], *, certificate: Path | None = None
) -> Reply:
    """One request whose body is a file."""
    length = {"Content-Length": str(file.stat().st_size), "Content-Type": "application/octet-stream"}
    with file.open("rb") as body:
        return request(port, method, path, headers={**length, **headers}, body=body, certificate=certificate)
