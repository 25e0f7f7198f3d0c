"""The service under a real systemd: it starts, says so, serves on the sockets that systemd holds, and drains."""

from __future__ import annotations

import base64
import os
import secrets
import signal
import socket
import ssl

import pytest
import trustme
from servers.systemd import Machine, configure, serving
from wire import Client, eventually

# On a busy machine the start of a service alone takes tens of seconds.
pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

IMAGE = secrets.token_bytes(100_000)


def is_reset(port: int) -> bool:
    """Whether a connection is reset without a word."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            sock.recv(1)
    except ConnectionResetError:
        return True
    return False


def pulled(client: Client, path: str) -> bytes:
    answer = client.get(path)
    assert answer.status == 200
    return answer.body


def test_it_gets_ready_and_serves_on_every_socket_also_after_a_crash(machine: Machine) -> None:
    with serving(machine) as gateway:
        assert machine.show("ActiveState", "Type") == {"ActiveState": "active", "Type": "notify"}
        assert machine.property("StatusText").startswith("serving on http://127.0.0.1:4568; 0 transfers")
        assert gateway.client().get("/ready").status == 200
        image = gateway.admin.add(IMAGE, access="public").image
        path = f"/images/{image['_id']}"
        assert pulled(gateway.admin, path) == IMAGE
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(machine.root / "run/visor-gateway.sock"))
            sock.sendall(b"GET /status HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert sock.makefile("rb").read().endswith(b"OK")
        # No certificate: nobody waits for a handshake.
        assert is_reset(4569)
        assert machine.property("DynamicUser") == "yes"
        os.kill(machine.main_pid(), signal.SIGKILL)
        # The socket is open all the time, so this one waits for the next process.
        assert pulled(gateway.admin, path) == IMAGE
        assert machine.property("NRestarts") == "1"


def test_secrets_come_as_credentials_and_a_failed_store_shows_in_status_and_journal(machine: Machine) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    s3 = '[stores.s3]\ntype = "s3"\nendpoint = "http://127.0.0.1:9"\nbucket = "images"\n'
    config = f"{s3}[auth]\nanonymous_pull = true\n"
    credentials = {
        "master.key": base64.b64encode(secrets.token_bytes(32)),
        "metadata.url": "sqlite:////var/lib/visor-gateway/named.sqlite3\n",
        "stores.s3.secret_key": "secret-key-of-the-store",
        "server.tls_certificate": b"".join(pem.bytes() for pem in certificate.cert_chain_pems),
        "server.tls_key": certificate.private_key_pem.bytes(),
    }
    inline = "[Service]\nSetCredential=stores.s3.access_key:access-key\n"
    with serving(machine, config=config, credentials=credentials, drop_ins={"inline": inline}) as gateway:
        machine.wait_until(lambda: "store s3 failed" in machine.property("StatusText"), "the status of the store")
        ready = gateway.client().get("/ready")
        assert (ready.status, ready.json()["stores"]["s3"]) == (200, "failed")
        image = gateway.admin.add(IMAGE, access="public").image
        state = machine.root / "var/lib/visor-gateway"
        assert (state / "named.sqlite3").exists()
        assert not (state / "master.key").exists()

        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        secure = Client("https://localhost:4569", None, "", "VISOR-HMAC-SHA256", trusting)
        assert pulled(secure, f"/images/{image['_id']}") == IMAGE

        words = ("visor-gateway.service", "VISOR_EVENT=store can't be used")
        (entry,) = machine.wait_until(lambda: machine.journal(*words), "the line of the store")
        assert (entry["PRIORITY"], entry["VISOR_STORE"], entry["SYSLOG_IDENTIFIER"]) == ("4", "s3", "visor-gateway")
        machine.wait_until(lambda: f"path=/images/{image['_id']}" in machine.messages(), "the line of the request")
        requests = [entry for entry in machine.journal() if str(entry["MESSAGE"]).startswith("request ")]
        assert {entry["PRIORITY"] for entry in requests} == {"6"}
        assert "secret-key-of-the-store" not in machine.messages()


def test_a_reload_that_is_refused_fails_and_shows_until_a_good_one(machine: Machine) -> None:
    credentials = {"stores.s3.access_key": "a", "stores.s3.secret_key": "b"}
    good = '[stores.s3]\ntype = "s3"\nendpoint = "http://127.0.0.1:9"\nbucket = "images"\n'
    with serving(machine, config=good, credentials=credentials) as gateway:
        pid = machine.main_pid()
        configure(machine, f'{good}[log]\nlevel = "loud"\n')
        assert machine.run("systemctl", "reload", "visor-gateway", check=False).returncode != 0
        machine.wait_until(
            lambda: "configuration refused" in machine.property("StatusText"), "the status of the refusal"
        )
        assert "log.level" in machine.property("StatusText")
        machine.wait_until(lambda: "configuration refused, the old one stays" in machine.messages(), "its line")
        configure(machine, f'{good}[log]\nlevel = "warning"\n')
        # The secrets that the configuration needs are there for its check, too.
        machine.systemctl("reload", "visor-gateway")
        machine.wait_until(
            lambda: "configuration refused" not in machine.property("StatusText"), "the status of the good one"
        )
        assert gateway.client().get("/ready").status == 200
        assert (machine.main_pid(), machine.property("ActiveState")) == (pid, "active")


def test_a_stop_ends_within_the_drain_deadline_however_little_a_client_reads(machine: Machine) -> None:
    """Systemd would end it after two seconds; the gateway asks for the time that the drain takes."""
    config = "[server]\ndrain_timeout = 10\n"
    with serving(machine, config=config, drop_ins={"short": "[Service]\nTimeoutStopSec=2\n"}) as gateway:
        image = gateway.admin.add(secrets.token_bytes(1 << 20) * 64).image
        with gateway.admin.start("GET", f"/images/{image['_id']}") as wire:
            eventually(lambda: gateway.admin.get("/transfers").json()["transfers"])
            pid = machine.main_pid()
            machine.systemctl("stop", "--no-block", "visor-gateway")
            machine.wait_until(lambda: machine.property("StatusText").startswith("draining; 1 transfer,"), "the drain")
            assert machine.main_pid() == pid
            machine.wait_for_state("inactive", "failed")
            assert machine.show("Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}
            assert wire.ends() == "reset"
