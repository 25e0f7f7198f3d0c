"""Answers that the connection gives itself, because no application can: to a malformed, late or surplus request."""

from __future__ import annotations

import functools
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import msgspec

REASONS: Final = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}


class Refusal(Exception):
    """A request that is answered by the connection, which is closed afterwards.

    Attributes:
        status: Status of the answer.
        message: One sentence for the client.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


def http_date() -> str:
    """The value of `Date` now."""
    return _date_of(int(time.time()))


def date_header() -> bytes:
    """The header line `Date` with its end."""
    return _date_header_of(int(time.time()))


@functools.lru_cache(maxsize=1)
def _date_header_of(second: int) -> bytes:
    return f"date: {_date_of(second)}\r\n".encode("ascii")


@functools.lru_cache(maxsize=1)
def _date_of(second: int) -> str:
    return formatdate(second, usegmt=True)


def encode(refusal: Refusal, *, head_only: bool = False) -> bytes:
    """The whole answer as it goes out. `head_only`: it answers HEAD, so the error travels in headers."""
    body = msgspec.json.encode({"code": refusal.status, "message": refusal.message})
    fields = [
        ("Date", http_date()),
        ("Content-Type", "application/json; charset=utf-8"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Connection", "close"),
        *refusal.headers,
    ]
    if head_only:
        fields += [("x-error-code", str(refusal.status)), ("x-error-message", refusal.message)]
        body = b""
    else:
        fields.append(("Content-Length", str(len(body))))
    lines = [b"HTTP/1.1 %d %s" % (refusal.status, REASONS.get(refusal.status, b""))]
    lines += [f"{name}: {value}".encode("latin-1") for name, value in fields]
    return b"\r\n".join([*lines, b"", body])
