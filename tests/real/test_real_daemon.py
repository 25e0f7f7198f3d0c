"""The daemon as an operator meets it: start, files, configuration, drain, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from gateway_process import (
    STOP_SECONDS,
    Gateway,
    clean_environment,
    reserve_port,
    running,
    serve_command,
    wait_ready,
)
from live import subscribed
from wire import OCTETS, Client, Reset, Short, Wire, eventually, head_bytes, meta, store_image, unique

SIZE = 24 << 20


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fails_to_start(command: list[str], directory: Path, environment: dict[str, str] | None = None) -> str:
    """The one line with which a start fails."""
    done = subprocess.run(
        command, capture_output=True, timeout=60, check=False, env=clean_environment(environment), cwd=directory
    )
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1, (done.returncode, lines[-20:])
    assert len(lines) == 1, lines
    return lines[0]


def configured(directory: Path, text: str) -> list[str]:
    path = directory / "gateway.toml"
    path.write_text(text)
    return [
        sys.executable,
        "-m",
        "visor_gateway",
        "serve",
        "--data-dir",
        str(directory / "data"),
        "--config",
        str(path),
    ]


# --- files of the first start ------------------------------------------------------------------


def test_the_first_start_writes_admins_keys_for_nobody_else_to_read(gateway: Gateway) -> None:
    path = gateway.data_dir / "admin.toml"
    assert mode(path) == 0o600
    admin = tomllib.loads(path.read_text())
    assert set(admin) == {"url", "access_key", "secret_key"}
    assert (admin["url"], admin["access_key"]) == (gateway.url, "admin")
    assert gateway.client(admin["access_key"], admin["secret_key"]).get("/users").status == 200


def test_the_master_key_is_for_nobody_else_to_read(gateway: Gateway) -> None:
    assert mode(gateway.data_dir / "master.key") == 0o600


def test_bytes_and_records_are_for_nobody_else_to_read(gateway: Gateway) -> None:
    store_image(gateway.admin)
    for path in gateway.data_dir.rglob("*"):
        reachable = all(mode(parent) & 0o077 == 0 for parent in [gateway.data_dir])
        assert reachable or mode(path) & 0o077 == 0, path


def test_readiness_comes_after_the_keys_are_written(tmp_path: Path) -> None:
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        with reserve_port() as reserved:
            port = reserved.getsockname()[1]
            process = subprocess.Popen(
                serve_command(directory / "data", port), stderr=subprocess.DEVNULL, env=clean_environment()
            )
            try:
                client = Client(f"http://127.0.0.1:{port}")
                ready = False
                while not ready:
                    with contextlib.suppress(ConnectionError, Reset, Short):
                        ready = client.get("/ready").status == 200
                assert (directory / "data" / "admin.toml").exists()
            finally:
                process.kill()
                process.wait()


def test_a_second_start_keeps_users_and_images_and_refuses_replays(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        image = store_image(gateway.admin)
        user = gateway.new_user("kept")
        headers = gateway.admin.signed(
            "POST", "/images", [*meta(name=unique("once"), architecture="i386"), ("Content-Length", "0")]
        )
        with gateway.admin.connect() as wire:
            wire.send(head_bytes("POST", "/images", headers))
            assert wire.read_response().status == 200
        secret = gateway.secret_key
    with running(tmp_path) as again:
        assert again.secret_key == secret
        assert again.admin.get(image.path).body == image.data
        assert again.client(user.access_key, user.secret_key).get("/transfers").status == 200
        with again.admin.connect() as wire:
            wire.send(head_bytes("POST", "/images", headers))
            assert wire.read_response().status == 403
        url = tomllib.loads((again.data_dir / "admin.toml").read_text())["url"]
        assert url == again.url


def test_two_daemons_do_not_share_a_data_directory(gateway: Gateway, tmp_path: Path) -> None:
    line = fails_to_start(serve_command(gateway.data_dir, 0), tmp_path)
    assert str(gateway.data_dir) in line
    assert gateway.client().get("/status").body == b"OK"


def test_a_taken_port_stops_the_start_with_one_line(gateway: Gateway, tmp_path: Path) -> None:
    port = int(gateway.url.rpartition(":")[2])
    assert str(port) in fails_to_start(serve_command(tmp_path / "data", port), tmp_path)


@pytest.mark.parametrize("variable", ["STATE_DIRECTORY", "XDG_STATE_HOME"])
def test_the_data_directory_comes_from_the_environment(tmp_path: Path, variable) -> None:
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        command = [sys.executable, "-m", "visor_gateway", "serve", "--bind", f"127.0.0.1:{port}"]
        environment = clean_environment({variable: str(tmp_path), "HOME": str(tmp_path / "home")})
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        expected = tmp_path if variable == "STATE_DIRECTORY" else tmp_path / "visor-gateway"
        try:
            wait_ready(Gateway(f"http://127.0.0.1:{port}", "", "", process=process, log=Path("/dev/null")))
            eventually((expected / "admin.toml").exists)
        finally:
            process.terminate()
            assert process.wait(60) == 0


# --- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[server]\nbinds = []\n", "server.binds"),
        ("[serber]\nbind = []\n", "serber"),
        ("colour = 1\n", "colour"),
        ("[auth]\nanonymous_pull = 'yes'\n", "auth.anonymous_pull"),
        ("[server]\nmax_connections = 'many'\n", "server.max_connections"),
        ("[server]\nmax_connections = 0\n", "server.max_connections"),
        ("[server]\nstall_timeout = -1\n", "server.stall_timeout"),
        ("[server]\nbind = ['nonsense']\n", "server.bind"),
        ("[log]\nlevel = 'loud'\n", "log.level"),
        ("[locations]\nallow = 'http'\n", "locations.allow"),
        ("[metrics]\nallow = ['10.0.0.0/99']\n", "metrics.allow"),
        ("[stores]\ndefault = 'tape'\n", "stores.default"),
        ("[stores.tape]\ntype = 'tape'\n", "stores.tape"),
        ("[stores.file]\ntype = 'file'\npath = '/x'\n", "stores.file.path"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line_naming_file_and_key(tmp_path: Path, text, named) -> None:
    line = fails_to_start(configured(tmp_path, text), tmp_path)
    assert "gateway.toml" in line
    section, _, key = named.rpartition(".")
    assert section in line
    assert key in line


def test_a_missing_certificate_stops_the_start_with_one_line_naming_it_and_its_key(tmp_path: Path) -> None:
    text = "[server]\ntls_certificate = '/nowhere/cert.pem'\ntls_key = '/nowhere/key.pem'\n"
    line = fails_to_start(configured(tmp_path, text), tmp_path)
    assert "/nowhere/cert.pem" in line
    assert "tls_certificate" in line


@pytest.mark.parametrize("text", ["[server\n", "= 1\n", "a = \xff\n", "[auth]\nx = 1\nx = 2\n"])
def test_a_file_that_is_no_toml_stops_the_start_with_one_line_naming_it(tmp_path: Path, text) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(text.encode("latin-1"))
    assert "gateway.toml" in fails_to_start([*serve_command(tmp_path / "data", 0), "--config", str(path)], tmp_path)


def test_a_missing_configuration_stops_the_start_with_one_line_naming_it(tmp_path: Path) -> None:
    command = [*serve_command(tmp_path / "data", 0), "--config", str(tmp_path / "absent.toml")]
    assert "absent.toml" in fails_to_start(command, tmp_path)


def test_a_wrong_variable_stops_the_start_with_one_line_naming_it(tmp_path: Path) -> None:
    for name, value in (("VISOR_GATEWAY__SERVER__BINDS", "x"), ("VISOR_GATEWAY__SERVER__MAX_CONNECTIONS", "many")):
        line = fails_to_start(serve_command(tmp_path / "data", 0), tmp_path, {name: value})
        assert name in line


def test_every_key_can_be_set_by_a_variable(start) -> None:
    gateway = start(environment={"VISOR_GATEWAY__AUTH__ANONYMOUS_PULL": "true", "VISOR_GATEWAY__LOG__FORMAT": "json"})
    image = store_image(gateway.admin)
    assert gateway.client().get(image.path).body == image.data
    assert '"' in gateway.logged().splitlines()[0]


def test_a_wrong_master_key_stops_the_start_with_one_line_and_spoils_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        image = store_image(gateway.admin)
    path = tmp_path / "data" / "master.key"
    good = path.read_bytes()
    path.write_bytes(b"nonsense")
    fails_to_start(serve_command(tmp_path / "data", 0), tmp_path)
    path.write_bytes(good)
    with running(tmp_path) as again:
        assert again.admin.get(image.path).body == image.data


def test_init_writes_a_configuration_that_check_config_accepts(run, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "visor_gateway"]
    shown = run(*program, "init", "--help").stdout.decode()
    assert "Usage" in shown
    written = run(*program, "init", cwd=tmp_path, env=clean_environment({"HOME": str(tmp_path)}))
    files = [path for path in tmp_path.rglob("*.toml")]
    text = files[0].read_text() if files else written.stdout.decode()
    assert "[server]" in text
    assert "#" in text
    path = tmp_path / "made.toml"
    path.write_text(text)
    run(*program, "check-config", "--config", path, env=clean_environment())
    path.write_text("[server]\nbinds = []\n")
    done = run(*program, "check-config", "--config", path, env=clean_environment(), check=False)
    assert done.returncode == 1
    assert len(done.stderr.decode().splitlines()) == 1


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["--version"]])
def test_help_and_version_exit_0(run, words) -> None:
    assert run(sys.executable, "-m", "visor_gateway", *words).stdout


@pytest.mark.parametrize("words", [["nonsense"], ["serve", "--nonsense"], ["serve", "--bind"]])
def test_wrong_usage_exits_2(run, words) -> None:
    done = run(sys.executable, "-m", "visor_gateway", *words, check=False)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


# --- drain -------------------------------------------------------------------------------------


def exit_code(gateway: Gateway) -> int:
    return gateway.process.wait(STOP_SECONDS)


def test_sigterm_lets_a_running_pull_finish_and_exits_0(start) -> None:
    gateway = start()
    image = store_image(gateway.admin, random.Random(3).randbytes(SIZE))
    with gateway.admin.start("GET", image.path, receive_buffer=65536) as wire:
        head = wire.read_head()
        gateway.process.send_signal(signal.SIGTERM)
        eventually(lambda: refused(gateway), what="closed listeners")
        assert gateway.is_running()
        assert wire.read_body(head) == image.data
        assert wire.ends() == "fin"
    assert exit_code(gateway) == 0


def test_sigterm_lets_a_running_upload_finish_and_its_image_is_there_afterwards(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        headers = [*meta(name=unique("last"), architecture="i386"), OCTETS, ("Content-Length", "8")]
        with gateway.admin.start("POST", "/images", headers) as wire:
            wire.send(b"half")
            eventually(lambda: gateway.admin.get("/transfers?state=running").json()["transfers"])
            gateway.process.send_signal(signal.SIGTERM)
            eventually(lambda: refused(gateway), what="closed listeners")
            wire.send(b"half")
            image = wire.read_response().image
        assert exit_code(gateway) == 0
    with running(tmp_path) as again:
        assert again.admin.get(f"/images/{image['_id']}").body == b"halfhalf"


def refused(gateway: Gateway) -> bool:
    try:
        with Wire(gateway.url):
            return False
    except ConnectionRefusedError:
        return True


def test_idle_connections_are_closed_at_once_at_sigterm(start) -> None:
    gateway = start()
    with gateway.admin.connect() as idle, gateway.admin.connect() as fresh:
        idle.send(head_bytes("GET", "/status", [("Host", "x")]))
        assert idle.read_response().body == b"OK"
        gateway.process.send_signal(signal.SIGTERM)
        assert idle.ends() == "fin"
        assert fresh.ends() in ("fin", "reset")
    assert exit_code(gateway) == 0


def test_the_drain_deadline_cuts_what_is_left_and_exits_0(start) -> None:
    gateway = start("[server]\ndrain_timeout = 1\n")
    image = store_image(gateway.admin, bytes(SIZE))
    name = unique("cut")
    headers = [*meta(name=name, architecture="i386"), OCTETS, ("Content-Length", "8")]
    with (
        gateway.admin.start("GET", image.path, receive_buffer=65536) as pull,
        gateway.admin.start("POST", "/images", headers) as push,
    ):
        pull.read_head()
        push.send(b"half")
        eventually(lambda: gateway.admin.named(name))
        gateway.process.send_signal(signal.SIGTERM)
        assert exit_code(gateway) == 0
        with pytest.raises(Reset):
            pull.read_exactly(SIZE)


def test_a_second_sigterm_cuts_at_once_and_exits_0(start) -> None:
    gateway = start()
    image = store_image(gateway.admin, bytes(SIZE))
    with gateway.admin.start("GET", image.path, receive_buffer=65536) as pull:
        pull.read_head()
        gateway.process.send_signal(signal.SIGTERM)
        eventually(lambda: refused(gateway), what="closed listeners")
        gateway.process.send_signal(signal.SIGTERM)
        assert exit_code(gateway) == 0
        with pytest.raises(Reset):
            pull.read_exactly(SIZE)


async def test_subscribers_are_told_of_the_drain(start) -> None:
    gateway = start()
    async with subscribed(gateway.admin) as live:
        await live.next()
        await live.next()
        gateway.process.send_signal(signal.SIGTERM)
        bye = await live.until(lambda m: m["type"] == "bye")
        assert bye == {"type": "bye", "reason": "drain"}
    assert exit_code(gateway) == 0


def test_sighup_does_not_stop_the_daemon(start) -> None:
    gateway = start()
    gateway.process.send_signal(signal.SIGHUP)
    image = store_image(gateway.admin)
    assert gateway.admin.get(image.path).body == image.data


def test_an_interrupt_from_the_keyboard_drains_too(start) -> None:
    gateway = start()
    gateway.process.send_signal(signal.SIGINT)
    assert exit_code(gateway) == 0


# --- stores and databases that fail ------------------------------------------------------------


def images_of(gateway: Gateway) -> list[Path]:
    return [path for path in (gateway.data_dir / "images").rglob("*") if path.is_file()]


def test_a_store_that_can_not_be_used_stops_neither_the_start_nor_readiness(start, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("not a directory")
    gateway = start(f'[stores.file]\ntype = "file"\ndirectory = "{tmp_path}/blocked/images"\n')
    answer = gateway.client().get("/ready")
    assert answer.status == 200
    assert str(tmp_path) not in answer.body.decode()
    name = unique("unstored")
    answer = gateway.admin.add(b"bytes", name=name)
    assert answer.status == 503
    assert answer.header("retry-after")
    assert str(tmp_path) not in answer.message
    image = gateway.admin.named(name)
    assert image is None or image["status"] in ("error", "locked")
    assert gateway.admin.add().status == 200


def limit_file_size() -> None:
    """No file of this process may grow beyond 4 MiB: what a full disk is like."""

    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_store_that_fails_in_mid_upload_is_503_and_keeps_no_bytes(start, framing) -> None:
    gateway = start(preexec=limit_file_size)
    name = unique("full")
    data = bytes(6 << 20)
    body = data if framing == "length" else [data[i : i + 65536] for i in range(0, len(data), 65536)]
    answer = gateway.admin.add(body, name=name)
    assert answer.status == 503
    assert answer.header("retry-after")
    assert gateway.admin.named(name)["status"] == "error"
    assert images_of(gateway) == []
    assert gateway.admin.add(b"small").image["status"] == "available"


def test_a_locked_database_is_503_with_retry_after_and_no_half_record(start) -> None:

    gateway = start()
    image = store_image(gateway.admin)
    (database,) = gateway.data_dir.glob("*.sqlite3")
    name = unique("unrecorded")
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as blocker:
        blocker.execute("BEGIN EXCLUSIVE")
        answer = gateway.admin.add(b"bytes", name=name)
        assert answer.status == 503
        assert answer.header("retry-after")
        assert "sqlite" not in answer.message.lower()
        assert gateway.client().get("/status").body == b"OK"
        blocker.execute("ROLLBACK")
    assert gateway.admin.named(name) is None
    assert gateway.admin.get(image.path).body == image.data
    assert gateway.admin.add(b"bytes").status == 200


@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "remove"])
def test_bytes_that_were_damaged_in_the_store_are_never_a_whole_200(start, damage) -> None:
    gateway = start()
    data = random.Random(4).randbytes(3 << 20)
    image = store_image(gateway.admin, data)
    (path,) = images_of(gateway)
    os.chmod(path, 0o600)
    if damage == "flip":
        with path.open("r+b") as file:
            file.seek(1 << 20)
            file.write(bytes([data[1 << 20] ^ 1]))
    elif damage == "truncate":
        os.truncate(path, 1 << 20)
    elif damage == "grow":
        with path.open("ab") as file:
            file.write(b"more")
    else:
        path.unlink()
    with gateway.admin.start("GET", image.path) as wire, contextlib.suppress(Reset):
        head = wire.read_head()
        if head.status == 200:
            body = wire.read_body(head)  # a reset ends it early
            assert body == data
        else:
            assert head.status in (409, 500, 502, 503)
    part = [("Range", "bytes=1048576-1048585")]
    with gateway.admin.start("GET", image.path, part) as wire, contextlib.suppress(Reset):
        answer = wire.read_response()
        assert answer.status != 206 or answer.body == data[1048576:1048586]


def test_the_log_has_the_transfer_of_a_request_and_no_query_of_a_link(start) -> None:

    gateway = start('[log]\nformat = "json"\n')
    image = store_image(gateway.admin)
    answer = gateway.admin.get(image.path)
    transfer = answer.header("x-transfer-id")
    lines = eventually(lambda: [line for line in gateway.logged().splitlines() if transfer in line])
    assert all(isinstance(json.loads(line), dict) for line in gateway.logged().splitlines())
    assert lines
