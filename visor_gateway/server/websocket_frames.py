"""A look at a client's WebSocket frames without parsing a stream of them (RFC 6455, 5.2). Sans-IO."""

from __future__ import annotations

from typing import Final

_MASKED: Final = 0x80
_LENGTH: Final = 0x7F
_CONTROL_LIMIT: Final = 125  # the longest payload of a frame whose length takes no further bytes
_MASK_BYTES: Final = 4
_HEAD_BYTES: Final = 2 + _MASK_BYTES
_FINAL_PONG: Final = 0x8A


def is_one_frame(data: bytes) -> bool:
    """Whether bytes that begin with a frame are one short masked frame from its first byte to its last."""
    return (
        len(data) >= _HEAD_BYTES
        and data[1] & _MASKED != 0
        and (length := data[1] & _LENGTH) <= _CONTROL_LIMIT
        and len(data) == _HEAD_BYTES + length
    )


def pong_payload(frame: bytes) -> bytes | None:
    """The payload of a frame that `is_one_frame`, if it is a pong."""
    if frame[0] != _FINAL_PONG:
        return None
    mask = frame[2:_HEAD_BYTES]
    return bytes(byte ^ mask[at % _MASK_BYTES] for at, byte in enumerate(frame[_HEAD_BYTES:]))
