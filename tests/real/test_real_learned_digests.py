"""The daemon, of one process and of two workers, before a real nginx: what a pull learned, and bits that flip there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from gateway_process import Gateway
from servers import nginx_origin
from wire import Reset

DATA = os.urandom(3 << 20)
SHA256, BLAKE3 = hashlib.sha256(DATA).hexdigest(), blake3(DATA).hexdigest()


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[nginx_origin.NginxOrigin]:
    with nginx_origin.serving(tmp_path / "nginx", "disk.img", DATA) as running:
        yield running


def learned(gateway: Gateway) -> str | None:
    """What the database has of the one image."""
    assert gateway.data_dir is not None
    with contextlib.closing(sqlite3.connect(gateway.data_dir / "visor.sqlite3")) as database:
        [(found,)] = database.execute("SELECT learned FROM images")
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_what_one_pull_learned_catches_every_flipped_bit(
    start: Callable[..., Gateway], origin: nginx_origin.NginxOrigin, workers: int
) -> None:
    gateway = start(f"[locations]\ndeny_private = false\n[server]\nworkers = {workers}\n")
    image = gateway.admin.add(store="http", location=f"{origin.url}/disk.img").image
    path = f"/images/{image['_id']}"
    assert gateway.admin.get(path).body == DATA
    assert learned(gateway) is None
    for position in (0, len(DATA) // 2, len(DATA) - 1):
        # Each on a connection of its own, for whichever worker takes it.
        for _ in range(3):
            assert gateway.admin.get(path).body == DATA
            assert learned(gateway) == f"{SHA256}:{BLAKE3}"
        origin.flip("disk.img", position)
        for _ in range(2):
            with pytest.raises(Reset):
                gateway.admin.get(path)
            assert learned(gateway) is None
        origin.flip("disk.img", position)
