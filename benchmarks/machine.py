"""The machine: its cores, who else works on them, and what it is called."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

MIB: Final = 1 << 20
GIB: Final = 1 << 30
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_LOOK_SECONDS: Final = 0.3
_CORES: Final = sorted(os.sched_getaffinity(0))
#: Every server runs on the one, every client on the other. With a single core they share it.
SERVER_CORE: Final = _CORES[0]
CLIENT_CORE: Final = _CORES[-1]
#: Where servers of two workers run, and what is measured beside them. With two cores clients share one of these.
BOTH_CORES: Final = frozenset(_CORES[:2])


@contextlib.contextmanager
def pinned(*cores: int) -> Generator[None]:
    """Processes started within are bound to these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def touch_memory(directory: Path, size: int) -> None:
    """Have so many bytes of free memory that the machine has for certain, by a file of this size that is removed again.

    A virtual machine gives its free memory back to its host. Then each page costs whoever is first to need it several
    times what it costs to fill it, and who that is is chance.
    """
    block = bytes(MIB)
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(0, size, MIB):
            file.write(block)


def process_cpu(pid: int) -> float:
    """CPU seconds of a process with all its threads, those that ended too, to the nanosecond; 0 for one that is gone.

    Linux makes the clock's id of the process id: the inverted number, shifted by three, with 2 for scheduler time.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


class Neighbours:
    """How much of our two cores went to others since this was made: where it is much, a figure is worth little."""

    def __init__(self) -> None:
        self._busy = _busy()
        self._began = time.monotonic()

    def share(self, ours: float) -> float:
        """The part of the cores' time, 0 to 1, that is neither idle nor in `ours`, CPU seconds."""
        cores = len({SERVER_CORE, CLIENT_CORE})
        passed = (time.monotonic() - self._began) * cores
        return max(0.0, (_busy() - self._busy - ours) / passed)


def wait_quiet(limit: float, patience: float) -> None:
    """Return when others leave the cores alone for a moment, or after `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        neighbours, own = Neighbours(), time.process_time()
        time.sleep(_LOOK_SECONDS)
        if neighbours.share(time.process_time() - own) <= limit:
            return


def _busy() -> float:
    """CPU seconds that our cores have worked, or were taken by the hypervisor, since the machine started."""
    names = {f"cpu{SERVER_CORE}", f"cpu{CLIENT_CORE}"}
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    ticks = 0
    for name, user, nice, system, _idle, _iowait, irq, softirq, steal, *_ in (line for line in lines if len(line) > 9):
        if name in names:
            ticks += sum(map(int, (user, nice, system, irq, softirq, steal)))
    return ticks * _TICK


def socket_memory() -> int:
    """Bytes that TCP buffers of the whole machine hold: the kernel does not count them by namespace."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        words = line.split()
        if words[0] == "TCP:":
            return int(words[words.index("mem") + 1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def version(*command: str) -> str:
    """The first line that a program says of its version, or "" where it is not there or can't tell."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return ""
    return "" if said.returncode else (said.stdout + said.stderr).strip().partition("\n")[0]


def description(directory: Path) -> dict[str, Any]:
    """What a reader must know to compare figures."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model[0] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / GIB, 1),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "python": platform.python_version(),
        "filesystem": version("stat", "-f", "-c", "%T", str(directory)),
        "pinned": f"servers to core {SERVER_CORE}, clients to core {CLIENT_CORE}",
    }
