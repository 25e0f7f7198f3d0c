"""A plain HTTP/1.1 client on sockets, for tests that must know which bytes went over the wire.

It shares no code with the gateway: signatures, framing and the parser of answers are written from the
protocol alone. One request, one connection, unless a test keeps a `Wire` itself.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import select
import socket
import ssl
import struct
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from canary import canary

Value = str | bytes
Headers = Sequence[tuple[str, Value]]

OCTETS = ("Content-Type", "application/octet-stream")
# Seconds. Only a gateway that hangs needs them, however busy the machine is.
TIMEOUT = 60.0  # for any one step over loopback
PATIENCE = 60.0  # until what was begun has had its effect


def raw(value: Value) -> bytes:
    """The bytes that a header value has on the wire."""
    return value if isinstance(value, bytes) else value.encode("utf-8")


# --- signatures --------------------------------------------------------------------------------

_SIGNED = {
    "VISOR": ("content-md5", "content-type", "date"),
    "VISOR-HMAC-SHA256": ("content-digest", "content-md5", "content-type", "date", "x-visor-nonce"),
}
_EMPTY_LINE = {"content-md5", "content-type", "content-digest", "date"}


def signed_text(scheme: str, method: str, target: str, headers: Headers) -> bytes:
    """The text under a signature: method, the signed headers by name, the path (and, for SHA-256, the query)."""
    sent = {name.lower(): raw(value).strip(b" \t") for name, value in headers}
    if scheme == "VISOR-HMAC-SHA256" and "x-visor-date" in sent:
        sent["date"] = sent["x-visor-date"]
    lines = []
    names = {*_SIGNED[scheme], *(name for name in sent if name.startswith("x-image-meta-"))}
    for name in sorted(names):
        if name.startswith("x-image-meta-"):
            lines.append(name.encode() + b":" + sent[name])
        elif name in sent or name in _EMPTY_LINE:
            lines.append(sent.get(name, b""))
    path, mark, query = target.encode("latin-1").partition(b"?")
    if mark and query and scheme == "VISOR-HMAC-SHA256":
        path += b"?" + b"&".join(sorted(query.split(b"&")))
    return b"\n".join([method.encode(), *lines, path])


def signature(scheme: str, secret_key: str, method: str, target: str, headers: Headers) -> str:
    """Base64 of the HMAC that goes behind `<access_key>:`."""
    digest = hashlib.sha1 if scheme == "VISOR" else hashlib.sha256
    text = signed_text(scheme, method, target, headers)
    return base64.b64encode(hmac.new(secret_key.encode(), text, digest).digest()).decode()


def content_digest(body: bytes) -> str:
    """A `Content-Digest` value (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


# --- answers -----------------------------------------------------------------------------------


@dataclass
class Response:
    """One answer. `interim` holds the statuses of 1xx answers that came before it."""

    status: int
    reason: str
    version: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    interim: list[int] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name.lower()]

    def header(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) <= 1, f"{name} sent {len(values)} times"
        return values[0] if values else None

    def meta(self) -> dict[str, str]:
        """The record in the answer's headers, by field, as text."""
        prefix = "x-image-meta-"
        return {name[len(prefix) :]: value for name, value in self.headers if name.startswith(prefix)}

    def json(self) -> Any:
        assert (self.header("content-type") or "").startswith("application/json"), (self.status, self.headers)
        return json.loads(self.body)

    def xml(self) -> ElementTree.Element:
        assert (self.header("content-type") or "").startswith("application/xml"), (self.status, self.headers)
        return ElementTree.fromstring(self.body)

    @property
    def image(self) -> dict[str, Any]:
        assert self.status == 200, (self.status, self.body)
        document = self.json()
        assert list(document) == ["image"]
        return document["image"]

    @property
    def message(self) -> str:
        document = self.json()
        assert set(document) == {"code", "message"}
        assert document["code"] == self.status
        return document["message"]


class Reset(Exception):
    """The peer cut the connection with a TCP RST."""


class Short(Exception):
    """The connection ended before the message did. `got` is what came."""

    def __init__(self, got: bytes) -> None:
        super().__init__(f"connection ended after {len(got)} bytes")
        self.got = got


# --- connections -------------------------------------------------------------------------------


class Wire:
    """One TCP connection to the gateway. Close it with `close`, or use it as a context manager.

    Attributes:
        asked: What the answers on it are to, for messages.
    """

    asked = "an answer"

    def __init__(
        self,
        url: str,
        *,
        receive_buffer: int | None = None,
        timeout: float = TIMEOUT,
        tls: ssl.SSLContext | None = None,
        is_told_secrets: bool = False,
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        self.sock: socket.socket = socket.socket(socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET)
        try:
            if receive_buffer is not None:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.sock.settimeout(timeout)
            self.sock.connect((parts.hostname, parts.port or 80))
            if tls is not None:
                self.sock = tls.wrap_socket(self.sock, server_hostname=parts.hostname)
        except BaseException:
            self.sock.close()
            raise
        self._buffer = bytearray()
        self._ended = False
        self._look = (lambda where, piece: None) if is_told_secrets else canary.stream()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def cut(self) -> None:
        """Leave with a RST, as a machine does that dies."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except (ConnectionResetError, BrokenPipeError) as exc:
            raise Reset from exc

    def send_chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def finish_sending(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def _fill(self) -> bool:
        if self._ended:
            return False
        try:
            data = self.sock.recv(262144)
        except ConnectionResetError as exc:
            raise Reset from exc
        self._ended = not data
        self._look(self.asked, data)
        self._buffer += data
        return bool(data)

    def read_until_quiet(self, seconds: float) -> bytes:
        """What comes until nothing has come for so long."""
        before = self.sock.gettimeout()
        self.sock.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            while self._fill():
                pass
        self.sock.settimeout(before)
        data, self._buffer = bytes(self._buffer), bytearray()
        return data

    def read_exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if not self._fill():
                raise Short(bytes(self._buffer))
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def read_line(self) -> bytes:
        return self.read_through(b"\r\n")[:-2]

    def read_through(self, mark: bytes) -> bytes:
        """Everything up to the next `mark`, and that."""
        while (end := self._buffer.find(mark)) < 0:
            if not self._fill():
                raise Short(bytes(self._buffer))
        return self.read_exactly(end + len(mark))

    def read_to_end(self) -> bytes:
        """Everything up to the peer's FIN. Raises `Reset` where a RST comes instead."""
        while self._fill():
            pass
        return self.read_exactly(len(self._buffer))

    def read_head(self) -> Response:
        """The next final head, 101 among them; interim answers are noted in it."""
        interim: list[int] = []
        while True:
            version, status, reason = [*self.read_line().decode("latin-1").split(" ", 2), ""][:3]
            headers = []
            while line := self.read_line():
                name, colon, value = line.partition(b":")
                assert colon, f"malformed header line {line!r}"
                assert name == name.strip(), f"malformed header line {line!r}"
                headers.append((name.decode("ascii").lower(), value.strip().decode("utf-8", "surrogateescape")))
            if int(status) >= 200 or status == "101":
                return Response(int(status), reason, version, headers, b"", interim)
            interim.append(int(status))

    def read_body(self, head: Response, method: str = "GET") -> bytes:
        """The body that belongs to `head`."""
        if method == "HEAD" or head.status in (204, 304):
            return b""
        if (head.header("transfer-encoding") or "").lower() == "chunked":
            return b"".join(self.chunks())
        length = head.header("content-length")
        return self.read_exactly(int(length)) if length is not None else self.read_to_end()

    def chunks(self) -> Iterator[bytes]:
        """The pieces of a chunked body."""
        while size := int(self.read_line().split(b";")[0], 16):
            yield self.read_exactly(size)
            assert self.read_exactly(2) == b"\r\n"
        while self.read_line():
            pass

    def read_response(self, method: str = "GET") -> Response:
        head = self.read_head()
        head.body = self.read_body(head, method)
        return head

    def quiet_for(self, seconds: float) -> bool:
        """Whether nothing arrives, not even an end, for that long."""
        return not self._buffer and not select.select([self.sock], [], [], seconds)[0]

    def ends(self) -> str:
        """How the peer ends the connection from here: "fin" or "reset"."""
        try:
            self.read_to_end()
        except Reset:
            return "reset"
        return "fin"


def upgrade_headers(protocol: str = "visor.progress.v1") -> list[tuple[str, Value]]:
    """What asks for a WebSocket (RFC 6455, 4.1)."""
    return [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", base64.b64encode(secrets.token_bytes(16)).decode()),
        ("Sec-WebSocket-Protocol", protocol),
    ]


def head_bytes(method: str, target: str, headers: Iterable[tuple[str, Value]], version: str = "HTTP/1.1") -> bytes:
    """A request head as it goes over the wire."""
    lines = [f"{method} {target} {version}".encode("latin-1")]
    lines += [name.encode("ascii") + b": " + raw(value) for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


Body = bytes | Sequence[bytes] | None


@dataclass
class Client:
    """Requests of one user. Without `access_key` they carry no credentials.

    Attributes:
        is_told_secrets: Whether its answers may show users' secrets, as those to a known peer of an Auth server do.
    """

    url: str
    access_key: str | None = None
    secret_key: str = ""
    scheme: str = "VISOR-HMAC-SHA256"
    tls: ssl.SSLContext | None = None
    is_told_secrets: bool = False

    def signed(
        self, method: str, target: str, headers: Headers = (), *, host: str | None = None
    ) -> list[tuple[str, Value]]:
        """`headers` with Host, Date, nonce and Authorization, as far as they are not among them."""
        full = list(headers)
        names = {name.lower() for name, _ in full}
        if "host" not in names:
            full.insert(0, ("Host", host or urlsplit(self.url).netloc))
        if self.access_key is None or "authorization" in names:
            return full
        if not names & {"date", "x-visor-date"}:
            full.append(("Date", formatdate(usegmt=True)))
        if self.scheme != "VISOR" and "x-visor-nonce" not in names:
            full.append(("X-Visor-Nonce", secrets.token_hex(16)))
        code = signature(self.scheme, self.secret_key, method, target, full)
        full.append(("Authorization", f"{self.scheme} {self.access_key}:{code}"))
        return full

    def connect(self, **options: Any) -> Wire:
        return Wire(self.url, tls=self.tls, is_told_secrets=self.is_told_secrets, **options)

    def start(self, method: str, target: str, headers: Headers = (), **options: Any) -> Wire:
        """Send a head and leave the rest to the caller, who closes the connection."""
        wire = self.connect(**options)
        wire.asked = f"{method} {target.partition('?')[0]}"
        try:
            wire.send(head_bytes(method, target, self.signed(method, target, headers)))
        except BaseException:
            wire.close()
            raise
        return wire

    def request(self, method: str, target: str, headers: Headers = (), body: Body = None) -> Response:
        """One request on a connection of its own. A sequence of pieces goes out chunked."""
        full = list(headers)
        names = {name.lower() for name, _ in full}
        if isinstance(body, bytes) and "content-length" not in names:
            full.append(("Content-Length", str(len(body))))
        elif body is not None and not isinstance(body, bytes):
            full.append(("Transfer-Encoding", "chunked"))
        elif body is None and method in ("POST", "PUT", "PATCH") and not names & {"content-length"}:
            full.append(("Content-Length", "0"))
        with self.start(method, target, full) as wire:
            with contextlib.suppress(Reset):  # an early answer may be there to read
                if isinstance(body, bytes):
                    wire.send(body)
                elif body is not None:
                    for piece in body:
                        wire.send_chunk(piece)
                    wire.send(b"0\r\n\r\n")
            answer = wire.read_response(method)
        canary.answered(method, target, answer.body)
        return answer

    def get(self, target: str, *headers: tuple[str, Value]) -> Response:
        return self.request("GET", target, headers)

    def head(self, target: str, *headers: tuple[str, Value]) -> Response:
        return self.request("HEAD", target, headers)

    def delete(self, target: str, *headers: tuple[str, Value]) -> Response:
        return self.request("DELETE", target, headers)

    def send_json(self, method: str, target: str, document: Any, *headers: tuple[str, Value]) -> Response:
        body = json.dumps(document).encode()
        full = [("Content-Type", "application/json"), ("Content-Digest", content_digest(body)), *headers]
        return self.request(method, target, full, body)

    # --- images ---

    def add(self, body: Body = None, headers: Headers = (), **fields: Value) -> Response:
        """POST an image: `fields` as record, `body` as bytes. Name and architecture have defaults."""
        record = {"name": unique("image"), "architecture": "x86_64"} | fields
        full = [*meta(**record), *([OCTETS] if body is not None else []), *headers]
        return self.request("POST", "/images", full, body)

    def put(self, image_id: str, body: Body = None, headers: Headers = (), **fields: Value) -> Response:
        """PUT fields or bytes of an image."""
        full = [*meta(**fields), *([OCTETS] if body is not None else []), *headers]
        return self.request("PUT", f"/images/{image_id}", full, body)

    def named(self, name: str) -> dict[str, Any] | None:
        """The full record of the one image of that name, or None."""
        answer = self.get(f"/images/detail?name={name}")
        if answer.status == 404:
            return None
        (image,) = answer.json()["images"]
        return image

    def record(self, image_id: str) -> dict[str, str]:
        """The record as HEAD tells it."""
        answer = self.head(f"/images/{image_id}")
        assert answer.status == 200, answer
        return answer.meta()


@dataclass
class Stored:
    """An available image and its bytes."""

    record: dict[str, Any]
    data: bytes

    @property
    def id(self) -> str:
        return self.record["_id"]

    @property
    def path(self) -> str:
        return f"/images/{self.id}"


def store_image(client: Client, data: bytes | None = None, **fields: str) -> Stored:
    """Add an image with bytes; about 100 kB of them unless `data` is given."""
    data = data if data is not None else (b"0123456789abcdef" * 6251)[:100_003]
    return Stored(client.add(data, **fields).image, data)


def meta(**fields: Value) -> list[tuple[str, Value]]:
    """A record as headers; `_` is sent as `-`, as clients should."""
    return [("x-image-meta-" + name.replace("_", "-"), value) for name, value in fields.items()]


def unique(prefix: str) -> str:
    """A name that nothing else has, so that tests can share a gateway."""
    return f"{prefix}-{secrets.token_hex(6)}"


def eventually(condition: Any, seconds: float = PATIENCE, what: str = "condition") -> Any:
    """The first true value of `condition()`. The gateway is another process: it can only be asked again."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.02)
    return value
