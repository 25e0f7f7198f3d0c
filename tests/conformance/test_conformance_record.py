"""Contract section 2: the image record."""

from __future__ import annotations

import hashlib
import re
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from wire import Client, eventually, head_bytes, unique

NAMED = [
    "_id", "uri", "name", "architecture", "access", "type", "format", "store", "location", "kernel", "ramdisk",
    "status", "size", "checksum", "owner", "created_at", "updated_at", "uploaded_at",
]  # fmt: skip
GATEWAY_SET = [
    "_id", "uri", "status", "size", "checksum", "owner", "created_at", "updated_at", "uploaded_at", "accessed_at",
    "access_count",
]  # fmt: skip
BRIEF = {"_id", "uri", "name", "architecture", "type", "format", "store", "size", "created_at"}
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)\Z")


def moment(text: str) -> datetime:
    assert MOMENT.match(text), text
    return datetime.fromisoformat(text)


def is_now(text: str) -> bool:
    return abs(datetime.now(UTC) - moment(text)) < timedelta(minutes=1)


def test_id_is_a_random_uuid(alice: Client) -> None:
    ids = [alice.add().image["_id"] for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(uuid.UUID(value).version == 4 and str(uuid.UUID(value)) == value for value in ids)


def test_uri_is_the_absolute_url_of_the_image_on_this_gateway(alice: Client, gateway) -> None:
    image = alice.add().image
    assert image["uri"] == f"{gateway.url}/images/{image['_id']}"


def test_uri_follows_the_host_of_the_request(alice: Client, stored) -> None:
    answer = alice.get(f"/images?_id={stored.id}", ("Host", "images.example:8443"))
    assert answer.json()["images"][0]["uri"] == f"http://images.example:8443{stored.path}"


def test_uri_ignores_forwarding_headers_of_strangers(alice: Client, gateway, stored) -> None:
    answer = alice.get(
        f"/images?_id={stored.id}",
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Proto", "https"),
        ("Forwarded", "host=evil.example;proto=https"),
    )
    assert answer.json()["images"][0]["uri"] == f"{gateway.url}{stored.path}"


def test_uri_is_built_from_public_url_where_it_is_set(start) -> None:
    gateway = start('[server]\npublic_url = "https://images.example"\n')
    image = gateway.admin.add().image
    assert image["uri"] == f"https://images.example/images/{image['_id']}"


@pytest.mark.parametrize("field", ["name", "architecture"])
def test_a_missing_mandatory_field_is_400_naming_it(alice: Client, field) -> None:
    fields = {"name": unique("half"), "architecture": "i386"}
    del fields[field]
    headers = [(f"x-image-meta-{key}", value) for key, value in fields.items()]
    answer = alice.request("POST", "/images", headers)
    assert answer.status == 400
    assert field in answer.message


@pytest.mark.parametrize("name", ["n", "n" * 255, "é" * 255, "映" * 255, "with  two blanks", "a:b=c;d", "%41%zz"])
def test_a_name_has_1_to_255_characters(alice: Client, name) -> None:
    assert alice.add(name=name).image["name"] == name


@pytest.mark.parametrize("name", ["", "   ", "n" * 256, "é" * 256])
def test_other_names_are_400(alice: Client, name) -> None:
    answer = alice.add(name=name)
    assert answer.status == 400
    assert "name" in answer.message


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("architecture", "i386 x86_64 aarch64 armv7l ppc64le s390x riscv64"),
        ("access", "public private"),
        ("type", "none kernel ramdisk machine amazon eucalyptus openstack opennebula nimbus"),
        ("format", "none iso raw qcow2 vhd vhdx vdi vmdk ova ami aki ari"),
    ],
)
def test_every_listed_value_of_a_field_is_taken_and_kept(alice: Client, field, values) -> None:
    for value in values.split():
        assert alice.add(**{field: value}).image[field] == value


@pytest.mark.parametrize("field", ["architecture", "access", "type", "format"])
@pytest.mark.parametrize("value", ["vax", "PUBLIC", "x86-64", "ISO", "raw,iso"])
def test_any_other_value_is_400_naming_the_field(alice: Client, field, value) -> None:
    name = unique("bad")
    answer = alice.add(**({"name": name} | {field: value}))
    assert answer.status == 400
    assert field in answer.message
    assert alice.named(name) is None


def test_access_is_public_by_default(alice: Client) -> None:
    assert alice.add().image["access"] == "public"


def test_a_store_must_be_configured(alice: Client) -> None:
    name = unique("stored")
    for store in ("s3", "tape", "FILE", "../file"):
        answer = alice.add(name=name, store=store)
        assert answer.status == 400
        assert answer.message == f"The store '{store}' is not supported"
    assert alice.named(name) is None


def test_lcs_is_another_name_of_lunacloud(alice: Client) -> None:
    answer = alice.add(store="lcs")
    assert answer.status == 400
    assert answer.message in ("The store 'lcs' is not supported", "The store 'lunacloud' is not supported")


@pytest.mark.direct("gateways on several hosts have a store that they share")
def test_the_file_store_is_the_default_for_bytes(alice: Client) -> None:
    assert alice.add(b"bytes").image["store"] == "file"
    assert alice.add(b"bytes", store="file").image["store"] == "file"


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("kernel", {"type": "kernel"}),
        ("kernel", {"format": "aki"}),
        ("ramdisk", {"type": "ramdisk"}),
        ("ramdisk", {"format": "ari"}),
    ],
)
def test_kernel_and_ramdisk_name_an_image_of_that_type(alice: Client, field, fields) -> None:
    other = alice.add(**fields).image["_id"]
    image = alice.add(**{field: other}).image
    assert image[field] == other
    assert alice.put(alice.add().image["_id"], **{field: other}).image[field] == other


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("kernel", {"type": "ramdisk"}),
        ("kernel", {"format": "ari"}),
        ("kernel", {"type": "machine"}),
        ("ramdisk", {"type": "kernel"}),
        ("ramdisk", {}),
    ],
)
def test_kernel_and_ramdisk_of_another_type_are_400(alice: Client, field, fields) -> None:
    other = alice.add(**fields).image["_id"]
    for answer in (alice.add(**{field: other}), alice.put(alice.add().image["_id"], **{field: other})):
        assert answer.status == 400
        assert field in answer.message


@pytest.mark.parametrize("value", ["fake", "../x", "7c0d0c16-4c5c-4b7e-9a0b-0a9c8a3a0e55"])
def test_a_kernel_that_is_no_image_is_400(alice: Client, value) -> None:
    for field in ("kernel", "ramdisk"):
        answer = alice.add(**{field: value})
        assert answer.status == 400
        assert field in answer.message


def test_another_users_private_kernel_is_400_like_one_that_is_not_there(alice: Client, bob: Client) -> None:
    hidden = bob.add(type="kernel", access="private").image["_id"]
    refused = alice.add(kernel=hidden)
    assert refused.status == 400
    missing = "7c0d0c16-4c5c-4b7e-9a0b-0a9c8a3a0e55"
    assert refused.message.replace(hidden, "") == alice.add(kernel=missing).message.replace(missing, "")


def test_status_is_locked_without_bytes_and_available_with_them(alice: Client) -> None:
    image = alice.add().image
    assert image["status"] == "locked"
    assert alice.put(image["_id"], b"now").image["status"] == "available"
    assert alice.add(b"at once").image["status"] == "available"


def test_status_is_uploading_while_bytes_come(alice: Client) -> None:
    name = unique("coming")
    headers = [("x-image-meta-name", name), ("x-image-meta-architecture", "i386"), ("Content-Length", "8")]
    headers.append(("Content-Type", "application/octet-stream"))
    with alice.start("POST", "/images", headers) as wire:
        wire.send(b"half")

        eventually(lambda: (alice.named(name) or {}).get("status") == "uploading", what="status uploading")
        wire.send(b"half")
        assert wire.read_response().image["status"] == "available"


def test_size_and_checksum_are_those_of_the_bytes(alice: Client) -> None:
    data = b"hello image"
    image = alice.add(data).image
    assert image["size"] == 11
    assert image["checksum"] == hashlib.sha256(data).hexdigest()
    assert alice.add([b"hello", b" image"]).image["checksum"] == image["checksum"]


def test_owner_is_the_access_key_of_the_creator(alice: Client, bob: Client) -> None:
    assert alice.add().image["owner"] == alice.access_key
    assert bob.add(b"x").image["owner"] == bob.access_key


def test_times_are_rfc3339_in_utc(alice: Client) -> None:
    image = alice.add().image
    assert is_now(image["created_at"])
    assert image["updated_at"] is None
    assert image["uploaded_at"] is None
    changed = alice.put(image["_id"], note="changed").image
    assert changed["created_at"] == image["created_at"]
    assert is_now(changed["updated_at"])
    assert moment(changed["updated_at"]) >= moment(image["created_at"])
    uploaded = alice.put(image["_id"], b"bytes").image
    assert is_now(uploaded["uploaded_at"])


def test_md5_is_shown_beside_the_sha256_where_the_operator_wants_it(start) -> None:
    gateway = start("[digests]\nvisor_md5 = true\n")
    image = gateway.admin.add(b"hello image").image
    assert image["checksum"] == "1a8170f6b425d667b1aba297dbe4ff88"
    assert image["sha256"] == hashlib.sha256(b"hello image").hexdigest()
    answer = gateway.admin.get(f"/images/{image['_id']}")
    assert answer.body == b"hello image"
    assert answer.meta()["sha256"] == image["sha256"]


def test_counts_of_access_are_shown_to_nobody(alice: Client) -> None:
    image = alice.add(b"counted").image
    path = f"/images/{image['_id']}"
    shown = [image, alice.get(path).meta(), alice.head(path).meta(), alice.put(image["_id"], note="n").image]
    shown += alice.get(f"/images?_id={image['_id']}").json()["images"]
    shown += alice.get(f"/images/detail?_id={image['_id']}").json()["images"]
    shown.append(alice.delete(path).image)
    for record in shown:
        assert "accessed_at" not in record
        assert "access_count" not in record


def test_json_has_every_named_field_and_null_where_unset(alice: Client) -> None:
    image = alice.add().image
    assert set(NAMED) <= set(image)
    assert set(image) <= {*NAMED, "sha256"}
    unset = {name for name in NAMED if image[name] is None}
    assert unset >= {
        "type", "format", "location", "kernel", "ramdisk", "size", "checksum", "updated_at", "uploaded_at",
    }  # fmt: skip
    (listed,) = alice.get(f"/images/detail?_id={image['_id']}").json()["images"]
    assert listed == image


def test_headers_leave_out_what_is_unset(alice: Client) -> None:
    image = alice.add(note="kept").image
    expected = {name: str(value) for name, value in image.items() if value is not None}
    assert alice.record(image["_id"]) == expected
    assert alice.get(f"/images/{image['_id']}").meta() == expected


def test_lists_show_the_brief_fields(alice: Client) -> None:
    image = alice.add(b"brief", note="hidden").image
    (listed,) = alice.get(f"/images?_id={image['_id']}").json()["images"]
    assert set(listed) == BRIEF
    assert listed == {name: image[name] for name in BRIEF}


@pytest.mark.parametrize("field", GATEWAY_SET)
def test_a_field_of_the_gateways_is_400_naming_it_and_changes_nothing(alice: Client, field) -> None:
    name = unique("reserved")
    answer = alice.add(**{"name": name, field: "1"})
    assert answer.status == 400
    assert field in answer.message
    assert alice.named(name) is None
    image = alice.add(name=name).image
    refused = alice.put(image["_id"], **{field: "1", "note": "x"})
    assert refused.status == 400
    assert field in refused.message
    assert alice.named(name) == image


def test_a_reserved_field_is_refused_in_every_spelling(alice: Client) -> None:
    name = unique("reserved")
    for header in ("X-IMAGE-META-STATUS", "x-image-meta-Status", "x-image-meta-created-at", "x-image-meta-created_at"):
        headers = [("x-image-meta-name", name), ("x-image-meta-architecture", "i386"), (header, "available")]
        assert alice.request("POST", "/images", headers).status == 400
    assert alice.named(name) is None


@pytest.mark.parametrize("attribute", ["distro", "_x", "a", "a" * 64, "os_version_2", "x9"])
def test_anything_else_is_a_custom_attribute(alice: Client, attribute) -> None:
    # `_` goes as it is here: this is about the name that the record gets.
    headers = [("x-image-meta-name", "n"), ("x-image-meta-architecture", "i386"), (f"x-image-meta-{attribute}", "v")]
    assert alice.request("POST", "/images", headers).image[attribute] == "v"


@pytest.mark.parametrize("attribute", ["9lives", "a" * 65, "a.b", "a!b", "a$b", "a'b", ""])
def test_other_attribute_names_are_400(alice: Client, attribute) -> None:
    name = unique("attribute")
    headers = [("x-image-meta-name", name), ("x-image-meta-architecture", "i386"), (f"x-image-meta-{attribute}", "v")]
    assert alice.request("POST", "/images", headers).status == 400
    assert alice.named(name) is None


def test_a_record_has_at_most_32_custom_attributes(alice: Client) -> None:
    image = alice.add(**{f"a{number}": "v" for number in range(32)}).image
    assert image["a31"] == "v"
    assert alice.add(**{f"a{number}": "v" for number in range(33)}).status == 400
    assert alice.put(image["_id"], a32="v").status == 400


def test_names_and_values_together_have_at_most_6_kib(alice: Client) -> None:
    image = alice.add(note="x" * 5500).image
    assert image["note"] == "x" * 5500
    assert alice.add(note="x" * 6200).status == 400
    assert alice.put(image["_id"], more="y" * 1000).status == 400
    assert alice.record(image["_id"])["note"] == "x" * 5500


def test_a_location_of_a_file_image_carries_no_credentials(alice: Client) -> None:
    location = alice.add(b"x").image["location"]
    assert location is None or "@" not in location


def test_a_request_without_host_is_400_on_http_1_1(alice: Client) -> None:
    headers = [pair for pair in alice.signed("GET", "/images") if pair[0] != "Host"]
    with alice.connect() as wire:
        wire.send(head_bytes("GET", "/images", headers))
        assert wire.read_head().status == 400
