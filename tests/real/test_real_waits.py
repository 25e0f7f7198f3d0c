"""What a transfer waits for is told right: a slow client, a slow store, a limit and a slow disk, on real sockets."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import slow_store_gateway
from gateway_process import Gateway
from servers import nginx
from wire import OCTETS, Client, Reset, Short, Stored, Wire, eventually, meta, store_image, unique

SIZE = 64 << 20
KINDS = {"client", "store", "limit", "disk"}


def waits_for(client: Client, transfer_id: str, kind: str) -> None:
    """Return once the transfer has spent most of the last interval on `kind`, and the interval is worth a word."""

    def seen() -> bool:
        answer = client.get(f"/transfers/{transfer_id}")
        if answer.status != 200:
            return False
        wait = answer.json()["transfer"]["wait"]
        assert set(wait) == KINDS
        return wait[kind] >= 50 and wait[kind] > sum(wait.values()) / 2

    eventually(seen, what=f"a wait for {kind}")


@contextmanager
def meanwhile(work: Callable[[], object]) -> Generator[None]:
    """Do something in a thread, which may be cut off."""

    def bounded() -> None:
        with contextlib.suppress(Reset, Short, OSError):
            work()

    thread = threading.Thread(target=bounded)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)


@contextmanager
def pulling(client: Client, path: str) -> Generator[tuple[str, Wire]]:
    transfer_id = str(uuid.uuid4())
    with client.start("GET", path, [("X-Transfer-Id", transfer_id)], receive_buffer=65536) as wire:
        yield transfer_id, wire


def end(client: Client, transfer_id: str) -> None:
    assert client.delete(f"/transfers/{transfer_id}").status in (200, 409)


def big(gateway: Gateway) -> Stored:
    return store_image(gateway.admin, random.Random(4).randbytes(SIZE))


def test_a_client_that_does_not_read_is_waited_for(gateway: Gateway) -> None:
    admin = gateway.admin
    with pulling(admin, big(gateway).path) as (transfer_id, wire):
        assert wire.read_head().status == 200
        waits_for(admin, transfer_id, "client")


def test_a_client_that_does_not_send_is_waited_for(gateway: Gateway) -> None:
    admin, transfer_id = gateway.admin, str(uuid.uuid4())
    headers = [*meta(name=unique("slow"), architecture="x86_64"), OCTETS, ("X-Transfer-Id", transfer_id)]
    with admin.start("POST", "/images", [*headers, ("Content-Length", str(SIZE))]) as wire:
        wire.send(b"x" * 1000)
        waits_for(admin, transfer_id, "client")


def test_a_limit_is_what_a_fast_client_waits_for(gateway: Gateway) -> None:
    admin = gateway.admin
    with pulling(admin, big(gateway).path) as (transfer_id, wire):
        assert wire.read_head().status == 200
        change = {"limit_bytes_per_s": 1_000_000}
        assert admin.send_json("PATCH", f"/transfers/{transfer_id}", change).status == 200
        with meanwhile(wire.read_to_end):
            waits_for(admin, transfer_id, "limit")
            end(admin, transfer_id)


def test_a_slow_store_is_waited_for(start: Callable[..., Gateway], tmp_path: Path) -> None:
    with nginx.start(tmp_path / "origin", rate="500k") as origin:
        (origin.files / "disk").write_bytes(bytes(SIZE))
        gateway = start(f"[locations]\nallow_hosts = ['127.0.0.1:{origin.port}']\n")
        admin = gateway.admin
        image = admin.add(store="http", location=f"{origin.url}/disk").image
        with pulling(admin, f"/images/{image['_id']}") as (transfer_id, wire), meanwhile(wire.read_to_end):
            waits_for(admin, transfer_id, "store")
            end(admin, transfer_id)


def test_a_slow_disk_is_what_a_fast_upload_waits_for(start: Callable[..., Gateway]) -> None:
    gateway = start(program=[sys.executable, slow_store_gateway.__file__])
    admin, transfer_id = gateway.admin, str(uuid.uuid4())
    headers = [*meta(name=unique("fast"), architecture="x86_64"), OCTETS, ("X-Transfer-Id", transfer_id)]
    size = 8 * SIZE
    with admin.start("POST", "/images", [*headers, ("Content-Length", str(size))]) as wire:
        piece = bytes(1 << 20)

        def send() -> None:
            for _ in range(size >> 20):
                wire.send(piece)

        with meanwhile(send):
            waits_for(admin, transfer_id, "disk")
            end(admin, transfer_id)
