"""Memory is bounded by blocks, not by images, disks or readers that stand still."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import pytest
import slow_store_gateway
from gateway_process import Gateway, running
from wire import OCTETS, Client, Wire, eventually, meta, store_image, unique

MIB = 1 << 20
LIMIT = 150 * MIB
UPLOAD = 2048 * MIB
READERS = 50
SCRIPT = [sys.executable, slow_store_gateway.__file__]


def memory(gateway: Gateway, field: str) -> int:
    """A figure of /proc/<pid>/status, in bytes."""
    for line in Path(f"/proc/{gateway.pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def push(client: Client, size: int) -> dict:
    headers = [*meta(name=unique("large"), architecture="i386"), OCTETS, ("Content-Length", str(size))]
    block = bytes(MIB)
    with client.start("POST", "/images", headers, timeout=60) as wire:
        for _ in range(size // MIB):
            wire.send(block)
        return wire.read_response().image


@pytest.mark.timeout(600)
def test_two_gib_into_a_slow_store_beside_fifty_stalled_readers_stay_under_150_mib(tmp_path: Path) -> None:
    with (
        running(tmp_path, program=SCRIPT, config="[server]\ndrain_timeout = 1\nstall_timeout = 600\n") as gateway,
        contextlib.ExitStack() as open_wires,
    ):
        image = store_image(gateway.admin, bytes(64 * MIB))
        readers: list[Wire] = []
        for _ in range(READERS):
            wire = open_wires.enter_context(gateway.admin.start("GET", image.path, receive_buffer=65536))
            assert wire.read_head().status == 200
            readers.append(wire)
        began = time.monotonic()
        large = push(gateway.admin, UPLOAD)
        seconds = time.monotonic() - began
        assert large["size"] == UPLOAD
        assert seconds > UPLOAD / slow_store_gateway.BYTES_PER_SECOND * 0.9, "the store was not slow"
        assert memory(gateway, "VmHWM") < LIMIT
        assert memory(gateway, "VmRSS") < LIMIT
        assert gateway.admin.delete(f"/images/{large['_id']}").status == 200
        for wire in readers[:3]:
            assert len(wire.read_exactly(64 * MIB)) == 64 * MIB
        for wire in readers:
            wire.cut()
    eventually(lambda: not list((tmp_path / "data" / "images").rglob(f"*{large['_id']}*")))


def test_chunked_uploads_into_a_slow_store_hold_back_their_client(tmp_path: Path) -> None:
    with running(tmp_path, program=SCRIPT) as gateway:
        piece = bytes(256 * 1024)
        before = memory(gateway, "VmRSS")
        headers = [*meta(name=unique("chunks"), architecture="i386"), OCTETS, ("Transfer-Encoding", "chunked")]
        with gateway.admin.start("POST", "/images", headers, timeout=60) as wire:
            for _ in range(4 * 300):
                wire.send_chunk(piece)
            wire.send(b"0\r\n\r\n")
            assert wire.read_response().image["size"] == 300 * MIB
        assert memory(gateway, "VmHWM") < max(LIMIT, before + 60 * MIB)
