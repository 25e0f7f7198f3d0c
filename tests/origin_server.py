"""A tiny HTTP origin on loopback that a gateway can be told to take images from, or to keep away from."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Origin:
    """Serves bytes under paths; those in `moved` redirect to the URLs there. `seen` lists (method, path, headers) of
    every request.

    Paths: those of `files`; `/to?<url>` redirects; `/slow/<name>` serves `files[/<name>]` up to the half and waits for
    `release`; `/unsized/<name>` sends chunks without Content-Length; `/vanishing/<name>` is there for HEAD and 404 for
    GET; `/closing/<name>` ends its body with the connection alone; anything else is 404.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.moved: dict[str, str] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.release = threading.Event()
        origin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                origin.answer(self)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A gateway may leave whenever it likes."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._thread.join(60)
        self._server.server_close()

    def put(self, name: str, data: bytes) -> str:
        """Offer bytes under a path; returns their URL."""
        self.files[f"/{name}"] = data
        self.etags[f"/{name}"] = hashlib.md5(data).hexdigest()
        return f"{self.url}/{name}"

    def methods(self, path: str) -> list[str]:
        return [method for method, seen, _ in self.seen if seen == path]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.seen.append((handler.command, handler.path, {k.lower(): v for k, v in handler.headers.items()}))
        if handler.path.startswith("/to?") or handler.path in self.moved:
            handler.send_response(302)
            handler.send_header("Location", self.moved.get(handler.path, handler.path[4:]))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        kind, _, name = handler.path[1:].partition("/")
        path = f"/{name}" if kind in ("slow", "unsized", "vanishing", "closing") else handler.path
        if (
            path not in self.files
            or handler.command not in ("GET", "HEAD")
            or (kind, handler.command) == ("vanishing", "GET")
        ):
            handler.send_response(404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        self._serve(handler, path, kind)

    def _serve(self, handler: BaseHTTPRequestHandler, path: str, kind: str) -> None:
        data, etag = self.files[path], f'"{self.etags[path]}"'
        start, stop = 0, len(data)
        wanted = handler.headers.get("Range")
        if wanted and kind not in ("unsized", "closing") and handler.headers.get("If-Range", etag) == etag:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            handler.send_response(200)
        if kind == "unsized":
            handler.send_header("Transfer-Encoding", "chunked")
        elif kind == "closing":
            handler.send_header("Connection", "close")
            handler.close_connection = True
        else:
            handler.send_header("Content-Length", str(stop - start))
            handler.send_header("Accept-Ranges", "bytes")
            handler.send_header("ETag", etag)
        handler.send_header("Content-Type", "application/octet-stream")
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if kind == "unsized":
            handler.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
            return
        middle = (start + stop) // 2 if kind == "slow" else stop
        handler.wfile.write(data[start:middle])
        if kind == "slow":
            handler.wfile.flush()
            self.release.wait(60)
            handler.wfile.write(data[middle:stop])
