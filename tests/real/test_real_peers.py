"""Several real daemons on one real PostgreSQL that show and steer each other's transfers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_process import Gateway, clean_environment, launch, reserve_port
from servers import postgresql
from servers.postgresql import PostgreSQL
from wire import OCTETS, PATIENCE, Client, Wire, eventually, head_bytes, meta, upgrade_headers

SIZE = 8 << 20


@pytest.fixture(scope="module")
def database() -> Iterator[PostgreSQL]:
    server = postgresql.start()
    yield server
    server.stop()


class Cluster:
    """Gateways that share records and a view. Each has a name, and a port that stays its own."""

    def __init__(self, directory: Path, database: PostgreSQL) -> None:
        self._directory = directory
        self.database = database
        self.url = database.url_for(directory)
        self._ports: dict[str, socket.socket] = {}
        self.gateways: dict[str, Gateway] = {}

    def running(self, name: str) -> Gateway:
        """The gateway of that name, started where it is not running. `one` has workers."""
        gateway = self.gateways.get(name)
        return gateway if gateway is not None and gateway.is_running() else self._start(name)

    def _start(self, name: str) -> Gateway:
        if name not in self._ports:
            self._ports[name] = reserve_port()
        port = self._ports[name].getsockname()[1]
        gateway = self.gateways[name] = launch(
            self._directory / name,
            config=self.configuration(name, port),
            environment={"VISOR_GATEWAY__METADATA__URL": self.url},
            port=port,
            workers=2 if name == "one" else 1,
            beside=next(iter(self.gateways.values()), None),
        )
        return gateway

    def configuration(self, name: str, port: int) -> str:
        return (
            f'[auth]\nmaster_key_file = "{self._directory / "master.key"}"\n'
            f'[peers]\nurl = "http://127.0.0.1:{port}"\nname = "{name}"\n'
        )

    def members(self) -> set[str]:
        return {name for (name,) in self.database.query(self.url.rpartition("/")[2], "SELECT name FROM gateways")}

    def close(self) -> None:
        for gateway in self.gateways.values():
            if gateway.is_running():
                gateway.kill()
        for port in self._ports.values():
            port.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, database: PostgreSQL) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("peers"), database)
    try:
        yield cluster
        for gateway in cluster.gateways.values():
            assert "can't be watched" not in gateway.logged(), gateway.logged()[-6000:]
    finally:
        cluster.close()


class Live:
    """The live channel as a stream of events. `seen` keeps every message that came after the snapshot."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.seen: list[dict[str, Any]] = []

    def until(self, wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        while True:
            found = re.search(rb"data: (.*)\n\n", self._wire.read_through(b"\n\n"))
            assert found
            message: dict[str, Any] = json.loads(found[1])
            self.seen.append(message)
            if wanted(message):
                return message

    def event(self, kind: str, transfer_id: str) -> dict[str, Any]:
        return self.until(lambda m: m["type"] == "event" and m["kind"] == kind and m["transfer"]["id"] == transfer_id)


@contextlib.contextmanager
def watching(client: Client) -> Generator[Live, None, None]:
    with client.start("GET", "/transfers/events", timeout=PATIENCE) as wire:
        assert wire.read_head().status == 200
        live = Live(wire)
        live.until(lambda message: message["type"] == "snapshot")
        yield live


@contextlib.contextmanager
def push(client: Client) -> Generator[tuple[str, Wire], None, None]:
    """An upload of which a first part was sent, by the id of its transfer."""
    transfer_id = f"00000000-0000-4000-8000-{os.urandom(6).hex()}"
    headers = [*meta(name="n", architecture="i386"), OCTETS, ("Content-Length", str(SIZE))]
    headers.append(("X-Transfer-Id", transfer_id))
    with client.connect() as wire:
        wire.send(head_bytes("POST", "/images", client.signed("POST", "/images", headers)) + bytes(100_000))
        yield transfer_id, wire


def shown(client: Client, transfer_id: str) -> dict[str, Any] | None:
    """The transfer in the list of those under way."""
    found = [each for each in client.get("/transfers").json()["transfers"] if each["id"] == transfer_id]
    assert len(found) <= 1
    return found[0] if found else None


def seen(client: Client, transfer_id: str, **fields: object) -> dict[str, Any]:
    """The transfer, once it is in the list with these values."""

    def look() -> dict[str, Any] | None:
        found = shown(client, transfer_id)
        return found if found is not None and fields.items() <= found.items() else None

    found: dict[str, Any] = eventually(look, PATIENCE, f"the transfer with {fields}")
    return found


def recorded(client: Client, transfer: dict[str, Any]) -> str:
    """The image of an upload, once it has its record: the upload needs the database no more until its end."""
    image: str = transfer["image"]
    eventually(lambda: client.head(f"/images/{image}").status == 200, PATIENCE, "a record")
    return image


def not_seen(client: Client, transfer_id: str) -> None:
    eventually(lambda: shown(client, transfer_id) is None, PATIENCE, "an end in the view")


def same_user_at(gateway: Gateway, client: Client) -> Client:
    return gateway.client(client.access_key, client.secret_key)


@pytest.mark.parametrize(("here", "there"), [("one", "two"), ("two", "one")])
def test_a_transfer_is_seen_and_steered_through_another_gateway(cluster: Cluster, here: str, there: str) -> None:
    one, two = cluster.running(here), cluster.running(there)
    anne, bob = one.new_user("anne"), one.new_user("bob")
    anne_there, bob_there = same_user_at(two, anne), same_user_at(two, bob)
    with watching(anne_there) as live, push(anne) as (id, wire):
        started = live.event("started", id)
        assert started["transfer"]["gateway"] == here
        assert seen(anne, id)["gateway"] == here
        running = seen(two.admin, id, state="running")
        assert (running["gateway"], running["user"], running["size"]) == (here, anne.access_key, SIZE)
        assert anne_there.get("/transfers").json()["totals"]["transfers"] == 1
        assert anne_there.get(f"/transfers?gateway={there}").json()["transfers"] == []
        assert [each["id"] for each in anne_there.get(f"/transfers?gateway={here}").json()["transfers"]] == [id]
        # Bytes come in deltas, as those of own transfers do.
        wire.send(bytes(1 << 20))
        live.until(lambda m: m["type"] == "delta" and [row for row in m["u"] if row[0] == id and row[1] > 1e6])
        # What is another user's does not exist, wherever it runs.
        assert shown(bob_there, id) is None
        assert bob_there.delete(f"/transfers/{id}").status == 404
        # Pause and limit.
        paused = anne_there.send_json("PATCH", f"/transfers/{id}", {"paused": True, "limit_bytes_per_s": 50_000_000})
        assert paused.status == 200, paused.body
        told = paused.json()["transfer"]
        assert (told["state"], told["limit_bytes_per_s"], told["gateway"]) == ("paused", 50_000_000, here)
        live.event("paused", id)
        seen(anne, id, state="paused", limit_bytes_per_s=50_000_000)
        seen(anne_there, id, state="paused", limit_bytes_per_s=50_000_000)
        assert anne_there.send_json("PATCH", f"/transfers?gateway={here}", {"paused": False}).status == 200
        live.event("resumed", id)
        assert anne_there.send_json("PATCH", f"/transfers/{id}", {"paused": "no"}).status == 400
        # Cancel.
        answer = anne_there.delete(f"/transfers/{id}")
        assert (answer.status, answer.json()["transfer"]["state"]) == (200, "cancelled"), answer.body
        assert wire.ends() == "reset"
        ended = live.event("cancelled", id)
        assert ended["transfer"]["error"] == "request"
        not_seen(anne_there, id)
        assert anne_there.get(f"/transfers/{id}").json()["transfer"]["state"] == "cancelled"
        assert anne_there.delete(f"/transfers/{id}").status == 409


def test_a_delete_cuts_the_upload_of_another_gateway(cluster: Cluster) -> None:
    one, two = cluster.running("one"), cluster.running("two")
    with push(one.admin) as (id, wire):
        image = recorded(two.admin, seen(two.admin, id))
        assert two.admin.delete(f"/images/{image}").status == 200
        assert wire.ends() == "reset"
        not_seen(two.admin, id)
        assert one.admin.get(f"/images/{image}").status == 404


def test_signatures_and_tickets_are_good_once_whichever_gateway_is_asked(cluster: Cluster) -> None:
    one, two = cluster.running("one"), cluster.running("two")
    path = f"/users/{one.access_key}/tokens"
    # The same bytes to both, as a thief would send them.
    signed = one.admin.signed("POST", path, [("Content-Length", "0")], host="gateways.example")
    answers = []
    for gateway in (one, two):
        with gateway.client().connect() as wire:
            wire.send(head_bytes("POST", path, signed))
            answers.append(wire.read_response("POST").status)
    assert answers == [200, 403]
    ticket = one.admin.send_json("POST", "/tickets", {"route": "/transfers/ws"}).json()["ticket"]["ticket"]
    target = f"/transfers/ws?ticket={ticket}"
    with two.client().start("GET", target, upgrade_headers()) as wire:
        assert wire.read_head().status == 101
    with one.client().start("GET", target, upgrade_headers()) as wire:
        assert wire.read_head().status == 403


def test_two_gateways_of_one_name_are_told_in_the_log(cluster: Cluster, tmp_path: Path) -> None:
    one = cluster.running("one")
    eventually(lambda: "one" in cluster.members(), PATIENCE, "a member")
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        other = launch(
            tmp_path,
            config=cluster.configuration("one", port),
            environment={"VISOR_GATEWAY__METADATA__URL": cluster.url},
            port=port,
            beside=one,
        )
        try:
            eventually(lambda: "another gateway has this name" in other.logged(), PATIENCE, "a complaint")
        finally:
            other.kill()


def test_a_gateway_that_hangs_leaves_the_view_and_is_in_it_again(cluster: Cluster) -> None:
    one, two = cluster.running("one"), cluster.running("two")
    with push(two.admin) as (id, _):
        recorded(one.admin, seen(one.admin, id))
        os.kill(two.pid, signal.SIGSTOP)
        try:
            not_seen(one.admin, id)
        finally:
            os.kill(two.pid, signal.SIGCONT)
        seen(one.admin, id)


def test_transfers_of_three_gateways_are_seen_once_everywhere_and_those_of_a_killed_one_nowhere(
    cluster: Cluster,
) -> None:
    names = ("one", "two", "three")
    gateways = [cluster.running(name) for name in names]
    anne = gateways[0].new_user("anne")
    users = [same_user_at(gateway, anne) for gateway in gateways]
    with contextlib.ExitStack() as stack:
        pushes = [stack.enter_context(push(user)) for user in users]
        for user in users:
            for id, _ in pushes:
                seen(user, id, state="running")
            assert len(user.get("/transfers").json()["transfers"]) == 3
        answer = users[1].delete("/transfers?kind=push")
        assert answer.status == 200, answer.body
        told = answer.json()
        assert {(each["gateway"], each["state"]) for each in told["transfers"]} == {(n, "cancelled") for n in names}
        assert told["totals"]["by_state"] == {"cancelled": 3}
        assert [wire.ends() for _, wire in pushes] == ["reset"] * 3
        for user in users:
            for id, _ in pushes:
                not_seen(user, id)
    with watching(users[0]) as live, push(users[2]) as (lost, _), push(users[0]) as (kept, _):
        live.event("started", lost)
        gateways[2].kill()
        live.until(lambda message: message["type"] == "delta" and lost in message["removed"])
        assert shown(users[0], lost) is None
        assert users[0].get(f"/transfers/{lost}").status == 404
        not_seen(users[1], lost)
        assert shown(users[1], kept) is not None


def test_a_gateway_that_drains_is_seen_until_its_last_transfer_has_ended(cluster: Cluster) -> None:
    one, two = cluster.running("one"), cluster.running("two")
    with push(one.admin) as (id, wire):
        seen(two.admin, id, state="running")
        assert one.process is not None
        one.process.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping" in one.logged(), PATIENCE, "a drain")
        wire.send(bytes(SIZE // 2))
        eventually(lambda: seen(two.admin, id)["bytes"] > SIZE // 2, PATIENCE, "progress while draining")
        wire.send(bytes(SIZE - SIZE // 2 - 100_000))
        assert wire.read_response().status == 200
        assert one.stop() == 0
        not_seen(two.admin, id)
    assert "one" not in cluster.members()


def test_a_gateway_that_is_upgraded_stays_in_the_view(cluster: Cluster) -> None:
    one, two = cluster.running("one"), cluster.running("two")
    assert two.data_dir is not None
    first = two.pid
    with watching(one.admin) as live, push(two.admin) as (id, wire):
        live.event("started", id)
        connected = one.logged().count("gateway seen gateway=two")
        command = [sys.executable, "-m", "visor_gateway", "upgrade", "--data-dir", str(two.data_dir)]
        subprocess.run(command, check=True, timeout=PATIENCE, env=clean_environment(), capture_output=True)
        youngest = int((two.data_dir / "gateway.lock").read_text())
        assert youngest != first
        successor = os.pidfd_open(youngest)
        try:
            # The successor tells of what its predecessor finishes, and is asked in its place.
            eventually(lambda: one.logged().count("gateway seen gateway=two") > connected, PATIENCE, "a new connection")
            assert seen(one.admin, id)["state"] == "running"
            assert one.admin.delete(f"/transfers/{id}").status == 200
            assert wire.ends() == "reset"
            live.event("cancelled", id)
            assert "two" in cluster.members()
        finally:
            signal.pidfd_send_signal(successor, signal.SIGTERM)
            ended = select.select([successor], [], [], PATIENCE)[0]
            os.close(successor)
        assert ended
        assert two.process is not None
        assert two.process.wait(PATIENCE) == 0


def test_the_view_outlives_the_database(cluster: Cluster) -> None:
    one, two = cluster.running("one"), cluster.running("two")
    with push(one.admin) as (id, wire):
        recorded(two.admin, seen(two.admin, id))
        cluster.database.kill()
        try:
            wire.send(bytes(1 << 20))
        finally:
            cluster.database.start()
        eventually(lambda: two.client().get("/ready").status == 200, PATIENCE, "a database again")
        eventually(lambda: seen(two.admin, id)["bytes"] > 1 << 20, PATIENCE, "progress")
