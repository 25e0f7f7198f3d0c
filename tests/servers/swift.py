"""OpenStack Swift on one node, with `s3api` and `tempauth`. `VISOR_SWIFT` names a virtual environment that has it
(`pip install swift`), whose pins are its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from canary import canary
from servers.s3_service import S3Service, free_base, service

_SERVER = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {directory}
devices = {directory}/srv
mount_check = false
disable_fallocate = true
log_address = /nonexistent
log_level = WARNING
"""
_STORAGE = """\
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
[{name}-replicator]
[{name}-auditor]
[{name}-updater]
"""
_FILTERS = {
    "catch_errors": "",
    "cache": "use = egg:swift#memcache\nmemcache_servers = 127.0.0.1:9\n",
    "listing_formats": "",
    "bulk": "",
    "s3api": "s3_acl = false\nlocation = us-east-1\ncheck_bucket_owner = false\n",
    "tempauth": "user_test_tester = {secret} .admin\n",
    "copy": "",
    "slo": "",
    "dlo": "",
    "versioned_writes": "allow_versioned_writes = true\nallow_object_versioning = true\n",
    "symlink": "",
}
_HASH = "[swift-hash]\nswift_hash_path_suffix = visor\nswift_hash_path_prefix = visor\n"
_POLICY = "[storage-policy:0]\nname = p0\ndefault = yes\n"


def start() -> S3Service:
    """Start its four servers, with the bucket `visor`. The caller stops it."""
    place = os.environ.get("VISOR_SWIFT")
    if not place or not (Path(place) / "bin/swift-proxy-server").exists():
        pytest.skip("VISOR_SWIFT names no virtual environment with Swift")
    programs = Path(place) / "bin"
    port = free_base(0, 1, 2, 3)
    running = service("swift", port, "test:tester", canary.secret("testing"))
    directory = running.directory
    (directory / "srv/d1").mkdir(parents=True)
    (directory / "swift.conf").write_text(_HASH + _POLICY)
    for number, name in enumerate(("account", "container", "object"), 1):
        _ring(programs, directory, name, port + number)
        _configure(directory, name, port + number, _STORAGE.format(name=name))
    _configure(directory, "proxy", port, _proxy(running.secret_key))
    for name in ("account", "container", "object", "proxy"):
        program = programs / f"swift-{name}-server"
        # Without it Swift demands to be root where it may not drop rights.
        running.run(program, directory / f"{name}-server.conf", environ={"SWIFT_TEST_IN": "1"})
    running.make_bucket("visor")
    return running


def _ring(programs: Path, directory: Path, name: str, port: int) -> None:
    builder = directory / f"{name}.builder"
    for words in (["create", "4", "1", "1"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
        subprocess.run(
            [programs / "swift-ring-builder", builder, *words],
            check=False,
            capture_output=True,
            cwd=directory,
            timeout=60,
        )


def _configure(directory: Path, name: str, port: int, rest: str) -> None:
    user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
    text = _SERVER.format(port=port, user=user, directory=directory) + rest
    (directory / f"{name}-server.conf").write_text(text)


def _proxy(secret_key: str) -> str:
    pipeline = " ".join(_FILTERS)
    tables = [
        f"[filter:{name}]\n{'' if 'use =' in text else f'use = egg:swift#{name}'}\n{text.format(secret=secret_key)}"
        for name, text in _FILTERS.items()
    ]
    app = "[app:proxy-server]\nuse = egg:swift#proxy\nallow_account_management = true\naccount_autocreate = true\n"
    return f"[pipeline:main]\npipeline = {pipeline} proxy-server\n{app}{''.join(tables)}"
