"""The real daemon with stores of every type, each on a real server.

`VISOR_LARGE_UPLOAD` sets the bytes of the images whose memory is measured, such as 5368709120:
`VISOR_LARGE_UPLOAD=5368709120 make test ARGS="-s -k large_image"` prints what the gateway took.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import store_places
from gateway_process import Gateway, running
from servers import nginx, rclone, seaweedfs
from servers.hdfs import Hdfs
from servers.s3_service import S3Service
from store_places import FAMILY, Place
from test_real_memory import memory
from wire import OCTETS, Client, Wire, eventually, meta, unique

MIB = 1 << 20
NAMES = ("shelf", *FAMILY, "rclone", "hdfs")
LARGE = int(os.environ.get("VISOR_LARGE_UPLOAD", 192 * MIB))
CUTS = 20

# Three servers and a gateway start, and all of it shares one machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def weed() -> Iterator[S3Service]:
    service = seaweedfs.start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def sloppy() -> Iterator[S3Service]:
    service = rclone.start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def places(
    weed: S3Service, sloppy: S3Service, hdfs_server: Hdfs, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Place]:
    shelf = store_places.file(tmp_path_factory.mktemp("shelf"))
    family = [store_places.s3(name, weed) for name in FAMILY]
    every = [shelf, *family, store_places.rclone(sloppy), store_places.hdfs(hdfs_server)]
    return {place.name: place for place in every}


def configuration(places: Mapping[str, Place]) -> str:
    begin = '[log]\nlevel = "debug"\n[locations]\nallow_hosts = ["127.0.0.1"]'
    return "\n".join([begin, *(place.configuration for place in places.values())])


@pytest.fixture(scope="module")
def gateway(places: dict[str, Place], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("stores"), config=configuration(places)) as gateway:
        yield gateway


def upload(client: Client, name: str, store: str, *length: tuple[str, str]) -> Wire:
    """The beginning of an upload."""
    headers = [*meta(name=name, architecture="i386", store=store), OCTETS, *length]
    return client.start("POST", "/images", headers, timeout=120)


CHUNKED = ("Transfer-Encoding", "chunked")


@pytest.mark.parametrize("store", NAMES)
def test_an_image_is_added_shown_pulled_and_deleted(
    visor, gateway: Gateway, places: dict[str, Place], tmp_path: Path, store: str
) -> None:
    content = random.Random(store).randbytes(20 * MIB + 17)
    (tmp_path / "disk").write_bytes(content)
    words = ("--json", "add", f"name={unique(store)}", "architecture=x86_64", "format=raw", f"store={store}")
    image = json.loads(visor(*words, "-f", tmp_path / "disk"))["image"]
    assert (image["status"], image["size"], image["store"]) == ("available", len(content), store)
    assert image["checksum"] == hashlib.sha256(content).hexdigest()
    assert image["location"].startswith(places[store].prefix)
    assert f"/{image['_id']}/" in image["location"]
    assert json.loads(visor("--json", "head", image["_id"]))["image"]["location"] == image["location"]
    (tmp_path / "pulled").mkdir()
    visor("get", image["_id"], "-S", tmp_path / "pulled")
    (file,) = (tmp_path / "pulled").iterdir()
    assert file.read_bytes() == content
    part = gateway.admin.get(f"/images/{image['_id']}", ("Range", "bytes=9000000-9000099"))
    assert (part.status, part.body) == (206, content[9_000_000:9_000_100])
    visor("delete", image["_id"])
    assert places[store].left() == []


@pytest.mark.parametrize("store", NAMES)
def test_an_upload_cut_anywhere_leaves_nothing(gateway: Gateway, places: dict[str, Place], store: str) -> None:
    size, generator = 24 * MIB, random.Random(7)
    names = [unique("cut") for _ in range(CUTS)]
    for number, name in enumerate(names):
        known = number % 2 == 1
        with upload(gateway.admin, name, store, ("Content-Length", str(size)) if known else CHUNKED) as wire:
            for _ in range(generator.randrange(size) // MIB):
                wire.send(bytes(MIB)) if known else wire.send_chunk(bytes(MIB))
            wire.cut()
    for name in names:
        eventually(lambda name=name: (gateway.admin.named(name) or {}).get("status") in {None, "error"}, what="error")
    eventually(lambda: places[store].left() == [], what="nothing is left")
    spool = gateway.data_dir / "cache" / "spool"
    assert not spool.exists() or list(spool.iterdir()) == []


@pytest.mark.parametrize("store", NAMES)
def test_an_image_is_imported_from_elsewhere(
    gateway: Gateway, places: dict[str, Place], tmp_path: Path, store: str
) -> None:
    content = random.Random(store).randbytes(20 * MIB + 17)
    with nginx.start(tmp_path) as origin:
        (origin.files / "disk").write_bytes(content)
        image = gateway.admin.add(store=store, location=f"{origin.url}/disk").image
        path = f"/images/{image['_id']}"
        eventually(lambda: gateway.admin.record(image["_id"])["status"] in {"available", "error"})
    record = gateway.admin.record(image["_id"])
    assert (record["status"], record["checksum"]) == ("available", hashlib.sha256(content).hexdigest())
    assert record["location"].startswith(places[store].prefix)
    assert gateway.admin.get(path).body == content
    assert gateway.admin.delete(path).status == 200
    assert places[store].left() == []


@pytest.mark.parametrize("store", ["s3", "hdfs"])
def test_an_import_that_is_cancelled_leaves_nothing(
    gateway: Gateway, places: dict[str, Place], tmp_path: Path, store: str
) -> None:
    with nginx.start(tmp_path, rate="8m") as origin:
        with (origin.files / "disk").open("wb") as file:
            file.truncate(1 << 30)
        image = gateway.admin.add(store=store, location=f"{origin.url}/disk").image
        eventually(lambda: places[store].left() != [], what="something was written")
        (transfer,) = gateway.admin.get(f"/transfers?image={image['_id']}").json()["transfers"]
        assert gateway.admin.delete(f"/transfers/{transfer['id']}").status == 200
        eventually(lambda: gateway.admin.record(image["_id"])["status"] == "error", what="error")
    eventually(lambda: places[store].left() == [], what="nothing is left")


@pytest.mark.parametrize("store", ["s3", "hdfs"])
def test_a_crash_in_the_middle_of_an_upload_leaves_nothing_once_the_gateway_is_back(
    places: dict[str, Place], tmp_path: Path, store: str
) -> None:
    name, place = unique("crash"), places[store]
    with (
        running(tmp_path, config=place.configuration) as gateway,
        upload(gateway.admin, name, store, CHUNKED) as wire,
    ):
        for _ in range(20):
            wire.send_chunk(bytes(MIB))
        eventually(lambda: place.left() != [], what="an upload is under way")
        gateway.kill()
    with running(tmp_path, config=place.configuration) as gateway:
        eventually(lambda: place.left() == [], what="nothing is left")
        eventually(lambda: gateway.admin.named(name)["status"] == "error", what="error")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("store", ["s3", "hdfs"])
def test_a_large_image_of_unknown_length_takes_little_memory(
    places: dict[str, Place], start: Callable[..., Gateway], store: str
) -> None:
    """Blocks are of a random one and their number, so that no part is like another."""
    gateway = start(places[store].configuration)
    random_block = random.Random(5).randbytes(MIB - 8)
    with upload(gateway.admin, unique("large"), store, CHUNKED) as wire:
        for number in range(LARGE // MIB):
            wire.send_chunk(number.to_bytes(8, "big") + random_block)
        wire.send(b"0\r\n\r\n")
        image = wire.read_response().image
    assert (image["status"], image["size"]) == ("available", LARGE)
    with gateway.admin.start("GET", f"/images/{image['_id']}", timeout=120) as wire:
        assert wire.read_head().status == 200
        for number in range(LARGE // MIB):
            assert wire.read_exactly(MIB) == number.to_bytes(8, "big") + random_block
    assert memory(gateway, "VmHWM") < 200 * MIB
    print(f"{store}: {LARGE // MIB} MiB: VmHWM {memory(gateway, 'VmHWM') / MIB:.0f} MiB")
    assert gateway.admin.delete(f"/images/{image['_id']}").status == 200
    assert places[store].left() == []


def test_no_signature_for_a_store_is_ever_seen(gateway: Gateway) -> None:
    """After all the other tests of this file, with a log that tells most. Keys are looked for everywhere."""
    image = gateway.admin.add(b"canary", store="s3").image
    broken = gateway.admin.get(f"/images/{image['_id']}", ("Range", "bytes=100-"))
    seen = [broken.body, gateway.logged().encode()]
    for path in ("/images/detail", "/ready", "/metrics", "/transfers", f"/images/{image['_id']}", "/openapi.json"):
        answer = gateway.admin.get(path)
        seen += [answer.body, repr(answer.headers).encode()]
    for sign in (b"AWS4-HMAC-SHA256", b"Signature="):
        assert not [where for where in seen if sign in where], sign
    assert gateway.admin.delete(f"/images/{image['_id']}").status == 200
