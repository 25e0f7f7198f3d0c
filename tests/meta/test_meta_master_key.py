"""The master key file, its rotation, and what a thief of the database gets."""

from __future__ import annotations

import base64
import os
import secrets
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from visor_gateway.errors import ConfigError, MetadataUnavailable
from visor_gateway.meta.master_key import MasterKey, Sealed, UnknownKey

LATER = datetime.now(UTC) + timedelta(days=1)


def new_line() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def key(tmp_path) -> MasterKey:
    key = MasterKey(tmp_path / "master.key")
    key.create()
    key.load()
    return key


# --- the file ----------------------------------------------------------------------------------


def test_the_file_is_made_whole_and_for_us_alone(key, tmp_path):
    assert stat.S_IMODE(key.path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["master.key"]
    assert len(key.ids) == 1


def test_a_file_that_is_there_is_not_replaced(key):
    before = key.path.read_bytes()
    MasterKey(key.path).create()
    assert key.path.read_bytes() == before


def test_a_crash_while_the_file_is_made_leaves_no_half_file(tmp_path, monkeypatch):
    def crash(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    path = tmp_path / "master.key"
    with pytest.raises(ConfigError, match=rf"{path}.*No space left"):
        MasterKey(path).create()
    assert os.listdir(tmp_path) == []


def test_the_directory_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no/master\.key"):
        MasterKey(tmp_path / "no" / "master.key").create()


def test_a_key_that_openssl_made_is_taken(tmp_path):
    key = MasterKey(write(tmp_path / "key", f"# a comment\n\n{new_line()}\n"))
    key.load()
    assert key.unseal(key.seal("secret", "account"), "account") == "secret"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o644, 0o601])
def test_a_file_that_others_may_use_is_refused(tmp_path, mode):
    path = write(tmp_path / "key", new_line(), mode)
    with pytest.raises(ConfigError, match=rf"^{path}: .*0600.*found {mode:04o}$"):
        MasterKey(path).load()


def test_a_systemd_credential_may_be_readable_by_its_acl(tmp_path, monkeypatch):
    path = write(tmp_path / "key", new_line(), 0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    MasterKey(path).load()
    path.chmod(0o444)
    with pytest.raises(ConfigError, match="0600"):
        MasterKey(path).load()


@pytest.mark.parametrize(
    "content",
    ["", "# nothing\n", "short", "a" * 44, base64.b64encode(b"x" * 31).decode(), base64.b64encode(b"x" * 33).decode()],
)
def test_a_file_with_something_else_is_refused_without_showing_it(tmp_path, content):
    path = write(tmp_path / "key", content)
    with pytest.raises(ConfigError, match=rf"^{path}: ") as caught:
        MasterKey(path).load()
    assert "\n" not in caught.value.message
    assert content.strip("# \n") in ("", "nothing") or content not in caught.value.message


def test_the_line_with_the_error_is_named(tmp_path):
    path = write(tmp_path / "key", f"{new_line()}\nrubbish\n")
    with pytest.raises(ConfigError, match="line 2"):
        MasterKey(path).load()


def test_a_huge_file_is_refused(tmp_path):
    path = write(tmp_path / "key", "#\n" * 100_000)
    with pytest.raises(ConfigError, match="key"):
        MasterKey(path).load()


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "key"
    if kind == "directory":
        path.mkdir(0o700)
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match=str(path)):
        MasterKey(path).load()


# --- sealing -----------------------------------------------------------------------------------


def test_a_sealed_secret_is_bound_to_its_account_and_key(key):
    sealed = key.seal("secret", "account")
    assert b"secret" not in sealed.text
    assert key.unseal(sealed, "account") == "secret"
    assert key.seal("secret", "account").text != sealed.text
    with pytest.raises(MetadataUnavailable):
        key.unseal(sealed, "another")
    with pytest.raises(MetadataUnavailable):
        key.unseal(Sealed(sealed.key_id, sealed.text[:-1] + bytes([sealed.text[-1] ^ 1])), "account")
    with pytest.raises(MetadataUnavailable):
        key.unseal(Sealed(sealed.key_id, b"short"), "account")
    with pytest.raises(UnknownKey):
        key.unseal(Sealed("0" * 16, sealed.text), "account")


def test_a_new_key_goes_in_front_and_old_ones_are_dropped_when_unused(key, tmp_path):
    [old] = key.ids
    sealed = key.seal("secret", "account")
    key.prepend()
    assert len(key.ids) == 2
    assert key.ids[1] == old
    assert key.unseal(sealed, "account") == "secret"
    assert key.seal("x", "account").key_id == key.ids[0]
    key.drop_unused({old})
    assert len(key.ids) == 2
    key.drop_unused(())
    assert len(key.ids) == 1
    assert old not in key.ids
    assert stat.S_IMODE(key.path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["master.key"]


def test_a_failed_replacement_leaves_the_file_as_it_was(key, tmp_path, monkeypatch):
    before = key.path.read_bytes()

    def fail(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ConfigError, match="Read-only file system"):
        key.prepend()
    assert key.path.read_bytes() == before
    assert os.listdir(tmp_path) == ["master.key"]


def test_a_rotation_follows_a_symbolic_link(key, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(key.path)
    MasterKey(link).prepend()
    assert link.is_symlink()
    key.load()
    assert len(key.ids) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_rotation_by_root_leaves_the_file_to_its_owner(key):
    os.chown(key.path, 12345, 23456)
    key.prepend()
    assert (key.path.stat().st_uid, key.path.stat().st_gid) == (12345, 23456)


# --- with the database -------------------------------------------------------------------------


async def test_a_missing_file_is_made_only_for_a_database_without_secrets(backend):
    async with backend.open() as metadata:
        await metadata.accounts.create("alice", "a@example.org", "user")
    backend.master_key.unlink()
    with pytest.raises(ConfigError, match=str(backend.master_key)):
        async with backend.open():
            pass
    assert not backend.master_key.exists()


async def test_a_file_with_other_keys_is_refused_at_the_start(backend):
    async with backend.open() as metadata:
        await metadata.accounts.create("alice", "a@example.org", "user")
    write(backend.master_key, new_line())
    with pytest.raises(ConfigError, match=str(backend.master_key)):
        async with backend.open():
            pass


async def test_a_rotation_keeps_every_secret_under_a_new_key(backend):
    async with backend.open() as metadata:
        users = [await metadata.accounts.create(name, "a@example.org", "user") for name in "abc"]
        await metadata.accounts.delete("b")
        before = backend.master_key.read_text()
        assert await metadata.accounts.rotate_master() == 2
        assert await metadata.accounts.find() == [users[0], users[2]]
    after = backend.master_key.read_text()
    assert after != before
    assert len(after.splitlines()) == len(before.splitlines())
    async with backend.open() as metadata:
        assert await metadata.accounts.find() == [users[0], users[2]]


async def test_a_running_gateway_follows_the_rotation_of_another(backend):
    async with backend.open() as one, backend.open() as two:
        alice = await one.accounts.create("alice", "a@example.org", "user")
        _, text = await one.accounts.issue_token("alice", expires_at=LATER, read_only=False, name=None)
        for _ in range(2):
            await two.accounts.rotate_master()
            assert await one.accounts.get("alice") == alice
            assert (await one.accounts.find_token(text))[1] == alice
            bob = await one.accounts.rotate("alice")
            assert await two.accounts.get("alice") == bob
            alice = bob
    async with backend.open() as metadata:
        assert await metadata.accounts.find() == [alice]


async def test_a_gateway_that_missed_a_rotation_seals_under_the_new_key(backend):
    async with backend.open() as one, backend.open() as two:
        await two.accounts.rotate_master()
        alice = await one.accounts.create("alice", "a@example.org", "user")
        await two.accounts.rotate_master()
    async with backend.open() as metadata:
        assert await metadata.accounts.get("alice") == alice


async def test_a_key_that_vanished_is_an_outage_without_a_path_in_its_message(backend):
    async with backend.open() as metadata:
        await metadata.accounts.create("alice", "a@example.org", "user")
        metadata.accounts._master_key._keys = ()
        write(backend.master_key, new_line())
        for failing in (metadata.accounts.get("alice"), metadata.accounts.rotate("alice")):
            with pytest.raises(MetadataUnavailable) as caught:
                await failing
            assert str(backend.directory) not in caught.value.message
        backend.master_key.unlink()
        for failing in (metadata.accounts.create("bob", "a@example.org", "user"), metadata.accounts.rotate("alice")):
            with pytest.raises(MetadataUnavailable) as caught:
                await failing
            assert str(backend.directory) not in caught.value.message


async def test_a_rotation_that_can_not_write_the_file_changes_nothing(backend, monkeypatch):
    async with backend.open() as metadata:
        alice = await metadata.accounts.create("alice", "a@example.org", "user")

        def fail(*_):
            raise OSError(30, "Read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(ConfigError, match=str(backend.master_key)):
                await metadata.accounts.rotate_master()
        assert await metadata.accounts.get("alice") == alice


CRASH = """
import os, signal, sys, trio
from pathlib import Path
from visor_gateway.meta import accounts, master_key
from visor_gateway.meta.sql import open_metadata

url, path, step = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
calls = {}

def crash_at(owner, name, when, call=1):
    inner = getattr(owner, name)
    def wrapped(*arguments, **options):
        calls[name] = calls.get(name, 0) + 1
        if when == "before" and calls[name] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        result = inner(*arguments, **options)
        if when == "after" and calls[name] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, wrapped)

async def main():
    async with open_metadata(url, path) as metadata:
        STEPS[step]()
        await metadata.accounts.rotate_master()

STEPS = {
    "before the new key is written": lambda: crash_at(os, "replace", "before"),
    "after the new key is written": lambda: crash_at(os, "replace", "after"),
    "between two secrets": lambda: crash_at(accounts, "_update", "after", 2),
    "before the transaction ends": lambda: crash_at(accounts.SqlAccountRepository, "_seal_anew", "after"),
    "after the transaction ended": lambda: crash_at(accounts.SqlAccountRepository, "_drop_old_keys", "before"),
    "before the old key is dropped": lambda: crash_at(os, "replace", "before", 2),
    "after the old key is dropped": lambda: crash_at(os, "replace", "after", 2),
}
trio.run(main)
"""
STEPS = [line.split('"')[1] for line in CRASH.partition("STEPS = {")[2].splitlines() if line.startswith('    "')]


@pytest.mark.parametrize("step", STEPS)
async def test_a_rotation_that_is_killed_at_any_step_loses_no_secret(backend, killed, step):
    async with backend.open() as metadata:
        users = [await metadata.accounts.create(name, "a@example.org", "user") for name in "abc"]
    await killed(CRASH, backend.url, str(backend.master_key), step)
    async with backend.open() as metadata:
        assert await metadata.accounts.find() == users
        users.append(await metadata.accounts.create("d", "a@example.org", "user"))
        assert await metadata.accounts.rotate_master() == 4
        assert await metadata.accounts.find() == users
        assert len(metadata.accounts._master_key.ids) == 1


async def test_a_stolen_database_has_no_secret_in_clear(backend):
    async with backend.open() as metadata:
        accounts = metadata.accounts
        stolen = [(await accounts.create(name, "a@example.org", "user")).secret_key for name in "abc"]
        stolen.append((await accounts.rotate("a")).secret_key)
        stolen.append((await accounts.issue_token("a", expires_at=LATER, read_only=False, name=None))[1])
        stolen.append(await accounts.issue_ticket("a", "/transfers/ws", LATER))
        await accounts.use_once("signature", "QJVxWvhVRmFdWsx0Dv59SBWLGgQ=", LATER)
        stolen.append("QJVxWvhVRmFdWsx0Dv59SBWLGgQ=")
        await accounts.delete("b")
        await accounts.rotate_master()
        key_lines = [line for line in backend.master_key.read_text().splitlines() if not line.startswith("#")]
        stolen += key_lines
        contents = backend.contents()
        keys = [base64.b64decode(line) for line in key_lines]
        for content in contents:
            assert not [text for text in stolen if text.encode() in content]
            assert not [key for key in keys if key in content]


async def test_a_rotation_leaves_nothing_that_the_old_key_opens(backend):
    async with backend.open() as metadata:
        for name in "abc":
            await metadata.accounts.create(name, "a@example.org", "user")
        await metadata.accounts.delete("c")
        old = [text for (text,) in backend.query("SELECT secret FROM accounts WHERE secret IS NOT NULL")]
        await metadata.accounts.rotate_master()
        contents = backend.contents()
    assert len(old) == 2
    assert not [text for text in old for content in contents if text in content]
