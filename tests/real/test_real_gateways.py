"""Several gateways on one PostgreSQL and one S3, under load, while one of them and the database die and come back."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from gateway_process import Gateway, launch
from servers import seaweedfs
from servers.postgresql import PostgreSQL
from servers.s3_service import S3Service
from store_places import s3
from wire import PATIENCE, Reset, Response, Short, eventually, unique

GATEWAYS = 3
IMAGES = 200
CLIENTS = 6


@pytest.fixture
def weed() -> Iterator[S3Service]:
    service = seaweedfs.start()
    yield service
    service.stop()


class Cluster:
    """Gateways that share records, accounts and a store."""

    def __init__(self, directory: Path, database: PostgreSQL, store: S3Service) -> None:
        self._directory = directory
        self._url = database.url_for(directory)
        self.database = database
        self._config = f'[auth]\nmaster_key_file = "{directory / "master.key"}"\n' + s3("s3", store).configuration
        self.gateways: list[Gateway] = []

    def start(self, number: int) -> Gateway:
        """Start a gateway, also again after it was killed."""
        gateway = launch(
            self._directory / str(number),
            config=self._config,
            environment={"VISOR_GATEWAY__METADATA__URL": self._url},
            beside=self.gateways[0] if self.gateways else None,
        )
        self.gateways[number : number + 1] = [gateway]
        return gateway

    def end_leases(self) -> None:
        """What waiting for the leases of gateways that are gone would do."""
        long_ago = "2000-01-01T00:00:00.000000Z"
        self.database.run(self._url.rpartition("/")[2], f"UPDATE attempts SET expires_at = '{long_ago}'")


@pytest.fixture
def cluster(tmp_path: Path, postgresql_of_its_own: PostgreSQL, weed: S3Service) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, postgresql_of_its_own, weed)
    try:
        for number in range(GATEWAYS):
            cluster.start(number)
        yield cluster
    finally:
        for gateway in cluster.gateways:
            gateway.kill()


@dataclass
class Load:
    """Clients that add, pull and delete images at random gateways, and remember what they were told.

    Attributes:
        stored: Images whose upload was acknowledged, with their bytes, and not deleted.
        doubtful: Names and ids of which nobody told the outcome: a gateway died, or could not reach the database.
        wrong: What must never be.
    """

    cluster: Cluster
    stored: dict[str, bytes] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def one(self, number: int) -> None:
        """One image's life: added at one gateway, pulled at another, and perhaps deleted at a third."""
        chosen = random.Random(number)
        data = chosen.randbytes(chosen.choice((10, 5_000, 300_000, 6_000_000)))
        name = unique("image")
        answer = self._ask(chosen, "POST", name, data)
        with self.lock:
            self.done += 1
            if answer is None or answer.status != 200:
                self.doubtful.add(name)
                return
            image_id = answer.image["_id"]
            self.stored[image_id] = data
        pulled = self._ask(chosen, "GET", image_id)
        if pulled is not None and pulled.status == 200 and pulled.body != data:
            self.wrong.append(f"{image_id} has other bytes")
        if pulled is not None and pulled.status == 404:
            self.wrong.append(f"{image_id} was acknowledged and is not there")
        if chosen.random() < 0.4:
            gone = self._ask(chosen, "DELETE", image_id)
            with self.lock:
                del self.stored[image_id]
                (self.deleted if gone is not None and gone.status == 200 else self.doubtful).add(image_id)

    def _ask(self, chosen: random.Random, method: str, what: str, data: bytes | None = None) -> Response | None:
        """None where the gateway died meanwhile."""
        client = chosen.choice(self.cluster.gateways).admin
        try:
            if method == "POST":
                return client.add(data, name=what, store="s3")
            return client.request(method, f"/images/{what}")
        except (OSError, Reset, Short):
            return None


def records(gateway: Gateway) -> dict[str, dict]:
    """All records but their `uri`, which is the gateway's own."""
    answer = gateway.admin.get("/images/detail?limit=1000")
    assert answer.status == 200, answer
    return {image["_id"]: {name: image[name] for name in image.keys() - {"uri"}} for image in answer.json()["images"]}


def is_ready(gateway: Gateway) -> bool:
    with contextlib.suppress(OSError, Reset, Short):
        return gateway.client().get("/ready").status == 200
    return False


@pytest.mark.timeout(600)
def test_no_image_is_lost_or_wrong_when_a_gateway_and_the_database_die_under_load(cluster, weed) -> None:
    load = Load(cluster)
    with ThreadPoolExecutor(CLIENTS) as clients:
        running = [clients.submit(load.one, number) for number in range(IMAGES)]
        eventually(lambda: load.done > IMAGES // 4, 10 * PATIENCE, "a quarter of the images")
        cluster.gateways[2].kill()
        eventually(lambda: load.done > IMAGES // 2, 10 * PATIENCE, "half of the images")
        cluster.database.kill()
        cluster.database.start()
        cluster.start(2)
        for each in running:
            each.result(10 * PATIENCE)
    assert load.wrong == []
    for gateway in cluster.gateways:
        eventually(lambda gateway=gateway: is_ready(gateway), PATIENCE, "ready")
    for image_id, data in load.stored.items():
        for gateway in cluster.gateways:
            answer = gateway.admin.get(f"/images/{image_id}")
            assert (answer.status, answer.body == data) == (200, True), (image_id, answer.status, answer.body[:200])
    # What the killed gateway was writing is swept by the next one that starts, once its leases are over.
    cluster.end_leases()
    cluster.gateways[1].kill()
    swept = cluster.start(1)
    found = records(swept)
    assert found == records(cluster.gateways[0])
    available = {image_id for image_id, image in found.items() if image["status"] == "available"}
    assert load.stored.keys() <= available
    assert not load.deleted & found.keys()
    assert {image["status"] for image in found.values()} <= {"available", "error", "locked"}
    assert {image["name"] for key, image in found.items() if key not in load.stored} <= load.doubtful | {
        found[key]["name"] for key in load.doubtful & found.keys()
    }
    kept = {found[image_id]["location"].removeprefix("s3://visor/") for image_id in available}
    eventually(lambda: set(weed.objects("visor")) == kept, PATIENCE, "only what records name is in the store")
