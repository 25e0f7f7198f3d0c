"""URLs are taken apart strictly."""

from __future__ import annotations

import pytest

from visor_gateway.outbound import BadTarget
from visor_gateway.outbound.target import parse


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "authority"),
    [
        ("http://Images.Example", "images.example", 80, "/", "images.example"),
        ("https://images.example:443/a%20b?x=1&y#part", "images.example", 443, "/a%20b?x=1&y", "images.example"),
        ("http://images.example:8080?x", "images.example", 8080, "/?x", "images.example:8080"),
        ("http://[2A00:1450::1]:81/", "2a00:1450::1", 81, "/", "[2a00:1450::1]:81"),
        ("http://127.1/", "127.1", 80, "/", "127.1"),
    ],
)
def test_a_url_is_taken_apart(url: str, host: str, port: int, path: str, authority: str) -> None:
    target = parse(url)
    assert (target.host, target.port, target.path, target.authority) == (host, port, path, authority)


@pytest.mark.parametrize(
    "url",
    [
        "", "/image", "//images.example/x", "file:///etc/passwd", "gopher://images.example/", "http:///x", "http://",
        "http://user@images.example/", "http://user:key@images.example/", "http://images.example\\@127.0.0.1/",
        "http://images.example:0/", "http://images.example:65536/", "http://images.example:x/", "http://a b/",
        "http://images.example/a b", "http://images.example/\r\nX: y", "http://images.exam\tple/", " http://a/",
        "http://images.example/\x7f", "http://im\u00e4ges.example/", "http://%6c%6fcalhost/", "http://[::1",
        "http://[fe80::1%25eth0]/", "http://[v1.x]/", "http://a,b/", "http://a$b/", "http://" + "a" * 254 + "/",
    ],
)  # fmt: skip
def test_what_two_parsers_could_read_differently_is_refused(url: str) -> None:
    with pytest.raises(BadTarget):
        parse(url)


@pytest.mark.parametrize(
    ("location", "url"),
    [
        (b"/b", "http://images.example/b"),
        (b"b?x", "http://images.example/dir/b?x"),
        (b"//other.example/b", "http://other.example/b"),
        (b"https://other.example/b", "https://other.example/b"),
        (b"/\xc3\xa4 b", "http://images.example/%C3%A4%20b"),
    ],
)
def test_a_redirect_is_relative_to_where_it_came_from(location: bytes, url: str) -> None:
    assert parse("http://images.example/dir/a").redirected(location).url == url


@pytest.mark.parametrize("location", [b"file:///etc/passwd", b"http://user:key@a/", b"http://[::1", b"javascript:x"])
def test_a_redirect_to_no_http_url_is_refused(location: bytes) -> None:
    with pytest.raises(BadTarget):
        parse("http://images.example/").redirected(location)
