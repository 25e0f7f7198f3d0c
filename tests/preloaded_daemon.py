"""Daemons that start at once: forked from a process that has imported everything, for tests that kill many of them.

`Preloaded.popen` takes the place of `subprocess.Popen` in `gateway_process.launch`. Run as a program, this is that
process: it reads one JSON object a line, the call of `popen`, and answers with the number of the process;
`{"wait": number}` is answered with its status once it has ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any, NoReturn


class Forked:
    """One daemon, with the methods of `subprocess.Popen` that tests need."""

    def __init__(self, preloaded: Preloaded, pid: int) -> None:
        self.pid = pid
        self._preloaded = preloaded
        self._status: int | None = None

    def poll(self) -> int | None:
        return self._status

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self._status is None:
            self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self._status is None:
            self._status = self._preloaded.ask({"wait": self.pid})
        return self._status


class Preloaded:
    """The process that forks. To be used as a context manager."""

    def __enter__(self) -> Preloaded:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=60)

    def popen(self, command: list[str], *, stdout: Any, env: dict[str, str], cwd: object, **_: object) -> Forked:
        """Start `python -m visor_gateway` with the words that follow in `command`."""
        return Forked(self, self.ask({"words": command[3:], "env": env, "cwd": str(cwd), "log": stdout.name}))

    def ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def _serve(request: dict[str, Any]) -> NoReturn:
    """Be a daemon, in a child."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["visor-gateway", *request["words"]]
    from visor_gateway.cli.gateway import main

    main()


def _run() -> None:
    # Not in a thread: nothing of this may run when a child is forked.
    import visor_gateway.daemon

    assert visor_gateway.daemon
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif not (answer := os.fork()):
            _serve(request)
        print(answer, flush=True)


if __name__ == "__main__":
    _run()
