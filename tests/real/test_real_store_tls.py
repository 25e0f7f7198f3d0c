"""The real daemon with an S3 store over TLS: verified against the authority that the operator names, or refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway_process import Gateway
from servers import seaweedfs, tls_front
from servers.s3_service import S3Service
from wire import OCTETS, meta, unique

MIB = 1 << 20


@pytest.fixture(scope="module")
def weed() -> Iterator[S3Service]:
    service = seaweedfs.start()
    yield service
    service.stop()


def configuration(service: S3Service, endpoint: str) -> str:
    return (
        '[log]\nlevel = "debug"\n[locations]\nallow_hosts = ["localhost", "127.0.0.1"]\n'
        f'[stores.s3]\ntype = "s3"\nendpoint = "{endpoint}"\nbucket = "visor"\n'
        f'access_key = "{service.access_key}"\nsecret_key = "{service.secret_key}"\n'
    )


def trusting(directory: Path) -> dict[str, str]:
    return {"SSL_CERT_FILE": f"{directory}/authority.pem"}


def test_images_come_and_go_over_tls(weed: S3Service, start: Callable[..., Gateway], tmp_path: Path) -> None:
    content = random.Random(8).randbytes(24 * MIB + 5)
    with tls_front.start(tmp_path, weed.endpoint) as port:
        gateway = start(configuration(weed, f"https://localhost:{port}"), environment=trusting(tmp_path))
        headers = [*meta(name=unique("tls"), architecture="i386", store="s3"), OCTETS]
        with gateway.admin.start("POST", "/images", [*headers, ("Transfer-Encoding", "chunked")], timeout=60) as wire:
            for begin in range(0, len(content), MIB):
                wire.send_chunk(content[begin : begin + MIB])
            wire.send(b"0\r\n\r\n")
            image = wire.read_response().image
        assert (image["status"], image["size"]) == ("available", len(content))
        path = f"/images/{image['_id']}"
        assert gateway.admin.get(path).body == content
        part = gateway.admin.get(path, ("Range", "bytes=9000000-9000099"))
        assert (part.status, part.body) == (206, content[9_000_000:9_000_100])
        assert gateway.admin.delete(path).status == 200
        assert gateway.client().get("/ready").json()["stores"]["s3"] == "ok"


@pytest.mark.parametrize(
    ("host", "trusted", "reason"),
    [("127.0.0.1", True, "IP address mismatch"), ("localhost", False, "unable to get local issuer certificate")],
)
def test_a_certificate_that_is_not_trusted_is_refused_and_said(
    weed: S3Service, start: Callable[..., Gateway], tmp_path: Path, host: str, trusted: bool, reason: str
) -> None:
    with tls_front.start(tmp_path, weed.endpoint) as port:
        endpoint = f"https://{host}:{port}"
        gateway = start(configuration(weed, endpoint), environment=trusting(tmp_path) if trusted else {})
        answer = gateway.admin.add(b"content", store="s3")
        words = f"The store 's3' shows a certificate that is not trusted: {reason}"
        assert (answer.status, answer.message) == (503, words)
        assert gateway.client().get("/ready").json()["stores"]["s3"] == "failed"
        assert words in gateway.logged()
        # Of a location nobody is told why it is refused.
        location = f"{endpoint}/visor/"
        refused = gateway.admin.add(location=location, store="http")
        assert (refused.status, refused.message) == (404, f"No image file found at {location}")
