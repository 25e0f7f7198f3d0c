"""Keys of a terminal, one by one."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import anyio

_NAMED: Final = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
    b"\x7f": "backspace",
    b"\x08": "backspace",
}


@contextmanager
def unbuffered(terminal: int) -> Generator[None]:
    """Have a terminal hand out keys as they are pressed and not show them, until the block ends."""
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


async def pressed(terminal: int) -> list[str]:
    """The keys that were pressed since the last call, at least one; none at the end of the input. Keys that have
    neither a character nor a name here are left out."""
    await anyio.wait_readable(terminal)
    return parse(os.read(terminal, 1024))


def parse(data: bytes) -> list[str]:
    """Keys of what a terminal sent. A sequence comes in one piece, as terminals write it."""
    if data in _NAMED:
        return [_NAMED[data]]
    if data.startswith(b"\x1b"):
        return []
    text = data.decode("utf-8", "ignore")
    return [_NAMED.get(each.encode(), each) for each in text if each.isprintable() or each.encode() in _NAMED]
