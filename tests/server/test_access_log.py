"""The access log and the request metrics: one entry for each request, and no secret in it."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
import structlog
from edge_peer import (
    GET,
    LAST_GET,
    Edge,
    Message,
    hello,
    logged_requests,
    read_body,
    respond,
    serving,
    until_no_connection,
)
from hypothesis import given
from hypothesis import strategies as st

from visor_gateway import log
from visor_gateway.metrics import Metrics
from visor_gateway.server.access import AccessLog, RequestLine, shown_target


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (b"/images/1?sig=abc", "/images/1?sig=***"),
        (b"/images/1?expires=9&sig=abc&key=k", "/images/1?expires=9&sig=***&key=k"),
        (b"/ws?ticket=abc&sig=d;sig=e", "/ws?ticket=***&sig=***"),
        (b"/ws?TICKET=abc&Sig=", "/ws?TICKET=***&Sig=***"),
        (b"/images?name=sig&design=1&sigma=2", "/images?name=sig&design=1&sigma=2"),
        (b"/transfers/ws?%74icket=abc", "/transfers/ws?%74icket=***"),
        (b"/images?token=abc&name=x", "/images?token=***&name=x"),
        (b"/images?location=http://user:abc@host/", "/images?location=http://***@host/"),
        (b"/images/a-b_c.d~1", "/images/a-b_c.d~1"),
        (b"/" + b"a" * 2000, "/" + "a" * 1023),
    ],
)
def test_signatures_and_tickets_are_not_shown(target: bytes, shown: str) -> None:
    assert shown_target(target) == shown


# What a target may be made of to go into the log as it is, and what it may not.
PIECES = st.sampled_from([
    *"/?&=;:@%'\" ,{}",
    "sig",
    "ticket",
    "token",
    "Bearer",
    "VISOR",
    "Authorization",
    "a1",
    "\x1b",
    "é",
])


@given(st.lists(PIECES, max_size=12).map(lambda pieces: "/" + "".join(pieces)))
def test_no_target_is_shown_as_it_is_that_the_general_rules_would_change(target: str) -> None:
    shown = shown_target(target.encode())
    assert log.redact(shown) == shown
    line = RequestLine({"path": shown}).text()
    assert line == f"request path={log.quoted(shown)}"
    assert line.isprintable()


CANARY = "s3cret"


def written(configure: Any, format: str, **options: Any) -> str:
    """What one request leaves in the log that the daemon writes."""
    output = configure(format, **options)
    AccessLog(Metrics()).record(
        method="GET",
        target=f"/images?name=a%20b&sig={CANARY}".encode(),
        status=200,
        complete=True,
        body_bytes=5,
        seconds=0.25,
        client="::1",
        request_id="0123456789abcdef",
    )
    return output.getvalue()


@pytest.fixture
def configure() -> Iterator[Any]:
    """Set up logging to a buffer; afterwards logging is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    buffer = io.StringIO()

    def configure(format: str, level: str = "info") -> io.StringIO:
        log.configure(level, format, stream=buffer, environ={})
        return buffer

    yield configure
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)
    structlog.reset_defaults()


def test_a_request_is_one_line_of_text(configure: Any) -> None:
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT[\d:.]+Z info    request method=GET path=\"/images\?name=a%20b&sig=\*\*\*\" status=200 "
        r"complete=true bytes=5 duration=0.25 client=::1 request_id=0123456789abcdef logger=visor_gateway.access\n",
        written(configure, "text"),
    )


def test_a_request_is_one_object_of_json(configure: Any) -> None:
    line = json.loads(written(configure, "json"))
    assert datetime.fromisoformat(line.pop("timestamp")).tzinfo is not None
    assert line == {
        "method": "GET",
        "path": "/images?name=a%20b&sig=***",
        "status": 200,
        "complete": True,
        "bytes": 5,
        "duration": 0.25,
        "client": "::1",
        "request_id": "0123456789abcdef",
        "event": "request",
        "logger": "visor_gateway.access",
        "level": "info",
    }


def test_above_its_level_no_request_is_logged(configure: Any) -> None:
    assert written(configure, "text", level="warning") == ""


@pytest.mark.parametrize("method", ["BR EW", "sig=s3cret", "\x1b[31m"])
def test_a_method_that_a_client_makes_up_forges_nothing(configure: Any, method: str) -> None:
    output = configure("text")
    AccessLog(Metrics()).record(
        method=method,
        target=b"/\n/",
        status=400,
        complete=True,
        body_bytes=0,
        seconds=0.0,
        client=None,
        request_id=None,
    )
    (line,) = output.getvalue().splitlines()
    assert line.isprintable()
    assert CANARY not in line


async def logged(app: Any, request: bytes) -> tuple[dict[str, Any], Edge]:
    async with serving(app) as edge:
        with logged_requests() as entries:
            peer = await edge.connect()
            await peer.send(request)
            await peer.rest()
            peer.close()
            await until_no_connection(edge)
    assert len(entries) == 1
    return entries[0], edge


async def test_a_request_is_logged_with_what_an_operator_needs() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await respond(send, b"hello", 206, ("X-Transfer-Id", "t-1"))

    request = (
        b"GET /images/1?sig=s3cret HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer s3cret\r\nConnection: close\r\n\r\n"
    )
    entry, edge = await logged(app, request)
    assert {key: entry[key] for key in ("method", "path", "status", "complete", "bytes", "client", "transfer_id")} == {
        "method": "GET",
        "path": "/images/1?sig=***",
        "status": 206,
        "complete": True,
        "bytes": 5,
        "client": "127.0.0.1",
        "transfer_id": "t-1",
    }
    assert len(entry["request_id"]) == 16
    assert entry["duration"] >= 0
    assert "s3cret" not in repr(entry)
    assert b'visor_http_requests_total{method="GET",status="206"} 1.0' in edge.metrics.exposition()
    assert b"duration_seconds_count" not in edge.metrics.exposition()  # image bytes are no part of this histogram


async def test_a_refused_head_is_logged() -> None:
    entry, edge = await logged(hello, LAST_GET.replace(b"Host: h", b"X: 1"))
    assert (entry["method"], entry["path"], entry["status"], entry["bytes"]) == ("GET", "/", 400, 0)
    assert b'visor_http_requests_total{method="GET",status="400"} 1.0' in edge.metrics.exposition()


async def test_methods_that_clients_make_up_share_one_label() -> None:
    entry, edge = await logged(hello, LAST_GET.replace(b"GET", b"BREW"))
    assert entry["method"] == "BREW"
    assert b'visor_http_requests_total{method="other",status="200"} 1.0' in edge.metrics.exposition()


async def test_a_request_that_was_never_answered_is_logged_as_such() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        scope["state"]["connection"].reset()
        await read_body(receive)

    entry, edge = await logged(app, GET)
    assert (entry["status"], entry["complete"]) == (None, False)
    assert b'visor_http_requests_total{method="GET",status="none"} 1.0' in edge.metrics.exposition()


async def test_connections_are_counted() -> None:
    async with serving(hello) as edge:
        peer = await edge.connect()
        await peer.send(GET)
        await peer.answer()
        assert b"visor_connections 1.0" in edge.metrics.exposition()
        assert b"visor_connections_accepted_total 1.0" in edge.metrics.exposition()
    assert b"visor_connections 0.0" in edge.metrics.exposition()
