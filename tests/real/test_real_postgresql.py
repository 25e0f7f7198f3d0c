"""The daemon with its records in PostgreSQL, which goes away and comes back while it serves."""

from __future__ import annotations

import hashlib

import pytest
from gateway_process import running
from wire import eventually, store_image

CONFIG = """
[auth]
anonymous_pull = true

[limits]
bytes_per_s_per_transfer = {rate}
"""
SIZE = 6 << 20


@pytest.fixture
def gateway(tmp_path, postgresql_of_its_own):
    environment = {"VISOR_GATEWAY__METADATA__URL": postgresql_of_its_own.url_for(tmp_path)}
    with running(tmp_path, config=CONFIG.format(rate=SIZE), environment=environment) as gateway:
        yield gateway


def test_pulls_go_on_and_public_images_stay_pullable_while_the_database_is_away(gateway, postgresql_of_its_own) -> None:
    data = bytes(range(256)) * (SIZE // 256)
    public = store_image(gateway.admin, data=data)
    token = gateway.admin.send_json("POST", f"/users/{gateway.access_key}/tokens", {"name": "ci"}).json()["token"]
    anybody, bearer = gateway.client(), ("Authorization", f"Bearer {token['token']}")
    assert anybody.get(public.path).status == 200
    assert anybody.get(public.path, bearer).status == 200
    with anybody.start("GET", public.path) as pull:
        pull.read_head()
        begun = pull.read_exactly(1 << 20)
        postgresql_of_its_own.kill()
        assert begun + pull.read_exactly(SIZE - (1 << 20)) == data
    for headers in ((), (bearer,)):
        answer = anybody.get(public.path, *headers)
        assert (answer.status, hashlib.sha256(answer.body).digest()) == (200, hashlib.sha256(data).digest())
    refused = [
        anybody.get("/images"),
        anybody.get("/images/00000000-0000-4000-8000-000000000000"),
        anybody.request("DELETE", public.path, [bearer]),
        gateway.admin.add(b"more", name="more"),
    ]
    for answer in refused:
        assert answer.status == 503, (answer.status, answer.body)
        assert answer.header("retry-after")
        assert b"postgres" not in answer.body.lower()
    assert gateway.client().get("/ready").status == 503
    postgresql_of_its_own.start()
    eventually(lambda: gateway.client().get("/ready").status == 200, 60, "ready again")
    assert gateway.admin.add(b"more", name="more").status == 200
    assert gateway.admin.get("/images").status == 200
