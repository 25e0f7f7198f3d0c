"""Preconditions and ranges (RFC 9110, 13 and 14)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visor_gateway.errors import InvalidRequest, PreconditionFailed, RangeNotSatisfiable
from visor_gateway.routes.conditional import MAX_RANGES, Span, Validators, not_modified, spans

MODIFIED = datetime(2026, 11, 22, 10, 9, 46, 500000, tzinfo=UTC)
AT, BEFORE, AFTER = (f"Sun, 22 Nov 2026 10:09:{second} GMT".encode() for second in (46, 45, 47))
OURS = Validators('"abc"', MODIFIED)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"if-none-match", b'"abc"', True),
        (b"if-none-match", b'W/"abc"', True),
        (b"if-none-match", b'"x", "abc"', True),
        (b"if-none-match", b"*", True),
        (b"if-none-match", b'"x"', False),
        (b"if-modified-since", AT, True),
        (b"if-modified-since", AFTER, True),
        (b"if-modified-since", BEFORE, False),
        (b"if-modified-since", b"nonsense", False),
        (b"if-match", b'"abc"', False),
        (b"if-match", b"*", False),
        (b"if-unmodified-since", AT, False),
        (b"if-unmodified-since", b"nonsense", False),
    ],
)
def test_when_304_is_the_answer(name: bytes, value: bytes, expected: bool) -> None:
    assert not_modified([(name, value)], OURS) is expected


@pytest.mark.parametrize(
    ("name", "value"), [(b"if-match", b'"x"'), (b"if-match", b'W/"abc"'), (b"if-unmodified-since", BEFORE)]
)
def test_a_precondition_that_does_not_hold_is_412(name: bytes, value: bytes) -> None:
    with pytest.raises(PreconditionFailed):
        not_modified([(name, value)], OURS)


def test_if_none_match_takes_precedence_over_the_date() -> None:
    assert not not_modified([(b"if-none-match", b'"x"'), (b"if-modified-since", AFTER)], OURS)


def test_a_malformed_tag_list_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        not_modified([(b"if-match", b"abc")], OURS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"bytes=0-0", Span(0, 1)),
        (b"bytes=2-5", Span(2, 4)),
        (b"bytes=2-", Span(2, 8)),
        (b"bytes=-3", Span(7, 3)),
        (b"bytes=-99", Span(0, 10)),
        (b"bytes=5-99999999999999999999999999", Span(5, 5)),
        (b"BYTES= 1-2 ", Span(1, 2)),
        (b"bytes=5-2", None),
        (b"bytes=-", None),
        (b"bytes=,", None),
        (b"bytes=a-b", None),
        (b"bytes 0-1", None),
        (b"items=0-1", None),
    ],
)
def test_which_range_is_served(value: bytes, expected: Span | None) -> None:
    assert spans([(b"range", value)], 10, OURS) == (() if expected is None else (expected,))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"bytes=0-1,3-4", [(0, 2), (3, 2)]),
        (b"bytes=0-1, ,,3-4", [(0, 2), (3, 2)]),
        (b"bytes=0-0,1-1,2-2", [(0, 1), (1, 1), (2, 1)]),
        (b"bytes=0-1,-2", [(0, 2), (8, 2)]),
        (b"bytes=3-4,70-", [(3, 2)]),
        (b"bytes=70-71,-0,9-", [(9, 1)]),
        (b"bytes=3-4,4-5", []),
        (b"bytes=0-1,0-1", []),
        (b"bytes=-2,0-1", []),
        (b"bytes=0-4,5-9", []),
        (b"bytes=0-1,x", []),
        (b"bytes=0-1,4-3", []),
    ],
)
def test_which_of_several_ranges_are_served(value: bytes, expected: list[tuple[int, int]]) -> None:
    assert [(span.offset, span.length) for span in spans([(b"range", value)], 10, OURS)] == expected


def test_more_ranges_than_a_client_can_need_get_the_whole() -> None:
    many = [f"{2 * n}-{2 * n}" for n in range(MAX_RANGES + 1)]
    assert len(spans([(b"range", f"bytes={','.join(many[1:])}".encode())], 100, OURS)) == MAX_RANGES
    assert spans([(b"range", f"bytes={','.join(many)}".encode())], 100, OURS) == ()


def test_an_image_without_a_byte_is_sent_whole() -> None:
    assert spans([(b"range", b"bytes=0-")], 0, OURS) == ()


@pytest.mark.parametrize(
    "value", [b"bytes=10-", b"bytes=10-11", b"bytes=-0", b"bytes=" + b"9" * 5000 + b"-", b"bytes=10-,11-"]
)
def test_a_range_without_a_byte_is_416_and_names_the_size(value: bytes) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        spans([(b"range", value)], 10, OURS)
    assert ("content-range", "bytes */10") in caught.value.headers


@pytest.mark.parametrize(
    ("value", "holds"), [(b'"abc"', True), (b'W/"abc"', False), (b'"x"', False), (AT, True), (BEFORE, False)]
)
def test_a_range_is_served_only_of_the_version_that_was_meant(value: bytes, holds: bool) -> None:
    assert (spans([(b"range", b"bytes=1-2"), (b"if-range", value)], 10, OURS) != ()) is holds


def test_nothing_is_ranged_while_the_size_is_unknown() -> None:
    assert spans([(b"range", b"bytes=0-1")], None, OURS) == ()


@given(st.text(alphabet="0123456789-, x", max_size=30), st.integers(1, 1000))
def test_served_ranges_lie_inside_the_image_in_order(value: str, size: int) -> None:
    try:
        found = spans([(b"range", b"bytes=" + value.encode())], size, OURS)
    except RangeNotSatisfiable:
        return
    end = 0
    for span in found:
        assert span.length > 0
        assert end <= span.offset <= size - span.length
        end = span.offset + span.length
