"""A network of our own: loopback in a private namespace, with a congestion control that does not pace.

The host's loopback may run BBR, which paces senders with large unsent queues and turns the order of servers around.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

CONGESTION_CONTROL: Final = "reno"
_INSIDE: Final = "VISOR_BENCHMARKS_ISOLATED"
_SYSCTL: Final = Path("/proc/sys/net/ipv4/tcp_congestion_control")


def enter() -> str:
    """Run this program again inside a namespace where that is possible; return what the network is.

    Does not return where it runs the program again. The namespace ends with the last process in it.
    """
    if os.environ.get(_INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        _SYSCTL.write_text(CONGESTION_CONTROL)
        return f"loopback of a private namespace, {_SYSCTL.read_text().strip()}"
    missing = [program for program in ("unshare", "ip") if shutil.which(program) is None]
    if os.geteuid() == 0 and not missing:
        command = ["unshare", "--net", "--", sys.executable, "-m", "benchmarks", *sys.argv[1:]]
        os.execvpe(command[0], command, {**os.environ, _INSIDE: "1"})
    reason = f"without {' and '.join(missing)}" if missing else "not root"
    return f"the host's loopback ({reason}), {_SYSCTL.read_text().strip()}: ratios may be distorted"
