"""What is made of Glance's lists: every field, and a reason for each that has no counterpart."""

from __future__ import annotations

from typing import Any

import pytest
from glance_lists import PAGES, image, images

from visor_gateway.cli.imports.glance import Reader, read_pages
from visor_gateway.cli.imports.item import Item, Skipped, Unfit

ID = "75728273-4784-42a4-9f31-d019fcdb2863"


def read(found: Any, **options: Any) -> Item | Skipped:
    settings = {"architecture": None, "renamed": {}, "store": None} | options
    [item] = Reader(**settings).read([found])
    return item


def changed(**fields: Any) -> dict[str, Any]:
    return image("Débian 12") | fields


def reason(**fields: Any) -> str:
    item = read(changed(**fields))
    assert isinstance(item, Skipped)
    assert item.source_id in {ID, ""}
    return item.reason


def left_out(**fields: Any) -> tuple[str, ...]:
    item = read(changed(**{"owner_specified.openstack.md5": None, "owner_specified.openstack.object": None, **fields}))
    assert isinstance(item, Item)
    return item.left_out


def test_the_pages_of_a_list_are_one_list() -> None:
    assert read_pages([page.read_bytes() for page in PAGES]) == images()
    assert len(images()) == 7


def test_a_list_that_goes_on_is_refused_with_where() -> None:
    with pytest.raises(Unfit, match=r"goes on at '/v2/images\?limit=5"):
        read_pages([PAGES[0].read_bytes()])


@pytest.mark.parametrize("body", [b"", b"[]", b'{"images": {}}', b"\xff", b"[" * 100_000])
def test_what_is_no_list_is_refused(body: bytes) -> None:
    with pytest.raises(Unfit, match=r"no JSON|no answer to GET /v2/images"):
        read_pages([body])


def test_an_image_becomes_fields_digests_and_attributes() -> None:
    item = read(image("Débian 12"), store="s3")
    assert isinstance(item, Item)
    assert item.source_id == ID
    assert item.size == 200003
    assert item.digests == {"md5": "707ee7480f0ba31eef00e9560c57133e", "sha512": image("Débian 12")["os_hash_value"]}
    assert item.fields == {
        "name": "Débian 12", "architecture": "x86_64", "format": "raw", "access": "private", "store": "s3",
        "glance_id": ID, "glance_visibility": "shared", "min_disk": "4", "min_ram": "512", "tags": "lts,server",
        "os_distro": "debian", "os_version": "12", "hw_disk_bus": "virtio",
        "glance_created_at": "2026-11-22T22:18:41Z", "glance_updated_at": "2026-11-22T22:18:41Z",
    }  # fmt: skip
    assert item.left_out == (
        "'owner_specified.openstack.md5': no name that an attribute can have",
        "'owner_specified.openstack.object': no name that an attribute can have",
    )


def test_where_the_bytes_are_in_glance_is_never_taken_over() -> None:
    secret = "swift+https://user:hunter2@host/container"
    locations = [{"url": secret, "metadata": {}}]
    item = read(changed(direct_url=secret, locations=locations, stores="fs", os_glance_stage_host="http://inside"))
    assert isinstance(item, Item)
    assert "hunter2" not in repr(item)
    assert "inside" not in repr(item)


def test_an_owner_protection_and_hiding_become_attributes() -> None:
    item = read(changed(owner="5ef70662f8b34079a6eddb8da9d75fe8", protected=True, os_hidden=True))
    assert isinstance(item, Item)
    assert item.fields["glance_owner"] == "5ef70662f8b34079a6eddb8da9d75fe8"
    assert (item.fields["glance_protected"], item.fields["os_hidden"]) == ("true", "true")


@pytest.mark.parametrize(
    ("visibility", "access", "noted"),
    [("public", "public", None), ("private", "private", None), ("community", "private", "community")],
)
def test_a_visibility_becomes_the_access_that_opens_no_more(visibility: str, access: str, noted: str | None) -> None:
    item = read(changed(visibility=visibility))
    assert isinstance(item, Item)
    assert (item.fields["access"], item.fields.get("glance_visibility")) == (access, noted)


@pytest.mark.parametrize("name", ["ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso"])
def test_a_disk_format_keeps_its_name(name: str) -> None:
    container = name if name in {"ami", "ari", "aki"} else "bare"
    item = read(changed(disk_format=name, container_format=container))
    assert isinstance(item, Item)
    assert item.fields["format"] == name


def test_an_ova_is_one_whatever_disk_it_holds() -> None:
    item = read(changed(disk_format="vmdk", container_format="ova"))
    assert isinstance(item, Item)
    assert item.fields["format"] == "ova"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"id": "../../etc/passwd"}, "id '../../etc/passwd' is no UUID"),
        ({"id": None}, "id 'None' is no UUID"),
        ({"name": None}, "it has no name"),
        ({"name": "two\nlines"}, "name 'two?lines': it holds a control character"),
        ({"name": " x"}, "name ' x': it is empty, or begins or ends with a blank"),
        ({"name": "x" * 256}, "Invalid name: it must have 1 to 255 characters"),
        ({"status": "deactivated"}, "status 'deactivated': only an active image has bytes to import"),
        ({"status": None}, "status 'None': only an active image has bytes to import"),
        ({"disk_format": "ploop"}, "disk_format 'ploop' has no counterpart here"),
        ({"disk_format": ["raw"]}, "disk_format '['raw']' has no counterpart here"),
        ({"container_format": "docker"}, "container_format 'docker' around 'raw' has no counterpart here"),
        ({"container_format": "raw"}, "container_format 'raw' around 'raw' has no counterpart here"),
        ({"container_format": None}, "container_format 'None' around 'raw' has no counterpart here"),
        ({"visibility": "world"}, "visibility 'world' has no counterpart here"),
        ({"visibility": None}, "visibility 'None' has no counterpart here"),
        ({"architecture": None}, "it names no architecture, and --architecture says none for such images"),
        ({"architecture": 64}, "it has no architecture"),
        ({"size": -1}, "size '-1' is no count of bytes"),
        ({"size": True}, "size 'True' is no count of bytes"),
        ({"size": "12"}, "size '12' is no count of bytes"),
        ({"checksum": "abc"}, "'abc' is no md5 digest"),
        ({"checksum": 7}, "'7' is no md5 digest"),
        ({"os_hash_value": "z" * 128}, f"'{'z' * 80}...' is no sha512 digest"),
        ({"os_hash_value": None}, "of os_hash_algo and os_hash_value it has but one"),
        ({"os_hash_algo": "crc32"}, "os_hash_algo 'crc32' is not known here"),
        ({"os_hash_algo": ["md5"]}, "os_hash_algo '['md5']' is not known here"),
        ({"os_hash_algo": "md5", "os_hash_value": "0" * 32}, "checksum and os_hash_value contradict each other"),
        ({"kernel_id": "nokernel"}, "kernel_id 'nokernel' is no UUID"),
        ({"tags": "lts"}, "tags are no list of texts"),
        ({"tags": ["a,b"]}, "a tag holds a comma"),
        ({f"p{n}": "x" for n in range(40)}, "A record has at most 32 custom attributes, not 50"),
    ],
)
def test_what_has_no_counterpart_is_named(fields: dict[str, Any], expected: str) -> None:
    assert reason(**fields) == expected


def test_an_architecture_that_is_unknown_is_refused_and_can_be_renamed() -> None:
    assert reason(architecture="i686").startswith("Invalid architecture 'i686', available options: i386, ")
    item = read(changed(architecture="i686"), renamed={"i686": "i386"}, architecture="aarch64")
    assert isinstance(item, Item)
    assert item.fields["architecture"] == "i386"
    item = read(changed(architecture=None), architecture="aarch64")
    assert isinstance(item, Item)
    assert item.fields["architecture"] == "aarch64"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("Upper", "x", "no name that an attribute can have"),
        ("type", "x", "the name means something else here"),
        ("location", "file:///etc/passwd", "the name means something else here"),
        ("glance_id", ID, "the name means something else here"),
        ("glance_owner", "x", "the name means something else here"),
        ("description", "two\nlines", "it holds a control character"),
        ("description", "\x1b[2J", "it holds a control character"),
        ("description", "", "it is empty, or begins or ends with a blank"),
        ("description", ["x"], "it is no text"),
    ],
)
def test_a_property_that_a_record_cannot_have_is_left_out_and_named(name: str, value: object, why: str) -> None:
    assert left_out(**{name: value}) == (f"'{name}': {why}",)


def test_an_image_that_is_listed_twice_is_imported_once() -> None:
    first, second = Reader(architecture=None, renamed={}, store=None).read([image("vmlinuz")] * 2)
    assert isinstance(first, Item)
    assert second == Skipped(source_id=first.source_id, name="vmlinuz", reason="it is listed twice")


@pytest.mark.parametrize("found", [None, 7, "x", []])
def test_what_is_no_image_is_skipped(found: object) -> None:
    assert read(found) == Skipped(reason="it is no object")
