"""Work on a gateway's files as the gateway's own user: what root may do says nothing of what the gateway may, and what
root makes the gateway can't use."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..datadir import DataDirectory, default_data_dir

#: Where systemd puts the directories of the unit (systemd.exec(5)), and its credentials while it runs.
_SERVICE_DIRECTORIES: Final[Mapping[str, str]] = {
    "STATE_DIRECTORY": "/var/lib/visor-gateway",
    "CACHE_DIRECTORY": "/var/cache/visor-gateway",
    "CONFIGURATION_DIRECTORY": "/etc/visor-gateway",
    "CREDENTIALS_DIRECTORY": "/run/credentials/visor-gateway.service",
}


def service_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with the directories that systemd tells the service, as far as they are there."""
    there = {name: path for name, path in _SERVICE_DIRECTORIES.items() if Path(path).is_dir()}
    return {**environ, **there, "STATE_DIRECTORY": _SERVICE_DIRECTORIES["STATE_DIRECTORY"]}


def take_service_environ() -> None:
    """Have this process take the service's directories for its own."""
    os.environ.update(service_environ(os.environ))


def chosen(data_dir: Path | None, environ: Mapping[str, str]) -> DataDirectory:
    """The data directory that was named, else the one of the environment."""
    return DataDirectory((data_dir or default_data_dir(environ)).absolute())


def chosen_config(config: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration that was named, else the one in the service's directory, where there is one."""
    if config is None and (place := environ.get("CONFIGURATION_DIRECTORY")):
        beside = Path(place.partition(":")[0], "visor-gateway.toml")
        return beside if beside.exists() else None
    return None if config is None else config.absolute()


@contextmanager
def owner_of(path: Path) -> Generator[None]:
    """Be the user who owns `path` for a block, where this process is root and somebody else does. Holds for all
    threads.

    Root stays root where that user can't come to the path: systemd keeps the directories of a dynamic user below one
    that only root may enter (`DynamicUser=` in systemd.exec(5)), and sees to their owner itself.
    """
    try:
        found = path.stat()
    except OSError:
        found = None
    if found is None or os.geteuid() != 0 or found.st_uid == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(found.st_gid)
    os.seteuid(found.st_uid)
    try:
        if not os.access(path, os.X_OK, effective_ids=True):
            os.seteuid(0)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
