"""JSON or XML, for records and for errors. Sans-IO (docs/protocol.md; RFC 9110, 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from xml.sax.saxutils import escape

import msgspec

from ..errors import GatewayError
from .request import Answer, Rendered, Text

JSON: Final = "application/json"
XML: Final = "application/xml"
_XML_TYPES: Final = ("application/xml", "text/xml")
#: What XML 1.0 can't hold, escaped or not.
_NOT_XML: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

#: On every answer: nothing of ours is a page, and no link may travel to another site.
COMMON_HEADERS: Final = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))

Head = tuple[int, list[tuple[bytes, bytes]], bytes]


def preferred(accept: str | None) -> str:
    """The media type that an `Accept` value asks for: XML where it is preferred to JSON, else JSON."""
    return JSON if accept is None or accept in ("*/*", JSON) else _preferred(accept)


def _preferred(accept: str) -> str:
    ranges = [_media_range(part) for part in accept.split(",") if part.strip()]
    return XML if max(_rank(ranges, name) for name in _XML_TYPES) > _rank(ranges, JSON) else JSON


def _media_range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    try:
        return name, min(1.0, max(0.0, float(quality)))
    except ValueError:
        return name, 0.0


def _rank(ranges: Iterable[tuple[str, float]], name: str) -> tuple[float, int]:
    """Quality of the most specific range that matches, then how specific it is: a type that is named beats `*/*`."""
    patterns = {name: 2, name.partition("/")[0] + "/*": 1, "*/*": 0}
    matches = [(patterns[pattern], quality) for pattern, quality in ranges if pattern in patterns]
    if not matches:
        return (0.0, -1)
    specific, quality = max(matches)
    return (quality, specific if quality else -1)


def render(answer: Answer | Text | Rendered, *, accept: str | None, head: bool = False) -> Head:
    """Status, headers and body of an answer. `head`: the same without the body."""
    if isinstance(answer, Rendered):
        return answer.status, answer.headers, b"" if head else answer.body
    headers = list(COMMON_HEADERS)
    if isinstance(answer, Text):
        body, content_type = answer.body, answer.content_type
    else:
        media = preferred(accept)
        body = b"" if answer.payload is None else _encode(answer.payload, media)
        content_type = f"{media}; charset=utf-8"
        headers.append((b"vary", b"Accept"))
    if body:
        headers.append((b"content-type", content_type.encode("ascii")))
    headers.append((b"content-length", str(len(body)).encode("ascii")))
    headers += [(name.encode("ascii"), value.encode("utf-8")) for name, value in answer.headers]
    return answer.status, headers, b"" if head else body


def render_error(error: GatewayError, *, accept: str | None, head: bool = False) -> Head:
    """The answer to a failed request. On HEAD, code and message travel as headers."""
    extra = error.headers
    if error.retry_after is not None:
        extra = (*extra, ("retry-after", str(error.retry_after)))
    if head:
        message = error.message.replace("\r", " ").replace("\n", " ")
        extra = (*extra, ("x-error-code", str(error.status)), ("x-error-message", message))
        return render(Answer(None, error.status, extra), accept=accept, head=True)
    return render(Answer({"code": error.status, "message": error.message}, error.status, extra), accept=accept)


def _encode(payload: Mapping[str, Any], media: str) -> bytes:
    if media == JSON:
        return msgspec.json.encode(payload)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<results>{_element_content(payload)}</results>\n'.encode()


def _element_content(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return "".join(f"<{key}>{_element_content(item)}</{key}>\n" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "".join(f"<item>{_element_content(item)}</item>\n" for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return escape(_NOT_XML.sub("\ufffd", str(value)))
