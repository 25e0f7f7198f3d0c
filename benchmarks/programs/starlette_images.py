"""Twenty image records in SQLite, listed and looked up as the gateway does it: the token of the request is looked up by
its digest with its account, the records are read from their columns, body and headers are the gateway's. Runs in an
environment that has nothing of the gateway.

Every query of every request is made on the event loop: this costs less than handing it to a thread, and so favours this
server. Nothing is kept between requests, as nothing is in an application that is written plainly.
"""

import base64
import hashlib
import os
import sqlite3
import time
import uuid
from email.utils import formatdate
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

COLUMNS = (
    *("_id", "name", "architecture", "access", "type", "format", "store", "location", "kernel", "ramdisk", "owner"),
    *("status", "size", "created_at", "uploaded_at", "updated_at", "checksum"),
)
BRIEF = ("_id", "uri", "name", "architecture", "type", "format", "store", "size", "created_at")
TOKEN = os.environ["TOKEN"]
NOW = "2026-01-01T00:00:00.000000Z"
WRITTEN = 1767225600
COMMON = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


def record(number: int) -> tuple[Any, ...]:
    image_id = str(uuid.UUID(int=number + 1))
    location = f"file:///{image_id}/{uuid.UUID(int=number + 100)}"
    named = (image_id, f"image {number}", "x86_64", "public", None, None, "file", location, None, None)
    return (*named, "admin", "available", 1024, NOW, NOW, None, "0" * 64)


def database() -> sqlite3.Connection:
    opened = sqlite3.connect(os.environ["IMAGES"])
    opened.execute("PRAGMA journal_mode = WAL")
    opened.execute(f"CREATE TABLE images ({COLUMNS[0]} TEXT PRIMARY KEY, {', '.join(COLUMNS[1:])})")
    opened.execute("CREATE TABLE accounts (access_key TEXT PRIMARY KEY, role TEXT)")
    opened.execute("CREATE TABLE tokens (digest BLOB PRIMARY KEY, access_key TEXT, read_only INTEGER, expires_at REAL)")
    for values in map(record, range(20)):
        opened.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    opened.execute("INSERT INTO accounts VALUES ('admin', 'admin')")
    mark = hashlib.sha256(TOKEN.encode()).digest()
    opened.execute("INSERT INTO tokens VALUES (?, 'admin', 0, ?)", (mark, time.time() + 86400))
    opened.commit()
    return opened


images = database()


def caller(request: Request) -> str | None:
    """The access key of whoever holds the token, or None."""
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    row = images.execute(
        "SELECT access_key, expires_at FROM tokens JOIN accounts USING (access_key) WHERE digest = ?",
        (hashlib.sha256(text.strip().encode()).digest(),),
    ).fetchone()
    return row[0] if row is not None and row[1] > time.time() else None


async def find(request: Request) -> Response:
    access_key = caller(request)
    if access_key is None:
        return JSONResponse({"code": 403, "message": "Forbidden"}, 403)
    query = "SELECT * FROM images WHERE access = 'public' OR owner = ? ORDER BY _id LIMIT 1001"
    rows = images.execute(query, (access_key,)).fetchall()
    found = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    base = str(request.base_url)
    for image in found:
        image["uri"] = f"{base}images/{image['_id']}"
    payload = {"images": [{name: image[name] for name in BRIEF} for image in found]}
    return JSONResponse(payload, headers={**COMMON, "vary": "Accept"})


async def head(request: Request) -> Response:
    access_key = caller(request)
    if access_key is None:
        return Response(status_code=403)
    row = images.execute("SELECT * FROM images WHERE _id = ?", (request.path_params["id"],)).fetchone()
    image = dict(zip(COLUMNS, row, strict=True)) if row is not None else {}
    if not image or (image["access"] != "public" and image["owner"] != access_key):
        return Response(status_code=404)
    image["uri"] = f"{request.base_url}images/{image['_id']}"
    headers = {f"x-image-meta-{name}": str(value) for name, value in image.items() if value is not None}
    digest = base64.b64encode(bytes.fromhex(image["checksum"])).decode()
    entity = {
        "content-disposition": f"attachment; filename*=UTF-8''{image['name'].replace(' ', '%20')}",
        "etag": f'"{image["checksum"]}"',
        "last-modified": formatdate(WRITTEN, usegmt=True),
        "accept-ranges": "bytes",
        "repr-digest": f"sha-256=:{digest}:",
        "content-length": str(image["size"]),
    }
    return Response(headers={**COMMON, **headers, **entity}, media_type="application/octet-stream")


async def status(request: Request) -> Response:
    return PlainTextResponse("OK")


app = Starlette(
    routes=[
        Route("/images", find),
        Route("/images/{id}", head, methods=["HEAD"]),
        Route("/status", status),
    ]
)
