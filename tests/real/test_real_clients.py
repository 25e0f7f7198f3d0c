"""curl, wget and qemu-img, as people use them."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from pathlib import Path

import programs
import pytest
from gateway_process import Gateway
from wire import Stored, eventually, store_image, unique

SIZE = 8 << 20


@pytest.fixture(scope="module")
def image(gateway: Gateway) -> Stored:
    return store_image(gateway.admin, random.Random(1).randbytes(SIZE))


@pytest.fixture(scope="module")
def link(gateway: Gateway, image: Stored) -> str:
    """A URL that needs no credentials."""
    return gateway.admin.send_json("POST", f"{image.path}/links", {}).json()["link"]["uri"]


# --- curl --------------------------------------------------------------------------------------


def test_curl_pulls_an_image(run, gateway, authorization, image, tmp_path: Path) -> None:
    run("curl", "-fsS", "-H", authorization, "-o", tmp_path / "a", gateway.url + image.path)
    assert (tmp_path / "a").read_bytes() == image.data


def test_curl_pulls_by_a_link(run, link, image, tmp_path: Path) -> None:
    run("curl", "-fsS", "-o", tmp_path / "a", link)
    assert (tmp_path / "a").read_bytes() == image.data


def test_curl_resumes(run, link, image, tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(image.data[: SIZE // 3])
    run("curl", "-fsS", "-C", "-", "-o", target, link)
    assert target.read_bytes() == image.data


def test_curl_resume_of_a_whole_file_does_not_spoil_it(run, link, image, tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(image.data)
    run("curl", "-sS", "-C", "-", "-o", target, link, check=False)
    assert target.read_bytes() == image.data


def test_curl_asks_for_a_range(run, link, image) -> None:
    assert run("curl", "-fsS", "--range", "1000-1999", link).stdout == image.data[1000:2000]
    assert run("curl", "-fsS", "--range", "-100", link).stdout == image.data[-100:]


def test_curl_asks_for_the_head(run, gateway, authorization, image) -> None:
    shown = run("curl", "-fsS", "--head", "-H", authorization, gateway.url + image.path).stdout.decode().lower()
    assert f"content-length: {SIZE}" in shown
    assert f"x-image-meta-_id: {image.id}" in shown


def test_curl_pulls_over_http_1_0(run, link, image, tmp_path: Path) -> None:
    run("curl", "-fsS", "--http1.0", "-o", tmp_path / "a", link)
    assert (tmp_path / "a").read_bytes() == image.data


def test_curl_gets_304_for_what_it_has(run, link, tmp_path: Path) -> None:
    etag = tmp_path / "etag"
    run("curl", "-fsS", "--etag-save", etag, "-o", tmp_path / "a", link)
    done = run("curl", "-sS", "--etag-compare", etag, "-o", tmp_path / "b", "-w", "%{http_code}", link)
    assert done.stdout == b"304"


def test_curl_names_the_file_as_the_image(run, gateway, authorization, tmp_path: Path) -> None:
    image = store_image(gateway.admin, b"named", name="debian 12")
    run("curl", "-fsSJO", "-H", authorization, gateway.url + image.path, cwd=tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == b"named"
    assert "/" not in file.name


def upload(gateway: Gateway, authorization: str, *options: object) -> list[object]:
    headers = ("X-Image-Meta-Name: curled", "X-Image-Meta-Architecture: x86_64", authorization)
    command: list[object] = ["curl", "-sS", "-X", "POST", "-H", "Content-Type: application/octet-stream"]
    for header in headers:
        command += ["-H", header]
    return [*command, *options, f"{gateway.url}/images"]


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"])
def test_curl_uploads_a_file(run, gateway, authorization, tmp_path: Path, expect) -> None:
    data = random.Random(2).randbytes(3 << 20)
    (tmp_path / "a").write_bytes(data)
    done = run(*upload(gateway, authorization, "-H", expect, "-T", tmp_path / "a"))
    image = json.loads(done.stdout)["image"]
    assert (image["size"], image["checksum"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_curl_uploads_a_pipe_of_unknown_length(run, gateway, authorization) -> None:
    data = random.Random(3).randbytes(3 << 20)
    done = run(*upload(gateway, authorization, "-T", "-"), input=data)
    assert json.loads(done.stdout)["image"]["checksum"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"])
def test_curl_reads_why_its_upload_is_refused(run, gateway, authorization, tmp_path: Path, expect) -> None:
    (tmp_path / "a").write_bytes(bytes(600_000))
    options = ("-H", expect, "-H", "X-Image-Meta-Type: nonsense", "-T", tmp_path / "a")
    done = run(*upload(gateway, authorization, *options))
    assert json.loads(done.stdout)["code"] == 400


def test_curl_sees_a_cancelled_pull_as_a_failure(gateway, authorization, tmp_path: Path) -> None:
    image = store_image(gateway.admin, bytes(64 << 20))  # more than both kernels hold for a slow reader
    command = ["curl", "-sS", "--limit-rate", "4M", "-H", authorization, "-o", str(tmp_path / "a")]
    curl = subprocess.Popen([*command, gateway.url + image.path], stderr=subprocess.PIPE)
    try:
        running = f"/transfers?image={image.id}&state=running"
        (transfer,) = eventually(lambda: gateway.admin.get(running).json()["transfers"])
        assert gateway.admin.delete(f"/transfers/{transfer['id']}").status == 200
        _, message = curl.communicate(timeout=60)
    finally:
        curl.kill()
        curl.wait()
    assert curl.returncode in (18, 56), message
    assert (tmp_path / "a").stat().st_size < len(image.data)


# --- wget --------------------------------------------------------------------------------------


def test_wget_pulls_and_continues(run, link, image, tmp_path: Path) -> None:
    target = tmp_path / "a"
    run("wget", "-q", "-O", target, link)
    assert target.read_bytes() == image.data
    target.write_bytes(image.data[: SIZE // 2])
    run("wget", "-q", "-c", "-O", target, link)
    assert target.read_bytes() == image.data


def test_wget_takes_the_name_of_the_image(run, gateway, tmp_path: Path) -> None:
    image = store_image(gateway.admin, b"named", name=unique("wgetted"))
    link = gateway.admin.send_json("POST", f"{image.path}/links", {}).json()["link"]["uri"]
    run("wget", "-q", "--content-disposition", link, cwd=tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == b"named"


# --- qemu-img ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qcow2 image with an ext4 file system that holds a file."""
    directory = tmp_path_factory.mktemp("disk")
    (directory / "root").mkdir()
    (directory / "root" / "hello.txt").write_text("hello from inside\n" * 1000)
    raw, disk = directory / "disk.raw", directory / "disk.qcow2"
    with raw.open("wb") as file:
        file.truncate(64 << 20)
    programs.run("mkfs.ext4", "-q", "-d", directory / "root", raw)
    programs.run("qemu-img", "convert", "-O", "qcow2", raw, disk)
    return disk


@pytest.fixture(scope="module")
def disk_link(gateway: Gateway, disk: Path) -> str:
    said = programs.run("qemu-img", "info", f"{gateway.url}/status", check=False).stderr
    if b"Unknown protocol" in said:
        pytest.skip("qemu-img does not speak HTTP here (Debian: qemu-block-extra)")
    image = gateway.admin.add(disk.read_bytes(), format="qcow2", access="private").image
    return gateway.admin.send_json("POST", f"/images/{image['_id']}/links", {}).json()["link"]["uri"]


def test_qemu_img_reads_a_qcow2_by_a_link(run, disk, disk_link) -> None:
    remote = json.loads(run("qemu-img", "info", "--output=json", disk_link).stdout)
    local = json.loads(run("qemu-img", "info", "--output=json", disk).stdout)
    assert remote["format"] == "qcow2"
    assert remote["virtual-size"] == local["virtual-size"] == 64 << 20


def test_qemu_img_converts_a_qcow2_by_a_link(run, disk, disk_link, tmp_path: Path) -> None:
    run("qemu-img", "convert", "-O", "raw", disk_link, tmp_path / "remote.raw")
    run("qemu-img", "convert", "-O", "raw", disk, tmp_path / "local.raw")
    run("cmp", tmp_path / "remote.raw", tmp_path / "local.raw")
    run("e2fsck", "-f", "-n", tmp_path / "remote.raw")
    assert b"hello from inside" in run("debugfs", "-R", "cat /hello.txt", tmp_path / "remote.raw").stdout


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "vhdx", "vpc"])
def test_images_that_qemu_img_makes_are_taken_in_their_format(run, gateway, disk, tmp_path: Path, kind) -> None:
    run("qemu-img", "convert", "-O", kind, disk, tmp_path / "disk")
    data = (tmp_path / "disk").read_bytes()
    image = store_image(gateway.admin, data, format={"vpc": "vhd"}.get(kind, kind))
    assert gateway.admin.get(image.path).body == data


def test_a_qcow2_with_a_backing_file_that_qemu_img_made_is_refused(run, gateway, disk, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk, overlay)
    for fields in ({"format": "qcow2"}, {}):
        answer = gateway.admin.add(overlay.read_bytes(), **fields)
        assert answer.status == 400
        assert str(disk) not in answer.message


def test_a_qcow2_with_a_data_file_that_qemu_img_made_is_refused(run, gateway, tmp_path: Path) -> None:
    data = tmp_path / "data.raw"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", tmp_path / "a.qcow2", "1M")
    assert gateway.admin.add((tmp_path / "a.qcow2").read_bytes(), format="qcow2").status == 400


def test_a_flat_vmdk_that_qemu_img_made_is_refused(run, gateway, tmp_path: Path) -> None:
    run("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", tmp_path / "a.vmdk", "1M")
    assert gateway.admin.add((tmp_path / "a.vmdk").read_bytes(), format="vmdk").status == 400


def test_qemu_img_fails_on_a_link_that_is_not_valid(run, disk_link) -> None:
    bad = disk_link.replace("sig=", "sig=A")
    assert run("qemu-img", "info", bad, check=False).returncode != 0
