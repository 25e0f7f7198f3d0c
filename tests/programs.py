"""Other programs, run to their end."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest

PROGRAM_SECONDS = 60.0


def run(*command: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a program; one that is not installed skips the test. Its failure fails the test unless `check` is off."""
    name = str(command[0])
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, timeout=PROGRAM_SECONDS, check=False, **options
    )
    assert not check or done.returncode == 0, (command, done.returncode, done.stdout[-500:], done.stderr[-1500:])
    return done
