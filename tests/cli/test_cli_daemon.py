"""The commands against the real daemon, each a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway_process import Gateway, clean_environment, running
from relay import Relay, relaying
from wire import eventually

pytestmark = pytest.mark.real

SIZE = 12 * 1024 * 1024 + 4321
HALF = 6 * 1024 * 1024
SECONDS = 60


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Generator[Gateway]:
    with running(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "image.raw"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def relay(daemon: Gateway) -> Generator[Relay]:
    with relaying(daemon.url) as relay:
        yield relay


def environment(daemon: Gateway) -> dict[str, str]:
    return clean_environment({"VISOR_CREDENTIALS": f"{daemon.data_dir}/admin.toml"})


@contextmanager
def start(daemon: Gateway, *words: str, program: str = "visor", **options: Any) -> Generator[subprocess.Popen[str]]:
    """A command for the length of a block. Where the block fails it is killed, or it would outlive the test."""
    module = "visor_gateway.cli." + program.removeprefix("visor-")
    with subprocess.Popen(
        [sys.executable, "-m", module, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(daemon),
        **options,
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def run(daemon: Gateway, *words: str, code: int = 0, program: str = "visor", **options: Any) -> str:
    with start(daemon, *words, program=program, **options) as process:
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == code, (out, err)
    assert "Traceback" not in err
    return out if code == 0 else err


def added(daemon: Gateway, source: Path, *words: str) -> str:
    fields = ["architecture=x86_64", "format=raw", *words]
    image: str = json.loads(run(daemon, "add", "name=image", *fields, "-f", str(source), "--json"))["image"]["_id"]
    return image


def test_an_image_makes_the_round_through_the_commands(daemon: Gateway, source: Path, tmp_path: Path) -> None:
    shown = run(daemon, "add", "name=Débian", "architecture=x86_64", "format=raw", "distro=round", "-f", str(source))
    image = next(line.split()[-1] for line in shown.splitlines() if line.strip().startswith("_id:"))
    assert image in run(daemon, "brief", "-q", "distro=round", "-s", "name", "-d", "desc")
    assert "distro: round" in run(daemon, "head", image)
    run(daemon, "update", image, "distro=square")
    assert json.loads(run(daemon, "detail", "-q", "distro=square", "--json"))["images"][0]["_id"] == image
    out = run(daemon, "get", image, "-S", str(tmp_path))
    assert "SHA-256 verified" in out
    assert (tmp_path / f"{image}.raw").read_bytes() == source.read_bytes()
    link = run(daemon, "link", image, "--expires", "60").strip()
    assert f"/images/{image}?" in link
    assert "private" in run(daemon, "update", image, "access=private")
    assert run(daemon, "delete", image) == f"deleted {image}\n"
    assert run(daemon, "get", image, code=1) == f"visor: No image found with id '{image}'.\n"
    assert run(daemon, "get", image, "-o", "-", code=1) == f"visor: No image found with id '{image}'.\n"


def test_bytes_follow_metadata_from_a_pipe_of_unknown_length(daemon: Gateway, tmp_path: Path) -> None:
    image = json.loads(run(daemon, "add", "name=later", "architecture=i386", "--json"))["image"]["_id"]
    assert "has no bytes" in run(daemon, "get", image, "-S", str(tmp_path), code=1)
    with (tmp_path / "piped").open("wb") as file:
        file.write(os.urandom(3_000_000))
    with subprocess.Popen(["cat", tmp_path / "piped"], stdout=subprocess.PIPE) as cat:
        run(daemon, "update", image, "-f", "-", stdin=cat.stdout)
    run(daemon, "get", image, "-o", str(tmp_path / "fetched"))
    assert (tmp_path / "fetched").read_bytes() == (tmp_path / "piped").read_bytes()


def test_wrong_bytes_are_refused_by_the_gateway(daemon: Gateway, source: Path) -> None:
    err = run(daemon, "add", "name=x", "architecture=i386", "-f", str(source), "--sha256", "0" * 64, code=1)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_fetch_that_was_cut_goes_on_where_it_stopped(
    daemon: Gateway, source: Path, tmp_path: Path, relay: Relay, end: signal.Signals
) -> None:
    image = added(daemon, source)
    relay.allowance = HALF
    part = tmp_path / "copy.part"
    words = ["get", image, "--url", relay.url, "-o", str(tmp_path / "copy"), "--json"]
    with start(daemon, *words) as process:
        eventually(lambda: part.exists() and part.stat().st_size > HALF // 2, SECONDS, "half of the image")
        process.send_signal(end)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == (130 if end == signal.SIGINT else -end)
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.part", "copy.part.json"]
    relay.allowance = None
    there = part.stat().st_size
    assert json.loads(run(daemon, *words))["resumed_at"] == there
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_an_image_that_was_replaced_meanwhile_is_never_mixed(
    daemon: Gateway, source: Path, tmp_path: Path, relay: Relay
) -> None:
    first = added(daemon, source)
    other = tmp_path / "other.raw"
    other.write_bytes(os.urandom(SIZE))
    second = added(daemon, other)
    run(daemon, "get", second, "-o", str(tmp_path / "copy"))
    (tmp_path / "copy").rename(tmp_path / "copy.part")
    sidecar = {"uri": f"{daemon.url}/images/{first}", "etag": '"of-another-state"', "size": SIZE + 1}
    (tmp_path / "copy.part.json").write_text(json.dumps(sidecar))
    assert json.loads(run(daemon, "get", first, "-o", str(tmp_path / "copy"), "--json"))["resumed_at"] == 0
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


@contextmanager
def follow(daemon: Gateway, *words: str) -> Generator[subprocess.Popen[str]]:
    """`visor watch`, once it has said that it watches."""
    with start(daemon, "watch", *words, "--json") as process:
        assert process.stdout
        if not any(json.loads(line)["type"] == "snapshot" for line in process.stdout):
            pytest.fail(f"it ended: {process.communicate(timeout=SECONDS)}")
        yield process


def messages(lines: Sequence[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_watching_an_image_ends_well_with_its_transfer(daemon: Gateway, source: Path, tmp_path: Path) -> None:
    image = added(daemon, source)
    with follow(daemon, image) as watching:
        run(daemon, "get", image, "-o", str(tmp_path / "copy"))
        out, err = watching.communicate(timeout=SECONDS)
    assert (watching.returncode, err) == (0, "")
    told = messages(out.splitlines())
    assert {message["transfer"]["image"] for message in told if message["type"] == "event"} == {image}
    assert (told[-1]["kind"], told[-1]["transfer"]["bytes"]) == ("finished", SIZE)


def test_a_cancelled_transfer_ends_its_watcher_and_its_client_badly(
    daemon: Gateway, source: Path, tmp_path: Path, relay: Relay
) -> None:
    image = added(daemon, source)
    relay.allowance = HALF
    with start(daemon, "get", image, "--url", relay.url, "-o", str(tmp_path / "copy")) as getting:
        listing: list[dict[str, Any]] = []

        def is_listed() -> bool:
            listing[:] = json.loads(run(daemon, "transfers", "-q", f"image={image}", "--json"))["transfers"]
            return bool(listing)

        eventually(is_listed, SECONDS, "the transfer")
        transfer = listing[0]["id"]
        assert transfer in run(daemon, "transfers")
        assert transfer in run(daemon, "top")
        with follow(daemon, transfer) as watching:
            assert run(daemon, "cancel", transfer) == f"cancelled {transfer}\n"
            out, _ = watching.communicate(timeout=SECONDS)
        assert watching.returncode == 1
        assert messages(out.splitlines())[-1]["kind"] == "cancelled"
        assert run(daemon, "watch", transfer, code=1) == ""
        getting.kill()


def test_what_nobody_knows_can_not_be_watched(daemon: Gateway) -> None:
    assert run(daemon, "watch", "nope", code=1) == "visor: No image or transfer found with id 'nope'.\n"


def test_users_are_made_changed_and_removed(daemon: Gateway, tmp_path: Path) -> None:
    def admin(*words: str, code: int = 0) -> Any:
        out = run(daemon, *words, "--json", program="visor-admin", code=code)
        return json.loads(out) if code == 0 else out

    secret = admin("add", "cli-user", "email=u@example.org")["user"]["secret_key"]
    keys = ["--access-key", "cli-user", "--secret-key", secret]
    run(daemon, "add", "name=mine", "architecture=i386", *keys)
    assert "secret_key" not in admin("get", "cli-user")["user"]
    assert admin("update", "cli-user", "email=v@example.org")["user"]["email"] == "v@example.org"
    assert [user["access_key"] for user in admin("list", "-q", "email=v@example.org")["users"]] == ["cli-user"]
    token = admin("token", "issue", "cli-user", "--read-only", "--expires", "60")["token"]
    assert json.loads(run(daemon, "brief", "-q", "owner=cli-user", "--token", token["token"], "--json"))["images"]
    run(daemon, "add", "name=x", "architecture=i386", "--token", token["token"], code=1)
    assert [found["id"] for found in admin("token", "list", "cli-user")["tokens"]] == [token["id"]]
    admin("token", "revoke", "cli-user", token["id"])
    run(daemon, "brief", "--token", token["token"], code=1)
    fresh = admin("rotate", "cli-user")["user"]["secret_key"]
    run(daemon, "brief", *keys, code=1)
    keys[-1] = fresh
    run(daemon, "brief", *keys)
    admin("delete", "cli-user")
    run(daemon, "brief", *keys, code=1)
    assert admin("get", "cli-user", code=1) == "visor-admin: No user found with access_key 'cli-user'.\n"


def test_a_new_master_key_locks_nobody_out(daemon: Gateway) -> None:
    assert daemon.data_dir
    before = (daemon.data_dir / "master.key").read_bytes()
    done = run(daemon, "rotate-master", "--data-dir", str(daemon.data_dir), "--json", program="visor-admin")
    assert json.loads(done)["secrets"] >= 1
    assert (daemon.data_dir / "master.key").read_bytes() != before
    run(daemon, "brief")
