"""The clients in C: a client that is slow hides a slow server."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from .machine import CLIENT_CORE, pinned

_SOURCES: Final = Path(__file__).parent / "programs"
#: The longest that one measurement may take.
SECONDS: Final = 300.0

Figures = dict[str, Any]


class ClientFailed(Exception):
    """A client met something that makes its figures worthless."""


class Programs:
    """`pull`, `push`, `ask` and `probe`, compiled into a directory."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise ClientFailed("a C compiler is needed (Debian: apt install gcc libc6-dev)")
        self._directory = directory
        for source in _SOURCES.glob("*.c"):
            subprocess.run([compiler, "-O2", "-pthread", "-o", directory / source.stem, source], check=True)

    def run(self, name: str, *words: object) -> Figures:
        """Run one on the clients' core; what it printed.

        Raises:
            ClientFailed: It met an error, or took longer than `SECONDS`.
        """
        try:
            with pinned(CLIENT_CORE):
                ended = subprocess.run(self._command(name, words), capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise ClientFailed(f"{name} took longer than {SECONDS:.0f} s") from None
        if ended.returncode:
            complaint = ended.stderr.decode(errors="replace").strip() or f"ended with status {ended.returncode}"
            raise ClientFailed(f"{name}: {complaint}")
        figures: Figures = json.loads(ended.stdout)
        return figures

    def start(self, name: str, *words: object) -> Probe:
        """Start one that runs until its input ends."""
        with pinned(CLIENT_CORE):
            return Probe(self._command(name, words))

    def _command(self, name: str, words: tuple[object, ...]) -> list[str]:
        return [str(self._directory / name), *map(str, words)]


class Probe:
    """A program beside a measurement. It ends with its input, and says then what it saw."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
        )

    def wait_ready(self, seconds: float) -> None:
        """Wait until it says that it is ready, on standard error.

        Raises:
            ClientFailed: It said something else, or nothing.
        """
        said = b""
        if self._process.stderr is not None and select.select([self._process.stderr], [], [], seconds)[0]:
            said = self._process.stderr.readline()
        if said.strip() != b"ready":
            self._process.kill()
            raise ClientFailed(said.decode(errors="replace").strip() or "a client does not get ready")

    def finish(self) -> Any:
        """End it; what it printed.

        Raises:
            ClientFailed: It met an error.
        """
        try:
            said, complaint = self._process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, complaint = self._process.communicate()
        if self._process.returncode:
            raise ClientFailed(complaint.decode(errors="replace").strip()[-500:])
        return json.loads(said)
