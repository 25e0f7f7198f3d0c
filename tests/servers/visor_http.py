"""What the servers of tests that behave as VISOR's of 2012 have in common: HTTP in threads, and ways to lie."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

Row = dict[str, Any]


class Refused(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class VisorHttp:
    """A server on loopback, in threads of its own. Its opener closes it.

    Attributes:
        rows: Its records, in no order, for tests to look at and to change behind everybody's back.
        failures: What it could not put into SQL.
        requests: Methods and paths that came.
        link: Makes a header Link of a path, as a server with pages would; VISOR's has none.
        raw: Answers in place of the server, if it returns True.
        lie: Takes (method, path, status, answer) and returns what is sent instead: (status, bytes).
    """

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.failures: list[str] = []
        self.requests: list[str] = []
        self.lie: Callable[[str, str, int, Any], tuple[int, bytes]] | None = None
        self.link: Callable[[str], str] | None = None
        self.raw: Callable[[BaseHTTPRequestHandler], bool] | None = None
        self._lock = threading.Lock()
        self._serve(0)

    def _serve(self, port: int) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def handle_one(self) -> None:
                owner._handle(self)

            do_GET = do_POST = do_PUT = do_DELETE = handle_one

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = _Server(("127.0.0.1", port), Handler)
        self.port = self._http.server_address[1]
        self.url = f"visor+http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Refuse connections from now on."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def reopen(self) -> None:
        """Be there again, at the same address."""
        self._serve(self.port)

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.requests.append(f"{request.command} {request.path}")
        if self.raw is not None and self.raw(request):
            request.close_connection = True
            return
        status, answer = self.answer(request.command, request.path, body)
        sent = json.dumps(answer, separators=(",", ":")).encode()
        if self.lie is not None:
            status, sent = self.lie(request.command, request.path, status, answer)
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(sent)))
        if self.link is not None and request.command == "GET":
            request.send_header("Link", self.link(request.path))
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(sent)

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, Any]:
        """Status and document."""
        parts = urlsplit(target)
        try:
            with self._lock:
                return 200, self._routed(method, parts.path, dict(parse_qsl(parts.query)), body)
        except Refused as refused:
            return refused.code, {"code": refused.code, "message": refused.message}

    def _routed(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:
        raise NotImplementedError


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        """Without looking up the name of the address."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is gone is no error."""


def now() -> str:
    """The present moment as Ruby writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S +0000")


S = TypeVar("S", bound=VisorHttp)


@contextlib.contextmanager
def opened(kind: type[S]) -> Generator[S]:
    """A server for the length of a block, which must not have been given what it could not put into SQL."""
    server = kind()
    try:
        yield server
    finally:
        server.close()
    assert server.failures == []
