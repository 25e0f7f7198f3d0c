"""Starting the program anew, in a process that is nobody's child, with descriptors of this one.

Fork and exec from a process with threads can go wrong between the two, and the number of the new process has to stand
in its environment before it begins (LISTEN_PID, sd_listen_fds(3)). So a launcher, a small program of one thread, is
started first: it forks and ends, and its child becomes the new process. The child's parent is then whoever reaps
orphans (under systemd the manager itself, which thereby learns how it ends), and it stays in the unit's cgroup.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from subprocess import DEVNULL, CalledProcessError  # ruff: ignore[suspicious-subprocess-import]
from typing import Final

import trio

from .errors import GatewayError

LAUNCH_SECONDS: Final = 20.0

_LAUNCHER: Final = """
import fcntl, json, os, sys
spec = json.loads(sys.argv[1])
if os.fork():
    os._exit(0)
link = spec["link"]
try:
    os.write(link, json.dumps({"pid": os.getpid()}).encode())
    fds = [*spec["listening"], *spec["passed"].values()]
    first = 3
    beyond = first + len(fds)
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, beyond) for fd in fds]
    link = copies[fds.index(link)]
    for target, fd in enumerate(copies, first):
        os.dup2(fd, target)
    for fd in fds:
        if fd >= beyond:
            os.close(fd)
    environment = dict(os.environ, LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(spec["listening"])))
    environment["LISTEN_FDNAMES"] = ":".join(spec["names"])
    if "WATCHDOG_USEC" in environment:
        environment["WATCHDOG_PID"] = str(os.getpid())
    for target, name in enumerate(spec["passed"], first + len(spec["listening"])):
        environment[name] = str(target)
    os.execve(spec["command"][0], spec["command"], environment)
except BaseException as error:
    os.write(link, json.dumps({"failed": "the program can't be started: %s" % error}).encode())
os._exit(127)
"""


class LaunchFailed(GatewayError):
    """The program can't be started."""


def own_command() -> list[str]:
    """The command that started this process, so that it runs what stands under the same names now: a script by the
    path that it was called by, through symbolic links."""
    program, *words = sys.orig_argv
    # A script is called by its interpreter, with the options of its first line: those of another version may differ.
    script = next((place for place, word in enumerate(words) if not word.startswith("-")), len(words))
    if script < len(words) and not {"-m", "-c"} & {*words[:script]} and os.access(words[script], os.X_OK):
        return [os.path.abspath(words[script]), *words[script + 1 :]]
    path = program if os.sep in program else shutil.which(program) or sys.executable
    return [os.path.abspath(path), *words]


async def launch(command: Sequence[str], listening: Mapping[int, str], passed: Mapping[str, int], *, link: int) -> None:
    """Start `command`. Returns when it is about to run; it says its number on `link` first, or why it can't be started.

    Args:
        command: The program, by its path, and its arguments.
        listening: Descriptors of listening sockets with their names: passed as systemd would.
        passed: Further descriptors, by the variable that tells their new number; among them `link`.
        link: A socket of messages.

    Raises:
        LaunchFailed: No process can be made.
    """
    spec = {
        "command": [*command],
        "listening": [*listening],
        "names": [*listening.values()],
        "passed": dict(passed),
        "link": link,
    }
    try:
        with trio.fail_after(LAUNCH_SECONDS):
            await trio.run_process(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, json.dumps(spec)],
                stdin=DEVNULL,
                pass_fds=[*listening, *passed.values()],
            )
    except (OSError, CalledProcessError, trio.TooSlowError) as exc:
        raise LaunchFailed(f"no process can be started: {exc}") from exc
