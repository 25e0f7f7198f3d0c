"""One server as processes of ours: started on its core, or its cores, measured, and ended by its own number."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from .machine import SERVER_CORE, pinned, process_cpu

START_SECONDS: Final = 40.0
STOP_SECONDS: Final = 15.0
_KIB: Final = 1024


class ServerFailed(Exception):
    """A server did not start, or ended before its time."""


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class ServerProcess:
    """A server and the processes that it started.

    Resource handling: `stop` ends them, by the signal that the server takes for an order to end, then by SIGKILL.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environ: Mapping[str, str] | None = None,
        *,
        cores: Collection[int] = (SERVER_CORE,),
    ) -> None:
        self._log = log
        with pinned(*cores), log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
            )

    def wait_listening(self, port: int) -> None:
        """Return once somebody listens on the port.

        Raises:
            ServerFailed: It ended, or nobody listened for `START_SECONDS`.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.05)
        raise ServerFailed(self._log.read_text("utf-8", "replace").strip()[-300:] or "it did not listen")

    def pids(self) -> list[int]:
        """The process and what descends from it."""
        found, wanted = [], [self._process.pid]
        while wanted:
            found.append(wanted.pop())
            for task in Path(f"/proc/{found[-1]}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    wanted += map(int, task.read_text().split())
        return found

    def cpu(self) -> float:
        """CPU seconds of all of them."""
        return sum(process_cpu(pid) for pid in self.pids())

    def reset_peak(self) -> None:
        """Let `peak_memory` begin anew."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_memory(self) -> int:
        """Bytes that were resident at most, all of them together."""
        return sum(_status_bytes(pid, "VmHWM") for pid in self.pids())

    def memory(self) -> int:
        """Bytes that are resident now."""
        return sum(_status_bytes(pid, "VmRSS") for pid in self.pids())

    def stop(self) -> None:
        """End them."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # The session is this server's own: nobody else is in it.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_SECONDS)


def _status_bytes(pid: int, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * _KIB
    return 0
