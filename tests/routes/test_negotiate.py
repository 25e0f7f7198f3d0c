"""JSON or XML (docs/protocol.md)."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visor_gateway.errors import MethodNotAllowed, NotFound, StoreUnreachable
from visor_gateway.routes.negotiate import JSON, XML, preferred, render, render_error
from visor_gateway.routes.request import Answer


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("text/plain", JSON),
        ("application/json", JSON),
        ("application/xml", XML),
        ("text/xml", XML),
        ("APPLICATION/XML", XML),
        ("application/xml, application/json", JSON),
        ("application/xml;q=0.9, application/json;q=0.8", XML),
        ("application/xml;q=0.8, application/json;q=0.9", JSON),
        ("application/xml, */*", XML),
        ("application/xml;q=0.5, */*;q=0.8", JSON),
        ("application/xml;q=0", JSON),
        ("text/html, application/xml;q=0.9, */*;q=0.8", XML),
        ("application/xml;q=nonsense", JSON),
        ("application/*;q=0.4, text/xml;q=0.5", XML),
    ],
)
def test_xml_is_sent_only_where_it_is_preferred(accept: str | None, expected: str) -> None:
    assert preferred(accept) == expected


@given(st.text(max_size=60))
def test_any_accept_value_has_an_answer(accept: str) -> None:
    assert preferred(accept) in (JSON, XML)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True),
        st.none() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
        min_size=1,
        max_size=5,
    )
)
def test_every_record_is_well_formed_xml(record: dict[str, Any]) -> None:
    _, headers, body = render(Answer({"image": record}), accept="text/xml")
    image = ElementTree.fromstring(body).find("image")
    assert image is not None
    assert [child.tag for child in image] == list(record)
    assert dict(headers)[b"vary"] == b"Accept"


def test_xml_has_one_element_per_key_and_one_item_per_value() -> None:
    _, headers, body = render(Answer({"images": [{"name": "a<b&c", "size": None}, {"name": "d"}]}), accept=XML)
    root = ElementTree.fromstring(body)
    assert body.startswith(b'<?xml version="1.0" encoding="UTF-8"?>\n<results>')
    assert [item.findtext("name") for item in root.findall("images/item")] == ["a<b&c", "d"]
    assert root.find("images/item/size") is not None
    assert dict(headers)[b"content-type"] == b"application/xml; charset=utf-8"


def test_errors_have_code_and_message_in_both_forms() -> None:
    error = NotFound("No image found with id '<x>'.")
    status, _, body = render_error(error, accept=None)
    assert (status, msgspec.json.decode(body)) == (404, {"code": 404, "message": error.message})
    root = ElementTree.fromstring(render_error(error, accept=XML)[2])
    assert (root.findtext("code"), root.findtext("message")) == ("404", error.message)


def test_errors_of_head_travel_as_headers() -> None:
    status, headers, body = render_error(NotFound("gone\r\nx: y"), accept=None, head=True)
    found = dict(headers)
    assert (status, body) == (404, b"")
    assert (found[b"x-error-code"], found[b"x-error-message"]) == (b"404", b"gone  x: y")


def test_a_refused_method_names_the_others_in_alphabetical_order() -> None:
    assert dict(render_error(MethodNotAllowed(("PUT", "GET", "HEAD", "DELETE")), accept=None)[1])[b"allow"] == (
        b"DELETE, GET, HEAD, PUT"
    )


def test_what_may_work_later_says_when() -> None:
    assert b"retry-after" in dict(render_error(StoreUnreachable("away"), accept=None)[1])
