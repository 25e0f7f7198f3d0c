"""Documents of Meta and Auth servers, against what was recorded with them, and against what nobody should send."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers.recorded import Exchange, exchange, exchanges

from visor_gateway import visor_documents as documents
from visor_gateway.errors import ClientError, InvalidField, InvalidRequest
from visor_gateway.visor_documents import ImageDocument, InvalidDocument, UserDocument

MOMENT = datetime(2026, 11, 22, 10, 9, 46, tzinfo=UTC)
CENTOS = "d12e6c03-f15c-4249-8b9a-b7390653ea94"
URI = f"http://10.0.0.1:4568/images/{CENTOS}"


def answered(server: str, key: str) -> list[Exchange]:
    return [one for one in exchanges(server) if one.status == 200 and key in json.loads(one.answer)]


def recorded_image() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(exchange("Meta", "update").answer)["image"]
    return found


def body(**changes: Any) -> bytes:
    return json.dumps({"image": recorded_image() | changes}).encode()


def user_body(**changes: Any) -> bytes:
    user = json.loads(exchange("Auth", "one user").answer)["user"]
    return json.dumps({"user": user | changes}).encode()


# --- both directions ----------------------------------------------------------------------------


def test_an_image_is_written_as_it_was_recorded() -> None:
    found = [one for one in answered("Meta", "image") if one.method != "DELETE"]
    assert len(found) == 3
    for one in found:
        written = documents.image(documents.read_image(one.answer), URI)
        assert json.dumps({"image": written}, separators=(",", ":")).encode() == one.answer


def test_a_deleted_image_is_written_as_it_was_recorded() -> None:
    answer = exchange("Meta", "delete").answer
    document = documents.read_image(answer)
    assert (document.access_count, document.accessed_at, document.attributes) == (1, MOMENT, {"distro": "centos"})
    written = documents.deleted_image(document, URI)
    assert json.dumps({"image": written}, separators=(",", ":")).encode() == answer


def test_lists_of_images_are_written_as_they_were_recorded() -> None:
    answer = exchange("Meta", "detailed list").answer
    [document], refused = documents.read_images(answer)
    assert refused == 0
    assert json.dumps({"images": [documents.image(document, URI)]}, separators=(",", ":")).encode() == answer
    brief = json.dumps({"images": [documents.brief_image(document)]}, separators=(",", ":")).encode()
    assert brief == exchange("Meta", "brief list").answer == exchange("Meta", "filter and sort").answer


def test_an_image_without_custom_attributes_has_others_null() -> None:
    document = ImageDocument(id=CENTOS, name="x", architecture="i386", created_at=MOMENT)
    assert documents.image(document, URI)["others"] is None
    assert documents.deleted_image(document, URI)["others"] is None
    assert documents.read_image(json.dumps({"image": documents.image(document, URI)}).encode()) == document


def test_users_are_written_as_they_were_recorded() -> None:
    for one in answered("Auth", "user"):
        written = documents.user(documents.read_user(one.answer))
        assert json.dumps({"user": written}, separators=(",", ":")).encode() == one.answer
    for one in answered("Auth", "users"):
        [document], refused = documents.read_users(one.answer)
        assert refused == 0
        assert json.dumps({"users": [documents.user(document)]}, separators=(",", ":")).encode() == one.answer


def test_errors_are_written_and_read_as_they_were_recorded() -> None:
    refused = [one for server in ("Meta", "Auth") for one in exchanges(server) if one.status != 200]
    assert len(refused) == 14
    for one in refused:
        message = documents.read_error(one.answer)
        assert message
        assert json.dumps(documents.error(one.status, message), separators=(",", ":")).encode() == one.answer


def test_recorded_requests_are_read() -> None:
    register = documents.read_image_request(exchange("Meta", "register").body, new=True)
    assert register.named["owner"] == "foo"
    assert register.attributes == {"distro": "centos"}
    update = documents.read_image_request(exchange("Meta", "update").body, new=False)
    assert update.named["status"] == "available"
    assert update.named["size"] == 1234
    user = documents.read_user_request(exchange("Auth", "register a user").body, new=True)
    assert user == {"access_key": "bar", "email": "bar@example.org"}
    assert documents.read_user_request(exchange("Auth", "update").body, new=False) == {"email": "new@example.org"}


@pytest.mark.parametrize(("server", "name"), [
    ("Meta", "missing field"), ("Meta", "read-only field"), ("Auth", "missing email"),
])  # fmt: skip
def test_recorded_refusals_have_their_message(server: str, name: str) -> None:
    one = exchange(server, name)
    read = documents.read_image_request if server == "Meta" else documents.read_user_request
    with pytest.raises(InvalidField) as refused:
        read(one.body, new=True)
    assert documents.error(400, refused.value.message) == json.loads(one.answer)


def test_a_value_that_is_not_allowed_is_named() -> None:
    with pytest.raises(InvalidField, match=r"^Invalid architecture 'vax', available options: i386, x86_64, "):
        documents.read_image_request(exchange("Meta", "invalid value").body, new=True)


def test_requests_are_composed() -> None:
    composed = documents.image_request({"name": "x", "uploaded_at": MOMENT, "size": 1})
    assert json.loads(composed) == {"image": {"name": "x", "uploaded_at": "2026-11-22 10:09:46 +0000", "size": 1}}
    assert json.loads(documents.user_request({"email": "a@b.org"})) == {"user": {"email": "a@b.org"}}


# --- moments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "2026-11-22 10:09:46 +0000", "2026-11-22 10:09:46 UTC", "2026-11-22T10:09:46Z", "2026-11-22 12:09:46 +0200",
    "2026-11-22T05:09:46-05:00", "2026-11-22T10:09:46.000Z", "2026-11-22T10:09:46.000000000Z",
])  # fmt: skip
def test_moments_are_read_in_every_form(text: str) -> None:
    assert documents.parse_moment(text) == MOMENT
    assert documents.format_moment(MOMENT) == "2026-11-22 10:09:46 +0000"


@pytest.mark.parametrize("text", [
    "", "now", "2026-11-22", "2026-13-22 10:09:46 +0000", "2026-11-22 10:09:61 +0000", "2026-11-22 10:09:46",
    "2026-11-22 10:09:46 +9900", "0001-01-01 00:00:00 +1400", "2026-11-22 10:09:46 +0000\n",
    "٢٠٢٦-11-22 10:09:46 +0000",
])  # fmt: skip
def test_other_moments_are_refused(text: str) -> None:
    with pytest.raises(InvalidDocument):
        documents.parse_moment(text)


def test_a_fraction_of_a_second_is_kept() -> None:
    assert documents.parse_moment("2026-11-22T10:09:46.5Z") == MOMENT.replace(microsecond=500000)


# --- what nobody should send --------------------------------------------------------------------


@pytest.mark.parametrize(("field", "value"), [
    ("_id", None), ("_id", "../../etc/passwd"), ("_id", CENTOS + "\n"), ("_id", CENTOS.upper()), ("_id", 1),
    ("name", None), ("name", ""), ("name", "x" * 256), ("name", "a\r\nx-evil: 1"), ("name", {"a": 1}),
    ("name", "\ud800"),
    ("architecture", None), ("architecture", "vax"), ("architecture", ["i386"]),
    ("access", "everybody"), ("type", "virus"), ("format", 7), ("store", "a b"), ("store", "x" * 256),
    ("location", "file:///a b"), ("location", "x" * 4097), ("location", ["http://h/"]), ("location", "http://h/\r\n"),
    ("kernel", "fake"), ("ramdisk", 1),
    ("owner", "a:b"), ("owner", "a\nb"), ("owner", ".."), ("owner", "x" * 65), ("owner", True),
    ("status", "owned"), ("status", 1), ("size", -1), ("size", 1.5), ("size", True), ("size", "12"), ("size", 1 << 63),
    ("checksum", "a b"), ("checksum", "x" * 256),
    ("created_at", None), ("created_at", "yesterday"), ("updated_at", 5), ("uploaded_at", "x" * 300),
    ("others", "{"), ("others", "[]"), ("others", 5), ("others", "[" * 100_000),
])  # fmt: skip
def test_a_value_that_no_record_may_have_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidDocument) as refused:
        documents.read_image(body(**{field: value}))
    assert f"'{field}'" in str(refused.value) or "JSON" in str(refused.value)
    assert len(str(refused.value)) < 100


@pytest.mark.parametrize(("field", "value"), [
    ("_id", "1"), ("access_key", "a:b"), ("access_key", None), ("secret_key", ""), ("secret_key", "a\nb"),
    ("secret_key", 5), ("email", None), ("email", "a b@c.org"), ("created_at", "?"),
])  # fmt: skip
def test_a_value_that_no_user_may_have_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidDocument, match=field):
        documents.read_user(user_body(**{field: value}))


@pytest.mark.parametrize("text", [
    b"", b"null", b"[]", b"{}", b'{"image": null}', b'{"image": []}', b"<html>", b"\xff", b'{"image": {}}',
    b"[" * 100_000,
])  # fmt: skip
def test_what_is_no_document_is_refused(text: bytes) -> None:
    for read in (documents.read_image, documents.read_images, documents.read_user, documents.read_users):
        with pytest.raises(InvalidDocument):
            read(text)
    assert documents.read_error(text) == ""


def test_one_bad_image_hides_no_other() -> None:
    good = recorded_image()
    found, refused = documents.read_images(json.dumps({"images": [{}, good, good, 5, good | {"size": -1}]}).encode())
    assert [one.id for one in found] == [CENTOS]
    assert refused == 4


def test_unset_access_is_private_and_unset_status_an_error() -> None:
    found = documents.read_image(body(access=None, status=None))
    assert (found.access, found.status) == ("private", "error")


def test_attributes_that_no_record_may_have_are_left_out() -> None:
    found = documents.read_image(body(Upper="x", fine="y", number=5, deep={"a": 1}, line="a\nb", gone=None, yes=True))
    assert found.attributes == {"distro": "centos", "fine": "y", "number": "5", "yes": "true"}


def test_others_never_set_a_named_field() -> None:
    found = documents.read_image(body(others=json.dumps({"owner": "mallory", "status": "available", "kept": "1"})))
    assert found.owner == "foo"
    assert found.attributes == {"distro": "centos", "kept": "1"}


def test_too_many_and_too_long_attributes_are_refused() -> None:
    with pytest.raises(InvalidDocument):
        documents.read_image(body(**{f"a{number}": "x" for number in range(40)}))
    with pytest.raises(InvalidDocument):
        documents.read_image(body(long="x" * 7000))


def test_a_secret_is_not_in_the_text_of_a_user() -> None:
    found = documents.read_user(user_body())
    assert found.secret_key not in repr(found)
    assert found.secret_key not in f"{UserDocument.__name__} {found}"


def test_a_message_of_another_server_is_one_short_line() -> None:
    assert documents.read_error(json.dumps({"message": "a\r\nb" + "x" * 1000}).encode()) == "a  b" + "x" * 251


@pytest.mark.parametrize("fields", [
    {"name": None}, {"size": "1"}, {"location": "a b"}, {"status": "x\r\ny"}, {"UPPER": "x"}, {"deep": {"a": 1}},
    {"uri": "x"},
])  # fmt: skip
def test_invalid_requests_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidField) as refused:
        documents.read_image_request(json.dumps({"image": fields}).encode(), new=False)
    assert "\n" not in refused.value.message


def test_requests_of_another_form_are_refused() -> None:
    for text in (b"", b"[]", b"{}", b'{"image": 5, "user": 5}'):
        with pytest.raises(InvalidRequest):
            documents.read_image_request(text, new=False)
        with pytest.raises(InvalidRequest):
            documents.read_user_request(text, new=False)
    for fields in ({"role": "admin"}, {"email": 5}, {"secret_key": "x"}):
        with pytest.raises(InvalidField):
            documents.read_user_request(json.dumps({"user": fields}).encode(), new=False)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*documents.IMAGE_FIELDS, "others", "distro"]), _JSON, max_size=4))
def test_whatever_a_server_sends_is_a_document_or_refused(changes: dict[str, Any]) -> None:
    text = body(**changes)
    try:
        found = documents.read_image(text)
    except InvalidDocument:
        return
    assert "\n" not in found.name
    assert documents.read_image(json.dumps({"image": documents.image(found, URI)}).encode()).id == found.id


@given(st.dictionaries(st.sampled_from([*documents.IMAGE_FIELDS, "distro"]), _JSON, max_size=4), st.booleans())
def test_whatever_a_peer_sends_is_a_request_or_refused(fields: dict[str, Any], new: bool) -> None:
    with suppress(ClientError):
        documents.read_image_request(json.dumps({"image": fields}).encode(), new=new)
