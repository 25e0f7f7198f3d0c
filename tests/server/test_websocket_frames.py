"""Frames of clients that are looked at, and not parsed: what counts as one, and which are pongs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import Event, Ping, Pong, TextMessage

from visor_gateway.server.websocket_frames import is_one_frame, pong_payload


def framed(event: Event) -> bytes:
    return bytes(Connection(ConnectionType.CLIENT).send(event))


@given(st.binary(max_size=125))
def test_a_pong_is_recognised_with_its_payload(payload: bytes) -> None:
    data = framed(Pong(payload=payload))
    assert is_one_frame(data)
    assert pong_payload(data) == payload


@pytest.mark.parametrize("event", [Ping(payload=b"visor"), TextMessage(data="visor"), TextMessage(data="v" * 125)])
def test_other_frames_are_no_pongs(event: Event) -> None:
    data = framed(event)
    assert is_one_frame(data)
    assert pong_payload(data) is None


def test_a_pong_with_reserved_bits_or_in_fragments_is_left_to_the_parser() -> None:
    pong = framed(Pong(payload=b"visor"))
    for first in (0x0A, 0xCA, 0xAA, 0x9A):
        assert pong_payload(bytes([first]) + pong[1:]) is None


@given(st.integers(min_value=0, max_value=10), st.binary(min_size=1, max_size=20))
def test_a_part_of_a_frame_and_more_than_one_are_not_one(cut: int, more: bytes) -> None:
    pong = framed(Pong(payload=b"visor"))
    assert not is_one_frame(pong[:cut])
    assert not is_one_frame(pong + more)


def test_long_and_unmasked_frames_are_left_to_the_parser() -> None:
    assert not is_one_frame(framed(TextMessage(data="v" * 126)))
    assert not is_one_frame(bytes([0x8A, 4]) + b"abcd")
