"""The real daemon with a store in a real Hadoop HDFS whose first NameNode is dead."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import store_places
from gateway_process import Gateway, running
from servers.hdfs import Hdfs
from store_places import Place

MIB = 1 << 20


@pytest.fixture(scope="module")
def place(hdfs_server: Hdfs) -> Place:
    return store_places.hdfs(hdfs_server)


@pytest.fixture(scope="module")
def gateway(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("hdfs"), config=place.configuration) as gateway:
        yield gateway


def test_a_pull_goes_on_when_its_datanode_is_back(gateway: Gateway, hdfs_server: Hdfs, place: Place) -> None:
    content = random.Random(3).randbytes(64 * MIB)
    image = gateway.admin.add(content, store="hdfs").image
    transfer = str(uuid.uuid4())
    with gateway.admin.start("GET", f"/images/{image['_id']}", [("X-Transfer-Id", transfer)], timeout=60) as wire:
        assert wire.read_head().status == 200
        pulled = wire.read_exactly(MIB)
        hdfs_server.kill_datanode()
        hdfs_server.start_datanode()
        pulled += wire.read_exactly(len(content) - MIB)
    assert pulled == content
    shown = gateway.admin.get(f"/transfers/{transfer}").json()["transfer"]
    assert shown["attempt"] > 1
    assert gateway.admin.delete(f"/images/{image['_id']}").status == 200
    assert place.left() == []


def test_safe_mode_refuses_uploads_for_a_while_and_no_pull(gateway: Gateway, hdfs_server: Hdfs, place: Place) -> None:
    image = gateway.admin.add(b"content", store="hdfs").image
    hdfs_server.administer("-safemode", "enter")
    try:
        refused = gateway.admin.add(b"content", store="hdfs")
        assert (refused.status, "SafeMode" in refused.message) == (503, True), refused.body
        assert refused.header("retry-after")
        assert gateway.admin.get(f"/images/{image['_id']}").body == b"content"
    finally:
        hdfs_server.administer("-safemode", "leave")
    assert gateway.admin.delete(f"/images/{image['_id']}").status == 200
    assert place.left() == []


def test_a_store_that_is_away_is_listed_and_refuses_at_once(hdfs_server: Hdfs, place: Place, tmp_path: Path) -> None:
    away = place.configuration.replace(hdfs_server.url, "http://127.0.0.1:2")
    with running(tmp_path, config=away) as gateway:
        ready = gateway.client().get("/ready")
        assert (ready.status, ready.json()["stores"]["hdfs"]) == (200, "failed")
        assert 'visor_store_up{store="hdfs"} 0.0' in gateway.client().get("/metrics").body.decode()
        refused = gateway.admin.add(b"content", store="hdfs")
        assert (refused.status, refused.message) == (503, "The store 'hdfs' does not answer")
        assert refused.header("retry-after")
