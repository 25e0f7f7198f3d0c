"""The configuration: whether it is valid, whether others can read its secrets, and how long its certificate is good."""

from __future__ import annotations

import re
import ssl
import stat
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from ...config import Secret, Settings, split_address
from ...config.settings import SECRET_KEYS
from .finding import Finding, failed, ok, warning

RENEW_BEFORE: Final = timedelta(days=14)


def secrets_of(settings: Settings) -> list[str]:
    """The text of every secret in the settings, and the password in a URL."""
    texts = []
    servers = (settings.metadata, settings.accounts, settings.meta_server, settings.auth_server)
    for section in (*servers, *settings.stores.named.values()):
        for name in section.__struct_fields__:
            value = getattr(section, name)
            if isinstance(value, Secret):
                texts.append(value.reveal())
    return [text for text in texts if not text.startswith("sqlite:")]


def examine_secrets(file: Path | None) -> Iterator[Finding]:
    """Who can read the configuration's secrets."""
    if file is None:
        return
    document = _document(file)
    inline = [key for key, _ in _secret_keys(document, "")]
    if inline and _others(file):
        yield failed(
            "secrets",
            f"{file} holds {', '.join(inline)} and can be read by other users of this host",
            f"chmod 600 {file}, or keep the secret in a file of its own: {inline[0]}_file",
        )
    named = [(key, file.parent / path) for key, path in _secret_keys(document, "_file")]
    for key, path in named:
        if path.exists() and _others(path):
            yield failed("secrets", f"{path} ({key}) can be read by other users of this host", f"chmod 600 {path}")
    if (inline or named) and not any(_others(path) for path in (*([file] if inline else []), *(p for _, p in named))):
        yield ok("secrets", "files with secrets can be read by their owner's side alone")


def _document(file: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # told by the check of the configuration itself


def _secret_keys(document: Mapping[str, Any], suffix: str) -> Iterator[tuple[str, str]]:
    """Keys of secrets with this ending, and their values."""
    tables = {name: document.get(name) for name in ("metadata", "accounts", "meta_server", "auth_server")}
    stores = document.get("stores")
    if isinstance(stores, Mapping):
        tables |= {f"stores.{name}": table for name, table in stores.items()}
    for name, table in tables.items():
        for key, value in table.items() if isinstance(table, Mapping) else ():
            base = key.removesuffix(suffix)
            is_named = base in SECRET_KEYS and key.endswith(suffix)
            if is_named and isinstance(value, str) and not value.startswith("sqlite:"):
                yield f"{name}.{base}", value


def _others(path: Path) -> bool:
    """Whether everybody on this host can read the file: the owner's group may be the service's."""
    try:
        return bool(path.stat().st_mode & stat.S_IRWXO)
    except OSError:
        return False


def examine_roles(settings: Settings) -> Iterator[Finding]:
    """Whom the roles for other servers let in, and what can be read on the way to them."""
    for role, peers in settings.peer_servers().items():
        check = f"role {role}"
        wide = [str(network) for network in peers.allow if network.prefixlen == 0]
        open_to = [address for address in peers.bind if peers.tls_certificate is None and not _is_local(address)]
        if wide:
            yield warning(
                check,
                f"{role}_server.allow names {' and '.join(wide)}: everybody who reaches it is let in",
                "name the networks of the servers that can show no key",
            )
        if open_to:
            yield warning(
                check,
                f"{', '.join(open_to)}: what is said there can be read on the way",
                f"set {role}_server.tls_certificate, or listen on loopback behind a proxy that speaks TLS",
            )
        if not wide and not open_to:
            yield ok(check, f"listens on {', '.join(peers.bind)}")


def examine_accounts(settings: Settings) -> Iterator[Finding]:
    """What can be read on the way to the Auth server that has the users."""
    if settings.accounts.url is None:
        return
    scheme, _, address = settings.accounts.url.reveal().rstrip("/").partition("://")
    server = address.rpartition("@")[2]
    if scheme == "visor+http" and not _is_local(server if re.search(r":\d+\Z", server) else f"{server}:0"):
        yield warning(
            "accounts",
            f"{server} is asked without TLS: users' secrets can be read on the way",
            "set accounts.url to visor+https://, or reach the server through a tunnel on loopback",
        )
    else:
        yield ok("accounts", f"users' secrets can't be read on the way from {server}")


def _is_local(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host, _ = split_address(address)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def examine_tls(settings: Settings) -> Iterator[Finding]:
    """Whether certificates and keys belong together, and until when they are good."""
    yield from _examine_certificate(settings.server.tls_certificate, settings.server.tls_key)
    for peers in settings.peer_servers().values():
        yield from _examine_certificate(peers.tls_certificate, peers.tls_key)


def _examine_certificate(certificate: Path | None, key: Path | None) -> Iterator[Finding]:
    if certificate is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # An empty password: a key that wants one must not have OpenSSL ask for it on the terminal.
        context.load_cert_chain(certificate, key, password="")
        leaf = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
        yield failed(
            "tls",
            f"{certificate}: certificate and key can't be used: {reason}",
            "both have to be PEM, readable by the gateway's user, the key without a password and the certificate's own",
        )
        return
    if key is not None and _others(key):
        yield failed("tls", f"{key} can be read by other users of this host", f"chmod 600 {key}")
    left = leaf.not_valid_after_utc - datetime.now(UTC)
    until = f"{certificate} is good until {leaf.not_valid_after_utc:%Y-%m-%d}"
    if left <= timedelta(0):
        yield failed("tls", f"{certificate} has expired", "renew it, then reload the gateway")
    elif left < RENEW_BEFORE:
        yield warning("tls", until, "renew it, then reload the gateway")
    else:
        yield ok("tls", until)
