"""The order of an examination: everything is looked at, whatever was found before."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import trio

from ...config import Settings, load
from ...datadir import DataDirectory
from ...errors import ConfigError
from ..background import unit_properties
from ..identity import owner_of
from . import clock, configuration, files, kernel, probe, records, service
from .finding import Finding, Level, cleaned, failed, ok

#: A disk that hangs must not keep the other findings from being told. The database's own check ends before.
CHECK_SECONDS: Final = 90.0

Check = Callable[[], Iterable[Finding]]


def examine(
    directory: DataDirectory, config: Path | None, environ: Mapping[str, str], *, is_service: bool = False
) -> list[Finding]:
    """Look at everything. Blocks; runs Trio. Run by root, it looks as the owner of the data directory.

    Args:
        directory: The data directory.
        config: The configuration file.
        environ: The environment that the daemon would have.
        is_service: Whether these are the directories of the systemd unit.

    Returns:
        What was found, in order, without any secret.
    """
    # What Python would load late, and another user may not be able to read.
    importlib.import_module("encodings.idna")
    unit = unit_properties("LoadState", "ActiveState", "UnitFileState", "LimitNOFILE", "NeedDaemonReload")
    with owner_of(directory.path):
        try:
            settings = load(config, data_dir=directory.path, environ=environ)
        except ConfigError as exc:
            settings = None
            first = failed("configuration", exc.message, "correct it; visor-gateway init - shows what there is")
        else:
            first = ok("configuration", f"{config or 'none: defaults'}: valid")
        found = trio.run(_examine, directory, config, settings, unit)
    found = [first, *found, *service.examine_systemd(unit, service=is_service)]
    return cleaned(found, [] if settings is None else configuration.secrets_of(settings))


async def _examine(
    directory: DataDirectory, config: Path | None, settings: Settings | None, unit: Mapping[str, str]
) -> list[Finding]:
    checks: list[tuple[str, Check]] = [
        ("data directory", lambda: files.examine_data_directory(directory)),
        ("secrets", lambda: configuration.examine_secrets(config)),
    ]
    if settings is not None:
        known = settings  # for the closures: it is no longer None
        checks += [
            ("tls", lambda: configuration.examine_tls(known)),
            ("roles", lambda: configuration.examine_roles(known)),
            ("accounts", lambda: configuration.examine_accounts(known)),
            ("database", lambda: records.examine_records(directory, known)),
            ("space", lambda: files.examine_space(directory, known)),
            ("descriptors", lambda: [service.examine_descriptors(directory, known, unit)]),
        ]
    checks += [("clock", lambda: [clock.examine_clock()]), ("kernel", kernel.examine_kernel)]
    found: list[list[Finding]] = [[] for _ in checks]
    stores: list[Finding] = []
    async with trio.open_nursery() as nursery:
        for place, (name, check) in zip(found, checks, strict=True):
            nursery.start_soon(_run, name, check, place)
        if settings is not None:
            stores += await probe.examine_stores(settings)
    return [*(each for place in found for each in place), *stores]


async def _run(name: str, check: Check, found: list[Finding]) -> None:
    """One check in a thread; one that hangs is left behind."""
    told: list[Finding] = []

    def look() -> None:
        told.extend(check())

    with trio.move_on_after(CHECK_SECONDS) as scope:
        try:
            await trio.to_thread.run_sync(look, abandon_on_cancel=True)
        except OSError as exc:
            where, why = exc.filename or name, exc.strerror or os.strerror(exc.errno or 0)
            told.append(failed(name, f"{where}: {why}", "let the gateway's user use it"))
    found.extend(told)
    if scope.cancelled_caught:
        found.append(failed(name, f"no answer within {CHECK_SECONDS:g} s", "a disk or a network file system hangs"))


def worst(findings: Iterable[Finding]) -> Level:
    """The level that matters most."""
    order = list(Level)
    return max((each.level for each in findings), key=order.index, default=Level.OK)
