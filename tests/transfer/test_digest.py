"""Digests that clients send (RFC 9530, RFC 1864)."""

from __future__ import annotations

import hashlib
from base64 import b64encode

import pytest

from visor_gateway.errors import DigestMismatch, InvalidRequest
from visor_gateway.transfer.digest import Digests, expected_digests, repr_digest

DATA = b"some bytes"


def field(name: str, algorithm: str, data: bytes = DATA) -> bytes:
    return f"{name}=:{b64encode(hashlib.new(algorithm, data).digest()).decode()}:".encode()


@pytest.mark.parametrize("header", [b"Repr-Digest", b"content-digest"])
def test_known_algorithms_are_taken_and_others_ignored(header: bytes) -> None:
    value = b", ".join((field("sha-256", "sha256"), field("SHA-512", "sha512"), b"unixsum=:AAAA:", field("md5", "md5")))
    assert expected_digests([(header, value)]) == {
        name: hashlib.new(name, DATA).digest() for name in ("sha256", "sha512", "md5")
    }


def test_content_md5_is_plain_base64() -> None:
    assert expected_digests([(b"content-md5", b64encode(hashlib.md5(DATA).digest()))]) == {
        "md5": hashlib.md5(DATA).digest()
    }


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-md5", b"not base64!")],
        [(b"content-md5", b"AAAA")],
        [(b"repr-digest", b"sha-256=AAAA")],
        [(b"repr-digest", b"sha-256=:AAAA:")],
        [(b"repr-digest", b"sha-256")],
        [(b"repr-digest", b"sha-256=:")],
        [(b"repr-digest", field("sha-256", "sha256")), (b"content-digest", field("sha-256", "sha256", b"other"))],
    ],
)
def test_what_is_malformed_or_contradicts_itself_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(InvalidRequest):
        expected_digests(headers)


@pytest.mark.parametrize("size", [10, 100_000])
async def test_all_digests_are_of_all_bytes_in_order(size: int) -> None:
    digests = Digests(["sha256", "md5"])
    await digests.update(b"a" * size)
    await digests.update(memoryview(b"b" * size))
    whole = b"a" * size + b"b" * size
    assert digests.hex("sha256") == hashlib.sha256(whole).hexdigest()
    digests.check({"md5": hashlib.md5(whole).digest()})
    with pytest.raises(DigestMismatch, match="sha256"):
        digests.check({"sha256": b"\0" * 32})


def test_the_answer_names_the_digest_in_base64() -> None:
    raw = hashlib.sha256(DATA)
    assert repr_digest(raw.hexdigest()).encode() == field("sha-256", "sha256")
