"""A gateway of several processes: one to its clients, and whole again after any of its processes is gone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_process import Gateway, clean_environment, launch, running, serve_command
from live import subscribed
from wire import OCTETS, Client, Reset, Short, Stored, Wire, eventually, head_bytes, meta, store_image

SIZE = 12 << 20
CONFIG = "[server]\nworkers = 2\ndrain_timeout = 30\n"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway of two workers."""
    with running(tmp_path, config=CONFIG) as gateway:
        yield gateway


def workers(gateway: Gateway) -> list[int]:
    """Numbers of the worker processes, those of children that are ending included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == gateway.pid and fields[0] != "Z":
                    found.append(int(entry.name))
    return sorted(found)


def state(process: int) -> str | None:
    """The letter of a process's state (proc(5)), None for one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return None


@contextlib.contextmanager
def only(gateway: Gateway, worker: int) -> Generator[None, None, None]:
    """Let `worker` alone take new clients: the others are stopped for the length of the block."""
    others = [pid for pid in workers(gateway) if pid != worker]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: all(state(pid) in {"T", None} for pid in others), what="workers that stand still")
        yield
    finally:
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class Pull:
    """A pull that has begun and is not read on. Closed by whoever uses it as a context manager."""

    def __init__(self, client: Client, image: Stored) -> None:
        self.wire = client.start("GET", f"/images/{image.id}", receive_buffer=65536)
        head = self.wire.read_head()
        assert head.status == 200
        self.id = head.header("x-transfer-id") or ""
        self._length = int(head.header("content-length") or "")

    def __enter__(self) -> Pull:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.wire.close()

    def digest(self) -> str:
        """SHA-256 of the whole body."""
        return hashlib.sha256(self.wire.read_exactly(self._length)).hexdigest()


@contextlib.contextmanager
def two_pulls(gateway: Gateway, image: Stored) -> Generator[tuple[Pull, Pull], None, None]:
    """One on each worker, in the order of `workers`."""
    one, two = workers(gateway)
    with contextlib.ExitStack() as stack:
        with only(gateway, one):
            first = stack.enter_context(Pull(gateway.admin, image))
        with only(gateway, two):
            second = stack.enter_context(Pull(gateway.admin, image))
        yield first, second


def begin_push(client: Client, **fields: str) -> Wire:
    """An upload of which a first part was sent."""
    headers = [*meta(name="n", architecture="i386", **fields), OCTETS, ("Content-Length", str(SIZE))]
    wire = client.connect()
    wire.send(head_bytes("POST", "/images", client.signed("POST", "/images", headers)) + bytes(100_000))
    return wire


def upload(client: Client) -> dict[str, Any]:
    """The record of the one image that there is, once its bytes are on their way."""

    def shown() -> dict[str, Any] | None:
        images = client.get("/images/detail?status=uploading").json().get("images", [])
        return images[0] if images else None

    return eventually(shown, what="an upload")  # type: ignore[no-any-return]


def counted(gateway: Gateway, name: str) -> float:
    lines = gateway.admin.get("/metrics").body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def test_a_killed_worker_takes_its_own_transfers_along_and_is_replaced(pair: Gateway) -> None:
    image = store_image(pair.admin, os.urandom(SIZE))
    first, second = workers(pair)
    with two_pulls(pair, image) as (lost, kept):
        async with subscribed(pair.admin) as live:
            await live.next()
            snapshot = await live.next()
            assert {each["id"] for each in snapshot["transfers"]} == {lost.id, kept.id}
        accepted = counted(pair, "visor_connections_accepted_total")
        with only(pair, second):
            async with subscribed(pair.admin) as live:
                await live.next()
                os.kill(first, signal.SIGKILL)
                assert (await live.event("failed", lost.id))["transfer"]["bytes"] < SIZE
        with pytest.raises((Reset, Short)):
            lost.digest()
        eventually(lambda: pair.logged().count("worker serves") == 3)
        assert "worker replaced" in pair.logged()
        after = workers(pair)
        assert len(after) == 2
        assert second in after
        for worker in after:
            with only(pair, worker):
                assert pair.client().get("/ready").status == 200
                assert pair.admin.get(f"/transfers/{lost.id}").json()["transfer"]["state"] == "failed"
                assert pair.admin.get(f"/transfers/{kept.id}").json()["transfer"]["state"] == "running"
        assert counted(pair, "visor_connections_accepted_total") >= accepted
        assert kept.digest() == hashlib.sha256(image.data).hexdigest()


def test_what_a_killed_worker_was_writing_is_given_up_at_once(pair: Gateway) -> None:
    victim, _ = workers(pair)
    with only(pair, victim):
        wire = begin_push(pair.admin)
        record = upload(pair.admin)
    with wire:
        os.kill(victim, signal.SIGKILL)
        wire.ends()
        eventually(lambda: pair.admin.record(record["_id"])["status"] == "error")


def test_deleting_an_image_ends_its_upload_on_another_worker(pair: Gateway) -> None:
    one, two = workers(pair)
    with only(pair, one):
        wire = begin_push(pair.admin)
        record = upload(pair.admin)
    with wire:
        path = f"/images/{record['_id']}"
        # The answer comes when the upload has ended: its worker has to run for that.
        with only(pair, two):
            asking = pair.admin.start("DELETE", path)
            assert asking.quiet_for(0.2)
        with asking:
            assert asking.read_response("DELETE").status == 200
        assert wire.ends() == "reset"
    assert pair.admin.get("/images").status == 404
    assert pair.data_dir
    assert not [path for path in (pair.data_dir / "images").rglob("*") if path.is_file()]


async def test_watchers_on_every_worker_are_told_when_their_account_goes(pair: Gateway) -> None:
    carol = pair.new_user("carol")
    one, two = workers(pair)
    async with contextlib.AsyncExitStack() as stack:
        with only(pair, one):
            live = await stack.enter_async_context(subscribed(carol))
            await live.next()
        with only(pair, two):
            assert pair.admin.delete(f"/users/{carol.access_key}").status == 200
        assert (await live.until(lambda message: message["type"] == "bye"))["reason"] == "auth"


def test_workers_end_with_a_killed_supervisor_and_another_can_start(tmp_path: Path) -> None:
    gateway = launch(tmp_path, config=CONFIG)
    orphans = workers(gateway)
    gateway.kill()
    eventually(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in orphans))
    with running(tmp_path, config=CONFIG, port=int(gateway.url.rpartition(":")[2])) as again:
        assert again.admin.get("/transfers").status == 200


def test_a_drain_lets_the_transfers_of_all_workers_finish(tmp_path: Path) -> None:
    gateway = launch(tmp_path, config=CONFIG)
    image = store_image(gateway.admin, os.urandom(SIZE))
    with two_pulls(gateway, image) as pulls:
        os.kill(gateway.pid, signal.SIGTERM)
        eventually(lambda: not listens(gateway))
        for pull in pulls:
            assert pull.digest() == hashlib.sha256(image.data).hexdigest()
    assert gateway.process
    assert gateway.process.wait(60) == 0, gateway.logged()
    assert "Traceback" not in gateway.logged()


def test_a_second_sigterm_cuts_the_transfers_of_all_workers(tmp_path: Path) -> None:
    gateway = launch(tmp_path, config=CONFIG)
    with two_pulls(gateway, store_image(gateway.admin, os.urandom(SIZE))) as pulls:
        os.kill(gateway.pid, signal.SIGTERM)
        eventually(lambda: not listens(gateway))
        assert gateway.is_running()
        assert gateway.stop() == 0
        for pull in pulls:
            with pytest.raises((Reset, Short)):
                pull.digest()


def listens(gateway: Gateway) -> bool:
    """Whether anybody takes a connection."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except ConnectionError:
        return False
    return True


def test_a_worker_that_hangs_is_ended_and_replaced_alone(tmp_path: Path) -> None:
    with running(tmp_path, config=CONFIG, environment={"WATCHDOG_USEC": "10000000"}) as gateway:
        image = store_image(gateway.admin, os.urandom(SIZE))
        hung, well = workers(gateway)
        with only(gateway, well):
            pull = Pull(gateway.admin, image)
        with pull:
            os.kill(hung, signal.SIGSTOP)
            eventually(lambda: gateway.logged().count("worker serves") == 3)
            assert "worker hangs" in gateway.logged()
            assert hung not in workers(gateway)
            assert well in workers(gateway)
            assert pull.digest() == hashlib.sha256(image.data).hexdigest()


def test_sighup_reaches_the_workers(tmp_path: Path) -> None:
    with running(tmp_path, config=CONFIG + '[log]\nlevel = "warning"\n') as gateway:
        gateway.client().get("/status")
        assert "path=/status" not in gateway.logged()
        (tmp_path / "visor-gateway.toml").write_text(CONFIG + '[log]\nlevel = "info"\n')
        os.kill(gateway.pid, signal.SIGHUP)
        eventually(lambda: "configuration read again" in gateway.logged())

        def both_log() -> bool:
            gateway.client().get("/status")
            return "path=/status" in gateway.logged()

        eventually(both_log)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ('tls_certificate = "/nowhere.pem"', "server.tls_certificate"),
        ('bind = ["192.0.2.1:1"]', "Can't listen on 192.0.2.1:1"),
    ],
)
def test_a_start_that_can_not_succeed_ends_the_whole_with_one_line(tmp_path: Path, config: str, told: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(f"[server]\nworkers = 2\n{config}\n")
    command = serve_command(tmp_path / "data", 0, path)
    if "bind" in config:
        del command[command.index("--bind") : command.index("--bind") + 2]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=clean_environment(), cwd=tmp_path)
    [line] = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert told in line


def test_one_process_is_all_there_is_without_workers(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as gateway:
        assert not workers(gateway)
