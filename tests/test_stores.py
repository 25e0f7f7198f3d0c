"""Which stores a configuration makes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from visor_gateway import config
from visor_gateway.errors import ConfigError
from visor_gateway.outbound import CONFIGURED, LocationPolicy, Outbound
from visor_gateway.store.contract import Store
from visor_gateway.store.http import HttpStore
from visor_gateway.store.s3 import S3Store
from visor_gateway.stores import StoreTable

KEYS = 'endpoint = "http://s3.example"\nbucket = "images"\naccess_key = "a"\nsecret_key = "s"\n'


def build(directory: Path, text: str) -> Mapping[str, Store]:
    path = directory / "visor-gateway.toml"
    path.write_text(text)
    settings = config.load(path, data_dir=directory, environ={})
    return StoreTable(settings, HttpStore(Outbound(LocationPolicy())), Outbound(CONFIGURED))


@pytest.mark.parametrize("kind", ["s3", "lunacloud", "cumulus", "walrus"])
def test_the_s3_family_differs_by_type(tmp_path: Path, kind: str) -> None:
    store = build(tmp_path, f"[stores.{kind}]\n{KEYS}")[kind]
    assert isinstance(store, S3Store)
    assert store.location("key") == f"{kind}://images/key"
    assert store.dialect.multipart == (kind in {"s3", "lunacloud"})


def test_a_store_may_have_another_name_than_its_type(tmp_path: Path) -> None:
    store = build(tmp_path, f'[stores.archive]\ntype = "s3"\nmax_parts = 1000\n{KEYS}')["archive"]
    assert isinstance(store, S3Store)
    assert (store.name, store.max_parts) == ("archive", 1000)


def test_a_store_that_can_not_be_built_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.auth", None)
    with pytest.raises(ConfigError, match=r"\[stores.s3\]: .*botocore"):
        build(tmp_path, f"[stores.s3]\n{KEYS}")


def test_botocore_is_imported_only_where_it_is_needed() -> None:
    code = "import sys, visor_gateway.daemon; sys.exit('botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
