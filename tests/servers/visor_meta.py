"""A Meta server that behaves as VISOR's of 2012 does on MySQL, as far as it was recorded, and as its statements allow.

It is stricter where that one would break: whatever could end a text in its SQL, does not fit a column, or is null, is a
failure that a test can look for.
"""

from __future__ import annotations

import json
import re
import socketserver
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

MANDATORY: Final = ("name", "architecture")
READ_ONLY: Final = ("_id", "uri", "created_at", "updated_at", "accessed_at", "access_count")
COLUMNS: Final = {
    "_id": 45, "uri": 255, "name": 45, "architecture": 45, "access": 45, "type": 45, "format": 45, "store": 45,
    "location": 255, "kernel": 45, "ramdisk": 45, "owner": 45, "status": 45, "size": 0, "created_at": 0,
    "uploaded_at": 0, "updated_at": 0, "accessed_at": 0, "access_count": 0, "checksum": 255, "others": 255,
}  # fmt: skip
CHOICES: Final = {
    "architecture": ("i386", "x86_64"),
    "access": ("public", "private"),
    "format": ("iso", "vhd", "vdi", "vmdk", "ami", "aki", "ari"),
    "type": ("kernel", "ramdisk", "machine"),
    "store": ("s3", "cumulus", "walrus", "hdfs", "lcs", "http", "file"),
}
BRIEF: Final = ("_id", "name", "architecture", "type", "format", "store", "size")
EXCLUDED: Final = ("accessed_at", "access_count")

Row = dict[str, Any]


class Refused(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class MetaServer:
    """A Meta server on loopback, in threads of its own. Its opener closes it.

    Attributes:
        rows: Records by `_id`, in no order, for tests to look at and to change behind everybody's back.
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

    def images(self) -> dict[str, Row]:
        """Records by name, but for markers; custom attributes among the fields."""
        with self._lock:
            found = [_shown(row) for row in self.rows.values()]
        return {row["name"]: row for row in found if row["name"] != "visor-gateway"}

    def change(self, name: str, /, **values: Any) -> None:
        """Change a record as another client of the server would."""
        with self._lock:
            [row] = [row for row in self.rows.values() if row["name"] == name]
            row.update(values)

    def add(self, **values: Any) -> str:
        """Add a record as another client of the server would, in any state. Returns its id."""
        row = self._register({"architecture": "x86_64", "name": "x"})
        row.update(values)
        return str(row["_id"])

    # --- a request -----------------------------------------------------------------------------

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
        if path in {"/images", "/images/detail"} and method == "GET":
            return {"images": self._list(query, brief=path == "/images")}
        if path == "/images" and method == "POST":
            return {"image": _shown(self._register(json.loads(body)["image"]))}
        found = re.fullmatch(r"/images/([^/]+)", path)
        if found is None:
            raise Refused(404, "Invalid operation or path.")
        image_id = found.group(1)
        self._in_sql("_id", image_id)
        if image_id not in self.rows:
            raise Refused(404, f"No image found with id '{image_id}'.")
        row = self.rows[image_id]
        if method == "GET":
            shown = _shown(row)
            row.update(accessed_at=_now(), access_count=row["access_count"] + 1)
            return {"image": shown}
        if method == "DELETE":
            del self.rows[image_id]
            return {"image": row}
        if method == "PUT":
            values = self._checked(json.loads(body)["image"])
            row.update(values, updated_at=_now())
            return {"image": _shown(row)}
        raise Refused(404, "Invalid operation or path.")

    def _list(self, query: dict[str, str], *, brief: bool) -> list[Row]:
        sort, direction = query.pop("sort", "_id"), query.pop("dir", "asc")
        for name, value in query.items():
            if name not in COLUMNS or name == "others":
                raise Refused(500, f"Unknown key: {name}")
            self._in_sql(name, value)
        filters = query if "owner" in query else {**query, "access": "public"}
        found = [
            row
            for row in self.rows.values()
            if all(str(row[name]).lower() == value.lower() for name, value in filters.items())
        ]
        if not found:
            raise Refused(404, "No public images found with given parameters.")
        found.sort(key=lambda row: str(row[sort] or ""), reverse=direction == "desc")
        return [{name: row[name] for name in BRIEF} if brief else _shown(row) for row in found]

    def _register(self, fields: Row) -> Row:
        missing = [name for name in MANDATORY if name not in fields]
        values = self._checked(fields, missing)
        image_id = str(uuid.uuid4())
        row = {
            **dict.fromkeys(COLUMNS), "access": "public", "access_count": 0, **values, "_id": image_id,
            "uri": f"http://10.0.0.1:4568/images/{image_id}", "created_at": _now(), "status": "locked",
        }  # fmt: skip
        self.rows[image_id] = row
        return row

    def _checked(self, fields: Row, missing: list[str] | None = None) -> Row:
        if refused := [name for name in fields if name in READ_ONLY]:
            raise Refused(400, f"These fields are read-only: {', '.join(refused)}")
        if missing:
            raise Refused(400, f"These fields are required: {', '.join(missing)}")
        for name, choices in CHOICES.items():
            if fields.get(name) is not None and fields[name] not in choices:
                raise Refused(400, f"Invalid {name} '{fields[name]}', available options: {', '.join(choices)}")
        for name in ("kernel", "ramdisk"):
            if name in fields:
                if fields[name] not in self.rows:
                    raise Refused(404, f"No image found with id '{fields[name]}'.")
                wanted = "aki" if name == "kernel" else "ari"
                if self.rows[fields[name]]["type"] != name and fields.get("format") != wanted:
                    raise Refused(400, f"The image with id {fields[name]} is not a {name} image.")
        values = {name: value for name, value in fields.items() if name in COLUMNS}
        if others := {name: value for name, value in fields.items() if name not in COLUMNS}:
            values["others"] = json.dumps(others, separators=(",", ":"), ensure_ascii=False)
        for name, value in values.items():
            self._in_sql(name, value)
        return values

    def _in_sql(self, name: str, value: Any) -> None:
        """What the statement would make of a value."""
        wrong = None
        if value is None:
            wrong = f"{name}= is no SQL"
        elif isinstance(value, str):
            if re.search(r"['\\]|[^\x20-\uffff]", value):
                wrong = f"{name}='{value}' is more than a value"
            elif COLUMNS[name] and len(value) > COLUMNS[name]:
                wrong = f"{name}: too long"
        elif not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
            wrong = f"{name}: out of range"
        if wrong:
            self.failures.append(wrong)
            raise Refused(500, wrong)


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


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S +0000")


def _shown(row: Row) -> Row:
    shown = {name: value for name, value in row.items() if name not in EXCLUDED}
    if shown["others"]:
        shown |= json.loads(shown.pop("others"))
    return shown
