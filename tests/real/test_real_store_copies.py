"""Copies between a real S3 and a real HDFS, and pulls that go over from one to the other where the first one fails."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import store_places
from gateway_process import Gateway, running
from servers import seaweedfs
from servers.hdfs import Hdfs
from servers.s3_service import S3Service
from store_places import Place
from wire import Client, Wire, eventually

MIB = 1 << 20
#: More than kernels and gateway hold on the way to a client that has stopped reading.
CONTENT = random.Random(9).randbytes(64 * MIB)
ENDED = ("finished", "failed", "cancelled")
STORES = ("s3", "hdfs")

# Two servers and a gateway start, and all of it shares one machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def weed() -> Iterator[S3Service]:
    service = seaweedfs.start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def places(weed: S3Service, hdfs_server: Hdfs) -> dict[str, Place]:
    return {"s3": store_places.s3("s3", weed), "hdfs": store_places.hdfs(hdfs_server)}


@pytest.fixture(scope="module")
def gateway(places: dict[str, Place], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    configuration = "".join(place.configuration for place in places.values())
    with running(tmp_path_factory.mktemp("copies"), config=configuration) as gateway:
        yield gateway


def shown(client: Client, transfer: str) -> dict[str, Any]:
    return client.get(f"/transfers/{transfer}").json()["transfer"]  # type: ignore[no-any-return]


def begin_copy(client: Client, image: str, store: str) -> str:
    answer = client.send_json("POST", f"{image}/copies", {"store": store})
    assert answer.status == 202, answer.body
    return str(answer.json()["transfer"]["id"])


def copy(client: Client, image: str, store: str) -> None:
    transfer = begin_copy(client, image, store)
    eventually(lambda: shown(client, transfer)["state"] in ENDED, what="the copy has ended")
    assert shown(client, transfer)["state"] == "finished", shown(client, transfer)


def locations(client: Client, image: str) -> list[tuple[str, str]]:
    return [(one["store"], one["status"]) for one in client.get(f"{image}/copies").json()["copies"]]


def in_both(client: Client, first: str) -> str:
    """The path of an image in both stores, which is read from `first`."""
    image = f"/images/{client.add(CONTENT, store=first).image['_id']}"
    (second,) = set(STORES) - {first}
    copy(client, image, second)
    assert locations(client, image) == [(first, "available"), (second, "available")]
    return image


def begin_pull(client: Client, image: str) -> tuple[Wire, str]:
    """A pull whose client has read nothing but the head."""
    transfer = str(uuid.uuid4())
    wire = client.start("GET", image, [("X-Transfer-Id", transfer)], timeout=60, receive_buffer=65536)
    assert wire.read_head().status == 200
    return wire, transfer


def test_an_image_goes_from_store_to_store_and_stays_the_same(gateway: Gateway, places: dict[str, Place]) -> None:
    client, content = gateway.admin, CONTENT[: 20 * MIB]
    image = f"/images/{client.add(content).image['_id']}"
    for store in STORES:
        copy(client, image, store)
    for store in ("file", "s3"):
        assert client.delete(f"{image}/copies/{store}").status == 200
        assert client.get(image).body == content
    assert locations(client, image) == [("hdfs", "available")]
    assert places["s3"].left() == []
    copy(client, image, "file")
    assert client.delete(f"{image}/copies/hdfs").status == 200
    assert client.get(image).body == content
    copy(client, image, "hdfs")
    assert client.delete(f"{image}/copies/file").status == 200
    copy(client, image, "s3")
    assert client.delete(f"{image}/copies/hdfs").status == 200
    assert places["hdfs"].left() == []
    part = client.get(image, ("Range", "bytes=9000000-9000099"))
    assert (part.status, part.body) == (206, content[9_000_000:9_000_100])
    assert client.get(image).body == content
    copy(client, image, "file")
    assert client.delete(f"{image}/copies/s3").status == 200
    assert places["s3"].left() == []
    assert client.get(image).body == content
    assert client.delete(image).status == 200


def test_a_pull_goes_over_from_a_dead_datanode_to_s3(
    gateway: Gateway, hdfs_server: Hdfs, places: dict[str, Place]
) -> None:
    client = gateway.admin
    image = in_both(client, "hdfs")
    wire, transfer = begin_pull(client, image)
    with wire:
        hdfs_server.kill_datanode()
        try:
            assert wire.read_exactly(len(CONTENT)) == CONTENT
            assert shown(client, transfer)["attempt"] > 1
            assert client.get(image).body == CONTENT
        finally:
            hdfs_server.start_datanode()
    assert client.delete(image).status == 200
    assert places["hdfs"].left() == places["s3"].left() == []


@pytest.mark.parametrize("store", STORES)
def test_a_pull_goes_over_when_the_copy_that_it_reads_is_removed(
    gateway: Gateway, places: dict[str, Place], store: str
) -> None:
    client = gateway.admin
    image = in_both(client, store)
    wire, _ = begin_pull(client, image)
    with wire:
        assert client.delete(f"{image}/copies/{store}").status == 200
        assert wire.read_exactly(len(CONTENT)) == CONTENT
    assert places[store].left() == []
    assert client.delete(image).status == 200


@pytest.mark.parametrize("store", STORES)
def test_a_copy_that_is_cancelled_leaves_nothing(gateway: Gateway, places: dict[str, Place], store: str) -> None:
    client = gateway.admin
    image = f"/images/{client.add(CONTENT).image['_id']}"
    assert client.send_json("PATCH", "/limits", {"limit_bytes_per_s": 2 * MIB}).status == 200
    transfer = begin_copy(client, image, store)
    eventually(lambda: places[store].left() != [], what="something was written")
    assert client.delete(f"/transfers/{transfer}").status == 200
    eventually(lambda: shown(client, transfer)["state"] in ENDED, what="the copy has ended")
    assert shown(client, transfer)["state"] == "cancelled"
    eventually(lambda: places[store].left() == [], what="nothing is left")
    assert locations(client, image) == [("file", "available")]
    assert client.send_json("PATCH", "/limits", {"limit_bytes_per_s": None}).status == 200
    copy(client, image, store)
    assert client.delete(image).status == 200
    assert places[store].left() == []


def test_a_pull_goes_over_from_a_dead_s3_to_hdfs(gateway: Gateway, weed: S3Service) -> None:
    """The last of this file: the server does not come back."""
    client = gateway.admin
    image = in_both(client, "s3")
    wire, transfer = begin_pull(client, image)
    with wire:
        weed.stop()
        assert wire.read_exactly(len(CONTENT)) == CONTENT
    assert shown(client, transfer)["attempt"] > 1
    assert client.get(image).body == CONTENT  # which can't even begin there
    part = client.get(image, ("Range", "bytes=9000000-9000099"))
    assert (part.status, part.body) == (206, CONTENT[9_000_000:9_000_100])
    # What it has in the dead store is removed when that is back; the request does not wait for it.
    assert client.delete(image).status == 200
