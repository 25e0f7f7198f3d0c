"""What of a configuration that was read again holds at once, and what only with the next start."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..errors import ConfigError
from .settings import SECTIONS, FileStore, Settings, Stores

#: Settings that are built into the process: sockets, threads, the database, the directory of the cache.
NEXT_START: Final = frozenset({
    "server.bind", "server.roles", "meta_server.bind", "auth_server.bind",
    "server.workers", "server.backlog", "server.notsent_lowat", "server.notsent_lowat_fast",
    "server.pump_threads", "server.pump_nice", "server.pump_quantum", "server.stall_timeout",
    "auth.master_key_file", "metadata.url", "accounts.url", "peers.url", "peers.name",
    "cache.directory", "cache.max_bytes", "cache.spool_max_bytes", "cache.min_free",
})  # fmt: skip
#: Sections that say whether listeners speak TLS at all; a certificate in place of another one is taken at once.
_WITH_TLS: Final = ("server", "meta_server", "auth_server")


def reconciled(old: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """What is to hold from now on, and the names of the settings that changed and wait for the next start.

    Raises:
        ConfigError: What changes does not go together with what stays.
    """
    waiting = NEXT_START
    for section in _WITH_TLS:
        if (_value(old, f"{section}.tls_certificate") is None) != (_value(new, f"{section}.tls_certificate") is None):
            waiting |= {f"{section}.tls_certificate", f"{section}.tls_key"}
    changed = [name for name in _names() if name in waiting and _value(old, name) != _value(new, name)]
    sections: dict[str, Any] = {}
    for name in changed:
        section, _, key = name.partition(".")
        kept = sections.setdefault(section, getattr(new, section))
        sections[section] = msgspec.structs.replace(kept, **{key: _value(old, name)})
    merged = msgspec.structs.replace(new, **sections)
    for name, store in merged.stores.named.items():
        if isinstance(store, FileStore) and store.directory == merged.cache.directory:
            raise ConfigError(
                f"stores.{name}.directory: expected another directory than that of the cache, which stays"
                f" {merged.cache.directory} until the next start"
            )
    return merged, changed


def _names() -> list[str]:
    return [
        f"{section}.{declared.key}"
        for section, cls in SECTIONS.items()
        if cls is not Stores
        for declared in cls.declared()
    ]


def _value(settings: Settings, name: str) -> Any:
    section, _, key = name.partition(".")
    return getattr(getattr(settings, section), key)
