"""`visor-admin backup` and `restore`: one state of records and keys, all of it or nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sqlite3
import stat
import tarfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from click.testing import CliRunner, Result
from gateway_process import Gateway, running

from visor_gateway.cli import admin, archive
from visor_gateway.cli.archive import ADMIN, DATABASE, MASTER_KEY, Manifest
from visor_gateway.datadir import lock_data_dir
from visor_gateway.meta import migrations
from visor_gateway.meta.sql import open_metadata

Command = Callable[..., Result]


@pytest.fixture
def visor_admin() -> Command:
    """Run `visor-admin` in this process."""

    def run(*words: object, environ: dict[str, str] | None = None) -> Result:
        variables = {"CONFIGURATION_DIRECTORY": "", **(environ or {})}
        return CliRunner(env=variables).invoke(admin.cli, [str(word) for word in words], prog_name="visor-admin")

    return run


def made(result: Result) -> Path:
    """The file of a backup that succeeded."""
    assert result.exit_code == 0, result.output
    return Path(json.loads(result.stdout)["backup"]["file"])


def failed(result: Result, expected: str) -> None:
    assert result.exit_code == 1, result.output
    [line] = result.stderr.splitlines()
    assert expected in line


def use(data: Path, work: Callable[[Any], Any]) -> Any:
    """What a gateway would do with its metadata."""

    async def main() -> Any:
        async with open_metadata(f"sqlite:///{data}/visor.sqlite3", data / "master.key") as metadata:
            return await work(metadata)

    return trio.run(main)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that a gateway has used."""
    data = tmp_path_factory.mktemp("used")

    async def work(metadata: Any) -> None:
        user = await metadata.accounts.ensure_admin()
        (data / "admin.toml").write_text(f'access_key = "admin"\nsecret_key = "{user.secret_key}"\n')
        (data / "admin.toml").chmod(0o600)

    use(data, work)
    return data


@pytest.fixture
def data(used: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    for name in (DATABASE, MASTER_KEY, ADMIN):
        shutil.copy2(used / name, data / name)
    return data


@pytest.fixture
def backup(visor_admin: Command, data: Path, tmp_path: Path) -> Path:
    return made(visor_admin("backup", tmp_path / "kept.tar", "--data-dir", data, "--json"))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "gateway.lock"}


def users(data: Path) -> list[str]:
    async def work(metadata: Any) -> list[str]:
        return [user.access_key for user in await metadata.accounts.find()]

    found: list[str] = use(data, work)
    return found


# --- backup --------------------------------------------------------------------------------------


def test_a_backup_is_for_its_owner_alone_and_names_all_that_it_holds(backup: Path, data: Path) -> None:
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    with tarfile.open(backup) as opened:
        assert [info.name for info in opened] == [archive.MANIFEST, DATABASE, MASTER_KEY, ADMIN]
        assert {info.mode for info in opened} == {0o600}
    manifest = archive.read(backup)
    assert (manifest.revision, manifest.format) == (migrations.latest(), 1)
    assert [member.name for member in manifest.members] == [DATABASE, MASTER_KEY, ADMIN]
    assert archive.described(MASTER_KEY, data / MASTER_KEY) in manifest.members
    # Nothing but the backup was left beside it.
    assert sorted(path.name for path in backup.parent.iterdir()) == ["data", "kept.tar"]
    assert sorted(contents(data)) == [ADMIN, MASTER_KEY, DATABASE]


def test_a_directory_gets_a_file_that_is_named_by_the_time(visor_admin: Command, data: Path, tmp_path: Path) -> None:
    place = tmp_path / "backups"
    place.mkdir()
    file = made(visor_admin("backup", place, "--data-dir", data, "--json"))
    assert list(place.iterdir()) == [file]
    assert file.name.startswith("visor-gateway-")


def test_a_backup_never_overwrites(visor_admin: Command, data: Path, backup: Path) -> None:
    before = backup.read_bytes()
    failed(visor_admin("backup", backup, "--data-dir", data), "exists and is not overwritten")
    assert backup.read_bytes() == before


@pytest.mark.parametrize("missing", [DATABASE, MASTER_KEY])
def test_half_a_gateway_is_not_backed_up(visor_admin: Command, data: Path, tmp_path: Path, missing: str) -> None:
    (data / missing).unlink()
    failed(visor_admin("backup", tmp_path / "x.tar", "--data-dir", data), f"{data / missing}: expected the")
    assert not (tmp_path / "x.tar").exists()


def test_the_key_of_another_database_is_found_out(visor_admin: Command, data: Path, tmp_path: Path) -> None:
    (data / MASTER_KEY).write_text("A" * 43 + "=\n")
    failed(visor_admin("backup", tmp_path / "x.tar", "--data-dir", data), "expected the master key under which")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_damaged_database_is_not_taken_for_a_backup(visor_admin: Command, data: Path, tmp_path: Path) -> None:
    with (data / DATABASE).open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 6 * 4096)
    result = visor_admin("backup", tmp_path / "x.tar", "--data-dir", data)
    assert result.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_database_on_a_server_is_named(visor_admin: Command, tmp_path: Path) -> None:
    environ = {"VISOR_GATEWAY__METADATA__URL": "postgresql://visor:canary@db/visor"}
    for words in (("backup", tmp_path), ("restore", tmp_path / "x")):
        result = visor_admin(*words, "--data-dir", tmp_path / "data", environ=environ)
        failed(result, "expected a SQLite database")
        assert "canary" not in result.output


@pytest.mark.real
def test_a_backup_of_a_gateway_that_serves_is_one_state_of_it(visor_admin: Command, tmp_path: Path) -> None:
    stop, written = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            written.append(gateway.new_user("written").access_key)

    with running(tmp_path / "first") as gateway:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            files, known = [], []
            for number in range(3):
                known.append(list(written))
                files.append(
                    made(visor_admin("backup", tmp_path / f"{number}.tar", "--data-dir", gateway.data_dir, "--json"))
                )
        finally:
            stop.set()
            writer.join()
    for number, (file, before) in enumerate(zip(files, known, strict=True)):
        data = tmp_path / f"restored{number}" / "data"
        data.parent.mkdir()
        assert visor_admin("restore", file, "--data-dir", data).exit_code == 0
        found = set(users(data))
        # All that was acknowledged before the backup began, and no more than was ever asked for.
        assert set(before) <= found <= {*written, "admin"}
    with running(tmp_path / "restored2") as restored:
        assert restored.access_key == "admin"
        assert restored.admin.get("/users").status == 200  # signed with a secret that the restored key opens
        assert isinstance(restored, Gateway)


def test_a_backup_beside_rotations_of_the_master_key_has_the_right_key(
    visor_admin: Command, data: Path, tmp_path: Path
) -> None:
    def rotate() -> None:
        async def work(metadata: Any) -> None:
            for _ in range(5):
                await metadata.accounts.rotate_master()

        use(data, work)

    for number in range(5):
        rotating = threading.Thread(target=rotate)
        rotating.start()
        try:
            made(visor_admin("backup", tmp_path / f"{number}.tar", "--data-dir", data, "--json"))
        finally:
            rotating.join()
    for number in range(5):
        place = tmp_path / f"restored{number}"
        assert visor_admin("restore", tmp_path / f"{number}.tar", "--data-dir", place).exit_code == 0
        assert users(place) == ["admin"]


# --- restore -------------------------------------------------------------------------------------


def test_what_is_restored_is_what_was_there(visor_admin: Command, backup: Path, data: Path, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    assert visor_admin("restore", backup, "--data-dir", place).exit_code == 0
    assert sorted(contents(place)) == [ADMIN, MASTER_KEY, DATABASE]
    for name, content in contents(place).items():
        assert stat.S_IMODE((place / name).stat().st_mode) == 0o600
        if name != DATABASE:
            assert content == (data / name).read_bytes()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert users(place) == ["admin"]


def test_a_lost_database_comes_back_beside_the_key_that_is_there(
    visor_admin: Command, backup: Path, data: Path
) -> None:
    (data / DATABASE).unlink()
    before = contents(data)
    assert visor_admin("restore", backup, "--data-dir", data).exit_code == 0
    assert {name: content for name, content in contents(data).items() if name in before} == before
    assert users(data) == ["admin"]


def test_nothing_is_restored_over_a_gateway_that_runs(visor_admin: Command, backup: Path, data: Path) -> None:
    before = contents(data)
    with lock_data_dir(data):
        failed(visor_admin("restore", backup, "--data-dir", data, "--replace"), f"is used by process {os.getpid()}")
    assert contents(data) == before


def test_what_is_there_is_replaced_only_where_that_is_asked_for(visor_admin: Command, backup: Path, data: Path) -> None:
    use(data, lambda metadata: metadata.accounts.create("later", "later@example.org", "user"))
    before = contents(data)
    failed(visor_admin("restore", backup, "--data-dir", data), f"{data / DATABASE}: is there already")
    assert contents(data) == before
    result = visor_admin("restore", backup, "--data-dir", data, "--replace", "--json")
    assert result.exit_code == 0, result.output
    [aside] = json.loads(result.stdout)["put_aside"]
    assert users(data) == ["admin"]
    Path(aside).replace(data / DATABASE)
    assert users(data) == ["admin", "later"]


def test_a_log_of_the_old_database_is_not_applied_to_the_new_one(
    visor_admin: Command, backup: Path, data: Path
) -> None:
    copy = data / "of a crash"
    with closing(sqlite3.connect(data / DATABASE)) as connection:
        connection.execute("UPDATE accounts SET email = 'crashed@example.org'")
        connection.commit()
        copy.write_bytes(Path(f"{data / DATABASE}-wal").read_bytes())
    copy.replace(f"{data / DATABASE}-wal")
    (data / DATABASE).write_bytes(b"damaged" * 1000)
    result = visor_admin("restore", backup, "--data-dir", data, "--replace", "--json")
    assert result.exit_code == 0, result.output
    assert not Path(f"{data / DATABASE}-wal").exists()
    assert any(name.endswith("-wal") for name in json.loads(result.stdout)["put_aside"])
    assert users(data) == ["admin"]


def rewritten(file: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change an archive's members."""
    with tarfile.open(file) as opened:
        members = {info.name: opened.extractfile(info).read() for info in opened}  # type: ignore[union-attr]
    change(members)
    file.unlink()
    with tarfile.open(file, "w") as opened:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))


def manifest_with(files: dict[str, bytes], /, **changes: object) -> None:
    manifest = msgspec.json.decode(files[archive.MANIFEST], type=Manifest)
    files[archive.MANIFEST] = msgspec.json.encode(msgspec.structs.replace(manifest, **changes))


def flip(members: dict[str, bytes]) -> None:
    content = bytearray(members[DATABASE])
    content[-1] ^= 1
    members[DATABASE] = bytes(content)


def other_key(members: dict[str, bytes]) -> None:
    members[MASTER_KEY] = b"A" * 43 + b"=\n"
    manifest = msgspec.json.decode(members[archive.MANIFEST], type=Manifest)
    sums = tuple(
        archive.Member(each.name, len(members[each.name]), hashlib.sha256(members[each.name]).hexdigest())
        for each in manifest.members
    )
    manifest_with(members, members=sums)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (flip, "visor.sqlite3 differs or is missing"),
        (lambda members: members.pop(MASTER_KEY), "master.key differs or is missing"),
        (lambda members: members.pop(archive.MANIFEST), "its first file is no manifest"),
        (lambda members: members.update({"../evil": b"x"}), "../evil differs"),
        (lambda members: members.update({archive.MANIFEST: b"{}"}), "expected a backup of visor-gateway"),
        (lambda members: manifest_with(members, format=2), "its format is 2, this version reads 1"),
        (lambda members: manifest_with(members, revision="9999"), "its database has revision 9999"),
        (lambda members: manifest_with(members, revision="0001"), "another one than the manifest says"),
        (lambda members: manifest_with(members, members=()), "names other files than a backup has"),
        (other_key, "expected the master key under which"),
    ],
    ids=["bytes", "missing", "no manifest", "path", "empty", "format", "newer", "older", "no members", "key"],
)
def test_a_backup_that_is_not_right_changes_nothing(
    visor_admin: Command, backup: Path, data: Path, tmp_path: Path, change: Any, expected: str
) -> None:
    rewritten(backup, change)
    before = contents(data)
    failed(visor_admin("restore", backup, "--data-dir", data, "--replace"), expected)
    assert contents(data) == before
    failed(visor_admin("restore", backup, "--data-dir", tmp_path / "new"), expected)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("length", [0, 100, 5000, -2000])
def test_a_backup_that_was_cut_short_changes_nothing(
    visor_admin: Command, backup: Path, data: Path, length: int
) -> None:
    content = backup.read_bytes()
    with tarfile.open(backup) as opened:
        end = max(info.offset_data + info.size for info in opened)
    backup.write_bytes(content[: length if length >= 0 else end + length])
    before = contents(data)
    assert visor_admin("restore", backup, "--data-dir", data, "--replace").exit_code == 1
    assert contents(data) == before


def test_a_file_that_is_not_there_is_named(visor_admin: Command, tmp_path: Path) -> None:
    failed(visor_admin("restore", tmp_path / "no.tar", "--data-dir", tmp_path / "data"), "no.tar")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("failing", [MASTER_KEY, ADMIN])
def test_a_failure_half_way_takes_back_what_was_done(
    visor_admin: Command, backup: Path, data: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    (data / MASTER_KEY).write_text("A" * 43 + "=\n")
    (data / ADMIN).write_text("another")
    before = contents(data)
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if self.name.startswith(f".{failing}.restore"):
            raise OSError(5, "Input/output error", str(self))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        failed(visor_admin("restore", backup, "--data-dir", data, "--replace"), "Input/output error")
    assert contents(data) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_restores_belongs_to_the_owner_of_the_directory(
    visor_admin: Command, backup: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    os.chown(place, 65534, 65534)
    assert visor_admin("restore", backup, "--data-dir", place).exit_code == 0
    for name in (DATABASE, MASTER_KEY, ADMIN):
        assert (place / name).stat().st_uid == 65534
