"""Signatures against exchanges recorded with the original servers, and against an independent reading of the text."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visor_gateway import signature
from visor_gateway.errors import InvalidRequest

FOO_SECRET = "2nBHth08Q27IiBtjpA50R93K6xWfnBINTvrrMToF"
DATE = (b"Date", b"Sun, 22 Nov 2026 10:09:46 GMT")
LATER = (b"Date", b"Sun, 22 Nov 2026 10:09:47 GMT")
NONCE = (b"X-Visor-Nonce", b"0123456789abcdef")

RECORDED = [
    ("GET", b"/images", [DATE], "QJVxWvhVRmFdWsx0Dv59SBWLGgQ="),
    (
        "POST",
        b"/images",
        [
            (b"x-image-meta-name", b"meta only"),
            (b"x-image-meta-architecture", b"i386"),
            DATE,
            (b"Content-Length", b"0"),
        ],
        "zRXN54wJOdMhS9plcYXUydB1WVI=",
    ),
    (
        "POST",
        b"/images",
        [
            (b"x-image-meta-name", b"with bytes"),
            (b"x-image-meta-architecture", b"x86_64"),
            (b"x-image-meta-format", b"iso"),
            (b"x-image-meta-store", b"file"),
            (b"Content-Type", b"application/octet-stream"),
            DATE,
        ],
        "cIVjalhzbvOJQtgr1mvzuONeEAo=",
    ),
    ("GET", b"/images?architecture=x86_64", [LATER], "WLIuKNyjd1FRwMGTOq1jV3Wac8Q="),
    ("HEAD", b"/images/0da751f8-2039-495d-8567-8cc291f9d72a", [LATER], "u0yUVFmzOUyIY4ZlJmXArfEn7eQ="),
    ("DELETE", b"/images/0da751f8-2039-495d-8567-8cc291f9d72a", [LATER], "QyNUJrPM4VJgPRYwKtIKEoWYwVI="),
]


@pytest.mark.parametrize(("method", "target", "headers", "expected"), RECORDED)
def test_signatures_of_the_original_clients_are_reproduced(
    method: str, target: bytes, headers: list[tuple[bytes, bytes]], expected: str
) -> None:
    value = signature.authorization(signature.SHA1, method, target, headers, "foo", FOO_SECRET)
    assert value == f"VISOR foo:{expected}"


def hmac_sha256(text: bytes) -> str:
    return base64.b64encode(hmac.new(b"secret", text, hashlib.sha256).digest()).decode()


def test_the_newer_scheme_signs_digest_nonce_and_sorted_query() -> None:
    headers = [
        DATE,
        NONCE,
        (b"Content-Digest", b"sha-256=:x:"),
        (b"X-Image-Meta-Name", b" n "),
        (b"content-type", b"t"),
    ]
    text = (
        b"PUT\nsha-256=:x:\n\nt\nSun, 22 Nov 2026 10:09:46 GMT\nx-image-meta-name:n\n0123456789abcdef\n/a%20b?a=1&b=2"
    )
    value = signature.authorization(signature.SHA256, "PUT", b"/a%20b?b=2&a=1", headers, "k", "secret")
    assert value == f"VISOR-HMAC-SHA256 k:{hmac_sha256(text)}"


def test_x_visor_date_stands_in_for_date_in_the_newer_scheme_only() -> None:
    both = [DATE, (b"X-Visor-Date", LATER[1])]
    assert LATER[1] in signature.canonical_text(signature.SHA256, "GET", b"/", both)
    assert DATE[1] in signature.canonical_text(signature.SHA1, "GET", b"/", both)


@pytest.mark.parametrize("line", [b"\n", b""])
def test_a_request_without_nonce_may_sign_an_empty_line_or_none(line: bytes) -> None:
    text = b"GET\n\n\n\n" + DATE[1] + b"\n" + line + b"/images"
    credentials = signature.Credentials(signature.SHA256, "k", hmac_sha256(text))
    assert signature.verify(credentials, "GET", b"/images", [DATE], "secret")


@pytest.mark.parametrize(
    "change",
    [
        ("PUT", b"/images", [DATE, NONCE]),
        ("POST", b"/images/", [DATE, NONCE]),
        ("POST", b"/images?x=1", [DATE, NONCE]),
        ("POST", b"/images", [LATER, NONCE]),
        ("POST", b"/images", [DATE, (b"X-Visor-Nonce", b"0123456789abcdeF")]),
        ("POST", b"/images", [DATE, NONCE, (b"x-image-meta-access", b"public")]),
        ("POST", b"/images", [DATE, NONCE, (b"content-digest", b"sha-256=:x:")]),
    ],
)
def test_a_signature_covers_every_part_of_the_request(change: tuple[str, bytes, list[tuple[bytes, bytes]]]) -> None:
    value = signature.authorization(signature.SHA256, "POST", b"/images", [DATE, NONCE], "k", "secret")
    credentials = signature.parse(value)
    assert credentials is not None
    assert signature.verify(credentials, "POST", b"/images", [DATE, NONCE], "secret")
    assert not signature.verify(credentials, *change, "secret")
    assert not signature.verify(credentials, "POST", b"/images", [DATE, NONCE], "Secret")


@pytest.mark.parametrize("name", [b"Date", b"x-visor-nonce", b"Content-MD5", b"x-image-meta-name", b"Authorization"])
def test_a_signed_header_sent_twice_is_refused(name: bytes) -> None:
    with pytest.raises(InvalidRequest, match=name.decode().lower()):
        signature.canonical_text(signature.SHA256, "GET", b"/", [(name, b"a"), (name.upper(), b"b")])


@pytest.mark.parametrize(
    "value", ["", "VISOR", "VISOR foo", "VISOR :sig", "VISOR foo:", "Basic foo:bar", "visor foo:b"]
)
def test_malformed_credentials_are_none(value: str) -> None:
    assert signature.parse(value) is None


@given(
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
    path=st.binary(max_size=20).map(lambda tail: b"/" + tail.replace(b"\n", b"").replace(b"?", b"")),
    values=st.dictionaries(
        st.from_regex(rb"[a-z_][a-z0-9_]{0,9}", fullmatch=True),
        st.text(max_size=20).map(lambda text: text.replace("\n", "").encode()),
        max_size=5,
    ),
    scheme=st.sampled_from([signature.SHA1, signature.SHA256]),
)
def test_what_was_signed_verifies(method: str, path: bytes, values: dict[bytes, bytes], scheme: str) -> None:
    headers = [DATE, NONCE, *((b"X-Image-Meta-" + name, value) for name, value in values.items())]
    credentials = signature.parse(signature.authorization(scheme, method, path, headers, "a:b", "s"))
    assert credentials is not None
    assert credentials.access_key == "a:b"
    assert signature.verify(credentials, method, path, list(reversed(headers)), "s")


@pytest.mark.parametrize("value", [b"", b"yesterday", b"Sun, 99 Nov 2026 10:09:46 GMT", b"\xff"])
def test_what_is_no_http_date_has_no_time(value: bytes) -> None:
    assert signature.date_seconds(value) is None


def test_a_link_is_bound_to_image_issuer_and_expiry() -> None:
    made = signature.link_signature("s", "image", "key", 100)
    others = [
        ("t", "image", "key", 100),
        ("s", "other", "key", 100),
        ("s", "image", "kez", 100),
        ("s", "image", "key", 101),
    ]
    assert all(signature.link_signature(*other) != made for other in others)
