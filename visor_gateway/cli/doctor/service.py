"""Descriptors, and systemd: what the process may have, and who looks after it."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ...config import Settings
from ...datadir import DataDirectory, lock_holder
from ...errors import ConfigError
from ...server.listen import FDS_PER_CONNECTION, FDS_RESERVED
from ..background import UNIT
from .finding import Finding, failed, note, ok, warning

SYSTEMD: Final = Path("/run/systemd/system")  # sd_booted(3)


def examine_descriptors(directory: DataDirectory, settings: Settings, unit: Mapping[str, str]) -> Finding:
    """The limit of open files beside what the configured connections need."""
    needed = settings.server.max_connections * FDS_PER_CONNECTION + FDS_RESERVED
    limit, whose = _limit(directory, unit)
    message = f"{whose} has {limit} descriptors, {settings.server.max_connections} connections need {needed}"
    if limit >= needed:
        return ok("descriptors", message)
    fewer = max(1, (limit - FDS_RESERVED) // FDS_PER_CONNECTION)
    return warning(
        "descriptors",
        f"{message}: only {fewer} are taken at a time",
        f"LimitNOFILE={needed} in the unit, or ulimit -Hn, or lower [server] max_connections",
    )


def _limit(directory: DataDirectory, unit: Mapping[str, str]) -> tuple[int, str]:
    """The hard limit, up to which the gateway raises its own: of the daemon that runs, of its unit, or of us."""
    try:
        pid = lock_holder(directory.path)
        if pid is not None:
            return limit_of(Path(f"/proc/{pid}/limits").read_text(encoding="ascii")), f"process {pid}"
    except (ConfigError, OSError, ValueError):
        pass
    if unit.get("LimitNOFILE", "").isdecimal():
        return int(unit["LimitNOFILE"]), f"the unit {UNIT}"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return (1 << 30) if hard == resource.RLIM_INFINITY else hard, "this shell"


def limit_of(limits: str) -> int:
    """The hard limit of open files in `/proc/PID/limits` (proc(5)). Raises ValueError where it is not there."""
    for line in limits.splitlines():
        if line.startswith("Max open files"):
            return int(line.split()[4].replace("unlimited", str(1 << 30)))
    raise ValueError("no limit of open files")


def examine_systemd(unit: Mapping[str, str], *, service: bool, booted: bool | None = None) -> Iterator[Finding]:
    """Whether systemd runs the gateway.

    Args:
        unit: What `background.unit_properties` brought.
        service: Whether this examination is of the service's directories.
        booted: Whether systemd runs this host; None to look.
    """
    if not (SYSTEMD.is_dir() if booted is None else booted):
        yield note("systemd", "does not run this host: visor-gateway start, stop and status do its work")
        return
    if unit.get("LoadState") != "loaded":
        yield note("systemd", f"runs this host and has no unit {UNIT} (docs/operations.md)")
        return
    state = unit.get("ActiveState", "unknown")
    if state == "failed":
        yield failed("systemd", f"the unit {UNIT} has failed", f"journalctl -u {UNIT} says why")
    else:
        yield ok("systemd", f"the unit {UNIT} is {state}")
    if unit.get("UnitFileState") not in {"enabled", "enabled-runtime", "static", "generated", "linked"}:
        yield note("systemd", f"the unit {UNIT} does not start with the host (systemctl enable {UNIT})")
    if unit.get("NeedDaemonReload") == "yes":
        yield warning("systemd", f"the unit {UNIT} was changed on disk", "systemctl daemon-reload")
    if not service:
        yield warning(
            "systemd",
            f"this looked at a data directory of its own choice, not at that of the unit {UNIT}",
            "visor-gateway doctor --service looks at the unit's",
        )
