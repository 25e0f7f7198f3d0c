"""Fixtures of the server's tests."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme


class TlsFiles(NamedTuple):
    """A certificate for localhost in files, and a client context that trusts it."""

    settings: dict[str, Any]
    client: ssl.SSLContext


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    folder: Path = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return TlsFiles({"tls_certificate": certificate, "tls_key": key}, client)
