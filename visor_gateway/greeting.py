"""The first user, and where he finds the gateway: the file `admin.toml` of the data directory."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog

from . import config
from .datadir import DataDirectory
from .meta.contract import AccountRepository
from .server.listener import IMAGE, Endpoint

_log: Final = structlog.get_logger("visor_gateway.daemon")


async def greet(accounts: AccountRepository, directory: DataDirectory, url: str) -> None:
    """Make the first user, and tell where to find him and the gateway."""
    admin = await accounts.ensure_admin()
    path = directory.admin
    if admin is not None:
        _write(path, url, admin.access_key, admin.secret_key)
        _log.info("user 'admin' made", credentials=str(path))
    elif path.exists():
        known = tomllib.loads(path.read_text(encoding="utf-8"))
        if known.get("url") != url:
            _write(path, url, known["access_key"], known["secret_key"])


def url_of(endpoints: Iterable[Endpoint], settings: config.Server | config.PeerServer, *, role: str = IMAGE) -> str:
    """A URL under which clients on this host reach the first TCP listener of a role that is served."""
    configured = settings.tls_certificate is not None
    for endpoint in endpoints:
        if endpoint.role != role:
            continue
        address, is_secure = endpoint.address, endpoint.speaks_tls(configured=configured)
        if not isinstance(address, str) and (configured or not is_secure):
            scheme = "https" if is_secure else "http"
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])  # ruff: ignore[hardcoded-bind-all-interfaces]
            return f"{scheme}://[{host}]:{address[1]}" if ":" in host else f"{scheme}://{host}:{address[1]}"
    return "http://localhost"


def _write(path: Path, url: str, access_key: str, secret_key: str) -> None:
    """Write the credentials file of the clients, mode 0600, whole or not at all."""
    beside = path.with_suffix(".new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(f'url = "{url}"\naccess_key = "{access_key}"\nsecret_key = "{secret_key}"\n')
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
