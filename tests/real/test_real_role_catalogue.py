"""A gateway that keeps its records at another gateway's role `meta`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_process import Gateway, running
from roles import KEY, Role, serving
from wire import eventually, store_image, unique

SECONDS = 60.0


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    with serving(tmp_path_factory.mktemp("catalogue"), "meta") as role:
        yield role


@pytest.fixture(scope="module")
def branch(catalogue: Role, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with bytes of its own and the other one's catalogue. It has one process, as it has to."""
    address = catalogue.url.removeprefix("http://")
    config = f'[metadata]\nurl = "visor+http://:{KEY}@{address}"\n'
    with running(tmp_path_factory.mktemp("branch"), config=config, workers=1) as gateway:
        yield gateway


def at_catalogue(catalogue: Role, name: str, **fields: str | None) -> bool:
    record = catalogue.gateway.admin.named(name)
    return record is not None and all(record[field] == value for field, value in fields.items())


def test_an_upload_is_told_to_the_catalogue_and_is_deleted_there(catalogue: Role, branch: Gateway) -> None:
    name = unique("image")
    image = store_image(branch.admin, name=name, distro="centos")
    checksum = image.record["checksum"]
    expected = {"status": "available", "owner": "admin", "checksum": checksum, "distro": "centos", "store": "file"}
    eventually(lambda: at_catalogue(catalogue, name, **expected), SECONDS, "the record at the catalogue")
    assert branch.admin.get(image.path).body == image.data
    assert branch.admin.delete(image.path).status == 200
    eventually(lambda: catalogue.gateway.admin.named(name) is None, SECONDS, "the end of the record")


def test_an_image_of_another_peer_is_seen(catalogue: Role, branch: Gateway) -> None:
    name = unique("image")
    fields = {"name": name, "architecture": "i386", "owner": "admin"}
    made = catalogue.peer.send_json("POST", "/images", {"image": fields}).image
    record = eventually(lambda: branch.admin.named(name), SECONDS, "the record at the branch")
    assert (record["_id"], record["status"]) == (made["_id"], "locked")


def test_a_private_image_stays_private(catalogue: Role, branch: Gateway) -> None:
    name = unique("image")
    store_image(branch.admin, name=name, access="private")
    eventually(lambda: at_catalogue(catalogue, name, access="private"), SECONDS, "the record at the catalogue")
    stranger = catalogue.gateway.new_user()
    assert stranger.named(name) is None


def test_without_the_key_there_is_no_start(catalogue: Role, tmp_path: Path) -> None:
    address = catalogue.url.removeprefix("http://")
    with (
        pytest.raises(AssertionError, match="the daemon ended"),
        running(tmp_path, config=f'[metadata]\nurl = "visor+http://{address}"\n', workers=1),
    ):
        pass
