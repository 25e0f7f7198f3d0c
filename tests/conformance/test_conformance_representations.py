"""Contract section 1: representations, error bodies, methods and paths."""

from __future__ import annotations

import pytest
from wire import Client, unique

JSON, XML = "application/json", "application/xml"


def kind(answer) -> str:
    return (answer.header("content-type") or "").partition(";")[0].strip()


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("application/xml", XML),
        ("text/xml", XML),
        ("application/json;q=0.5, application/xml", XML),
        ("application/json;q=0.5, text/xml;q=0.7", XML),
        ("application/xml;q=0.4, application/json;q=0.9", JSON),
        ("application/xml;q=0.4, */*;q=0.9", JSON),
        ("application/xml, */*;q=0.1", XML),
        ("application/xml;q=0", JSON),
        ("application/json, application/xml", JSON),
        ("text/html, application/xhtml+xml, image/png", JSON),
        ("APPLICATION/XML", XML),
        ("application/xml; charset=utf-8", XML),
    ],
)
def test_accept_chooses_the_representation_and_json_is_the_default(admin: Client, stored, accept, expected) -> None:
    headers = [("Accept", accept)] if accept else []
    assert kind(admin.get(f"/images?_id={stored.id}", *headers)) == expected


@pytest.mark.parametrize(
    "accept", ["", ";;;", "application/xml;q=banana", ",,,", "q=1", "/", "*", "application/xml;q=2"]
)
def test_a_malformed_accept_is_survived(admin: Client, stored, accept) -> None:
    answer = admin.get(f"/images?_id={stored.id}", ("Accept", accept))
    assert answer.status in (200, 400, 406)


def test_several_accept_lines_are_one_list(admin: Client, stored) -> None:
    answer = admin.get(f"/images?_id={stored.id}", ("Accept", "application/json;q=0.1"), ("Accept", "application/xml"))
    assert kind(answer) == XML


@pytest.mark.parametrize("accept", [JSON, XML])
def test_negotiated_answers_are_utf8_and_vary_on_accept(admin: Client, alice: Client, stored, accept) -> None:
    choose = ("Accept", accept)
    answers = [
        admin.get(f"/images?_id={stored.id}", choose),
        admin.get(f"/images/detail?_id={stored.id}", choose),
        admin.get("/images?name=nothing-has-this-name", choose),
        admin.get("/images/fake", choose),
        alice.add(headers=[choose]),
        alice.put(alice.add().image["_id"], headers=[choose], note="varied"),
        admin.get("/nothing", choose),
        admin.get("/transfers", choose),
        admin.get("/users", choose),
        Client(admin.url).get("/images", choose),
        alice.request("POST", "/images", [choose]),
    ]
    gone = alice.add().image["_id"]
    answers.append(alice.request("DELETE", f"/images/{gone}", [choose]))
    for answer in answers:
        vary = [name.strip().lower() for value in answer.all("vary") for name in value.split(",")]
        assert "accept" in vary, (answer.status, answer.body)
        media, _, parameters = (answer.header("content-type") or "").partition(";")
        assert media == accept, (answer.status, answer.body)
        assert parameters.strip().lower().replace('"', "") == "charset=utf-8"


def test_json_errors_are_code_and_message(admin: Client) -> None:
    answer = admin.get("/images/fake")
    assert answer.json() == {"code": 404, "message": "No image found with id 'fake'."}


def test_xml_errors_are_code_and_message_in_results(admin: Client) -> None:
    answer = admin.get("/images/fake", ("Accept", XML))
    assert answer.status == 404
    assert answer.body.startswith(b'<?xml version="1.0" encoding="UTF-8"?>\n')
    root = answer.xml()
    assert root.tag == "results"
    assert [child.tag for child in root] == ["code", "message"]
    assert root.findtext("code") == "404"
    assert root.findtext("message") == "No image found with id 'fake'."


def test_a_json_answer_is_one_object_with_one_key(alice: Client, stored) -> None:
    assert list(alice.get("/images").json()) == ["images"]
    assert list(alice.get("/images/detail").json()) == ["images"]
    assert list(alice.add().json()) == ["image"]


def test_xml_objects_have_an_element_per_key_and_text_is_escaped(alice: Client) -> None:
    name = unique("<a>&\"'é映")
    answer = alice.add(headers=[("Accept", XML)], name=name, distro="]]> & <b/>")
    assert answer.body.startswith(b'<?xml version="1.0" encoding="UTF-8"?>\n')
    root = answer.xml()
    assert root.tag == "results"
    (image,) = root
    assert image.tag == "image"
    assert image.findtext("name") == name
    assert image.findtext("distro") == "]]> & <b/>"
    assert image.findtext("status") == "locked"


def test_xml_lists_have_an_item_per_value(alice: Client) -> None:
    group = unique("group")
    ids = {alice.add(note=group).image["_id"] for _ in range(2)}
    root = alice.get(f"/images?note={group}", ("Accept", XML)).xml()
    assert root.tag == "results"
    (images,) = root
    assert images.tag == "images"
    assert [item.tag for item in images] == ["item", "item"]
    assert {item.findtext("_id") for item in images} == ids


def test_an_unset_field_is_an_empty_element_in_xml(alice: Client) -> None:
    image = alice.add(headers=[("Accept", XML)]).xml()[0]
    for field in ("type", "format", "location", "kernel", "ramdisk", "size", "checksum", "uploaded_at", "updated_at"):
        element = image.find(field)
        assert element is not None, field
        assert not (element.text or "").strip()
        assert len(element) == 0


@pytest.mark.parametrize("character", ["\x01", "\x1f", "\x7f", "\ufffe", "\uffff", "\x85"])
def test_what_xml_can_not_carry_never_makes_broken_xml(alice: Client, character) -> None:
    added = alice.add(name=unique(f"odd{character}name"))
    assert added.status in (200, 400)
    if added.status == 200:
        answer = alice.get(f"/images?_id={added.image['_id']}", ("Accept", XML))
        assert answer.status == 200
        assert answer.xml().find("images/item/name") is not None


def test_errors_of_head_travel_in_headers_with_an_empty_body(alice: Client) -> None:
    with alice.start("HEAD", "/images/fake") as wire:
        answer = wire.read_response("HEAD")
        assert answer.status == 404
        assert answer.header("x-error-code") == "404"
        assert answer.header("x-error-message") == "No image found with id 'fake'."
        wire.finish_sending()
        assert wire.read_to_end() == b""


def test_a_refused_head_tells_code_and_message_too(anonymous: Client, stored) -> None:
    answer = anonymous.head(stored.path)
    assert answer.status == 403
    assert answer.header("x-error-code") == "403"
    assert answer.header("x-error-message") == anonymous.get(stored.path).message


@pytest.mark.parametrize(
    "path", ["/nothing", "/dashboard/nothing", "/images/a/b", "/imagesx", "/images//detail", "/status/x", "/All"]
)
def test_a_path_that_is_no_route_is_404(admin: Client, path) -> None:
    answer = admin.get(path)
    assert answer.status == 404
    assert answer.message == "Invalid operation or path."


def test_an_unknown_path_is_404_for_every_method(admin: Client) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = admin.request(method, "/nothing")
        assert (answer.status, answer.message) == (404, "Invalid operation or path.")
    answer = admin.head("/nothing")
    assert answer.header("x-error-message") == "Invalid operation or path."


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [
        ("/images", "PUT", "GET, POST"),
        ("/images", "DELETE", "GET, POST"),
        ("/images", "PATCH", "GET, POST"),
        ("/images", "OPTIONS", "GET, POST"),
        ("/images", "HEAD", "GET, POST"),
        ("/images/fake", "POST", "DELETE, GET, HEAD, PUT"),
        ("/images/fake", "PATCH", "DELETE, GET, HEAD, PUT"),
        ("/all", "GET", "DELETE"),
        ("/users", "DELETE", "GET, POST"),
        ("/users/fake", "POST", "DELETE, GET, PUT"),
    ],
)
def test_another_method_is_405_and_allow_lists_the_methods_in_order(admin: Client, path, method, allow) -> None:
    answer = admin.request(method, path)
    assert answer.status == 405
    assert answer.header("allow") == allow


@pytest.mark.parametrize(
    "path", ["/images/detail", "/transfers", "/transfers/x", "/status", "/ready", "/metrics", "/users/x/tokens"]
)
def test_allow_is_sorted_on_every_route(admin: Client, path) -> None:
    answer = admin.request("BREW", path)
    assert answer.status == 405
    methods = (answer.header("allow") or "").split(", ")
    assert methods == sorted(methods)
    assert methods != [""]
    assert answer.message


@pytest.mark.parametrize("path", ["/images", "/images/detail", "/status", "/ready", "/transfers", "/users", "/metrics"])
def test_one_trailing_slash_is_accepted(admin: Client, stored, path) -> None:
    assert admin.get(path).status == 200
    assert admin.get(path + "/").status == 200


def test_one_trailing_slash_is_accepted_on_an_image(alice: Client) -> None:
    image_id = alice.add(b"slashed").image["_id"]
    assert alice.get(f"/images/{image_id}/").body == b"slashed"
    assert alice.head(f"/images/{image_id}/").status == 200
    assert alice.request("PUT", f"/images/{image_id}/", [("x-image-meta-note", "n")]).status == 200
    assert alice.delete(f"/images/{image_id}/").status == 200


def test_two_trailing_slashes_are_no_route(admin: Client, stored) -> None:
    assert admin.get("/images//").status == 404
    assert admin.get(f"{stored.path}//").status == 404


def test_messages_name_no_file_and_show_no_stack(alice: Client, admin: Client, gateway, stored) -> None:
    answers = [
        alice.get("/images/..%2f..%2fetc%2fpasswd"),
        alice.get("/images/%00"),
        alice.get("/images/%ff"),
        alice.put(stored.id, b"more"),
        alice.add(architecture="vax"),
        alice.get("/images?sort=nothing"),
        alice.get("/images?limit=99999999999999999999"),
        alice.get("/images?marker=%00"),
        admin.send_json("POST", "/users", {"access_key": ["x"], "email": {}}),
        admin.request("POST", "/users", [("Content-Type", "application/json")], b"{"),
    ]
    for answer in answers:
        assert 400 <= answer.status < 500, (answer.status, answer.body)
        assert "Traceback" not in answer.message
        assert ".py" not in answer.message
        assert "sqlite" not in answer.message.lower()
        if gateway.data_dir:
            assert str(gateway.data_dir) not in answer.message
