"""`visor-admin import-glance` against the real daemon, with a list that Glance answered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gateway_process import Gateway, clean_environment
from glance_lists import PAGES, content, image, write_files, write_list
from wire import eventually

pytestmark = pytest.mark.real

GOOD = {"Débian 12", "initrd", "machine", "vmlinuz"}
BAD = {"32 bit", "container", "no bytes"}
HUGE = 1 << 36
RENAMED = ("--rename-architecture", "i686=i386")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    directory.mkdir()
    write_files(directory)
    return directory


def there(user: Any) -> dict[str, dict[str, Any]]:
    """The user's own records by name."""
    answer = user.get(f"/images/detail?owner={user.access_key}")
    found = answer.json()["images"] if answer.status == 200 else []
    assert len({one["name"] for one in found}) == len(found)
    return {one["name"]: one for one in found}


def pulled(user: Any, record: dict[str, Any]) -> bytes:
    body: bytes = user.get(f"/images/{record['_id']}").body
    return body


def test_a_dry_run_tells_what_the_import_then_does_and_the_next_finds_it_done(visor_admin, user, files: Path) -> None:
    words = ["import-glance", *PAGES, "--files", files]
    planned = visor_admin.report(*words, "--dry-run", code=1)
    assert {name for name, one in planned["images"].items() if one["outcome"] == "planned"} == GOOD
    assert {name for name, one in planned["images"].items() if one["outcome"] == "skipped"} == BAD
    assert there(user) == {}
    done = visor_admin.report(*words, code=1)
    assert (done["imported"], done["present"], done["skipped"]) == (4, 0, 3)
    assert done["images"]["Débian 12"]["verified"] == ["size", "md5", "sha512"]
    assert len(done["images"]["Débian 12"]["left_out"]) == 2
    records = there(user)
    assert set(records) == GOOD
    for name, record in records.items():
        assert record["status"] == "available"
        assert record["glance_id"] == image(name)["id"]
        assert done["images"][name]["image"] == record["_id"]
        assert pulled(user, record) == content(name, image(name)["size"])
    assert records["machine"]["kernel"] == records["vmlinuz"]["_id"]
    assert records["machine"]["ramdisk"] == records["initrd"]["_id"]
    assert (records["Débian 12"]["access"], records["Débian 12"]["tags"]) == ("private", "lts,server")
    again = visor_admin.report(*words, code=1)
    assert (again["imported"], again["present"], again["skipped"]) == (0, 4, 3)
    assert there(user) == records


def test_lines_tell_each_image_and_the_exit_code_whether_all_are_there(
    visor_admin, files: Path, tmp_path: Path
) -> None:
    one = image("32 bit")
    words = ["import-glance", write_list(tmp_path / "list", one), "--files", files]
    result = visor_admin(*words, code=1)
    assert result.stdout.splitlines()[0].startswith(f"skipped  {one['id']}  32 bit: Invalid architecture 'i686', ")
    assert result.stdout.splitlines()[1:] == ["skipped: 1"]
    assert result.stderr == "visor-admin: 1 of 1 images are not imported\n"
    result = visor_admin(*words, *RENAMED, "--dry-run")
    assert result.stdout.splitlines() == [
        f"would import  {one['id']}  32 bit  (size, md5, sha512)",
        "would import: 1",
    ]
    first, last = visor_admin(*words, *RENAMED).stdout.splitlines()
    assert first.startswith(f"imported  {one['id']}  32 bit  as ")
    assert last == "imported: 1"
    assert visor_admin(*words, *RENAMED).stdout.splitlines()[1] == "was imported: 1"


def test_wrong_or_missing_bytes_stop_no_other_image_and_are_never_sent(visor_admin, user, files: Path) -> None:
    (files / image("vmlinuz")["id"]).unlink()
    whole = (files / image("initrd")["id"]).read_bytes()
    (files / image("initrd")["id"]).write_bytes(whole[:-1])
    debian = files / image("Débian 12")["id"]
    debian.write_bytes(b"x" + debian.read_bytes()[1:])
    words = ["import-glance", *PAGES, "--files", files, *RENAMED]
    told = visor_admin.report(*words, code=1)["images"]
    assert told["vmlinuz"]["reason"] == f"there is no file {image('vmlinuz')['id']}"
    assert told["initrd"]["reason"] == "its file has 3999 bytes, the image has 4000"
    assert told["Débian 12"]["reason"].startswith("its file has the md5 digest ")
    assert told["machine"]["reason"] == f"its kernel '{image('vmlinuz')['id']}' is not imported"
    assert set(there(user)) == {"32 bit"}
    write_files(files)
    assert visor_admin.report(*words, code=1)["imported"] == 4
    assert set(there(user)) == {*GOOD, "32 bit"}


def test_what_an_upload_that_failed_left_is_taken_up(visor_admin, user, files: Path, tmp_path: Path) -> None:
    one = image("Débian 12")
    wrong = ("Repr-Digest", f"sha-256=:{'A' * 43}=:")
    answer = user.add(b"other", [wrong], name="half", format="raw", architecture="i386", glance_id=one["id"])
    assert answer.status == 400
    half = eventually(lambda: (record := there(user)["half"])["status"] == "error" and record)
    words = ["import-glance", write_list(tmp_path / "list", one), "--files", files]
    assert visor_admin.report(*words, "--dry-run")["images"]["Débian 12"]["image"] == half["_id"]
    assert there(user) == {"half": half}
    assert visor_admin.report(*words)["images"]["Débian 12"]["image"] == half["_id"]
    record = there(user)["Débian 12"]
    assert (record["_id"], record["status"], record["architecture"]) == (half["_id"], "available", "x86_64")
    assert pulled(user, record) == content("Débian 12", one["size"])


def test_a_killed_import_is_continued_by_the_next_and_brings_nothing_twice(
    visor_admin, user, files: Path, tmp_path: Path
) -> None:
    first, second = image("vmlinuz"), image("Débian 12")
    with (files / second["id"]).open("r+b") as file:  # it takes minutes to hash, so the command is killed in that
        file.truncate(HUGE)
    words = ["import-glance", write_list(tmp_path / "list", first, second | {"size": HUGE}), "--files", files]
    command = [sys.executable, "-m", "visor_gateway.cli.admin", *(str(word) for word in words)]
    environment = clean_environment({**visor_admin.environment, "HOME": str(tmp_path)})
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            assert process.stdout
            assert process.stdout.readline().startswith(b"imported")
        finally:
            process.kill()
    before = there(user)
    assert set(before) == {"vmlinuz"}
    write_files(files)
    done = visor_admin.report("import-glance", *PAGES, "--files", files, code=1)
    assert (done["imported"], done["present"]) == (3, 1)
    assert set(there(user)) == GOOD
    assert there(user)["vmlinuz"] == before["vmlinuz"]


def test_what_others_gave_the_id_of_an_image_is_not_taken_for_it(
    visor_admin, user, daemon: Gateway, files: Path, tmp_path: Path
) -> None:
    one = image("vmlinuz")
    other = daemon.new_user("stranger")
    assert other.add(b"bad", name="bait", format="raw", architecture="i386", glance_id=one["id"]).status == 200
    words = ["import-glance", write_list(tmp_path / "list", one), "--files", files]
    assert visor_admin.report(*words)["imported"] == 1
    assert pulled(user, there(user)["vmlinuz"]) == content("vmlinuz", one["size"])


def test_an_image_that_is_there_with_other_bytes_is_told(visor_admin, user, files: Path, tmp_path: Path) -> None:
    one = image("vmlinuz")
    made = user.add(b"other", name="other", format="raw", architecture="i386", glance_id=one["id"]).image
    told = visor_admin.report("import-glance", write_list(tmp_path / "list", one), "--files", files, code=1)
    assert told["images"]["vmlinuz"]["reason"] == (
        f"an earlier import brought other bytes, as '{made['_id']}': delete that to import it again"
    )


def test_what_the_gateway_refuses_is_told_in_its_words(visor_admin, files: Path, tmp_path: Path) -> None:
    words = ["import-glance", write_list(tmp_path / "list", image("vmlinuz")), "--files", files, "--store", "nowhere"]
    told = visor_admin.report(*words, code=1)["images"]["vmlinuz"]
    assert told["reason"] == "The store 'nowhere' is not supported"


def test_a_gateway_that_is_not_there_is_one_line(visor_admin, files: Path) -> None:
    words = ["import-glance", *PAGES, "--files", files, "--url", "http://127.0.0.1:1"]
    visor_admin.environment |= {"VISOR_URL": "http://127.0.0.1:1"}
    assert visor_admin(*words, code=1).stderr == (
        "visor-admin: Can't connect to http://127.0.0.1:1: Connection refused\n"
    )


def test_a_list_that_cannot_be_used_is_one_line_and_wrong_usage_ends_with_2(visor_admin, files: Path, tmp_path: Path):
    result = visor_admin("import-glance", PAGES[0], "--files", files, code=1)
    assert "the list goes on at '/v2/images?limit=5" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    visor_admin("import-glance", "--files", files, code=2)
    visor_admin("import-glance", PAGES[0], code=2)
    visor_admin("import-glance", tmp_path / "none", "--files", files, code=2)
    visor_admin("import-glance", PAGES[0], "--files", files, "--rename-architecture", "i686=vax", code=2)
