"""`visor-admin rotate-master`: works on a gateway's data directory, not through its API."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from ..config import load
from ..datadir import DataDirectory, default_data_dir
from ..errors import ConfigError
from ..meta.sql import open_metadata


def rotate_master(
    data_dir: Path | None, *, config: Path | None = None, master_key: Path | None = None, database: str | None = None
) -> tuple[int, Path]:
    """Seal every secret anew under a new master key. Gateways may run on meanwhile.

    Args:
        data_dir: None for the default one.
        config: Configuration file of the gateway, where it has one.
        master_key: Master key file, in place of what the configuration or the data directory says.
        database: URL of the database, in place of what the configuration or the data directory says.

    Returns:
        How many secrets, and the file that holds the new key.

    Raises:
        ConfigError: There is no master key, or something can't be used.
        MetadataUnavailable: The database failed. Nothing is lost; run it again.
    """
    directory = DataDirectory((data_dir or default_data_dir(os.environ)).absolute())
    said = {"auth.master_key_file": master_key and str(master_key.absolute()), "metadata.url": database}
    settings = load(
        config,
        data_dir=directory.path,
        environ=os.environ,
        overrides={key: value for key, value in said.items() if value is not None},
    )
    keys = settings.auth.master_key_file or directory.master_key
    if not keys.exists():
        # Opening would make one, and an empty database beside it: a mistyped directory must not look like a success.
        raise ConfigError(f"{keys}: expected the master key file of a gateway")
    return trio.run(_rotate, directory.database(settings.metadata.url.reveal()), keys), keys


async def _rotate(url: str, keys: Path) -> int:
    async with open_metadata(url, keys) as metadata:
        return await metadata.accounts.rotate_master()
