"""`visor-admin import-visor` against the real daemon: from a Meta server, a dump, image servers and files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_process import Gateway, running
from origin_server import Origin
from servers.visor_http import opened
from servers.visor_meta import MetaServer
from wire import Client, eventually

pytestmark = pytest.mark.real

DUMP = Path(__file__).parent / "visor" / "visor_meta.sql"
KERNEL = "00000001-0000-4000-8000-000000000000"
DATA = b"hello image" * 5000


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A daemon that lets references lead to this host."""
    config = "[locations]\ndeny_private = false\n"
    with running(tmp_path_factory.mktemp("gateway"), config=config) as gateway:
        yield gateway


@pytest.fixture
def server() -> Iterator[MetaServer]:
    with opened(MetaServer) as server:
        yield server


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    try:
        yield origin
    finally:
        origin.close()


@pytest.fixture
def meta(server: MetaServer) -> list[str]:
    return ["--meta", server.url.removeprefix("visor+")]


def register(server: MetaServer, name: str, data: bytes = DATA, **fields: Any) -> str:
    """A record as an image server made it after an upload."""
    known = {"status": "available", "store": "file", "format": "raw", "size": len(data), "owner": "foo"}
    known |= {"checksum": hashlib.md5(data).hexdigest(), "location": f"file:///srv/visor/{name}"}
    return server.add(name=name, **(known | fields))


def there(user: Client) -> dict[str, dict[str, Any]]:
    """The user's own records by name."""
    answer = user.get(f"/images/detail?owner={user.access_key}")
    found = answer.json()["images"] if answer.status == 200 else []
    assert len({one["name"] for one in found}) == len(found)
    return {one["name"]: one for one in found}


def pulled(user: Client, record: dict[str, Any]) -> bytes:
    return user.get(f"/images/{record['_id']}").body


def test_records_come_from_the_meta_server_and_bytes_from_files(
    visor_admin, user: Client, server: MetaServer, meta: list[str], origin: Origin, tmp_path: Path
) -> None:
    ids = {"disk": register(server, "disk", distro="centos"), "hidden": register(server, "hidden", access="private")}
    ids["theirs"] = register(server, "theirs", access="private", owner="bob", format=None)
    ids["vmlinuz"] = register(server, "vmlinuz", b"kernel", type="kernel", format="aki", _id=KERNEL)
    register(server, "machine", kernel=ids["vmlinuz"])
    register(server, "reference", store="http", location=origin.put("x.iso", b"there"), format=None)
    register(server, "planned", status="locked", store=None, location=None, size=None, checksum=None)
    register(server, "cut", status="uploading")
    for name in ("disk", "hidden", "machine"):
        (tmp_path / f"{next(key for key, row in server.rows.items() if row['name'] == name)}.raw").write_bytes(DATA)
    (tmp_path / ids["theirs"]).write_bytes(DATA)
    (tmp_path / f"{KERNEL}.aki").write_bytes(b"kernel")
    words = ["import-visor", *meta, "--owner", "bob", "--files", tmp_path]
    assert visor_admin.report(*words, "--dry-run", code=1)["planned"] == 7
    assert there(user) == {}
    done = visor_admin.report(*words, code=1)
    assert (done["imported"], done["skipped"]) == (7, 1)
    assert done["images"]["cut"]["reason"] == "status 'uploading': it has no bytes that are whole"
    assert done["images"]["disk"]["verified"] == ["size", "md5"]
    records = there(user)
    assert set(records) == {"disk", "hidden", "theirs", "vmlinuz", "machine", "reference", "planned"}
    for name in ("disk", "hidden", "theirs", "machine"):
        assert pulled(user, records[name]) == DATA
    assert pulled(user, records["reference"]) == b"there"
    assert (records["disk"]["visor_id"], records["disk"]["visor_owner"]) == (ids["disk"], "foo")
    assert (records["disk"]["distro"], records["disk"]["access"]) == ("centos", "public")
    assert (records["theirs"]["visor_owner"], records["theirs"]["access"]) == ("bob", "private")
    assert records["machine"]["kernel"] == records["vmlinuz"]["_id"]
    assert records["planned"]["status"] == "locked"
    again = visor_admin.report(*words, code=1)
    assert (again["imported"], again["present"], again["skipped"]) == (0, 7, 1)


def test_bytes_come_from_a_running_image_server_signed_as_visor_did(
    visor_admin, daemon: Gateway, user: Client, server: MetaServer, meta: list[str], tmp_path: Path
) -> None:
    source = daemon.new_user("source")
    image = source.add(DATA, name="disk", format="raw", access="private").image
    register(server, "disk", _id=image["_id"])
    keys = tmp_path / "keys.toml"
    keys.write_text(f'access_key = "{source.access_key}"\nsecret_key = "{source.secret_key}"\n')
    words = ["import-visor", *meta, "--images", daemon.url, "--spool", tmp_path]
    told = visor_admin.report(*words, code=1)["images"]["disk"]
    assert told["reason"].startswith("the image server's answer: ")
    assert there(user) == {}
    done = visor_admin.report(*words, "--images-credentials", keys)
    assert done["images"]["disk"]["verified"] == ["size", "md5"]
    assert pulled(user, there(user)["disk"]) == DATA
    assert list(tmp_path.iterdir()) == [keys]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "its file has 0 bytes, the image has 55000"),  # what VISOR's server was recorded to send
        (DATA[:-1], "its file has 54999 bytes, the image has 55000"),
        (b"x" + DATA[1:], f"its file has the md5 digest {hashlib.md5(b'x' + DATA[1:]).hexdigest()}, the image has "),
        (None, "the image server's answer: "),
    ],
)
def test_what_an_image_server_sends_short_or_wrong_is_never_sent_on(
    visor_admin, user: Client, server: MetaServer, meta: list[str], origin: Origin, answer: bytes | None, reason: str
) -> None:
    image_id, good = register(server, "disk"), register(server, "good")
    if answer is not None:
        origin.put(f"images/{image_id}", answer)
    origin.put(f"images/{good}", DATA)
    told = visor_admin.report("import-visor", *meta, "--images", origin.url, code=1)["images"]
    assert told["disk"]["reason"].startswith(reason)
    assert list(there(user)) == ["good"]
    assert pulled(user, there(user)["good"]) == DATA


def test_records_come_from_a_dump_and_what_the_gateway_refuses_is_taken_up_by_the_next_run(
    visor_admin, user: Client, tmp_path: Path
) -> None:
    (tmp_path / "0da751f8-2039-495d-8567-8cc291f9d72a.iso").write_bytes(b"hello image")
    private = tmp_path / "f9a1b2c3-d4e5-4f60-8a7b-1c2d3e4f5a6b.raw"
    private.write_bytes(b"Private")
    words = ["import-visor", "--dump", DUMP, "--files", tmp_path]
    told = visor_admin.report(*words, code=1)["images"]
    assert told["private"]["reason"].startswith("its file has the md5 digest ")
    assert told["with bytes"]["reason"]  # the gateway's: it is no ISO
    eventually(lambda: there(user)["with bytes"]["status"] == "error")
    private.write_bytes(b"private")
    done = visor_admin.report(*words, code=1)
    assert (done["imported"], done["present"], done["skipped"]) == (1, 2, 1)
    eventually(lambda: there(user)["with bytes"]["status"] == "error")
    records = there(user)
    assert set(records) == {"with bytes", "meta only", 'it\'s; "quoted" \\ `é`', "private"}
    assert (records["private"]["status"], records["meta only"]["status"]) == ("available", "locked")
    assert (records["private"]["access"], records["private"]["distro"]) == ("private", "debian")
    assert records["private"]["visor_created_at"] == "2012-07-02T10:00:00.000000Z"


def test_a_dump_without_a_place_for_bytes_brings_the_records_alone(visor_admin, user: Client) -> None:
    told = visor_admin.report("import-visor", "--dump", DUMP, code=1)
    assert (told["imported"], told["skipped"]) == (2, 2)
    assert told["images"]["private"]["reason"] == "it has bytes, and nothing says where they are"


def test_a_meta_server_that_lies_harms_nothing(visor_admin, user: Client, server: MetaServer, meta: list[str]) -> None:
    register(server, "disk")
    server.lie = lambda method, path, status, answer: (200, b'{"images": [7, {"_id": "../x"}, {"name": []}]}')
    told = visor_admin.report("import-visor", *meta, "--files", "/", code=1)
    assert (told["imported"], told["skipped"]) == (0, 3)
    server.lie = lambda method, path, status, answer: (200, b"{")
    result = visor_admin("import-visor", *meta, code=1)
    assert result.stderr == "visor-admin: The Meta server's list can't be read: the answer is no JSON\n"
    assert there(user) == {}


def test_a_server_that_is_away_is_one_line(visor_admin, user: Client, server: MetaServer, meta: list[str]) -> None:
    result = visor_admin("import-visor", "--meta", "http://127.0.0.1:1", code=1)
    assert result.stderr == "visor-admin: The Meta server can't be reached now\n"
    register(server, "disk")
    register(server, "other")
    told = visor_admin.report("import-visor", *meta, "--images", "http://127.0.0.1:1", code=1)["images"]
    reasons = sorted(one["reason"] for one in told.values())
    refused = "Can't connect to http://127.0.0.1:1: Connection refused"
    assert reasons == [refused, f"not tried: {refused}"]


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--meta", "http://x", "--dump", DUMP),
        ("--meta", "http://x", "--images", "http://x", "--files", "/"),
        ("--dump", DUMP, "--owner", "bob"),
        ("--dump", DUMP, "--spool", "/"),
        ("--meta", "ftp://x"),
        ("--dump", "/nowhere"),
    ],
)
def test_wrong_usage_ends_with_2(visor_admin, words: tuple[object, ...]) -> None:
    visor_admin("import-visor", *words, code=2)


def test_a_dump_that_was_cut_is_one_line(visor_admin, tmp_path: Path) -> None:
    (tmp_path / "cut.sql").write_bytes(DUMP.read_bytes()[:3000])
    result = visor_admin("import-visor", "--dump", tmp_path / "cut.sql", code=1)
    assert len(result.stderr.splitlines()) == 1
    assert "cut.sql: " in result.stderr
    assert "was cut" in result.stderr
