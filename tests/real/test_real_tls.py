"""HTTPS from files."""

from __future__ import annotations

import contextlib
import random
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from gateway_process import Gateway, running
from wire import Client, Reset, Short, Stored, Wire, store_image

SIZE = 12 << 20


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="module")
def gateway(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("tls")
    certificate = ca.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(str(directory / "cert.pem"), append=number > 0)
    config = f'[server]\ntls_certificate = "{directory}/cert.pem"\ntls_key = "{directory}/key.pem"\n'
    context = ssl.create_default_context()
    ca.configure_trust(context)
    with running(directory, config=config, tls=context) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def image(gateway: Gateway) -> Stored:
    return store_image(gateway.admin, random.Random(4).randbytes(SIZE))


def test_uris_of_a_tls_gateway_are_https(gateway, image) -> None:
    assert gateway.url.startswith("https://")
    assert image.record["uri"] == f"{gateway.url}{image.path}"
    assert f'url = "{gateway.url}"' in (gateway.data_dir / "admin.toml").read_text()


def test_bytes_come_whole_over_tls(gateway, image) -> None:
    answer = gateway.admin.get(image.path)
    assert answer.body == image.data
    assert gateway.admin.get(image.path, ("Range", "bytes=5000000-5000099")).body == image.data[5000000:5000100]


def test_curl_pulls_and_resumes_over_tls(run, gateway, authorization, image, ca_file, tmp_path: Path) -> None:
    target = tmp_path / "a"
    curl = ("curl", "-fsS", "--cacert", ca_file, "-H", authorization, "-o", target)
    run(*curl, gateway.url + image.path)
    assert target.read_bytes() == image.data
    target.write_bytes(image.data[:1_000_000])
    run(*curl, "-C", "-", gateway.url + image.path)
    assert target.read_bytes() == image.data


def test_a_client_that_prefers_http2_is_served_by_http_1_1(run, gateway, ca_file) -> None:
    done = run("curl", "-fsS", "--http2", "--cacert", ca_file, "-w", "%{http_version}", gateway.url + "/status")
    assert done.stdout == b"OK1.1"


def test_curl_uploads_over_tls(run, gateway, authorization, ca_file, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(random.Random(5).randbytes(2 << 20))
    headers = []
    for header in ("X-Image-Meta-Name: n", "X-Image-Meta-Architecture: i386", "Content-Type: application/octet-stream"):
        headers += ["-H", header]
    done = run(
        "curl", "-fsS", "-X", "POST", "--cacert", ca_file, "-H", authorization, *headers, "-T", tmp_path / "a",
        f"{gateway.url}/images",
    )  # fmt: skip
    assert f'"size":{2 << 20}'.encode() in done.stdout.replace(b" ", b"")


def test_a_cancelled_pull_over_tls_never_looks_whole(gateway, image) -> None:

    with gateway.admin.start("GET", image.path, receive_buffer=65536) as wire:
        head = wire.read_head()
        wire.read_exactly(1000)
        assert gateway.admin.delete(f"/transfers/{head.header('x-transfer-id')}").status == 200
        with pytest.raises((Reset, Short, ssl.SSLError)):
            wire.read_exactly(SIZE - 1000)


def test_plain_http_on_a_tls_port_harms_nobody(gateway, image) -> None:

    with contextlib.suppress(Reset, Short, ConnectionError):
        Client(gateway.url).get("/status")
    assert gateway.admin.get(image.path).body == image.data


def test_a_client_that_never_shakes_hands_harms_nobody(gateway, image) -> None:

    with Wire(gateway.url) as silent, Wire(gateway.url) as garbage:
        garbage.send(b"\x16\x03\x01" + b"\xff" * 500)
        assert gateway.admin.get("/status").body == b"OK"
        assert silent.quiet_for(0.1)
