"""A running daemon's system calls, by strace."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gateway_process import Gateway
from wire import eventually


@contextmanager
def traced(gateway: Gateway, output: Path, *options: str) -> Generator[None]:
    """Watch the running daemon's system calls; skip where that can't be done."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    command = ["strace", "-f", "-y", "-s", "200", "-o", str(output), *options, "-p", str(gateway.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        wait_attached(gateway, tracer)
        yield
    finally:
        if tracer.poll() is None:
            tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=60)


def wait_attached(gateway: Gateway, tracer: subprocess.Popen[bytes]) -> None:
    """Return when every thread of the daemon has a tracer."""

    def attached() -> bool:
        if tracer.poll() is not None:
            message = tracer.stderr.read().decode() if tracer.stderr else ""
            pytest.skip(f"ptrace is refused here: {message.strip()[-200:]}")
        tasks = Path(f"/proc/{gateway.pid}/task")
        return all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks.iterdir())

    eventually(attached, what="strace on every thread")


def completed(output: Path) -> list[str]:
    """Calls in the order in which they ended, each on one line."""
    begun: dict[str, str] = {}
    calls = []
    for line in output.read_text("utf-8", "replace").splitlines():
        task, _, text = line.partition(" ")
        text = text.strip()
        if text.endswith("<unfinished ...>"):
            begun[task] = text.removesuffix("<unfinished ...>")
        elif match := re.match(r"<\.\.\. \w+ resumed>(.*)", text):
            calls.append(begun.pop(task, "") + match[1])
        else:
            calls.append(text)
    return calls
