"""The daemon with its records at a VISOR Meta server, which others write to, and which goes away and comes back."""

from __future__ import annotations

import socket

import pytest
from gateway_process import launch, running
from servers.visor_http import opened
from servers.visor_meta import MetaServer
from wire import eventually, store_image

CONFIG = """
[auth]
anonymous_pull = true
"""


@pytest.fixture
def server():
    with opened(MetaServer) as server:
        yield server


@pytest.fixture
def environment(server):
    return {"VISOR_GATEWAY__METADATA__URL": server.url}


@pytest.fixture
def gateway(tmp_path, environment):
    with running(tmp_path, config=CONFIG, environment=environment, workers=1) as gateway:
        yield gateway


def test_images_are_shared_with_the_servers_other_clients(gateway, server) -> None:
    data = b"hello image" * 1000
    stored = store_image(gateway.admin, data=data, name="ours")
    eventually(lambda: server.images()["ours"]["status"] == "available", 60, "the server is told")
    row = server.images()["ours"]
    assert (row["owner"], row["size"]) == (gateway.access_key, len(data))
    assert gateway.client().get(stored.path).body == data
    server.add(name="theirs", owner="bob")
    server.change("ours", name="renamed")
    eventually(lambda: gateway.client().get("/images?name=renamed").status == 200, 60, "the change is seen")
    eventually(lambda: gateway.client().get("/images?name=theirs").status == 200, 60, "the image is seen")
    assert gateway.admin.request("DELETE", stored.path).status == 200
    eventually(lambda: list(server.images()) == ["theirs"], 60, "the server is told")


def test_a_location_that_others_write_leads_neither_to_files_nor_into_the_network(gateway, server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as private:
        private.setblocking(False)
        lies = {
            "file": "file:///etc/passwd",
            "metadata": "http://169.254.169.254/latest/meta-data/",
            "loopback": f"http://127.0.0.1:{private.getsockname()[1]}/secret",
        }
        for name, location in lies.items():
            image_id = server.add(name=name, owner="bob", status="available", store="http", location=location, size=5)
            for method in ("GET", "HEAD"):
                answer = gateway.client().request(method, f"/images/{image_id}")
                assert answer.status in {404, 409, 502, 503} or (method == "HEAD" and answer.status == 200)
                assert b"root:" not in answer.body
        with pytest.raises(BlockingIOError):
            private.accept()


def test_pulls_go_on_while_the_server_is_away_and_changes_wait_for_it(gateway, server) -> None:
    stored = store_image(gateway.admin, data=b"x" * 5000)
    server.close()
    assert gateway.client().get(stored.path).body == b"x" * 5000
    eventually(lambda: gateway.admin.add(b"more", name="more").status == 503, 60, "a change is refused")
    eventually(lambda: gateway.client().get("/ready").status == 503, 60, "it is noticed")
    assert gateway.client().get(stored.path).body == b"x" * 5000
    server.reopen()
    eventually(lambda: gateway.client().get("/ready").status == 200, 60, "ready again")
    assert gateway.admin.add(b"more", name="more").status == 200


def test_a_second_gateway_on_the_same_catalogue_is_refused_at_start(gateway, tmp_path, environment) -> None:
    with pytest.raises(AssertionError, match=r"\[metadata\] url: expected a catalogue without another gateway"):
        launch(tmp_path / "second", config=CONFIG, environment=environment, workers=1)
    assert gateway.admin.add(b"more", name="more").status == 200


def test_several_workers_are_refused(tmp_path, environment) -> None:
    with pytest.raises(AssertionError, match="WORKERS: expected 1 with a VISOR Meta server"):
        launch(tmp_path / "many", environment=environment, workers=2)
