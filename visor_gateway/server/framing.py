"""How an answer is framed: its head as bytes, and a body of known length, in chunks, or up to the connection's end.

Sans-IO (RFC 9112, 6 and 7). Requests are h11's: parsing what strangers send is hard. What we send ourselves only has to
be counted, and h11 took a third of a small request for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from .refusal import REASONS, date_header

SWITCHING_PROTOCOLS: Final = 101
_INFORMATIONAL: Final = range(100, 200)
_WITHOUT_BODY: Final = frozenset({204, 304})
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_VALUE: Final = re.compile(rb"[\x00\n\r\x0b\x0c]")  # what ends a line, or is taken for its end
_CLOSE: Final = b"connection: close\r\n"
_CHUNKED: Final = b"transfer-encoding: chunked\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"

#: Headers that are asked for once they were framed. All of them would be 2 KiB for each pull, for as long as it lasts.
KEPT: Final = (b"content-type", b"x-transfer-id")
KNOWN: Final = 256  # names that are remembered
well_formed: Final[set[bytes]] = set()  # names that were found so: most answers have the same

Headers = Sequence[tuple[bytes, bytes]]
Piece = bytes | bytearray | memoryview


class IllegalAnswer(ValueError):
    """The application broke the rules of HTTP, or did not keep what its head had announced."""


class Framing:
    """The framing of one answer. Every method returns what is to be sent, or raises `IllegalAnswer`.

    Attributes:
        begun: Whether there is a head.
        ended: Whether all of it was framed.
        persistent: Whether another answer may follow it on the connection.
        named: Those of `KEPT` that the application has sent, by lower-case name.
    """

    def __init__(self, *, method: str, version: str, persistent: bool) -> None:
        """Of the request: its method, its version, and whether the client keeps the connection."""
        self._headless = method == "HEAD"
        self._version = version
        self.persistent = persistent
        self.begun = False
        self.ended = False
        self.named: dict[bytes, bytes] = {}
        self._bodiless = False
        self._left: int | None = None  # bytes of a body of known length; None while it is in chunks or ends with FIN
        self._chunked = False

    def begin(self, status: int, headers: Headers, *, last: bool) -> bytes:
        """The head. `last`: no other answer follows."""
        if self.begun:
            raise IllegalAnswer("An answer has one head")
        named = {name.lower(): value for name, value in headers}
        if (not named.keys() <= well_formed and not all(map(_is_well_formed, named))) or _NOT_IN_VALUE.search(
            b"".join([value for _, value in headers])
        ):
            raise IllegalAnswer("A header of the answer is malformed")
        if b"transfer-encoding" in named or (len(named) < len(headers) and _is_twice(headers, b"content-length")):
            raise IllegalAnswer("The application says the length of the body once, or leaves its framing to the server")
        extra = self._frame(status, named.get(b"content-length"))
        if status != SWITCHING_PROTOCOLS:
            if b"date" not in named:
                extra += date_header()
            self.persistent = self.persistent and not last and not _says_close(named.get(b"connection"))
            if not self.persistent:
                extra += _CLOSE
        self.begun = True
        self.named = {name: named[name] for name in KEPT if name in named}
        fields = b"".join([b"%b: %b\r\n" % header for header in headers])
        return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (status, REASONS.get(status, b""), fields, extra)

    def _frame(self, status: int, length: bytes | None) -> bytes:
        """Choose the framing. Returns the header line for it, where the application gave none."""
        if length is not None:
            if not length.isdigit():
                raise IllegalAnswer("Content-Length must be a number")
            self._left = int(length)
        if self._headless or status in _WITHOUT_BODY or status in _INFORMATIONAL:
            self._bodiless, self._left = True, 0
        elif length is None and self._version == "1.1":
            self._chunked = True
            return _CHUNKED
        elif length is None:
            self.persistent = False
        return b""

    def body(self, data: Piece) -> list[Piece]:
        """A piece of the body; of an answer that can't have one nothing is sent."""
        if not self.begun or self.ended:
            raise IllegalAnswer("The body of an answer comes after its head and before its end")
        if self._bodiless or not data:
            return []
        if self._chunked:
            return [b"%x\r\n" % len(data), data, b"\r\n"]
        self._count(len(data))
        return [data]

    def pass_by(self, length: int) -> None:
        """Account for so many bytes of the body that others send."""
        if self._chunked or not self.begun or self.ended:
            raise IllegalAnswer("Only a body of known length can be sent by others")
        self._count(length)

    def _count(self, length: int) -> None:
        if self._left is not None:
            if length > self._left:
                raise IllegalAnswer("The body is longer than its Content-Length")
            self._left -= length

    def end(self) -> list[Piece]:
        """The end of the answer."""
        if not self.begun or self.ended:
            raise IllegalAnswer("An answer has one end, after its head")
        if self._left:
            raise IllegalAnswer("The body is shorter than its Content-Length")
        self.ended = True
        return [_LAST_CHUNK] if self._chunked else []


def _is_well_formed(name: bytes) -> bool:
    if _NAME.fullmatch(name) is None:
        return False
    if len(well_formed) < KNOWN:
        well_formed.add(name)
    return True


def _is_twice(headers: Headers, name: bytes) -> bool:
    return sum(key.lower() == name for key, _ in headers) > 1


def _says_close(connection: bytes | None) -> bool:
    return connection is not None and b"close" in connection.lower()
