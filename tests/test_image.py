"""The record and its header form (docs/protocol.md)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visor_gateway import image as images
from visor_gateway.errors import InvalidField, InvalidRequest

NOW = datetime(2026, 11, 22, 10, 9, 46, tzinfo=UTC)
MINIMAL = {"name": "disk", "architecture": "x86_64"}

names = st.from_regex(r"[a-z_][a-z0-9_]{0,63}", fullmatch=True).filter(
    lambda name: name not in images.CLIENT_FIELDS and name not in images.GATEWAY_FIELDS
)
values = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=40).map(
    lambda text: text.strip(" \t")
)


def made(**fields: str) -> images.Image:
    return images.create(images.checked({**MINIMAL, **fields}), owner="foo", now=NOW)


@given(st.dictionaries(names, values, max_size=20))
def test_what_goes_out_as_headers_comes_back_as_it_was(attributes: dict[str, str]) -> None:
    image = made(**attributes)
    headers = images.to_headers({name: image.shown("u")[name] for name in ("name", "architecture", *attributes)})
    assert images.from_headers(headers) == {**MINIMAL, **attributes}


@pytest.mark.parametrize("spelling", [b"X-Image-Meta-Os_Type", b"x-image-meta-os-type", b"X-IMAGE-META-OS-TYPE"])
def test_case_and_hyphens_of_a_header_name_do_not_matter(spelling: bytes) -> None:
    assert images.from_headers([(spelling, b"007")]) == {"os_type": "007"}


def test_a_name_that_signatures_do_not_cover_sets_no_field() -> None:
    assert images.from_headers([(b"x_image_meta_access", b"public")]) == {}


def test_two_headers_for_one_field_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="'os_type' is given twice"):
        images.from_headers([(b"x-image-meta-os_type", b"a"), (b"x-image-meta-os-type", b"a")])


@pytest.mark.parametrize("value", [b"a\rb", b"a\nb", b"a\0b", b"\xff\xfe"])
def test_values_that_no_header_may_carry_are_refused(value: bytes) -> None:
    with pytest.raises(InvalidRequest, match="'name'"):
        images.from_headers([(b"x-image-meta-name", value)])


@pytest.mark.parametrize("field", images.GATEWAY_FIELDS)
def test_fields_of_the_gateway_are_read_only(field: str) -> None:
    with pytest.raises(InvalidField, match=f"read-only: {field}"):
        images.checked({field: "x"})


@pytest.mark.parametrize("field", images.CHOICES)
def test_a_value_outside_a_closed_list_is_refused_with_the_list(field: str) -> None:
    with pytest.raises(InvalidField, match=f"Invalid {field} 'vax', available options: ") as caught:
        images.checked({field: "vax"})
    assert ", ".join(images.CHOICES[field]) in caught.value.message


@pytest.mark.parametrize("missing", images.MANDATORY)
def test_mandatory_fields_are_demanded_by_name(missing: str) -> None:
    fields = {name: value for name, value in MINIMAL.items() if name != missing}
    with pytest.raises(InvalidField, match=f"required: {missing}"):
        images.create(images.checked(fields), owner="foo", now=NOW)


@pytest.mark.parametrize("name", ["", "n" * 256])
def test_a_name_has_1_to_255_characters(name: str) -> None:
    with pytest.raises(InvalidField, match="1 to 255"):
        images.checked({"name": name})
    assert images.checked({"name": "ü" * 255})


@pytest.mark.parametrize("name", ["", "9a", "a.b", "a" * 65, "ä"])
def test_attribute_names_have_a_narrow_form(name: str) -> None:
    with pytest.raises(InvalidField, match="attribute name"):
        images.checked({name: "x"})


def test_a_record_has_at_most_32_attributes() -> None:
    assert made(**{f"a{n}": "x" for n in range(32)})
    with pytest.raises(InvalidField, match="at most 32"):
        made(**{f"a{n}": "x" for n in range(33)})


def test_all_names_and_values_together_have_at_most_6_kib() -> None:
    with pytest.raises(InvalidField, match="6144 bytes"):
        made(note="x" * 6144)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("file:///etc/passwd", "http or https"),
        ("FILE:///etc/passwd", "http or https"),
        ("s3://bucket/key", "http or https"),
        ("http://user:secret@host/x", "credentials"),
        ("http://user@host/x", "credentials"),
        ("http:///x", "not a URI"),
        ("http://[::1/x", "not a URI"),
        ("http://host:port/x", "not a URI"),
        ("http://host/ x", "not a URI"),
        ("http://hö.st/", "not a URI"),
    ],
)
def test_locations_that_clients_may_not_name(location: str, reason: str) -> None:
    with pytest.raises(InvalidField, match=reason) as caught:
        images.checked({"location": location})
    assert "secret" not in caught.value.message


def test_the_old_name_of_the_lunacloud_store_is_understood() -> None:
    assert images.checked({"store": "lcs"}).named["store"] == "lunacloud"


def test_an_empty_value_unsets_an_optional_field() -> None:
    image = images.change(
        made(type="machine", access="private", distro="x"), images.checked({"type": "", "access": ""}), now=NOW
    )
    assert (image.type, image.access, image.attributes) == (None, "public", {"distro": "x"})


def test_every_named_field_is_shown_and_internal_ones_are_not() -> None:
    shown = made(distro="centos").shown("http://g/images/1")
    assert list(shown) == [*images.SHOWN, "distro"]
    assert shown["uri"] == "http://g/images/1"
    assert shown["size"] is None
    assert not {"accessed_at", "access_count", "attempt_id", "validator"} & set(shown)
    assert set(made().brief("u")) == set(images.BRIEF)


def test_unset_fields_are_left_out_of_headers() -> None:
    assert b"x-image-meta-size" not in dict(images.to_headers(made().shown("u")))
