"""Contract section 5: several ranges in one answer (RFC 9110, 14.6), and ranges under preconditions."""

from __future__ import annotations

import re

import pytest
from wire import Client, Response, Stored, head_bytes, store_image, unique

SIZE = 1_500_007
LAST = SIZE - 1


@pytest.fixture(scope="module")
def entity(alice: Client) -> Stored:
    return store_image(alice, bytes(i * 13 % 253 for i in range(SIZE)), name=unique("Ranges"))


def parts(answer: Response) -> list[tuple[int, int, bytes]]:
    """First and last position, and bytes, of each part of a multipart/byteranges body."""
    assert answer.status == 206
    kind = answer.header("content-type") or ""
    found = re.fullmatch(r'multipart/byteranges; ?boundary="?([0-9A-Za-z\'()+_,./:=?-]{1,70})"?', kind)
    assert found, kind
    assert answer.header("content-range") is None
    assert answer.header("content-length") == str(len(answer.body))
    delimiter = b"\r\n--" + found[1].encode()
    _, *pieces, end = (b"\r\n" + answer.body).split(delimiter)
    assert end.startswith(b"--")
    made = []
    for piece in pieces:
        head, blank, body = piece.partition(b"\r\n\r\n")
        assert blank
        assert re.search(rb"(?im)^content-type: application/octet-stream\r?$", head)
        span = re.search(rb"(?im)^content-range: bytes (\d+)-(\d+)/%d\r?$" % SIZE, head)
        assert span, head
        made.append((int(span[1]), int(span[2]), body))
    return made


def asked(client: Client, entity: Stored, value: str, *more: tuple[str, str]) -> Response:
    return client.get(entity.path, ("Range", value), *more)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-9,20-29", [(0, 9), (20, 29)]),
        ("bytes=0-9, -5", [(0, 9), (SIZE - 5, LAST)]),
        ("bytes=0-0,,1-1 , 2-2", [(0, 0), (1, 1), (2, 2)]),
        ("bytes=5-1400000,1400002-", [(5, 1400000), (1400002, LAST)]),
        (f"bytes=1-2,{SIZE}-,4-5", [(1, 2), (4, 5)]),
    ],
)
def test_several_ranges_are_parts_with_their_bytes(alice: Client, entity: Stored, value: str, expected) -> None:
    found = parts(asked(alice, entity, value))
    assert found == [(first, last, entity.data[first : last + 1]) for first, last in expected]


def test_one_range_that_is_left_is_no_multipart(alice: Client, entity: Stored) -> None:
    answer = asked(alice, entity, f"bytes=5-9,{SIZE}-")
    assert (answer.status, answer.body) == (206, entity.data[5:10])
    assert answer.header("content-range") == f"bytes 5-9/{SIZE}"
    assert answer.header("content-type") == "application/octet-stream"


def test_ranges_without_a_byte_are_416(alice: Client, entity: Stored) -> None:
    answer = asked(alice, entity, f"bytes={SIZE}-,-0")
    assert (answer.status, answer.header("content-range")) == (416, f"bytes */{SIZE}")


@pytest.mark.parametrize(
    "value", ["bytes=0-9,9-20", "bytes=0-,0-,0-", "bytes=10-20,0-5,2-3", "bytes=" + ",".join(["0-0"] * 200)]
)
def test_ranges_that_overlap_cost_no_more_than_the_whole(alice: Client, entity: Stored, value: str) -> None:
    answer = asked(alice, entity, value)
    assert (answer.status, answer.body) == (200, entity.data)


def test_parts_describe_the_whole_image_as_a_get_does(alice: Client, entity: Stored) -> None:
    answer, whole = asked(alice, entity, "bytes=0-0,2-2"), alice.head(entity.path)
    for name in ("etag", "last-modified", "repr-digest", "accept-ranges"):
        assert answer.header(name) == whole.header(name)
        assert answer.header(name)
    assert answer.header("x-transfer-id")


def test_a_boundary_is_used_once(alice: Client, entity: Stored) -> None:
    kinds = {asked(alice, entity, "bytes=0-0,2-2").header("content-type") for _ in range(3)}
    assert len(kinds) == 3


def test_if_range_and_conditions_come_before_several_ranges(alice: Client, entity: Stored) -> None:
    tag = alice.head(entity.path).header("etag") or ""
    several = "bytes=0-9,20-29"
    assert len(parts(asked(alice, entity, several, ("If-Range", tag)))) == 2
    assert asked(alice, entity, several, ("If-Range", '"another"')).status == 200
    assert asked(alice, entity, several, ("If-None-Match", tag)).status == 304
    assert asked(alice, entity, several, ("If-Match", '"another"')).status == 412
    assert alice.head(entity.path, ("Range", several)).status == 200


def test_requests_after_several_ranges_are_answered_on_the_same_connection(alice: Client, entity: Stored) -> None:
    with alice.connect() as wire:
        for value in ("bytes=0-9,20-29", "bytes=0-1400000,1400002-", "bytes=3-4"):
            headers = alice.signed("GET", entity.path, [("Range", value)])
            wire.send(head_bytes("GET", entity.path, headers))
            answer = wire.read_response()
            assert answer.status == 206
        assert answer.body == entity.data[3:5]
