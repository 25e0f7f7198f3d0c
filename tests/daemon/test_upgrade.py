"""One process takes another one's place: nobody is refused, no pull fails, and the gateway is one all the while."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cached_pulls import CACHED, MIB, digest_of, entries, fills, hurry, refer
from gateway_process import Gateway, clean_environment, launch, reserve_port
from roles import KEY
from servers import nginx
from wire import Client, Reset, Short, Stored, eventually, store_image

pytestmark = pytest.mark.real

SIZE = 12 << 20
END_SECONDS = 60.0


def ask_upgrade(gateway: Gateway) -> dict[str, Any]:
    """What the daemon answers who asks for an upgrade."""
    assert gateway.data_dir
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(360)
        before = os.getcwd()
        os.chdir(gateway.data_dir)  # names of sockets may have 107 bytes
        try:
            sock.connect("gateway.sock")
        finally:
            os.chdir(before)
        sock.sendall(b'{"ask": "upgrade"}\n')
        with sock.makefile("rb") as answers:
            answer: dict[str, Any] = json.loads(answers.readline())
    return answer


def upgrade(gateway: Gateway) -> int:
    """Have another process take over. Returns its number."""
    answer = ask_upgrade(gateway)
    assert answer["done"], (answer, gateway.logged())
    assert answer["pid"] == youngest(gateway)
    return int(answer["pid"])


def youngest(gateway: Gateway) -> int:
    assert gateway.data_dir
    return int((gateway.data_dir / "gateway.lock").read_text() or 0)


def has_ended(pid: int, seconds: float = END_SECONDS) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


def family(pid: int, younger: int) -> list[int]:
    """A process and its workers, but not the younger generation, which it has started too."""
    # A child is that of the thread which has started it.
    children = " ".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")).split()
    return [pid, *(int(child) for child in children if int(child) != younger)]


def is_connected(pids: list[int], port: int) -> bool:
    """Whether one of these processes has the connection of the client at this port."""
    connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{fields[9]}]" for fields in connections if int(fields[2].rpartition(":")[2], 16) == port}
    held = set[str]()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):  # the process has ended
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):  # it was closed
                    held.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return bool(sockets & held)


@contextlib.contextmanager
def generations(directory: Path, *, killed: bool = False, **options: Any) -> Generator[Gateway, None, None]:
    """A gateway of which all generations end by one SIGTERM to the youngest, but for the oldest if that is `killed`."""
    # Pulls whose clients wait for a busy machine are not to be taken for stalled.
    options["config"] = "[server]\nstall_timeout = 600\n" + options.pop("config", "")
    gateway = launch(directory, **options)
    assert gateway.process
    try:
        yield gateway
        last = youngest(gateway)
        if last:
            os.kill(last, signal.SIGTERM)
        if last not in {gateway.pid, 0}:
            assert has_ended(last), gateway.logged()
        assert gateway.process.wait(END_SECONDS) == (-signal.SIGKILL if killed else 0), gateway.logged()[-4000:]
    finally:
        for pid in {youngest(gateway), gateway.pid} - {0}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        gateway.process.wait()
    assert "Traceback" not in gateway.logged(), gateway.logged()[-6000:]


@pytest.fixture(params=[1, 2], ids=["alone", "workers"])
def workers(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


class Pull:
    """A pull whose client reads on when it is told to."""

    def __init__(self, gateway: Gateway, image: Stored) -> None:
        self.image = image
        self.wire = gateway.admin.start("GET", image.path, receive_buffer=65536)
        head = self.wire.read_head()
        assert head.status == 200
        self.id = head.header("x-transfer-id")
        self.got = self.wire.read_exactly(1000)

    def finish(self) -> None:
        """Read the rest, which must be right."""
        with self.wire:
            assert self.got + self.wire.read_exactly(len(self.image.data) - len(self.got)) == self.image.data

    def state(self, gateway: Gateway) -> str:
        answer = gateway.admin.get(f"/transfers/{self.id}")
        return str(answer.json()["transfer"]["state"]) if answer.status == 200 else ""


class Requests:
    """Requests on new connections, one after the other, until the end of the block: none may fail."""

    def __init__(self, gateway: Gateway, image: Stored) -> None:
        self._gateway, self._image = gateway, image
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.count = 0
        self.failures: list[object] = []

    def _run(self) -> None:
        while not self._over.wait(0.02):
            try:
                answer = self._gateway.admin.get(self._image.path)
                if answer.status != 200 or answer.body != self._image.data:
                    self.failures.append(answer)
            except (OSError, Reset, Short) as error:
                self.failures.append(error)
            self.count += 1

    def __enter__(self) -> Requests:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        assert self.count
        assert not self.failures


@pytest.fixture
def small() -> bytes:
    return os.urandom(20_000)


def test_an_upgrade_fails_no_pull_and_refuses_nobody(tmp_path: Path, workers: int, small: bytes) -> None:
    with generations(tmp_path, workers=workers) as gateway:
        admin = gateway.admin
        image, other = store_image(admin, os.urandom(SIZE)), store_image(admin, small)
        pulls = [Pull(gateway, image) for _ in range(4)]
        kept = admin.connect()
        with Requests(gateway, other):
            first = second = upgrade(gateway)
            assert first != gateway.pid
            # The new process shows and steers what the old one moves.
            ids = {pull.id for pull in pulls}
            eventually(lambda: ids <= {each["id"] for each in admin.get("/transfers").json()["transfers"]})
            assert admin.delete(f"/transfers/{pulls[0].id}").status == 200
            with pytest.raises((Reset, Short)):
                pulls[0].finish()
            assert admin.send_json("PATCH", f"/transfers/{pulls[1].id}", {"paused": True}).status == 200
            eventually(lambda: pulls[1].state(gateway) == "paused")
            assert admin.send_json("PATCH", f"/transfers/{pulls[1].id}", {"paused": False}).status == 200
            if workers == 1:
                # A third generation, while the first still drains.
                second = upgrade(gateway)
                eventually(
                    lambda: ids - {pulls[0].id} <= {t["id"] for t in admin.get("/transfers").json()["transfers"]}
                )
                assert has_ended(first)  # it had nothing to finish
            assert gateway.is_running()
            for pull in pulls[1:]:
                pull.finish()
        for pull in pulls[1:]:
            eventually(lambda pull=pull: pull.state(gateway) == "finished")
        kept.close()
        assert gateway.process
        assert gateway.process.wait(END_SECONDS) == 0
        assert youngest(gateway) == second
        listed = admin.get(f"/transfers/history?image={image.id}").json()["transfers"]
        assert [sum(each["id"] == pull.id for each in listed) for pull in pulls] == [1, 1, 1, 1]


def test_a_process_that_can_not_start_changes_nothing_and_its_reason_is_told(tmp_path: Path) -> None:
    with generations(tmp_path, config='[log]\nlevel = "info"\n') as gateway:
        image = store_image(gateway.admin, os.urandom(SIZE))
        pull = Pull(gateway, image)
        path = tmp_path / "visor-gateway.toml"
        path.write_text("[nonsense]\n")
        environment = clean_environment()
        command = [sys.executable, "-m", "visor_gateway", "upgrade", "--data-dir", str(gateway.data_dir)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=360)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "nonsense" in line
        assert "the running process goes on" in line
        assert youngest(gateway) == gateway.pid
        assert "upgrade failed, this process goes on" in gateway.logged()
        assert gateway.admin.get(image.path).status == 200
        path.write_text("")
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=360)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"as process {youngest(gateway)}" in done.stdout
        pull.finish()
        assert gateway.process
        assert gateway.process.wait(END_SECONDS) == 0


def test_when_the_new_process_dies_the_old_one_starts_another(tmp_path: Path, workers: int) -> None:
    with generations(tmp_path, workers=workers) as gateway:
        image = store_image(gateway.admin, os.urandom(SIZE))
        pull = Pull(gateway, image)
        first = upgrade(gateway)
        os.kill(first, signal.SIGKILL)
        assert has_ended(first)

        def is_served() -> bool:
            try:
                return gateway.admin.get(image.path).body == image.data
            except (OSError, Reset, Short):
                return False

        if workers == 1:
            # Who connects now waits for the next one.
            assert is_served()
        else:  # its workers may still be about to end
            eventually(is_served)
        eventually(lambda: youngest(gateway) not in {first, gateway.pid, 0})
        eventually(lambda: pull.state(gateway) == "running")
        pull.finish()
        assert gateway.process
        assert gateway.process.wait(END_SECONDS) == 0


def test_a_stop_ends_all_generations_within_the_drain_deadline(tmp_path: Path, workers: int) -> None:
    with generations(tmp_path, workers=workers, config="drain_timeout = 1\n") as gateway:
        pull = Pull(gateway, store_image(gateway.admin, os.urandom(SIZE)))
        first = upgrade(gateway)
        eventually(lambda: pull.state(gateway) == "running")
        os.kill(first, signal.SIGTERM)
        assert gateway.process
        assert gateway.process.wait(END_SECONDS) == 0
        assert has_ended(first)
        with pytest.raises((Reset, Short)):
            pull.finish()


def test_slots_are_those_of_the_gateway(tmp_path: Path) -> None:
    with generations(tmp_path, config="[limits]\ntransfers = 1\n") as gateway:
        image = store_image(gateway.admin, os.urandom(SIZE))
        pull = Pull(gateway, image)
        waiting = gateway.admin.start("GET", image.path)
        states = lambda: sorted(t["state"] for t in gateway.admin.get("/transfers").json()["transfers"])  # ruff: ignore[lambda-assignment]
        eventually(lambda: states() == ["queued", "running"])
        upgrade(gateway)
        eventually(lambda: states() == ["queued", "running"])
        late = gateway.admin.start("GET", image.path)
        eventually(lambda: states() == ["queued", "queued", "running"])
        pull.finish()
        for wire in (waiting, late):
            with wire:
                assert wire.read_response().body == image.data
        assert gateway.process
        assert gateway.process.wait(END_SECONDS) == 0


def test_an_upload_goes_on_and_its_lease_too(tmp_path: Path) -> None:
    with generations(tmp_path) as gateway:
        data = os.urandom(1 << 20)
        head = [("x-image-meta-name", "n"), ("x-image-meta-architecture", "i386")]
        head += [("content-type", "application/octet-stream"), ("content-length", str(len(data)))]
        with gateway.admin.start("POST", "/images", head) as wire:
            wire.send(data[:1000])
            eventually(lambda: gateway.admin.get("/transfers").json()["transfers"])
            upgrade(gateway)
            wire.send(data[1000:])
            image = wire.read_response().image
        assert image["status"] == "available"
        assert gateway.admin.get(f"/images/{image['_id']}").body == data
        assert gateway.process
        assert gateway.process.wait(END_SECONDS) == 0


@pytest.mark.parametrize("ends", ["well", "killed"])
def test_a_fill_feeds_clients_of_both_generations(tmp_path: Path, workers: int, ends: str) -> None:
    """The old process goes on filling. Killed, it takes its own clients along; those of the new one get the rest."""
    data = os.urandom(16 * MIB)
    paced = CACHED + "[limits]\nbytes_per_s_per_transfer = 1048576\n"
    with (
        nginx.start(tmp_path / "nginx") as origin,
        generations(tmp_path / "gateway", workers=workers, config=paced, killed=ends == "killed") as gateway,
        ThreadPoolExecutor(16) as clients,
    ):
        path, received, first = refer(gateway, origin, data), list[int](), list[int]()
        early = [clients.submit(digest_of, gateway.client(), path, received.append, first.append) for _ in range(2)]
        eventually(lambda: len(first) == 2 and sum(received) > MIB, what="a fill under way")
        younger = upgrade(gateway)
        # An older generation may still accept somebody in the moment in which it stops to.
        elders, late = family(gateway.pid, younger), []
        assert all(is_connected(elders, port) for port in first)
        while len(late) < 2:
            ports = list[int]()
            one = clients.submit(digest_of, gateway.client(), path, received.append, ports.append)
            eventually(lambda ports=ports: ports, what="an answer")
            (early if is_connected(elders, ports[0]) else late).append(one)
        pulls = lambda: gateway.admin.get("/transfers?kind=pull").json()["transfers"]  # ruff: ignore[lambda-assignment]
        eventually(lambda: len(pulls()) == len(early) + 2, what="clients of both generations")
        assert len(fills(gateway)) == 1
        if ends == "killed":
            os.kill(gateway.pid, signal.SIGKILL)
        hurry(gateway, path)
        assert {each.result(END_SECONDS) for each in late} == {hashlib.sha256(data).hexdigest()}
        for each in early:
            if ends == "killed":
                assert isinstance(each.exception(END_SECONDS), (OSError, Reset, Short))
            else:
                assert each.result(END_SECONDS) == hashlib.sha256(data).hexdigest()
        eventually(lambda: [entry["sha256"] for entry in entries(gateway)] == [hashlib.sha256(data).hexdigest()])
        if ends == "well":
            assert gateway.process
            assert gateway.process.wait(END_SECONDS) == 0
            assert youngest(gateway) == younger
            metrics = gateway.client().get("/metrics").body.decode()
            (read,) = re.findall(r"^visor_cache_bytes_from_stores_total (.*)$", metrics, re.MULTILINE)
            assert int(float(read)) == len(data)


def test_a_role_for_other_servers_is_passed_on(tmp_path: Path, workers: int) -> None:
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        config = f'roles = ["image", "meta"]\n[meta_server]\nbind = ["127.0.0.1:{port}"]\nshared_key = "{KEY}"\n'
        with generations(tmp_path, workers=workers, config=config) as gateway:
            peer = Client(f"http://127.0.0.1:{port}", "peer", KEY)
            image = store_image(gateway.admin, b"bytes")
            with Requests(gateway, image):
                assert peer.get(image.path).image["_id"] == image.id
                upgrade(gateway)
                assert peer.get(image.path).image["_id"] == image.id
