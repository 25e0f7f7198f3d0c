"""The commands' manners: what they ask a gateway, what they print, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket
from anyio.from_thread import BlockingPortal
from click.testing import CliRunner, Result
from fake_gateway import Connection, Script, Serve, answering, gateway, refusing, whole

from visor_gateway.cli import admin, settings, visor

IMAGE = b'{"image": {"_id": "an-id", "name": "x"}}'
FORBIDDEN = b'{"code": 403, "message": "Access denied."}'
Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "SYSTEM_FILE", tmp_path / "missing.toml")
    for name in [name for name in os.environ if name.startswith(("VISOR", "XDG"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def run(*words: str, program: str = "visor", **options: object) -> Result:
    command = visor.cli if program == "visor" else admin.cli
    return CliRunner().invoke(command, words, prog_name=program, **options)  # type: ignore[arg-type]


def taking(answer: bytes) -> Script:
    """Take a body, if there is one, and answer 200."""

    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.body()
        await connection.answer(200, answer)

    return script


def test_a_list_is_filtered_and_sorted_as_visor_did(serve: Serve) -> None:
    fake = serve(answering(b'{"images": [{"_id": "an-id", "name": "x", "size": 2048}]}'))
    result = run("brief", "-q", "architecture=x86_64&format=iso", "-s", "name", "-d", "desc")
    assert result.exit_code == 0
    assert fake.asked[0].target == "/images?architecture=x86_64&format=iso&sort=name&dir=desc&limit=1000"
    assert result.stdout.splitlines()[0].split()[:2] == ["ID", "NAME"]
    assert result.stdout.splitlines()[1].split()[:2] == ["an-id", "x"]


def test_order_and_limit_may_stand_in_the_query_as_visor_had_it(serve: Serve) -> None:
    fake = serve(answering(b'{"images": []}'))
    assert run("detail", "-q", "sort=size&dir=desc&limit=5&distro=debian").exit_code == 0
    assert fake.asked[0].target == "/images/detail?distro=debian&sort=size&dir=desc&limit=5"


def test_an_empty_list_is_a_success(serve: Serve) -> None:
    serve(*[refusing(404, b'{"code": 404, "message": "No public images found."}')] * 2)
    assert run("brief").exit_code == 0
    assert json.loads(run("brief", "--json").stdout) == {"images": []}


def test_options_may_stand_before_and_behind_the_command_and_the_later_wins(serve: Serve) -> None:
    fake = serve(*[answering(IMAGE)] * 2)
    address, port = fake.url.removeprefix("http://").split(":")
    assert run("-a", "nowhere.invalid", "delete", "x", "-a", address, "-p", port).exit_code == 0
    assert run("--json", "-a", address, "-p", port, "delete", "x").stdout == IMAGE.decode().replace(" ", "") + "\n"


@pytest.mark.parametrize("command", ["head", "add", "update", "delete"])
def test_json_is_what_the_wire_has(serve: Serve, command: str) -> None:
    serve(answering(IMAGE, x_image_meta_name="x"))
    words = {"head": ["x"], "add": ["name=x"], "update": ["x", "name=x"], "delete": ["x"]}[command]
    result = run(command, *words, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["image"]["name"] == "x"
    assert result.stderr == ""


def test_words_become_fields(serve: Serve) -> None:
    fake = serve(answering(IMAGE))
    assert run("add", "name=Ubuntu 24.04 = LTS", "Architecture=x86_64", "root_device=").exit_code == 0
    headers = fake.asked[0].headers
    assert headers["x-image-meta-name"] == "Ubuntu 24.04 = LTS"
    assert headers["x-image-meta-architecture"] == "x86_64"
    assert headers["x-image-meta-root-device"] == ""


def test_standard_input_is_uploaded(serve: Serve, tmp_path: Path) -> None:
    fake = serve(answering(IMAGE))
    reading, writing = os.pipe()
    os.write(writing, b"piped")
    os.close(writing)
    done = subprocess.run(
        [sys.executable, "-m", "visor_gateway.cli.visor", "add", "name=x", "-f", "-"],
        stdin=reading,
        capture_output=True,
        timeout=60,
        check=False,
    )
    os.close(reading)
    assert done.returncode == 0, done.stderr
    assert fake.asked[0].body == b"piped"


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["head"],
        ["add"],
        ["add", "name"],
        ["add", "=x"],
        ["add", "name=x", "name=y"],
        ["update", "x"],
        ["brief", "-d", "up"],
        ["brief", "-q", "a"],
        ["brief", "-q", "limit=x"],
        ["brief", "-p", "0"],
        ["delete"],
        ["delete", "x", "--all"],
        ["get", "x", "-S", "d", "-o", "f"],
        ["help", "frobnicate"],
        ["completion", "tcsh"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["brief"],
        ["detail"],
        ["head", "x"],
        ["get", "x"],
        ["add", "name=x"],
        ["add", "name=x", "-f", __file__],
        ["update", "x", "name=y"],
        ["delete", "x"],
        ["delete", "--all"],
        ["link", "x"],
        ["transfers"],
        ["transfers", "--watch"],
        ["watch"],
        ["top"],
        ["cancel", "x"],
        ["transfers", "--history"],
        ["cancel", "-q", "image=x"],
        ["pause", "x"],
        ["resume", "-q", "image=x"],
        ["limit", "10MiB", "x"],
    ],
    ids=" ".join,
)
def test_a_refusal_ends_with_1_and_one_line(serve: Serve, words: list[str]) -> None:
    serve(refusing(403, FORBIDDEN, x_error_message="Access denied."))
    result = run(*words)
    assert result.exit_code == 1
    assert result.stderr == "visor: Access denied.\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "method", "target", "sent"),
    [
        (["pause", "x"], "PATCH", "/transfers/x", {"paused": True}),
        (["resume", "x"], "PATCH", "/transfers/x", {"paused": False}),
        (["limit", "10MiB", "x"], "PATCH", "/transfers/x", {"limit_bytes_per_s": 10 << 20}),
        (["limit", "none", "x"], "PATCH", "/transfers/x", {"limit_bytes_per_s": 0}),
        (["cancel", "x"], "DELETE", "/transfers/x", None),
    ],
)
def test_a_transfer_is_steered(serve: Serve, words: list[str], method: str, target: str, sent: object) -> None:
    fake = serve(taking(b'{"transfer": {"id": "x"}}'))
    result = run(*words)
    assert (result.exit_code, result.stdout.split()[-1]) == (0, "x")
    (asked,) = fake.asked
    assert (asked.method, asked.target, json.loads(asked.body or b"null")) == (method, target, sent)


@pytest.mark.parametrize(
    ("words", "sent"),
    [(["pause"], {"paused": True}), (["limit", "5"], {"limit_bytes_per_s": 5}), (["cancel"], None)],
)
def test_all_that_filters_name_are_steered(serve: Serve, words: list[str], sent: object) -> None:
    fake = serve(taking(b'{"transfers": [{"id": "x"}, {"id": "y"}], "totals": {}}'))
    result = run(*words, "-q", "image=i&kind=pull")
    assert (result.exit_code, [line.split()[-1] for line in result.stdout.splitlines()]) == (0, ["x", "y"])
    (asked,) = fake.asked
    assert (asked.target, json.loads(asked.body or b"null")) == ("/transfers?image=i&kind=pull", sent)


def test_the_history_is_a_table(serve: Serve) -> None:
    ended = {"kind": "pull", "state": "failed", "bytes": 2048, "rate_avg": 1024, "duration_s": 2.0, "user": "anne"}
    ended |= {
        "wait": {"client": 1500, "store": 0},
        "ended_at": "2026-11-22T12:00:00Z",
        "client": None,
        "id": "t",
        "image": "i",
    }
    fake = serve(answering(json.dumps({"transfers": [ended]}).encode()))
    result = run("transfers", "--history", "-q", "user=anne", "--limit", "5")
    assert result.exit_code == 0
    assert fake.asked[0].target == "/transfers/history?user=anne&limit=5"
    head, row = result.stdout.splitlines()
    assert head.split()[:2] == ["KIND", "STATE"]
    assert {"pull", "failed", "client", "anne", "t", "i"} <= set(row.split())


@pytest.mark.parametrize(
    "words",
    [
        ["transfers", "--limit", "5"],
        ["transfers", "--history", "--watch"],
        ["pause"],
        ["cancel", "x", "-q", "image=i"],
        ["limit", "fast", "x"],
        ["limit"],
    ],
)
def test_what_does_not_say_which_or_how_fast_is_wrong_usage(serve: Serve, words: list[str]) -> None:
    serve()
    assert run(*words).exit_code == 2


@pytest.mark.parametrize(
    ("words", "sent", "printed"),
    [
        ([], None, "no limit"),
        (["none"], {"limit_bytes_per_s": None}, "no limit"),
        (["1MiB"], {"limit_bytes_per_s": 1 << 20}, "1.0 MiB/s"),
    ],
)
def test_the_limit_of_the_gateway_is_shown_and_changed(
    serve: Serve, words: list[str], sent: object, printed: str
) -> None:
    limit = json.dumps({"limits": sent or {"limit_bytes_per_s": None}}).encode()
    fake = serve(taking(limit))
    result = run("limit", *words, program="visor-admin")
    assert (result.exit_code, result.stdout.strip()) == (0, printed)
    (asked,) = fake.asked
    assert (asked.target, json.loads(asked.body or b"null")) == ("/limits", sent)


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["get", "x"],
        ["add", "x", "email=x@example.org"],
        ["update", "x", "email=y@example.org"],
        ["delete", "x"],
        ["rotate", "x"],
        ["token", "issue", "x"],
        ["token", "list", "x"],
        ["tokens", "revoke", "x", "y"],
    ],
    ids=" ".join,
)
def test_a_refusal_of_the_users_api_ends_with_1_and_one_line(serve: Serve, words: list[str]) -> None:
    serve(refusing(403, FORBIDDEN))
    result = run(*words, program="visor-admin")
    assert (result.exit_code, result.stderr) == (1, "visor-admin: Access denied.\n")


def test_keys_that_were_withheld_are_named_with_the_refusal(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / ".config" / "visor" / "credentials.toml"
    path.parent.mkdir(parents=True)
    path.write_text('url = "http://other"\naccess_key = "a"\nsecret_key = "s3cret"\n')
    fake = serve(refusing(403, FORBIDDEN))
    result = run("delete", "x")
    assert result.stderr == f"visor: Access denied. (the keys in {path} are for another gateway)\n"
    assert "authorization" not in fake.asked[0].headers


def test_a_gateway_that_is_not_there_ends_with_1_and_one_line(serve: Serve, portal: BlockingPortal) -> None:
    with portal.wrap_async_context_manager(gateway()) as gone:
        url = gone.url
    result = run("brief", "--url", url)
    assert (result.exit_code, result.stderr) == (1, f"visor: Can't connect to {url}: Connection refused\n")


def test_a_file_that_is_not_there_ends_with_1_and_one_line(serve: Serve) -> None:
    serve()
    result = run("add", "name=x", "-f", "missing.iso")
    assert (result.exit_code, result.stderr) == (1, "visor: missing.iso: No such file or directory\n")
    result = run("brief", "--credentials", "missing.toml")
    assert (result.exit_code, result.stderr) == (1, "visor: missing.toml: No such file or directory\n")


def test_a_traceback_is_for_those_who_ask(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*args: object) -> None:
        raise ZeroDivisionError("inside s3cret")

    monkeypatch.setattr("visor_gateway.cli.command.find_gateway", breaks)
    result = run("brief")
    assert result.exit_code == 1
    assert result.stderr == "visor: unexpected error (ZeroDivisionError), -v shows where\n"
    result = run("-v", "brief")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


def test_an_image_is_saved_under_its_id_and_format_whatever_its_name(serve: Serve, tmp_path: Path) -> None:
    data = os.urandom(5000)
    head = answering(b"", x_image_meta__id="an-id", x_image_meta_name="../../etc/passwd", x_image_meta_format="qcow2")
    serve(head, whole(data))
    result = run("get", "x", "-S", "new/dir", "--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (tmp_path / "new" / "dir" / "an-id.qcow2").read_bytes() == data
    assert summary["path"] == "new/dir/an-id.qcow2"
    assert (summary["size"], summary["verified"], summary["resumed_at"]) == (5000, True, 0)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "."])
def test_an_id_that_is_no_name_makes_no_path(serve: Serve, tmp_path: Path, name: str) -> None:
    serve(answering(b"", x_image_meta__id=name))
    result = run("get", "x", "-S", "saved")
    assert (result.exit_code, result.stderr) == (1, "visor: The gateway's record of the image is not valid\n")


def test_an_image_goes_to_a_pipe_and_nothing_else_does(serve: Serve, tmp_path: Path) -> None:
    data = os.urandom(200_000)
    serve(whole(data), whole(data))
    command = [sys.executable, "-m", "visor_gateway.cli.visor", "get", "x", "-o", "-", "--json"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen([*command[:5], "-o", "fifo"], stdout=subprocess.DEVNULL) as process:
        assert (tmp_path / "fifo").read_bytes() == data
    assert process.returncode == 0


def test_a_reader_that_leaves_a_pipe_is_no_traceback(serve: Serve) -> None:
    data = os.urandom(4_000_000)
    serve(whole(data))
    command = [sys.executable, "-m", "visor_gateway.cli.visor", "get", "x", "-o", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(10)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 1


def test_deleting_everything_is_asked_for_once_more_on_a_terminal_only(serve: Serve) -> None:
    fake = serve(answering(b'{"images": [{}, {}]}'))
    result = run("delete", "--all")
    assert (result.exit_code, result.stdout) == (0, "deleted 2 images\n")
    assert (fake.asked[0].method, fake.asked[0].target) == ("DELETE", "/all")


def test_new_secrets_are_printed_once_to_standard_output(serve: Serve) -> None:
    user = b'{"user": {"access_key": "foo", "secret_key": "s3cret"}}'
    fake = serve(answering(user), answering(user), answering(b'{"token": {"id": "i", "token": "t0ken"}}'))
    for words in (["add", "foo", "email=a@b.c", "role=admin"], ["rotate", "foo"]):
        result = run(*words, program="visor-admin")
        assert result.stdout.count("s3cret") == 1
        assert result.stderr == ""
    assert json.loads(fake.asked[0].body) == {
        "user": {"access_key": "foo", "email": "a@b.c", "role": "admin"},
    }
    result = run("token", "issue", "foo", "--expires", "60", "--read-only", "--name", "ci", program="visor-admin")
    assert result.stdout.count("t0ken") == 1
    assert json.loads(fake.asked[2].body) == {"token": {"expires_in": 60, "read_only": True, "name": "ci"}}


def test_a_master_key_is_not_made_where_there_is_no_gateway(tmp_path: Path) -> None:
    result = run("rotate-master", "--data-dir", str(tmp_path / "nowhere"), program="visor-admin")
    assert result.exit_code == 1
    assert "master key" in result.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("program", ["visor", "visor-admin"])
def test_every_command_has_help(program: str) -> None:
    group = visor.cli if program == "visor" else admin.cli
    for name in group.commands:
        result = run(name, "--help", program=program)
        assert result.exit_code == 0
        assert run("help", name, program=program).stdout == result.stdout
    assert run("help", program=program).stdout == run("--help", program=program).stdout


@pytest.mark.parametrize("program", ["visor", "visor-admin"])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(program: str, shell: str) -> None:
    result = run("completion", shell, program=program)
    assert result.exit_code == 0
    assert f"_{program.replace('-', '_').upper()}_COMPLETE" in result.stdout


@pytest.mark.parametrize("words", [["watch"], ["watch", "x"], ["transfers", "--watch"]], ids=" ".join)
def test_whoever_follows_transfers_does_it_with_trio_websocket(
    serve: Serve, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade, targets = trio_websocket.wrap_client_stream, []

    async def spy(nursery: trio.Nursery, stream: Any, host: str, target: str, **options: Any) -> Any:
        targets.append(target)
        return await upgrade(nursery, stream, host, target, **options)

    monkeypatch.setattr(trio_websocket, "wrap_client_stream", spy)
    serve(refusing(403, FORBIDDEN))
    assert run(*words).stderr == "visor: Access denied.\n"
    assert targets == ["/transfers/ws"]


def test_help_does_not_load_what_it_does_not_need() -> None:
    code = (
        "import sys; from visor_gateway.cli import admin, visor;"
        "heavy = 'trio', 'httpx2', 'rich', 'sqlalchemy', 'hypercorn', 'quart';"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
