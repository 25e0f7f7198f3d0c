"""Secrets that nobody may ever see. Keys that tests give to gateways carry a mark of the session; those that gateways
make are remembered once the answer that may show them has shown them. Whatever gateways give out is looked through:
answers with their heads, live messages, logs and, at the end, databases.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
import secrets
from collections.abc import Callable, Generator
from pathlib import Path

LINKS = re.compile(r"POST /images/[^/]+/links")
#: What answers show a secret, by the name that it has there.
SHOWN = {
    re.compile(r"POST /users"): "secret_key",
    re.compile(r"POST /users/[^/]+/rotate"): "secret_key",
    re.compile(r"POST /users/[^/]+/tokens"): "token",
    re.compile(r"POST /tickets"): "ticket",
    LINKS: "uri",
}
#: Files of a data directory that hold secrets, for their owner alone.
KEY_FILES = {"admin.toml", "master.key"}
#: Directories of it that hold bytes of images alone.
IMAGES = {"images", "cache", "store", "shelf"}
#: Of each connection so many bytes are searched for everything, and the rest for the mark alone.
THOROUGH_BYTES = 256 * 1024
#: A shorter one is found by chance.
LEAST = 8


class Canary:
    """What is secret, and where it was seen nevertheless."""

    def __init__(self) -> None:
        self.mark = f"canary{secrets.token_hex(8)}"
        self._known = {self.mark.encode(): "a key of a store, or a password"}
        self._found: list[str] = []

    def secret(self, name: str) -> str:
        """A secret for a test to give to a gateway."""
        return f"{name}{self.mark}"

    def keep(self, name: str, value: str | bytes) -> None:
        """Remember a secret that a gateway has made."""
        data = value.encode() if isinstance(value, str) else value
        if len(data) >= LEAST:
            self._known[data] = name

    def forget(self, value: str) -> None:
        """Let a secret be seen from now on, which its owner has spread himself."""
        self._known.pop(value.encode(), None)

    def look(self, where: str, data: str | bytes) -> None:
        """Look through something that a gateway gave out."""
        shown = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        found = {name for secret, name in self._known.items() if secret in shown}
        if LINKS.fullmatch(where):  # one that is made again in the same second is the same
            found.discard("uri of an answer")
        self._found += [f"{name} in {where}" for name in found]

    def answered(self, method: str, target: str, body: bytes) -> None:
        """Remember what this answer was allowed to show."""
        asked = f"{method} {target.partition('?')[0]}"
        for pattern, name in SHOWN.items():
            if pattern.fullmatch(asked):
                with contextlib.suppress(ValueError):
                    self._learn(json.loads(body), name)

    def stream(self) -> Callable[[str, bytes], None]:
        """Look through what comes in pieces: call it for each with where it was and the piece."""
        mark, tail, seen = self.mark.encode(), b"", 0

        def look(where: str, piece: bytes) -> None:
            nonlocal tail, seen
            data = tail + piece
            if seen < THOROUGH_BYTES:
                self.look(where, data)
            elif mark in data:
                self.look(where, mark)
            seen += len(piece)
            tail = data[-max(map(len, self._known)) + 1 :]

        return look

    def _learn(self, value: object, wanted: str) -> None:
        if not isinstance(value, dict):
            return
        for name, inner in value.items():
            if name == wanted and isinstance(inner, str):
                signature = re.search(r"[?&]sig=([^&]+)", inner)
                self.keep(f"{name} of an answer", signature[1] if signature else inner)
            else:
                self._learn(inner, wanted)

    def look_through_data(self, directory: Path) -> None:
        """Look through the data directory of a gateway that has ended, but for images and what is its owner's."""
        files = self._files(directory)
        self._look_into([
            path for path in files if path.name not in KEY_FILES and not IMAGES & set(path.relative_to(directory).parts)
        ])

    def look_through_databases(self, directory: Path) -> None:
        """Look through the databases below a directory that has other files as well, such as configurations."""
        self._look_into([path for path in self._files(directory) if ".db" in path.name or ".sqlite" in path.name])

    def _files(self, directory: Path) -> list[Path]:
        files = [path for path in directory.rglob("*") if path.is_file()]
        for path in files:
            if path.name == "master.key":
                self._keep_master_key(path)
        return files

    def _look_into(self, files: list[Path]) -> None:
        for path in files:
            with contextlib.suppress(FileNotFoundError):  # what still runs may remove it
                self.look(f"the file {path.name}", path.read_bytes())

    def _keep_master_key(self, path: Path) -> None:
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(binascii.Error):
                key = base64.b64decode(line, validate=True)
                if len(key) == 32 and len(set(key)) > LEAST:  # not one that a test has made up of zeros
                    self.keep("a master key", line)
                    self.keep("a master key", key)

    def check(self) -> None:
        """Raises `AssertionError` where a secret was seen since the last check."""
        found, self._found = sorted(set(self._found)), []
        assert not found, "\n".join(found)

    @contextlib.contextmanager
    def expected(self) -> Generator[list[str]]:
        """For tests of the canary: what was found in the block, which fails nothing."""
        before, self._found = self._found, []
        found: list[str] = []
        try:
            yield found
        finally:
            found += self._found
            self._found = before


canary = Canary()
