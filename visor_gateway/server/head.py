"""The head of a request: cut out of the stream, parsed by h11, and held to what h11 and Hypercorn let pass.

Sans-IO. Everything here either returns a value or raises `Refusal`; what it returns can't make Hypercorn's streams
raise. The rules are those of RFC 9112 where a server may choose between strict and lenient: strict, because every
leniency is a difference that request smuggling lives on.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from typing import Final, NamedTuple

import h11

from .refusal import Refusal

MAX_HEAD: Final = 16 * 1024  # bytes of request line and headers together, blank line included
REMEMBERED: Final = 256  # heads
MAX_REMEMBERED: Final = 1024  # bytes of one

_HEAD_END: Final = re.compile(rb"\n\r?\n")
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_OBS_FOLD: Final = re.compile(rb"\n[ \t]")
# Looked for in the raw head: h11 folds equal lengths ("5, 5", or the header twice) into one.
_LENGTHS: Final = re.compile(rb"\ncontent-length:([^\r\n]*)", re.IGNORECASE)
_NOT_SIMPLE: Final = re.compile(rb"\n(?:content-length|transfer-encoding|upgrade|expect)[ \t]*:", re.IGNORECASE)
_ABSOLUTE: Final = re.compile(rb"(?i:https?)://([^/?#]*)(.*)", re.DOTALL)
_HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
_SPACE: Final = 0x20
_WEBSOCKET_FIELDS: Final = frozenset({b"connection", b"upgrade"})
_WEBSOCKET_KEY_BYTES: Final = 16  # RFC 6455, 4.1

Headers = list[tuple[bytes, bytes]]


class RequestHead(NamedTuple):
    """One request head that passed every check.

    Attributes:
        method: As sent.
        target: In origin form; visible ASCII that begins with `/` and holds no `#`.
        version: "1.0" or "1.1".
        headers: Names in lower case, values as received without outer blanks.
        length: Length of the body in bytes, None for a chunked one.
        websocket: Whether it is a valid WebSocket handshake.
        persistent: Whether the client keeps the connection for another request (RFC 9112, 9.3).
    """

    method: str
    target: bytes
    version: str
    headers: Headers
    length: int | None
    websocket: bool
    persistent: bool


def cut_head(buffer: bytearray) -> bytes | None:
    """Take one request head off the front of `buffer`; None while its end has not arrived.

    Empty lines before the request line are dropped (RFC 9112, 2.2).

    Raises:
        Refusal: 431 if `MAX_HEAD` bytes hold no end, however they were split; 400 for what can't become a request.
    """
    while buffer.startswith((b"\r\n", b"\n")):
        del buffer[: buffer.index(b"\n") + 1]
    if buffer and buffer[0] <= _SPACE and buffer != b"\r":
        raise Refusal(400, "This is no HTTP request")  # a TLS handshake, for one, has no blank line to wait for
    end = _HEAD_END.search(buffer, 0, MAX_HEAD)
    if end is None:
        if len(buffer) >= MAX_HEAD:
            raise Refusal(431, f"The request head is longer than {MAX_HEAD} bytes")
        return None
    head = bytes(buffer[: end.end()])
    del buffer[: end.end()]
    return head


def parse_simple(head: bytes) -> RequestHead | None:
    """What `parse_head` makes of a whole head, if it is short and announces neither body nor upgrade; else None.

    Many clients send the same few bytes again and again, so the last of these heads are remembered with what they mean.

    Raises:
        Refusal: With the status that the fault deserves.
    """
    if len(head) > MAX_REMEMBERED or not head.startswith((b"GET ", b"HEAD ")) or _NOT_SIMPLE.search(head):
        return None
    found = _remembered(head)
    return found if found.length == 0 and not found.websocket else None


@functools.lru_cache(maxsize=REMEMBERED)
def _remembered(head: bytes) -> RequestHead:
    return parse_head(h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD), head)


def parse_head(protocol: h11.Connection, head: bytes) -> RequestHead:
    """Feed one whole head to `protocol`, which must be new, and check what it makes of it.

    Raises:
        Refusal: With the status that the fault deserves.
    """
    _check_lines(head)
    protocol.receive_data(head)
    try:
        request = protocol.next_event()
    except h11.RemoteProtocolError as exc:
        raise Refusal(exc.error_status_hint, "The request head is malformed") from exc
    if not isinstance(request, h11.Request):
        raise Refusal(400, "The request head is malformed")
    return _checked(request)


def _checked(request: h11.Request) -> RequestHead:
    headers = [(bytes(name), bytes(value)) for name, value in request.headers]
    version = _version(request.http_version)
    length = _framing(headers, version)
    _check_expect(headers)
    host, target = _origin_form(bytes(request.target))
    if host is not None:
        # RFC 9112, 3.2.2: the authority of an absolute target takes the place of Host.
        headers = [(name, host if name == b"host" else value) for name, value in headers]
    if not all(_HOST.fullmatch(value) for value in _values(headers, b"host")):
        raise Refusal(400, "The Host header is malformed")
    if request.method == b"CONNECT":
        raise Refusal(501, "CONNECT is not supported")
    websocket = request.method == b"GET" and version == "1.1" and b"websocket" in _tokens(headers, b"upgrade")
    if websocket:
        _check_handshake(headers, has_body=length != 0)
    persistent = version == "1.1" and b"close" not in _tokens(headers, b"connection")
    return RequestHead(request.method.decode("ascii"), target, version, headers, length, websocket, persistent)


def _check_lines(head: bytes) -> None:
    if b"\x00" in head:
        raise Refusal(400, "The request head contains a NUL byte")
    if _OBS_FOLD.search(head):
        raise Refusal(400, "Folded header lines are not accepted")
    if _BARE_LF.search(head) or head.count(b"\r") != head.count(b"\n"):
        raise Refusal(400, "Lines of the request head must end with CR LF")
    lengths = _LENGTHS.findall(head)
    if len(lengths) > 1 or not all(value.strip(b" \t").isdigit() for value in lengths):
        raise Refusal(400, "Content-Length must be sent once and be a number")


def _version(version: bytes) -> str:
    if version not in {b"1.0", b"1.1"}:
        raise Refusal(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here")
    return version.decode("ascii")


def _framing(headers: Headers, version: str) -> int | None:
    """Length of the body, None if it is chunked, after the checks that keep two parsers from disagreeing about it.

    Source: RFC 9112, 6.
    """
    lengths, codings = _values(headers, b"content-length"), _values(headers, b"transfer-encoding")
    if codings and lengths:
        raise Refusal(400, "Content-Length and Transfer-Encoding exclude each other")
    if codings and version == "1.0":
        raise Refusal(400, "HTTP/1.0 has no Transfer-Encoding")
    return None if codings else sum(map(int, lengths))


def _check_expect(headers: Headers) -> None:
    if any(value.lower() != b"100-continue" for value in _values(headers, b"expect")):
        raise Refusal(417, "The only expectation that can be met is 100-continue")


def _origin_form(target: bytes) -> tuple[bytes | None, bytes]:
    """The host that an absolute target names, if it is one, and the target from its path on."""
    if b"#" in target:
        raise Refusal(400, "The request target must not contain '#'")
    absolute = _ABSOLUTE.fullmatch(target)
    host = None
    if absolute is not None:
        host, target = absolute.groups()
        if not host or b"@" in host:
            raise Refusal(400, "The request target names no valid host")
        target = target if target.startswith(b"/") else b"/" + target
    if not target.startswith(b"/"):
        raise Refusal(400, "The request target must be a path")
    return host, target


def _check_handshake(headers: Headers, *, has_body: bool) -> None:
    """What RFC 6455, 4.2.1 asks of the client, and ASCII in all that Hypercorn decodes."""
    decoded = [value for name, value in headers if name in _WEBSOCKET_FIELDS or name.startswith(b"sec-websocket-")]
    if not all(value.isascii() for value in decoded):
        raise Refusal(400, "The WebSocket handshake contains bytes that are not ASCII")
    if b"upgrade" not in _tokens(headers, b"connection") or has_body:
        raise Refusal(400, "The WebSocket handshake is malformed")
    if _values(headers, b"sec-websocket-version") != [b"13"]:
        raise Refusal(
            426, "WebSocket version 13 is required", ("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")
        )
    keys = _values(headers, b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise Refusal(400, "The WebSocket handshake needs one valid Sec-WebSocket-Key")


def _is_key(value: bytes) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == _WEBSOCKET_KEY_BYTES
    except binascii.Error:
        return False


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _tokens(headers: Headers, name: bytes) -> set[bytes]:
    values = _values(headers, name)
    return {token.strip().lower() for value in values for token in value.split(b",")} if values else set()
