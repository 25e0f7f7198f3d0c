"""The daemon with references to a real nginx, plain and over TLS: pulls, ranges, imports, an origin that goes away."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_process import Gateway, launch
from servers import nginx_origin
from wire import eventually

DATA = os.urandom(5 << 20)


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[nginx_origin.NginxOrigin]:
    with nginx_origin.serving(tmp_path / "nginx", "disk.img", DATA) as running:
        yield running


@pytest.fixture
def begin(start: Callable[..., Gateway], origin: nginx_origin.NginxOrigin) -> Callable[..., Gateway]:
    """Start a gateway that trusts the origin's authority."""

    def begun(more: str = "") -> Gateway:
        config = f"[locations]\ndeny_private = false\n{more}"
        return start(config, environment={"SSL_CERT_FILE": str(origin.directory / "authority.pem")})

    return begun


@pytest.mark.parametrize("verify", ["true", "false"])
def test_references_are_pulled_whole_and_in_parts(
    begin: Callable[..., Gateway], origin: nginx_origin.NginxOrigin, verify: str
) -> None:
    gateway = begin(f"[stores]\nverify_direct_pulls = {verify}\n")
    for url in (origin.url, origin.tls_url):
        image = gateway.admin.add(store="http", location=f"{url}/disk.img").image
        path = f"/images/{image['_id']}"
        assert image["size"] == len(DATA)
        for _ in range(2):  # the first one pins the digest
            assert gateway.admin.get(path).body == DATA
        assert gateway.admin.get(path).header("etag") == f'"{hashlib.sha256(DATA).hexdigest()}"'
        part = gateway.admin.get(path, ("Range", "bytes=100-4000000"))
        assert (part.status, part.body) == (206, DATA[100:4_000_001])


@pytest.mark.parametrize("query", ["X-Amz-Signature=4f3a9c", "AWSAccessKeyId=AK&Signature=c2ln%3D", "s%69g=s3cret"])
def test_a_location_with_a_signature_is_fetched_and_never_shown(
    begin: Callable[..., Gateway], origin: nginx_origin.NginxOrigin, query: str
) -> None:
    gateway = begin()
    location = f"{origin.url}/disk.img?{query}"
    refused = gateway.admin.add(store="http", location=location)
    assert (refused.status, "credentials" in refused.message) == (400, True)
    image = gateway.admin.add(store="file", location=location).image
    eventually(lambda: gateway.admin.record(image["_id"])["status"] == "available")
    assert gateway.admin.get(f"/images/{image['_id']}").body == DATA
    value = query.rpartition("=")[2]
    seen = [gateway.admin.get(path).body.decode() for path in ("/images/detail", "/transfers", "/metrics")]
    assert value not in "".join([*seen, gateway.logged()])


def test_an_origin_that_changed_is_502(begin: Callable[..., Gateway], origin: nginx_origin.NginxOrigin) -> None:
    gateway = begin()
    image = gateway.admin.add(store="http", location=f"{origin.url}/disk.img").image
    origin.put("disk.img", DATA[:-1])
    assert gateway.admin.get(f"/images/{image['_id']}").status == 502


@pytest.mark.parametrize("scheme", ["url", "tls_url"])
def test_an_import_goes_on_where_the_origin_went_away(
    begin: Callable[..., Gateway], origin: nginx_origin.NginxOrigin, scheme: str
) -> None:
    large = DATA * 6  # more than both ends' sockets hold
    origin.put("large.img", large)
    gateway = begin("[limits]\nbytes_per_s_per_transfer = 2000000\n")
    image = gateway.admin.add(store="file", location=f"{getattr(origin, scheme)}/large.img").image

    def begun() -> str:
        (found,) = gateway.admin.get(f"/transfers?image={image['_id']}").json()["transfers"] or [{"bytes": 0}]
        return str(found["id"]) if found["bytes"] else ""

    id = eventually(begun)

    def transfer() -> dict[str, Any]:
        found: dict[str, Any] = gateway.admin.get(f"/transfers/{id}").json()["transfer"]
        return found

    origin.stop()
    assert gateway.admin.send_json("PATCH", f"/transfers/{id}", {"limit_bytes_per_s": 1 << 30}).status == 200
    eventually(lambda: transfer()["attempt"] > 2, what="an outage, not only a reconnect")
    origin.start()
    record = eventually(lambda: (r := gateway.admin.record(image["_id"]))["status"] == "available" and r)
    assert record["checksum"] == hashlib.sha256(large).hexdigest()
    assert gateway.admin.get(f"/images/{image['_id']}").body == large
    eventually(lambda: transfer()["state"] == "finished")


def test_a_crash_while_an_import_is_queued_leaves_an_image_that_can_be_assigned(
    origin: nginx_origin.NginxOrigin, tmp_path: Path
) -> None:
    config = "[locations]\ndeny_private = false\n[limits]\ntransfers = 1\nbytes_per_s_per_transfer = 100000\n"
    gateway = launch(tmp_path / "crashing", config=config)
    try:
        running = gateway.admin.add(store="file", location=f"{origin.url}/disk.img").image
        queued = gateway.admin.add(store="file", location=f"{origin.url}/disk.img").image
        eventually(lambda: gateway.admin.record(running["_id"])["status"] == "uploading")
        assert gateway.admin.record(queued["_id"])["status"] == "locked"
    finally:
        gateway.kill()
    gateway = launch(tmp_path / "crashing", config="[locations]\ndeny_private = false\n")
    try:
        for image in (running, queued):
            assert gateway.admin.record(image["_id"])["status"] == "error"
        again = gateway.admin.put(queued["_id"], store="file", location=f"{origin.url}/disk.img")
        assert again.status == 200
        eventually(lambda: gateway.admin.record(queued["_id"])["status"] == "available")
        assert gateway.admin.get(f"/images/{queued['_id']}").body == DATA
    finally:
        assert gateway.stop() == 0
