"""The configuration: whether it is valid, whether others can read its secrets, and how long its certificate is good."""

from __future__ import annotations

import ssl
import stat
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from ...config import Secret, Settings
from ...config.settings import SECRET_KEYS
from .finding import Finding, failed, ok, warning

RENEW_BEFORE: Final = timedelta(days=14)


def secrets_of(settings: Settings) -> list[str]:
    """The text of every secret in the settings, and the password in a URL."""
    texts = []
    for section in (settings.metadata, *settings.stores.named.values()):
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
    tables = {"metadata": document.get("metadata")}
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


def examine_tls(settings: Settings) -> Iterator[Finding]:
    """Whether certificate and key belong together, and until when they are good."""
    certificate, key = settings.server.tls_certificate, settings.server.tls_key
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
