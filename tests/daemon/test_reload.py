"""SIGHUP with transfers under way: what begins afterwards has the new settings, what runs keeps what it began with."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from gateway_process import Gateway, running
from wire import Stored, Wire, eventually, store_image

pytestmark = pytest.mark.real

SIZE = 8 << 20


@pytest.fixture(params=[1, 2], ids=["alone", "workers"])
def workers(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


class Told:
    """The service manager's end of the notifications."""

    def __init__(self, directory: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(directory / "notify"))
        self.sock.settimeout(60)
        self.environment = {"NOTIFY_SOCKET": str(directory / "notify")}

    def wait_for(self, text: str) -> str:
        while True:
            message = self.sock.recv(65536).decode()
            if text in message:
                return message


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    told = Told(tmp_path)
    yield told
    told.sock.close()


def reload(gateway: Gateway, text: str) -> None:
    """Have other settings, and wait until they hold."""
    assert gateway.log
    before = gateway.logged().count("configuration read again")
    (gateway.log.parent / "visor-gateway.toml").write_text(text)
    os.kill(gateway.pid, signal.SIGHUP)
    eventually(lambda: gateway.logged().count("configuration read again") > before)


def begun(gateway: Gateway, image: Stored) -> tuple[Wire, bytes]:
    """A pull whose client has read little of it."""
    wire = gateway.admin.start("GET", image.path, receive_buffer=65536)
    head = wire.read_head()
    assert head.status == 200
    return wire, wire.read_exactly(1000)


def store(name: str, directory: Path) -> str:
    return f'[stores.{name}]\ntype = "file"\ndirectory = "{directory}"\n'


def test_stores_come_go_and_change_under_a_pull(tmp_path: Path, workers: int) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    with running(tmp_path, config=store("file", old), workers=workers) as gateway:
        image = store_image(gateway.admin, os.urandom(SIZE))
        wire, first = begun(gateway, image)
        with wire:
            reload(gateway, store("file", new) + store("plenty", tmp_path / "plenty"))
            late = store_image(gateway.admin, b"late" * 1000)
            assert [path for path in new.rglob("*") if path.is_file() and path.stat().st_size == 4000]
            assert gateway.admin.get(late.path).body == late.data
            assert gateway.client().get("/ready").json()["stores"] == {"file": "ok", "http": "ok", "plenty": "ok"}
            there = gateway.admin.add(b"there", store="plenty").image
            assert there["store"] == "plenty"
            assert first + wire.read_exactly(SIZE - len(first)) == image.data
        reload(gateway, store("file", old))
        assert gateway.admin.get(image.path).body == image.data
        assert gateway.admin.add(b"there", store="plenty").status == 400
        assert gateway.admin.get(f"/images/{there['_id']}").status == 400
        assert "plenty" not in gateway.client().get("/ready").json()["stores"]


def test_who_may_do_what_and_which_locations_are_allowed_change_at_once(tmp_path: Path, workers: int) -> None:
    with running(tmp_path, config="[auth]\nanonymous_pull = false\n", workers=workers) as gateway:
        image = store_image(gateway.admin)
        assert gateway.client().get(image.path).status == 403
        assert gateway.admin.add(location="http://127.0.0.1:9/x", store="http").status == 404
        changed = '[locations]\nallow = ["https"]\n[server]\nmax_image_size = 10\n'
        reload(gateway, f"[auth]\nanonymous_pull = true\n{changed}")
        for _ in range(4):  # whichever worker answers
            assert gateway.client().get(image.path).status == 200
            assert gateway.admin.add(location="http://127.0.0.1:9/x", store="http").status == 400
            assert gateway.admin.add(bytes(11)).status == 413


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[Path, ssl.SSLContext, ssl.SSLContext]:
    """A file with certificate and key, and contexts that trust it as it is, and as it will be."""
    path, contexts = tmp_path / "served.pem", []
    for number in range(2):
        authority = trustme.CA()
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / f"{number}.pem"))
        context = ssl.create_default_context()
        authority.configure_trust(context)
        contexts.append(context)
    path.write_bytes((tmp_path / "0.pem").read_bytes())
    return path, contexts[0], contexts[1]


def test_new_connections_get_the_new_certificate_and_old_ones_go_on(
    tmp_path: Path, certificates: tuple[Path, ssl.SSLContext, ssl.SSLContext], workers: int
) -> None:
    path, before, after = certificates
    config = f'[server]\ntls_certificate = "{path}"\n'
    with running(tmp_path, config=config, tls=before, workers=workers) as gateway:
        image = store_image(gateway.admin, os.urandom(SIZE))
        wire, first = begun(gateway, image)
        with wire:
            path.write_bytes((tmp_path / "1.pem").read_bytes())
            reload(gateway, config)
            gateway.tls = after

            for _ in range(4):  # whichever worker answers
                assert gateway.client().get("/status").status == 200
            assert first + wire.read_exactly(SIZE - len(first)) == image.data


BROKEN = "broken.pem"


@pytest.mark.parametrize("bad", ["[nonsense]\n", f'[server]\ntls_certificate = "/{BROKEN}"\n'])
def test_what_can_not_be_served_with_changes_nothing_and_the_status_says_so(
    tmp_path: Path, told: Told, bad: str, workers: int
) -> None:
    good = "[auth]\nanonymous_pull = true\n"
    if BROKEN in bad:
        authority = trustme.CA()
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "good.pem"))
        context = ssl.create_default_context()
        authority.configure_trust(context)
        good += f'[server]\ntls_certificate = "{tmp_path}/good.pem"\n'
    with running(
        tmp_path, config=good, environment=told.environment, tls=context if BROKEN in bad else None, workers=workers
    ) as gateway:
        image = store_image(gateway.admin)
        assert gateway.log
        (gateway.log.parent / "visor-gateway.toml").write_text(bad)
        os.kill(gateway.pid, signal.SIGHUP)
        assert "READY=1" in told.wait_for("configuration refused")
        assert "configuration refused, the old one stays" in gateway.logged()
        assert gateway.client().get(image.path).status == 200
        reload(gateway, good)
