"""The dashboard's files: a page of plain HTML, CSS and JavaScript that signs its own requests (docs/protocol.md)."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

from ..errors import NotFound
from .request import Answer, Request, Text

_TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_PAGE: Final = "index.html"

#: The page loads nothing from elsewhere, runs nothing that stands in its HTML, and is shown in no other page.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def page(request: Request) -> Answer | Text:
    """GET /"""
    return _served(request, _PAGE)


async def file(request: Request) -> Answer | Text:
    """GET /dashboard/{file}"""
    return _served(request, request.params["file"])


def _served(request: Request, name: str) -> Answer | Text:
    found = _files().get(name)
    if found is None:
        raise NotFound("Invalid operation or path.")
    if request.header(b"if-none-match") == dict(found.headers)["etag"].encode():
        return Answer(None, 304, found.headers)
    return found


@cache
def _files() -> dict[str, Text]:
    """The answers by name of the file, read once; nothing else in the package is ever served."""
    found = {}
    for entry in files("visor_gateway.dashboard").iterdir():
        kind = _TYPES.get(entry.name.rpartition(".")[2])
        if kind is not None:
            body = entry.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            headers = (("etag", etag), ("cache-control", "no-cache"), ("content-security-policy", _POLICY))
            found[entry.name] = Text(body, f"{kind}; charset=utf-8", headers=headers)
    return found
