"""The examples of docs/loadbalancer before three gateways on one PostgreSQL and one S3."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from gateway_cluster import address, members
from gateway_process import STOP_SECONDS, Gateway
from live import subscribed
from servers import haproxy, nginx_front
from wire import OCTETS, Client, eventually, meta, store_image, unique

FRONTS = {"haproxy": haproxy.start, "nginx": nginx_front.start}


class Balanced:
    """Gateways, and clients of them through each load balancer."""

    def __init__(self, gateways: list[Gateway], urls: dict[str, str]) -> None:
        self.gateways = gateways
        self._urls = urls

    def running(self) -> list[Gateway]:
        return [gateway for gateway in self.gateways if gateway.is_running()]

    def through(self, front: str) -> Client:
        first = self.gateways[0]
        return Client(self._urls[front], first.access_key, first.secret_key)


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    directory = tmp_path_factory.mktemp("balanced")
    with ExitStack() as stack:
        gateways = stack.enter_context(members(directory, 3))
        addresses = [address(gateway) for gateway in gateways]
        urls = {name: stack.enter_context(start(directory / name, addresses)) for name, start in FRONTS.items()}
        yield Balanced(gateways, urls)


@pytest.fixture(params=FRONTS)
def client(request: pytest.FixtureRequest, balanced: Balanced) -> Client:
    return balanced.through(request.param)


def test_images_go_up_and_down_by_whichever_gateway(client: Client, balanced: Balanced) -> None:
    data = bytes(range(256)) * 20_000
    image = store_image(client, data)
    # More often than there are gateways, with and without a range, at an address that is the proxy's.
    for _ in range(4):
        assert client.get(image.path).body == data
        assert client.get(image.path, ("Range", "bytes=1000-1999")).body == data[1000:2000]
    assert image.record["uri"] == client.url + image.path
    for gateway in balanced.running():
        assert gateway.admin.get(image.path).body == data
    assert client.delete(image.path).status == 200
    assert client.get(image.path).status == 404


def test_bytes_of_an_upload_reach_the_gateway_as_they_come(client: Client, balanced: Balanced) -> None:
    name = unique("slow")
    headers = [*meta(name=name, architecture="x86_64"), OCTETS, ("Transfer-Encoding", "chunked")]

    def arrived() -> bool:
        found = [
            entry for gateway in balanced.running() for entry in gateway.admin.get("/transfers").json()["transfers"]
        ]
        return any(entry["kind"] == "push" and entry["bytes"] >= 100_000 for entry in found)

    with client.start("POST", "/images", headers) as wire:
        wire.send_chunk(b"a" * 100_000)
        eventually(arrived, what="the first bytes at a gateway")
        wire.send_chunk(b"b" * 100_000)
        wire.send(b"0\r\n\r\n")
        image = wire.read_response("POST").image
    assert client.get(f"/images/{image['_id']}").body == b"a" * 100_000 + b"b" * 100_000


async def test_the_websocket_opens_and_says_what_runs(client: Client) -> None:
    async with subscribed(client) as live:
        assert (await live.next())["type"] == "hello"
        assert (await live.next())["type"] == "snapshot"


def test_events_come_without_being_held_back(client: Client) -> None:
    with client.start("GET", "/transfers/events") as wire:
        head = wire.read_head()
        assert (head.status, head.header("content-type")) == (200, "text/event-stream")
        assert b"event: hello" in wire.read_through(b"\n\n")
        assert b"event: snapshot" in wire.read_through(b"\n\n")


def test_what_a_client_says_of_proxies_is_not_believed(client: Client) -> None:
    image = store_image(client)
    lies = [("X-Forwarded-Host", "evil.example"), ("X-Forwarded-Proto", "https"), ("Forwarded", "host=evil.example")]
    assert client.get(f"/images?_id={image.id}", *lies).json()["images"][0]["uri"] == client.url + image.path
    assert Client(client.url).get("/metrics", ("X-Forwarded-For", "127.0.0.1")).status == 403


def test_a_gateway_that_stops_is_left_out_and_no_request_fails(balanced: Balanced) -> None:
    clients = [balanced.through(name) for name in FRONTS]
    image = store_image(clients[0])
    leaving = balanced.running()[-1]
    assert leaving.process
    for _ in range(2 * len(balanced.gateways)):  # so that all are known to answer
        assert [client.get(image.path).body for client in clients] == [image.data] * 2
    leaving.process.send_signal(signal.SIGTERM)
    while leaving.is_running():
        assert [client.get(image.path).body for client in clients] == [image.data] * 2
    assert leaving.process.wait(STOP_SECONDS) == 0
    for _ in range(2 * len(balanced.gateways)):
        assert [client.get(image.path).body for client in clients] == [image.data] * 2
        assert [client.add(b"after").status for client in clients] == [200] * 2
