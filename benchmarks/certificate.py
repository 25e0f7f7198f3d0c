"""A certificate for the servers that speak TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .peer import Absent


def make(directory: Path) -> None:
    """Write certificate.pem and key.pem: P-256, signed by itself, good for a day. Raises `Absent`."""
    if shutil.which("openssl") is None:
        raise Absent("openssl is not installed (Debian: apt install openssl)")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    name = ["-subj", "/CN=benchmarks", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", f"{directory}/key.pem", "-out", f"{directory}/certificate.pem"]
    subprocess.run(["openssl", "req", "-x509", *kind, *name, *files], check=True, capture_output=True)
