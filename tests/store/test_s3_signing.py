"""Requests signed by botocore's signers, and that no key or signature is ever said."""

from __future__ import annotations

import logging
import sys

import pytest

from visor_gateway.errors import ConfigError
from visor_gateway.store.s3_signing import EMPTY_SHA256, UNSIGNED, Signer

URL = "http://s3.example:8333/bucket/key?uploads"


def test_version_4_signs_the_digest_of_the_body_or_that_it_is_not_signed() -> None:
    signer = Signer("v4", "AKID", "secret", "eu-west-1")
    for digest in (EMPTY_SHA256, UNSIGNED, "ab" * 32):
        headers = signer.sign("PUT", URL, {"If-None-Match": "*"}, digest)
        assert headers["X-Amz-Content-SHA256"] == digest
        assert headers["If-None-Match"] == "*"
        assert "/eu-west-1/s3/aws4_request" in headers["Authorization"]
        assert "host;if-none-match;" in headers["Authorization"]


def test_version_2_signs_the_date() -> None:
    headers = Signer("v2", "AKID", "secret", "").sign("GET", URL, {})
    assert headers["Authorization"].startswith("AWS AKID:")
    assert headers["Date"].endswith("GMT")


def test_the_same_request_is_signed_anew_each_time() -> None:
    signer = Signer("v4", "AKID", "secret", "eu-west-1")
    first = signer.sign("GET", URL, {})
    assert set(signer.sign("GET", URL, dict(first))) == set(first)


def test_nothing_of_a_signature_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for version in ("v2", "v4"):
            Signer(version, "AKID", "secret", "eu-west-1").sign("GET", URL, {})  # type: ignore[arg-type]
    assert caplog.records == []


def test_a_missing_extra_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.auth", None)
    with pytest.raises(ConfigError, match=r"visor-gateway\[s3\]") as raised:
        Signer("v4", "AKID", "secret", "eu-west-1")
    assert "\n" not in raised.value.message
