"""Settings handed from one process to another are the same settings."""

from __future__ import annotations

from pathlib import Path

import msgspec

from visor_gateway.config import Settings, handed_over, load, taken_over

FULL = """
[server]
bind = ["127.0.0.1:1234", "[::1]:4568", "unix:/run/visor/socket"]
workers = 3
public_url = "https://images.example.org"
tls_certificate = "cert.pem"
max_image_size = "10 GiB"
trusted_proxies = ["10.0.0.0/8", "192.0.2.1"]
origins = ["https://page.example.org"]
roles = ["image", "meta", "auth"]
[meta_server]
shared_key = "a-key-that-must-come-along"
allow = ["192.0.2.0/24"]
[auth_server]
tls_certificate = "auth.pem"
client_ca = "ca.pem"
[auth]
anonymous_pull = true
[locations]
allow = ["https"]
allow_hosts = ["127.0.0.1:80"]
[limits]
bytes_per_s = "100 MB"
[log]
format = "json"
[stores]
default = "archive"
[stores.archive]
type = "file"
directory = "/srv/images"
verify = "always"
scrub_interval = 0
[stores.s3]
endpoint = "https://s3.example.org"
bucket = "images"
access_key = "AK"
secret_key = "a secret that must come along"
"""


def handed(settings: Settings, directory: Path) -> Settings:
    values = msgspec.msgpack.decode(msgspec.msgpack.encode(handed_over(settings)))
    return taken_over(values, data_dir=directory)


def test_the_defaults_arrive(tmp_path: Path) -> None:
    settings = load(None, data_dir=tmp_path, environ={})
    assert handed(settings, tmp_path) == settings


def test_everything_that_was_set_arrives_secrets_included(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(FULL)
    environ = {"CACHE_DIRECTORY": "/var/cache/visor", "VISOR_GATEWAY__METADATA__URL": "sqlite:////elsewhere/db"}
    settings = load(path, data_dir=tmp_path, environ=environ)
    arrived = handed(settings, tmp_path)
    assert arrived == settings
    assert arrived.stores.named["s3"].secret_key.reveal() == "a secret that must come along"  # type: ignore[attr-defined]
    assert arrived.metadata.url.reveal() == "sqlite:////elsewhere/db"
