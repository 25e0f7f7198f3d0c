"""Exchanges that were recorded with the Meta and Auth servers of VISOR."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

_FILE: Final = Path(__file__).with_name("visor-2012.txt")


class Exchange(NamedTuple):
    """A request and its answer."""

    server: str
    name: str
    method: str
    path: str
    body: bytes
    status: int
    answer: bytes


def exchanges(server: str) -> list[Exchange]:
    """Those with a server ("Meta" or "Auth"), in their order."""
    found = []
    section = ""
    for part in _FILE.read_text("utf-8").split("\n### ")[0:]:
        if section == server:
            found.append(_exchange(server, part))
        for line in part.splitlines():
            if line.startswith("# VISOR "):
                section = line.split()[2]
    return found


def exchange(server: str, name: str) -> Exchange:
    """The one of that name."""
    [found] = [one for one in exchanges(server) if one.name == name]
    return found


def _exchange(server: str, text: str) -> Exchange:
    name, *lines = text.splitlines()
    request = [line[2:] for line in lines if line.startswith(">")]
    answer = [line[2:] for line in lines if line.startswith("<")]
    method, path, _ = request[0].split(" ")
    return Exchange(
        server, name, method, path, _body(request).encode(), int(answer[0].split(" ")[1]), _body(answer).encode()
    )


def _body(lines: list[str]) -> str:
    return "\n".join(lines[lines.index("") + 1 :]) if "" in lines else ""
