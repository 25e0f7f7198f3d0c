"""The real client commands on a real terminal, as people use them."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from gateway_process import Gateway, clean_environment


class Terminal:
    """A program on a pseudo-terminal. `seen` is what it wrote since it was last looked for something."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.seen = ""
        self._master = master

    def read(self, seconds: float = 0.2) -> str:
        while select.select([self._master], [], [], seconds)[0]:
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:
                break
            self.seen += data.decode("utf-8", "replace")
            seconds = 0.0
        return self.seen

    def until(self, holds: Callable[[str], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds(self.read()):
            assert time.monotonic() < deadline, self.seen[-3000:]
        self.seen = ""

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())


@contextmanager
def on_a_terminal(gateway: Gateway, *words: str) -> Generator[Terminal]:
    master, slave = pty.openpty()
    os.set_inheritable(slave, True)
    environment = clean_environment({
        "VISOR_URL": gateway.url,
        "VISOR_ACCESS_KEY": gateway.access_key,
        "VISOR_SECRET_KEY": gateway.secret_key,
        "TERM": "xterm-256color",
        "COLUMNS": "160",
        "LINES": "30",
    })
    command = [sys.executable, "-m", "visor_gateway.cli.visor", *words]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        try:
            yield Terminal(master, process)
        finally:
            process.kill()
            os.close(master)
