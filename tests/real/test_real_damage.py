"""The real daemon over files that are damaged behind its back: nothing of them ever arrives whole."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from gateway_process import Gateway
from wire import Client, Reset, eventually, store_image

DATA = os.urandom(5_000_000)
Start = Callable[..., Gateway]


def file_of(gateway: Gateway) -> Path:
    assert gateway.data_dir is not None
    (file,) = [path for path in (gateway.data_dir / "images").rglob("*") if path.is_file()]
    return file


def flip(file: Path) -> None:
    """Flip one bit and put the time of the last change back."""
    before = file.stat()
    with file.open("r+b") as handle:
        handle.seek(2_500_000)
        byte = handle.read(1)[0]
        handle.seek(2_500_000)
        handle.write(bytes([byte ^ 8]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def hide(gateway: Gateway, file: Path) -> None:
    """Make the record agree with the file's state, as if the disk had lost the bit by itself."""
    assert gateway.data_dir is not None
    found = file.stat()
    validator = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"
    (database,) = [path for path in gateway.data_dir.iterdir() if path.suffix in (".db", ".sqlite", ".sqlite3")]
    connection = sqlite3.connect(database, timeout=60)
    try:
        connection.execute("UPDATE images SET validator = ?", (validator,))
        connection.commit()
    finally:
        connection.close()


def damaged(admin: Client) -> list[str]:
    state = admin.get("/scrub").json()["scrub"]
    return [] if state["image"] or state["waiting"] else [image["_id"] for image in state["bad"]]


def test_a_file_that_was_changed_is_refused_and_served_again_once_a_scrub_finds_it_right(start: Start) -> None:
    gateway = start()
    image = store_image(gateway.admin, DATA)
    file = file_of(gateway)
    flip(file)
    for headers in ([], [("Range", "bytes=0-99")]):
        assert gateway.admin.get(image.path, *headers).status == 502
    assert gateway.admin.request("POST", "/scrub").status == 202
    eventually(lambda: damaged(gateway.admin) == [image.id])
    assert "damaged" in gateway.admin.get(image.path).message
    flip(file)
    assert gateway.admin.request("POST", "/scrub").status == 202
    eventually(lambda: gateway.admin.get(image.path).status == 200)
    assert gateway.admin.get(image.path).body == DATA


def test_with_verify_always_a_silently_flipped_bit_ends_in_a_reset_and_a_mark(start: Start) -> None:
    gateway = start('[stores.file]\ntype = "file"\nverify = "always"\n')
    image = store_image(gateway.admin, DATA)
    assert gateway.admin.get(image.path).body == DATA
    file = file_of(gateway)
    flip(file)
    hide(gateway, file)
    with pytest.raises(Reset):
        gateway.admin.get(image.path)
    eventually(lambda: damaged(gateway.admin) == [image.id])
    assert gateway.admin.get(image.path).status == 502
