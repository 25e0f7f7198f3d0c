"""The role `meta` answers what VISOR's Meta server answered to the same requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from roles import Role, check_meta_exchanges, serving


@pytest.fixture(scope="module")
def role(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    """As for an image server of 2012, which sends no credentials."""
    # One process: how often an image was asked for is told by the one that was asked.
    with serving(tmp_path_factory.mktemp("meta"), "meta", 'allow = ["127.0.0.0/8"]', workers=1) as role:
        yield role


def test_every_recorded_request_is_answered_as_it_was(role: Role) -> None:
    check_meta_exchanges(role.anybody)


def test_another_method_of_a_known_path_is_no_route(role: Role) -> None:
    for method, path in (("PUT", "/images"), ("POST", "/images/x"), ("PATCH", "/images"), ("DELETE", "/all")):
        answer = role.anybody.request(method, path)
        assert (answer.status, answer.message) == (404, "Invalid operation or path.")


def test_head_is_answered_as_get_without_the_body(role: Role) -> None:
    got, head = role.anybody.get("/images/none"), role.anybody.head("/images/none")
    assert head.status == 404
    assert head.header("content-length") == got.header("content-length")
    assert head.body == b""


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"image": []}', b'{"image": {"name": "\xff"}}'])
@pytest.mark.parametrize(("method", "path"), [("POST", "/images"), ("PUT", "/images/none")])
def test_a_body_that_is_no_image_is_refused(role: Role, method: str, path: str, body: bytes) -> None:
    answer = role.anybody.request(method, path, [("Content-Type", "application/json")], body)
    assert answer.status == 400
    assert answer.message


def test_a_body_of_more_than_64_kib_is_refused(role: Role) -> None:
    assert role.anybody.request("POST", "/images", (), b" " * (64 * 1024 + 1)).status == 413
    assert role.anybody.request("POST", "/images", (), [b" " * 40_000, b" " * 40_000]).status == 413
