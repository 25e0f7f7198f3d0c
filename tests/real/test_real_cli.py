"""The commands, as processes, against the real daemon."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_process import Gateway, clean_environment
from wire import eventually, unique

BIN = Path(sys.executable).parent


@pytest.fixture
def visor(gateway: Gateway, run, tmp_path: Path):
    """Run `visor` with the first user's credentials: `visor("brief")`."""

    def call(*words: object, program: str = "visor", check: bool = True, **options):
        environment = clean_environment({
            "VISOR_CREDENTIALS": str(gateway.data_dir / "admin.toml"),
            "HOME": str(tmp_path),
        })
        return run(BIN / program, *words, check=check, env=environment, cwd=tmp_path, **options)

    return call


@pytest.fixture
def disk(run, tmp_path: Path) -> Path:
    """A real qcow2 image with a file system inside."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "data").write_bytes(random.Random(1).randbytes(3 << 20))
    with (tmp_path / "disk.raw").open("wb") as file:
        file.truncate(32 << 20)
    run("mkfs.ext4", "-q", "-d", tmp_path / "root", tmp_path / "disk.raw")
    run("qemu-img", "convert", "-O", "qcow2", tmp_path / "disk.raw", tmp_path / "disk.qcow2")
    return tmp_path / "disk.qcow2"


def test_a_real_disk_is_added_pulled_and_the_same(visor, run, disk: Path, tmp_path: Path) -> None:
    done = visor("--json", "add", "name=disk", "architecture=x86_64", "format=qcow2", "distro=none", "-f", disk)
    image = json.loads(done.stdout)["image"]
    assert (image["status"], image["distro"], image["size"]) == ("available", "none", disk.stat().st_size)
    (tmp_path / "pulled").mkdir()
    visor("get", image["_id"], "-S", tmp_path / "pulled")
    (file,) = (tmp_path / "pulled").iterdir()
    assert file.name == f"{image['_id']}.qcow2"
    assert file.read_bytes() == disk.read_bytes()
    run("qemu-img", "check", file)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", file, tmp_path / "disk.raw")


def has_bytes(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # one gets its name
        return any(path.stat().st_size for path in folder.iterdir())
    return False


def test_a_pull_continues_where_it_was_cut(visor, gateway, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(16 << 20)
    image = gateway.admin.add(data, format="raw").image
    folder = tmp_path / "cut"
    folder.mkdir()
    environment = clean_environment({"VISOR_CREDENTIALS": str(gateway.data_dir / "admin.toml"), "HOME": str(tmp_path)})
    process = subprocess.Popen(
        [str(BIN / "visor"), "get", image["_id"], "-S", str(folder)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: process.poll() is not None or has_bytes(folder))
    finally:
        process.kill()
        process.wait()
    whole = folder / f"{image['_id']}.raw"
    if whole.exists():
        assert whole.read_bytes() == data
    visor("get", image["_id"], "-S", folder)
    assert whole.read_bytes() == data
    assert list(folder.iterdir()) == [whole]


def test_images_are_listed_shown_changed_and_deleted(visor) -> None:
    name = unique("listed")
    image = json.loads(visor("--json", "add", f"name={name}", "architecture=i386").stdout)["image"]
    listed = visor("brief", "-q", f"name={name}").stdout.decode()
    assert image["_id"] in listed
    assert name in visor("detail", "-q", f"name={name}").stdout.decode()
    assert name in visor("head", image["_id"]).stdout.decode()
    visor("update", image["_id"], "note=changed")
    assert json.loads(visor("--json", "head", image["_id"]).stdout)["image"]["note"] == "changed"
    visor("delete", image["_id"])
    done = visor("head", image["_id"], check=False)
    assert done.returncode == 1
    assert len(done.stderr.decode().strip().splitlines()) == 1


def test_failures_are_one_line_and_exit_1_and_wrong_usage_exits_2(visor) -> None:
    for words in (["get", "fake"], ["add", "name=x", "architecture=vax"], ["add", "name=x", "-f", "/nowhere"]):
        done = visor(*words, check=False)
        assert done.returncode in ((1, 2) if "-f" in words else (1,)), (words, done.stderr)
        assert b"Traceback" not in done.stderr
    assert len(visor("get", "fake", check=False).stderr.decode().strip().splitlines()) == 1
    assert visor("--nonsense", check=False).returncode == 2
    assert visor("nonsense", check=False).returncode == 2


def test_a_gateway_that_is_not_there_is_one_line_and_exit_1(visor) -> None:
    done = visor("--url", "http://127.0.0.1:1", "brief", check=False)
    assert done.returncode == 1
    assert len(done.stderr.decode().strip().splitlines()) == 1


def test_users_are_managed(visor, gateway) -> None:
    key = unique("cli")
    made = visor("--json", "add", key, f"email={key}@example.org", program="visor-admin")
    secret = json.loads(made.stdout)["user"]["secret_key"]
    assert key in visor("list", program="visor-admin").stdout.decode()
    shown = visor("get", key, program="visor-admin").stdout.decode()
    assert secret not in shown
    assert gateway.client(key, secret).get("/transfers").status == 200
    visor("rotate", key, program="visor-admin")
    assert gateway.client(key, secret).get("/transfers").status == 403
    visor("delete", key, program="visor-admin")
    assert visor("get", key, program="visor-admin", check=False).returncode == 1


def test_lists_are_json_for_machines(visor) -> None:
    users = json.loads(visor("--json", "list", program="visor-admin").stdout)["users"]
    assert "admin" in [user["access_key"] for user in users]
    assert isinstance(json.loads(visor("--json", "transfers").stdout), dict)


@pytest.mark.parametrize("program", ["visor", "visor-admin", "visor-gateway"])
def test_every_command_has_help(visor, program) -> None:
    assert visor("--help", program=program).stdout


def test_keys_come_from_the_environment_too(gateway, run, tmp_path: Path) -> None:
    gateway.admin.add(name=unique("there"))
    keys = {"VISOR_URL": gateway.url, "VISOR_ACCESS_KEY": gateway.access_key, "VISOR_SECRET_KEY": gateway.secret_key}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VISOR")} | keys
    assert run(BIN / "visor", "brief", env=environment | {"HOME": str(tmp_path)}).stdout
