"""Settings on their way from one process of a gateway to another: what was read once holds for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .kinds import Secret
from .loading import load
from .settings import Section, Settings, Stores, shown


def handed_over(settings: Settings) -> dict[str, Any]:
    """The settings as `taken_over` understands them, **secrets included**: for a private channel alone."""
    values: dict[str, Any] = {}
    for name in settings.__struct_fields__:
        section: Section = getattr(settings, name)
        values |= _flattened(name, section)
        if isinstance(section, Stores):
            for store, table in section.named.items():
                values |= {f"stores.{store}.type": table.type, **_flattened(f"stores.{store}", table)}
    return values


def taken_over(values: Mapping[str, Any], *, data_dir: Path) -> Settings:
    """The settings that `handed_over` made these values of."""
    return load(None, data_dir=data_dir, environ={}, overrides=values)


def _flattened(prefix: str, section: Section) -> dict[str, Any]:
    values = {declared.key: getattr(section, declared.key) for declared in section.declared()}
    return {
        f"{prefix}.{key}": value.reveal() if isinstance(value, Secret) else shown(value)
        for key, value in values.items()
        if value is not None
    }
