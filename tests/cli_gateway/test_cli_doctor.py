"""`visor-gateway doctor`: what it finds, what it says to do, and that it leaves nothing and tells no secret."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from click.testing import CliRunner, Result
from gateway_process import clean_environment, running, store_files
from memory_store import Faults, MemoryStore
from programs import run
from servers import postgresql

from visor_gateway.cli import gateway
from visor_gateway.cli.doctor import clock, configuration, examination, files, kernel, probe, records, service
from visor_gateway.cli.doctor.finding import Finding, Level, as_lines, cleaned, failed, ok, warning
from visor_gateway.cli.identity import owner_of, service_environ
from visor_gateway.config import Settings, load
from visor_gateway.datadir import DataDirectory, lock_data_dir
from visor_gateway.errors import StoreFull, StoreUnreachable
from visor_gateway.meta import migrations
from visor_gateway.meta.sql import open_metadata

SECRET = "canary-secret-0123456789"


Doctor = Callable[..., Result]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Run the command on `tmp_path`/data, in this process."""
    monkeypatch.setattr(gateway.log, "configure", lambda *arguments: None)

    def run(*words: str) -> Result:
        words = ("doctor", "--data-dir", str(tmp_path / "data"), *words)
        return CliRunner(env={"CONFIGURATION_DIRECTORY": ""}).invoke(gateway.cli, words, prog_name="visor-gateway")

    return run


def settings_of(directory: Path, text: str = "") -> Settings:
    file = directory / "visor-gateway.toml"
    file.write_text(text)
    return load(file, data_dir=directory / "data", environ={})


def examined(directory: Path, text: str = "", **environ: str) -> dict[str, list[Finding]]:
    """Findings by what was looked at."""
    file = directory / "visor-gateway.toml"
    if text:
        file.write_text(text)
        file.chmod(0o600)
    found: dict[str, list[Finding]] = {}
    where = DataDirectory(directory / "data")
    for each in examination.examine(where, file if text else None, environ):
        found.setdefault(each.check, []).append(each)
    return found


def levels(found: list[Finding]) -> list[Level]:
    return [each.level for each in found]


# --- the command ---------------------------------------------------------------------------------


def test_a_new_host_is_fine_and_stays_as_it_was(doctor: Doctor, tmp_path: Path) -> None:
    done = doctor()
    assert (done.exit_code, done.stderr) == (0, "")
    assert "the first start makes it" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_exit_code_1_and_one_line_and_machines_get_json(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[server]\nworkers = 'many'")
    done = doctor("--config", str(tmp_path / "x.toml"), "--json")
    assert done.exit_code == 1
    assert done.stderr.splitlines() == ["visor-gateway: 1 finding to act on"]
    told = json.loads(done.stdout)
    assert (told["ok"], told["failed"]) == (False, 1)
    first = told["findings"][0]
    assert (first["check"], first["level"]) == ("configuration", "failed")
    assert "server.workers" in first["message"]
    assert first["advice"]
    # The rest is looked at all the same.
    assert {"kernel", "clock", "data directory"} <= {each["check"] for each in told["findings"]}


def test_warnings_fail_only_where_that_is_asked_for(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o755)
    assert doctor().exit_code == 0
    assert doctor("--strict").exit_code == 1


def test_no_secret_is_told(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "-of-a-file")
    (tmp_path / "x.toml").write_text(
        f'[metadata]\nurl = "postgresql://visor:{SECRET}@127.0.0.1:1/visor"\n'
        f'[stores.s3]\ntype = "s3"\nendpoint = "http://127.0.0.1:1"\nbucket = "b"\naccess_key = "{SECRET}-access"\n'
        f'secret_key_file = "secret"\n'
    )
    for words in ([], ["--json"]):
        done = doctor("--config", str(tmp_path / "x.toml"), *words)
        assert done.exit_code == 1
        assert "store s3" in done.stdout
        assert SECRET not in done.stdout + done.stderr


@pytest.mark.real
def test_it_runs_beside_a_daemon_and_disturbs_nothing(tmp_path: Path) -> None:
    with running(tmp_path / "gateway") as daemon:
        assert daemon.data_dir
        before = store_files(daemon)
        command = [sys.executable, "-m", "visor_gateway", "doctor", "--json", "--data-dir", daemon.data_dir]
        done = run(*command, env=clean_environment())
        found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
        assert found["daemon"]["message"] == f"runs as process {daemon.pid}"
        assert found["database"]["level"] == found["master key"]["level"] == "ok"
        assert found["store file"]["message"].startswith(str(daemon.data_dir / "images"))
        assert "wrote, read and deleted" in found["store file"]["message"]
        assert f"process {daemon.pid} has" in found["descriptors"]["message"]
        assert store_files(daemon) == before
        assert daemon.client().get("/ready").status == 200


# --- findings ------------------------------------------------------------------------------------


def test_every_finding_to_act_on_says_what_to_do() -> None:
    lines = as_lines([ok("a", "fine"), warning("bb", "odd", "look"), failed("c", "broken", "mend")])
    assert [line.split() for line in lines] == [
        ["ok", "a", "fine"],
        ["warning", "bb", "odd"],
        ["->", "look"],
        ["failed", "c", "broken"],
        ["->", "mend"],
    ]


def test_findings_are_one_line_and_hide_what_is_secret() -> None:
    [found] = cleaned([failed("x", f"a\nb {SECRET} http://u:p@h/ c", f"try {SECRET}")], [SECRET, SECRET[:8]])
    assert found.message == "a b *** http://***@h/ c"
    assert found.advice == "try ***"


# --- files ---------------------------------------------------------------------------------------


def test_files_that_others_can_read_are_found(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    for name in ("admin.toml", "master.key"):
        (data / name).write_text("x")
        (data / name).chmod(0o640)
    found = list(files.examine_data_directory(DataDirectory(data)))
    assert levels(found) == [Level.WARNING, Level.NOTE, Level.FAILED, Level.FAILED]
    assert f"chmod 600 {data}/master.key" in str(found[3].advice)


def test_secrets_in_a_configuration_that_others_can_read_are_found(tmp_path: Path) -> None:
    text = '[stores.s3]\nendpoint = "http://127.0.0.1:1"\nbucket = "b"\naccess_key = "a"\nsecret_key_file = "key"\n'
    (tmp_path / "key").write_text(SECRET)
    (tmp_path / "visor-gateway.toml").write_text(text)
    for mode, expected in ((0o644, [Level.FAILED, Level.FAILED]), (0o640, [Level.OK])):
        (tmp_path / "key").chmod(mode)
        (tmp_path / "visor-gateway.toml").chmod(mode)
        found = list(configuration.examine_secrets(tmp_path / "visor-gateway.toml"))
        assert levels(found) == expected, found


def test_a_directory_that_is_no_directory_is_found(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    assert levels(list(files.examine_data_directory(DataDirectory(tmp_path / "data")))) == [Level.FAILED]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_root_looks_as_the_owner_of_the_data_directory(tmp_path: Path) -> None:
    # Like systemd's for a dynamic user: nobody but root can come there.
    hidden = tmp_path / "data"
    hidden.mkdir(mode=0o700)
    os.chown(hidden, 65534, 65534)
    with owner_of(hidden):
        assert os.geteuid() == 0
    data = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        as_owner(data, tmp_path)
    finally:
        data.rmdir()


def as_owner(data: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir(mode=0o700)
    os.chown(data, 65534, 65534)
    with owner_of(data):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (65534, 65534, [])
        assert not os.access(tmp_path / "root", os.W_OK, effective_ids=True)
    assert (os.geteuid(), os.getegid()) == (0, 0)


@pytest.mark.parametrize(
    ("free", "level"), [(1 << 40, Level.OK), (1 << 29, Level.WARNING), (1 << 20, Level.FAILED), (0, Level.FAILED)]
)
def test_room_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: Level) -> None:
    def statvfs(path: object) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 1 << 29, free >> 12, free >> 12, 1 << 20, 1 << 19, 1 << 19, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    found = list(files.examine_space(DataDirectory(tmp_path / "data"), settings_of(tmp_path)))
    assert levels(found) == [level]


def test_a_cache_larger_than_its_file_system_is_found(tmp_path: Path) -> None:
    found = examined(tmp_path, '[cache]\nmax_bytes = "8000 TiB"\n')
    assert levels(found["cache"]) == [Level.WARNING]


# --- the database ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that a gateway has used."""
    data = tmp_path_factory.mktemp("used")

    async def use() -> None:
        async with open_metadata(f"sqlite:///{data}/visor.sqlite3", data / "master.key") as metadata:
            await metadata.accounts.ensure_admin()

    trio.run(use)
    return data


@pytest.fixture
def data(used: Path, tmp_path: Path) -> Path:
    """A copy of it, with the configuration's directory above."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    for path in used.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
        (data / path.name).chmod(0o600)
    return data


def recorded(data: Path) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for each in records.examine_records(DataDirectory(data), settings_of(data.parent)):
        found.setdefault(each.check, []).append(each)
    return found


def run_sql(data: Path, statement: str) -> None:
    with closing(sqlite3.connect(data / "visor.sqlite3")) as connection:
        connection.execute(statement)
        connection.commit()


def test_a_database_and_its_key_are_fine(data: Path) -> None:
    found = recorded(data)
    assert levels(found["database"]) == [Level.OK, Level.OK]
    assert levels(found["master key"]) == [Level.OK]


def test_the_key_of_another_database_is_found(data: Path) -> None:
    (data / "master.key").write_text("A" * 43 + "=\n")
    [found] = recorded(data)["master key"]
    assert found.level is Level.FAILED
    assert "is not the one of this database" in found.message


def test_a_missing_key_is_found(data: Path) -> None:
    (data / "master.key").unlink()
    assert levels(recorded(data)["master key"]) == [Level.FAILED]


@pytest.mark.parametrize(("revision", "level"), [("9999", Level.FAILED), ("0001", Level.NOTE)])
def test_the_version_of_the_database_is_told(data: Path, revision: str, level: Level) -> None:
    run_sql(data, f"UPDATE alembic_version SET version_num = '{revision}'")
    found = recorded(data)["database"][0]
    assert found.level is level
    assert revision in found.message


@pytest.mark.parametrize("how", ["pages", "head", "other"])
def test_a_damaged_database_is_found(data: Path, how: str) -> None:
    path = data / "visor.sqlite3"
    if how == "other":
        run_sql(data, "DROP TABLE alembic_version")
    else:
        with path.open("r+b") as file:
            file.seek(0 if how == "head" else 3 * 4096)
            file.write(b"\xff" * 6 * 4096)
    found = recorded(data)["database"][0]
    assert found.level is Level.FAILED
    assert found.advice


def test_a_database_of_the_future_tells_of_a_clock_that_went_back(data: Path) -> None:
    later = time.time() + 3600
    os.utime(data / "visor.sqlite3", (later, later))
    assert levels(recorded(data)["clock"]) == [Level.FAILED]


def test_a_database_on_a_server_is_looked_at(tmp_path: Path) -> None:
    server = postgresql.start()
    try:
        url = server.url_for(tmp_path)
        text = f'[metadata]\nurl = "{url}"\n'
        shown = url.rpartition("@")[2]
        assert "has no records yet" in examined(tmp_path, text)["database"][0].message

        async def use() -> None:
            async with open_metadata(url, tmp_path / "data/master.key") as metadata:
                await metadata.accounts.ensure_admin()

        (tmp_path / "data").mkdir(mode=0o700)
        trio.run(use)
        found = examined(tmp_path, text)
        assert levels(found["database"]) == levels(found["master key"]) == [Level.OK]
        assert found["database"][0].message == f"{shown}, revision {migrations.latest()}"
    finally:
        server.stop()
    [found] = examined(tmp_path, text)["database"]
    assert found.level is Level.FAILED
    assert found.message.startswith(shown)


# --- stores --------------------------------------------------------------------------------------


async def test_a_probe_leaves_nothing() -> None:
    store = MemoryStore()
    found = await probe.probe(store, where="there")
    assert found.level is Level.OK
    assert (store.objects, store.partial) == ({}, {})
    assert not store.open_streams


@pytest.mark.parametrize(
    "faults",
    [
        Faults(open_error=StoreUnreachable("down")),
        Faults(write_fails_at=100),
        Faults(write_fails_at=100, error=StoreFull("full")),
        Faults(commit_error=StoreUnreachable("refused")),
        Faults(read_fails_at=100),
    ],
    ids=["open", "write", "full", "commit", "read"],
)
async def test_a_probe_that_fails_leaves_nothing(faults: Faults) -> None:
    store = MemoryStore(faults=faults)
    found = await probe.probe(store, where="there")
    assert found.level is Level.FAILED
    assert found.message.startswith("there: while it was ")
    assert found.advice
    assert (store.objects, store.partial) == ({}, {})
    assert not store.open_streams


@pytest.mark.parametrize("faults", [{"write_stalls_at": 100}, {"read_stalls_at": 100}, {"commit_stalls": True}])
async def test_a_store_that_hangs_is_given_up_and_leaves_nothing(faults: dict[str, Any], autojump_clock: Any) -> None:
    store = MemoryStore(faults=Faults(**faults))
    found = await probe.probe(store, where="there")
    assert found.level is Level.FAILED
    assert "no answer within" in found.message
    assert (store.objects, store.partial) == ({}, {})


async def test_what_can_not_be_removed_is_named() -> None:
    store = MemoryStore(faults=Faults(abort_error=StoreUnreachable("gone"), read_fails_at=100))
    found = await probe.probe(store, where="there")
    [left] = store.objects
    assert left in str(found.advice)


def test_a_file_store_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    found = examined(tmp_path)
    assert levels(found["store file"]) == [Level.NOTE]
    assert not (tmp_path / "data").exists()


def test_a_dead_server_is_found_and_named(tmp_path: Path) -> None:
    text = '[stores.hdfs]\nendpoint = "http://127.0.0.1:1"\ndirectory = "/images"\nusername = "visor"\n'
    found = examined(tmp_path, text)
    [store] = found["store hdfs"]
    assert store.level is Level.FAILED
    assert "/images at http://127.0.0.1:1" in store.message
    assert any("not compared" in each.message for each in found["clock"])


# --- clock, kernel, descriptors, systemd -----------------------------------------------------------

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("off", "level"),
    [(0, Level.OK), (20, Level.OK), (-20, Level.OK), (60, Level.WARNING), (-60, Level.WARNING), (900, Level.FAILED)],
)
def test_clocks_are_compared(off: int, level: Level) -> None:
    theirs = (datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=off)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert clock.compared("s3", theirs, NOW, NOW + 0.5).level is level


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_a_store_without_a_clock_is_no_fault(date: str | None) -> None:
    assert clock.compared("s3", date, NOW, NOW).level is Level.NOTE


def test_the_clock_of_the_host_is_judged() -> None:
    def silent() -> bool:
        raise OSError(1, "Operation not permitted")

    assert clock.examine_clock(lambda: NOW, lambda: True).level is Level.OK
    assert clock.examine_clock(lambda: NOW, lambda: False).level is Level.WARNING
    assert clock.examine_clock(lambda: NOW, silent).level is Level.NOTE
    assert clock.examine_clock(lambda: 1000.0, lambda: True).level is Level.FAILED
    assert clock.examine_clock().check == "clock"


def test_every_feature_of_the_kernel_is_tried() -> None:
    told = " ".join(each.message for each in kernel.examine_kernel())
    for feature in ("sendfile", "splice", "tee", "kTLS", "TCP_NOTSENT_LOWAT", "TCP_INFO", "RWF_NOWAIT", "pipe"):
        assert feature in told


def test_a_feature_that_a_sandbox_takes_away_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "splice", forbidden)
    [found] = [each for each in kernel.examine_kernel() if each.message.startswith("splice")]
    assert found.level is Level.WARNING
    assert found.message == "splice does not work: Operation not permitted"


def test_descriptors_are_compared_with_the_connections(tmp_path: Path) -> None:
    few = settings_of(tmp_path, "[server]\nmax_connections = 10")
    many = settings_of(tmp_path, "[server]\nmax_connections = 100000")
    directory = DataDirectory(tmp_path / "data")
    unit = {"LimitNOFILE": "1000"}
    assert service.examine_descriptors(directory, few, unit).level is Level.OK
    found = service.examine_descriptors(directory, many, unit)
    assert found.level is Level.WARNING
    assert "only 290 are taken" in found.message
    assert "LimitNOFILE=300128" in str(found.advice)
    with lock_data_dir(directory.path):
        assert f"process {os.getpid()}" in service.examine_descriptors(directory, few, unit).message


def unit(**properties: str) -> dict[str, str]:
    return {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled"} | properties


@pytest.mark.parametrize(
    ("known", "is_service", "expected"),
    [
        (unit(), True, [Level.OK]),
        (unit(), False, [Level.OK, Level.WARNING]),
        (unit(ActiveState="failed"), True, [Level.FAILED]),
        (unit(UnitFileState="disabled"), True, [Level.OK, Level.NOTE]),
        (unit(NeedDaemonReload="yes"), True, [Level.OK, Level.WARNING]),
        ({"LoadState": "not-found"}, True, [Level.NOTE]),
        ({}, True, [Level.NOTE]),
    ],
)
def test_the_unit_is_judged(known: dict[str, str], is_service: bool, expected: list[Level]) -> None:
    assert levels(list(service.examine_systemd(known, service=is_service, booted=True))) == expected


def test_a_host_without_systemd_is_no_fault() -> None:
    assert levels(list(service.examine_systemd({}, service=False, booted=False))) == [Level.NOTE]


def test_the_directories_of_the_service_stand_in_for_the_environment() -> None:
    assert service_environ({"HOME": "/x"})["STATE_DIRECTORY"] == "/var/lib/visor-gateway"


# --- certificates ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize(
    ("days", "level"), [(100, Level.OK), (5, Level.WARNING), (-1, Level.FAILED)], ids=["good", "soon", "over"]
)
def test_certificates_are_judged(tmp_path: Path, authority: trustme.CA, days: int, level: Level) -> None:
    made = authority.issue_cert("gateway.example", not_after=datetime.now(UTC) + timedelta(days=days, hours=1))
    made.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    (tmp_path / "server.pem").chmod(0o600)
    found = examined(tmp_path, '[server]\ntls_certificate = "server.pem"\n')
    assert levels(found["tls"]) == [level]


def test_a_key_of_another_certificate_is_found(tmp_path: Path, authority: trustme.CA) -> None:
    one, other = authority.issue_cert("one.example"), authority.issue_cert("other.example")
    one.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    other.private_key_pem.write_to_path(tmp_path / "server.key")
    found = examined(tmp_path, '[server]\ntls_certificate = "server.pem"\ntls_key = "server.key"\n')
    assert levels(found["tls"]) == [Level.FAILED]


# --- roles for other servers -------------------------------------------------------------------------

ROLE = '[server]\nroles = ["meta"]\n[meta_server]\n'


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ('allow = ["127.0.0.1"]', [Level.OK]),
        ('bind = ["[::1]:4567", "unix:/run/meta.sock", "localhost:1"]\nallow = ["127.0.0.1"]', [Level.OK]),
        ('bind = ["0.0.0.0:4567"]\nallow = ["127.0.0.1"]', [Level.WARNING]),
        ('bind = ["meta.example.org:4567"]\nallow = ["0.0.0.0/0"]', [Level.WARNING, Level.WARNING]),
    ],
)
def test_a_role_that_is_open_to_everybody_is_told(tmp_path: Path, text: str, levels: list[Level]) -> None:
    found = list(configuration.examine_roles(settings_of(tmp_path, ROLE + text)))
    assert [each.level for each in found] == levels
    assert {each.check for each in found} == {"role meta"}


def test_the_key_of_a_role_is_a_secret(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, f'{ROLE}shared_key = "{SECRET}"')
    assert configuration.secrets_of(settings) == [SECRET]
    (tmp_path / "visor-gateway.toml").chmod(0o644)
    [found] = configuration.examine_secrets(tmp_path / "visor-gateway.toml")
    assert "meta_server.shared_key" in found.message


@pytest.mark.parametrize(
    ("url", "level"),
    [
        (f"visor+http://:{SECRET}@auth.example.org:4566", Level.WARNING),
        ("visor+http://192.0.2.1", Level.WARNING),
        (f"visor+https://:{SECRET}@auth.example.org", Level.OK),
        ("visor+http://127.0.0.1:4566/", Level.OK),
        ("visor+http://[::1]", Level.OK),
        ("visor+http://localhost:4566", Level.OK),
    ],
)
def test_secrets_that_can_be_read_on_the_way_from_an_auth_server_are_told(
    tmp_path: Path, url: str, level: Level
) -> None:
    settings = settings_of(tmp_path, f'[accounts]\nurl = "{url}"')
    [found] = configuration.examine_accounts(settings)
    assert (found.check, found.level) == ("accounts", level)
    assert SECRET not in found.message
    assert configuration.secrets_of(settings) == [url]
    (tmp_path / "visor-gateway.toml").chmod(0o644)
    [told] = configuration.examine_secrets(tmp_path / "visor-gateway.toml")
    assert "accounts.url" in told.message


def test_without_an_auth_server_there_is_nothing_to_tell_of_it(tmp_path: Path) -> None:
    assert list(configuration.examine_accounts(settings_of(tmp_path, ""))) == []
