"""Exchanges that never end, or break: each answers a request in place of a server of `visor_http`."""

from __future__ import annotations

import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Final


def endless(request: BaseHTTPRequestHandler) -> bool:
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    try:
        while True:
            request.wfile.write(b"400\r\n" + b" " * 1024 + b"\r\n")
    except OSError:
        return True


def dripping(request: BaseHTTPRequestHandler) -> bool:
    request.send_response(200)
    request.send_header("Content-Length", "60000")
    request.end_headers()
    try:
        while True:
            request.wfile.write(b" ")
            request.wfile.flush()
            time.sleep(0.01)
    except OSError:
        return True


def dripping_head(request: BaseHTTPRequestHandler) -> bool:
    try:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nx: y")
        while True:
            request.wfile.write(b"y")
            request.wfile.flush()
            time.sleep(0.01)
    except OSError:
        return True


def cut(request: BaseHTTPRequestHandler) -> bool:
    request.send_response(200)
    request.send_header("Content-Length", "60000")
    request.end_headers()
    request.wfile.write(b'{"image":')
    return True


def unframed(request: BaseHTTPRequestHandler) -> bool:
    request.wfile.write(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"images":[]}')
    return True


def redirecting(request: BaseHTTPRequestHandler) -> bool:
    request.send_response(302)
    request.send_header("Location", "http://127.0.0.1:1/")
    request.send_header("Content-Length", "0")
    request.end_headers()
    return True


def no_http(request: BaseHTTPRequestHandler) -> bool:
    request.wfile.write(b"SSH-2.0-x\r\n")
    return True


BROKEN: Final[tuple[Callable[[BaseHTTPRequestHandler], bool], ...]] = (
    endless, dripping, dripping_head, cut, unframed, redirecting, no_http,
)  # fmt: skip
