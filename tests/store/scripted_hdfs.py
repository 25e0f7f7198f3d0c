"""A tiny WebHDFS on loopback that misbehaves as it is told: one port is the NameNode's, another one a DataNode's."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked may leave whenever it likes."""


class ScriptedHdfs:
    """Files in memory. What is in `faults` happens instead of, or beside, what should.

    Attributes:
        files: Content by path.
        faults: A function by operation, called before it with the request's parameters. What it returns, if not None,
            is the answer: status, headers, body. For `DATA` it is asked in the DataNode's place.
        asked: Operation and parameters of every request to the NameNode; `DATA` is one to the DataNode.
        open: Paths that the NameNode takes for files that somebody writes to.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, Callable[[dict[str, str]], tuple[int, dict[str, str], bytes] | None]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.open: set[str] = set()
        self._ids: dict[str, int] = {}
        self._counter = itertools.count(1)
        self._namenode, self.url = self._serve(self._answer_call)
        self._datanode, self.datanode = self._serve(self._answer_data)

    def close(self) -> None:
        for server in (self._namenode, self._datanode):
            server.shutdown()
            server.server_close()

    def _serve(self, answer: Callable[[BaseHTTPRequestHandler, str, dict[str, str]], None]) -> tuple[_Server, str]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                answer(self, unquote(parts.path).removeprefix("/webhdfs/v1"), dict(parse_qsl(parts.query)))

            do_PUT = do_DELETE = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server, f"http://127.0.0.1:{server.server_address[1]}"

    def _answer_call(self, handler: BaseHTTPRequestHandler, path: str, asked: dict[str, str]) -> None:
        operation = asked["op"]
        self.asked.append((operation, asked))
        fault = self.faults.get(operation)
        given = fault(asked) if fault is not None else None
        if given is None:
            given = (
                self._redirect(handler.path) if operation in {"OPEN", "CREATE"} else self._call(operation, path, asked)
            )
        _send(handler, *given)

    def _redirect(self, target: str) -> tuple[int, dict[str, str], bytes]:
        return 307, {"Location": self.datanode + target}, b""

    def _call(self, operation: str, path: str, asked: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if operation == "DELETE":
            return _json({"boolean": self.files.pop(path, None) is not None})
        if operation == "RENAME":
            return _json({"boolean": self._rename(path, asked["destination"])})
        if path not in self.files:
            return refusal("FileNotFoundException", 404)
        if operation == "GET_BLOCK_LOCATIONS":
            return _json({"LocatedBlocks": {"isUnderConstruction": path in self.open}})
        if operation == "GETCONTENTSUMMARY":
            return _json({"ContentSummary": {"spaceQuota": -1, "spaceConsumed": 0}})
        status = {"type": "FILE", "length": len(self.files[path]), "modificationTime": 1, "fileId": self._ids[path]}
        return _json({"FileStatus": status})

    def _rename(self, path: str, destination: str) -> bool:
        if path not in self.files or destination in self.files:
            return False
        self.files[destination] = self.files.pop(path)
        self._ids[destination] = self._ids.pop(path)
        return True

    def put(self, path: str, content: bytes) -> None:
        """Make a file."""
        self.files[path], self._ids[path] = content, next(self._counter)

    def _answer_data(self, handler: BaseHTTPRequestHandler, path: str, asked: dict[str, str]) -> None:
        self.asked.append(("DATA", asked))
        handler.close_connection = True
        if asked["op"] == "CREATE":
            self.put(path, b"")
            self.files[path] = b"".join(_chunks(handler))
        fault = self.faults.get("DATA")
        given = fault(asked) if fault is not None else None
        if given is None and asked["op"] == "CREATE":
            given = 201, {}, b""
        elif given is None:
            first = int(asked["offset"])
            given = 200, {}, self.files[path][first : first + int(asked["length"])]
        _send(handler, *given)


def refusal(name: str, status: int = 403) -> tuple[int, dict[str, str], bytes]:
    """An answer with a RemoteException."""
    content = {"exception": name, "javaClassName": f"org.apache.hadoop.{name}", "message": "/secret/path\n\tat org.x"}
    return _json({"RemoteException": content}, status)


def _json(content: object, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(content))} | headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


def _chunks(handler: BaseHTTPRequestHandler) -> list[bytes]:
    found = []
    while size := int(handler.rfile.readline() or b"0", 16):
        found.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return found
