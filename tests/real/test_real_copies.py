"""Several locations of one image on the real daemon: failover before the first byte and in the middle, and crashes."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from faulty_origin import Asked, Close, Origin, Reset, Step
from gateway_process import Gateway, clean_environment, launch, running
from wire import eventually, store_image

DATA = random.Random(6).randbytes(8 << 20)
CONFIG = '[stores.shelf]\ntype = "file"\ndirectory = "shelf"\n[locations]\nallow_hosts = ["127.0.0.1"]\n'


@pytest.fixture
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal("trio") as portal:
        yield portal


def ended(gateway: Gateway, transfer_id: str) -> dict[str, Any]:
    """The transfer once it has ended, which its client may see a moment before the gateway has noted it."""

    def shown() -> dict[str, Any] | None:
        found: dict[str, Any] = gateway.admin.get(f"/transfers/{transfer_id}").json()["transfer"]
        return found if found["state"] in {"finished", "failed", "cancelled"} else None

    return eventually(shown, what="the end of the transfer")  # type: ignore[no-any-return]


def copy(gateway: Gateway, path: str, store: str) -> dict[str, Any]:
    """Copy an image, and wait for the end. Returns the transfer."""
    answer = gateway.admin.send_json("POST", f"{path}/copies", {"store": store})
    assert answer.status == 202, answer.body
    return ended(gateway, answer.json()["transfer"]["id"])


def stores(gateway: Gateway, path: str) -> list[tuple[str, str]]:
    return [(one["store"], one["status"]) for one in gateway.admin.get(f"{path}/copies").json()["copies"]]


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_an_origin_that_breaks_and_goes_is_followed_by_the_stores(
    start: Callable[..., Gateway], portal: BlockingPortal
) -> None:
    origin = Origin(DATA)
    with portal.wrap_async_context_manager(origin.listening()) as port:
        gateway = start(CONFIG)
        image = store_location(gateway, f"http://127.0.0.1:{port}/disk")
        refused = gateway.admin.send_json("POST", f"{image}/copies", {"store": "shelf"})
        assert (refused.status, "digest" in refused.json()["message"]) == (409, True)
        assert gateway.admin.get(image).body == DATA  # which finds the digest out
        assert copy(gateway, image, "shelf")["state"] == "finished"
        assert stores(gateway, image) == [("http", "available"), ("shelf", "available")]

        broken: list[Asked] = []

        def breaking(asked: Asked) -> Iterable[Step]:
            broken.append(asked)
            if len(broken) > 1:
                return [Close()]
            begin, part = origin.properly(asked)
            assert isinstance(part, bytes)
            return [begin, part[: len(part) // 3], Reset()]

        origin.answer = breaking
        answer = gateway.admin.get(image)
        assert (answer.status, answer.body) == (200, DATA)
        shown = ended(gateway, answer.header("x-transfer-id"))
        assert (shown["state"], shown["attempt"]) == ("finished", 2)
        assert len(broken) == 1
        metrics = gateway.admin.get("/metrics").body.decode()
        assert 'visor_transfer_retries_total{kind="pull",store="http"} 1.0' in metrics
    answer = gateway.admin.get(image)
    assert (answer.status, answer.body) == (200, DATA)
    part = gateway.admin.get(image, ("Range", "bytes=1000000-6000000"))
    assert (part.status, part.body) == (206, DATA[1_000_000:6_000_001])


def store_location(gateway: Gateway, location: str) -> str:
    answer = gateway.admin.add(location=location, store="http")
    assert answer.status == 200, answer.body
    return f"/images/{answer.json()['image']['_id']}"


@pytest.mark.parametrize("damage", ["remove", "truncate", "overwrite"])
def test_a_damaged_file_is_passed_over_for_a_second_store(start: Callable[..., Gateway], damage: str) -> None:
    gateway = start(CONFIG)
    image = store_image(gateway.admin, DATA)
    assert copy(gateway, image.path, "shelf")["state"] == "finished"
    assert gateway.data_dir is not None
    (path,) = files(gateway.data_dir / "images")
    path.chmod(0o600)
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(DATA[:1000])
    else:
        path.write_bytes(bytes(len(DATA)))
    answer = gateway.admin.get(image.path)
    assert (answer.status, answer.body) == (200, DATA)
    assert gateway.admin.request("DELETE", image.path).status == 200
    assert files(gateway.data_dir / "images") == files(gateway.data_dir.parent / "shelf") == []


def test_a_killed_copy_leaves_nothing_and_the_image_as_it_was(tmp_path: Path) -> None:
    gateway = launch(tmp_path, config=CONFIG + "[limits]\nbytes_per_s = 300000\n")
    try:
        answer = gateway.admin.send_json("PATCH", "/limits", {"limit_bytes_per_s": None})
        assert answer.status == 200, answer.body
        image = store_image(gateway.admin, DATA)
        gateway.admin.send_json("PATCH", "/limits", {"limit_bytes_per_s": 300_000})
        assert gateway.admin.send_json("POST", f"{image.path}/copies", {"store": "shelf"}).status == 202
        shelf = tmp_path / "shelf"
        eventually(lambda: any(path.stat().st_size for path in files(shelf)), what="bytes written")
        assert stores(gateway, image.path) == [("file", "available"), ("shelf", "copying")]
    finally:
        gateway.kill()
    assert len(files(shelf)) == 1
    with running(tmp_path, config=CONFIG) as again:
        assert files(shelf) == []
        assert stores(again, image.path) == [("file", "available")]
        assert again.admin.get(image.path).body == DATA
        assert copy(again, image.path, "shelf")["state"] == "finished"
        assert [path.read_bytes() for path in files(shelf)] == [DATA]


def test_the_command_line_copies_follows_shows_and_removes(start: Callable[..., Gateway]) -> None:
    gateway = start(CONFIG)
    image = store_image(gateway.admin, DATA)

    def visor(*words: str) -> list[str]:
        command = [Path(sys.executable).parent / "visor", *words]
        environment = clean_environment({"VISOR_CREDENTIALS": f"{gateway.data_dir}/admin.toml"})
        answer = programs.run(*command, check=True, env=environment)
        return [line.split()[0] for line in answer.stdout.decode().splitlines()]

    image_id = image.path.rpartition("/")[2]
    visor("copy", image_id, "shelf", "--wait")
    assert visor("copies", image_id) == ["STORE", "file", "shelf"]
    assert visor("copies", image_id, "--remove", "file") == ["STORE", "shelf"]
    assert gateway.admin.get(image.path).body == DATA
