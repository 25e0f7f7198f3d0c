"""Fills over real stores that are killed or cut: their readers wait, and all get the whole, right image."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cached_pulls import CONFIG, MIB, digest_of, entries, fills, hurry, pulls, refer
from gateway_process import Gateway
from servers import cutting_proxy, nginx, seaweedfs
from servers.hdfs import Hdfs
from servers.nginx import Nginx
from servers.s3_service import S3Service
from test_real_workers import only, workers
from wire import Reset, Short, eventually, store_image

#: A fill takes long enough to be met in the middle: see `hurry`.
PACED = CONFIG + "[stores]\nretry_timeout = 60\n" + "[limits]\nbytes_per_s_per_transfer = 1048576\n"
CLIENTS = 9
CUTS = 20

Start = Callable[..., Gateway]


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Nginx]:
    with nginx.start(tmp_path / "nginx") as running:
        yield running


@pytest.fixture(scope="module")
def weed() -> Iterator[S3Service]:
    service = seaweedfs.start()
    try:
        yield service
    finally:
        service.stop()


def s3_store(service: S3Service, kind: str, endpoint: str | None = None) -> str:
    return (
        f'[stores.{kind}]\ntype = "{kind}"\nendpoint = "{endpoint or service.endpoint}"\nbucket = "visor"\n'
        f'access_key = "{service.access_key}"\nsecret_key = "{service.secret_key}"\n'
    )


def hdfs_store(server: Hdfs, endpoint: str | None = None) -> str:
    return (
        f'[stores.hdfs]\ntype = "hdfs"\nendpoint = "{endpoint or server.url}"\n'
        f'directory = "/visor/fills"\nusername = "{server.user}"\n'
    )


@contextmanager
def pulling(gateway: Gateway, path: str) -> Generator[tuple[list[Future[str]], list[int]]]:
    """Pulls of clients that come at the same time: their digests, and what they have received so far."""
    received: list[int] = []
    with ThreadPoolExecutor(CLIENTS) as threads:
        yield [threads.submit(digest_of, gateway.client(), path, received.append) for _ in range(CLIENTS)], received


def killed_under(
    gateway: Gateway, path: str, data: bytes, kill: Callable[[], None], restart: Callable[[], None]
) -> None:
    """Kill a store under a fill, start it again once it was missed for a while; nobody notices."""
    with pulling(gateway, path) as (running, received):
        eventually(lambda: sum(received) > CLIENTS * MIB)
        kill()
        hurry(gateway, path)
        eventually(lambda: fills(gateway)[0]["attempt"] > 2, what="another try")  # type: ignore[operator]
        restart()
        assert {each.result(90) for each in running} == {hashlib.sha256(data).hexdigest()}
    kept_once(gateway, data)


def kept_once(gateway: Gateway, data: bytes) -> None:
    """One entry; and every byte of it was read from the store once, whatever happened in between."""
    eventually(lambda: not gateway.admin.get("/transfers").json()["transfers"], what="the end of all transfers")
    assert [entry["sha256"] for entry in entries(gateway)] == [hashlib.sha256(data).hexdigest()]
    metrics = gateway.client().get("/metrics").body.decode().splitlines()
    counted = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in metrics if line.startswith("visor_")}
    assert counted["visor_cache_bytes_from_stores_total"] == len(data)
    assert counted["visor_cache_bytes_to_clients_total"] == CLIENTS * len(data)
    assert counted['visor_cache_requests_total{outcome="miss"}'] == 1
    assert counted['visor_cache_requests_total{outcome="coalesced"}'] == CLIENTS - 1
    assert counted["visor_cache_failures_total"] == 0


def test_nginx_is_killed_under_a_fill(start: Start, origin: Nginx) -> None:
    gateway, data = start(PACED, workers=1), os.urandom(16 * MIB)
    killed_under(gateway, refer(gateway, origin, data), data, origin.kill, origin.start)


@pytest.mark.parametrize("kind", ["s3", "cumulus"])
def test_seaweedfs_is_killed_under_a_fill(start: Start, weed: S3Service, kind: str) -> None:
    """Cumulus knows no ranges: what was read before is read again, and dropped."""
    gateway, data = start(PACED + s3_store(weed, kind), workers=1), os.urandom(16 * MIB)
    path = f"/images/{store_image(gateway.admin, data, store=kind).id}"
    killed_under(gateway, path, data, weed.kill, weed.restart)


def test_a_datanode_is_killed_under_a_fill(start: Start, hdfs_server: Hdfs) -> None:
    gateway, data = start(PACED + hdfs_store(hdfs_server), workers=1), os.urandom(16 * MIB)
    path = f"/images/{store_image(gateway.admin, data, store='hdfs').id}"
    killed_under(gateway, path, data, hdfs_server.kill_datanode, hdfs_server.start_datanode)
    assert pulls(gateway, path, 2) == [hashlib.sha256(data).hexdigest()] * 2


@contextmanager
def cut_store(kind: str, request: pytest.FixtureRequest) -> Generator[tuple[cutting_proxy.CuttingProxy, str, Any]]:
    """A real server behind a proxy that cuts: the proxy, the store's configuration, and an origin for references."""
    options = {"cuts": 0, "after": 150_000}
    if kind == "http":
        origin = request.getfixturevalue("origin")
        with cutting_proxy.start(origin.port, **options) as proxy:
            yield proxy, "", origin
    elif kind == "hdfs":
        server = request.getfixturevalue("hdfs_server")
        with cutting_proxy.start(server.datanode_port, **options) as proxy:
            moved = {f":{server.datanode_port}/".encode(): f":{proxy.port}/".encode()}
            with cutting_proxy.start(urlsplit(server.url).port, cuts=0, after=0, replaced=moved) as named:
                yield proxy, hdfs_store(server, f"http://127.0.0.1:{named.port}"), None
    else:
        service = request.getfixturevalue("weed")
        with cutting_proxy.start(urlsplit(service.endpoint).port, **options) as proxy:
            yield proxy, s3_store(service, kind, f"http://127.0.0.1:{proxy.port}"), None


@pytest.mark.parametrize("kind", ["http", "s3", "hdfs"])
def test_a_store_is_cut_twenty_times_under_a_fill(start: Start, request: pytest.FixtureRequest, kind: str) -> None:
    with cut_store(kind, request) as (proxy, store, origin):
        gateway, data = start(CONFIG + store, workers=1), os.urandom(6 * MIB)
        if origin is None:
            path = f"/images/{store_image(gateway.admin, data, store=kind).id}"
        else:
            path = refer(gateway, origin, data, url=f"http://127.0.0.1:{proxy.port}")
        proxy.cuts = CUTS
        with pulling(gateway, path) as (running, _):
            assert {each.result(90) for each in running} == {hashlib.sha256(data).hexdigest()}
        assert proxy.cuts == 0
        kept_once(gateway, data)


# --- several processes ---------------------------------------------------------------------------


@contextmanager
def begun(gateway: Gateway, path: str) -> Generator[Callable[[], str]]:
    """A pull that has its head and is not read on. Gives what reads the rest, and tells its digest."""
    with gateway.client().start("GET", path, timeout=60) as wire:
        length = int(wire.read_head().header("content-length") or 0)
        yield lambda: hashlib.sha256(wire.read_exactly(length)).hexdigest()


def test_readers_of_another_worker_get_all_when_the_one_that_fills_is_killed(start: Start, origin: Nginx) -> None:
    gateway, data = start(PACED, workers=2), os.urandom(16 * MIB)
    path, digest = refer(gateway, origin, data), hashlib.sha256(data).hexdigest()
    filler, follower = workers(gateway)
    with ExitStack() as stack:
        with only(gateway, filler):
            lost = stack.enter_context(begun(gateway, path))
            eventually(lambda: fills(gateway)[0]["bytes"] > MIB)  # type: ignore[operator]
        with only(gateway, follower):
            kept = [stack.enter_context(begun(gateway, path)) for _ in range(8)]
            os.kill(filler, signal.SIGKILL)
        hurry(gateway, path)
        with ThreadPoolExecutor(len(kept)) as threads:
            # All at once: who is not read from stalls.
            assert {each.result(90) for each in [threads.submit(read) for read in kept]} == {digest}
        with pytest.raises((Reset, Short)):
            lost()
    eventually(lambda: not fills(gateway))
    assert [entry["sha256"] for entry in entries(gateway)] == [digest]
    assert pulls(gateway, path, 4) == [digest] * 4
