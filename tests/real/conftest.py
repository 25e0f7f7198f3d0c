"""Real programs against the real daemon."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
from gateway_process import Gateway, clean_environment, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A daemon for the tests of one file."""
    with running(tmp_path_factory.mktemp("real")) as gateway:
        yield gateway


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Start gateways with settings of a test's own: `start(config)`."""
    with contextlib.ExitStack() as stack:
        count = 0

        def begin(config: str | None = None, **options: Any) -> Gateway:
            nonlocal count
            count += 1
            return stack.enter_context(running(tmp_path / str(count), config=config, **options))

        yield begin


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run a program to its end: `run("curl", ...)`."""
    return programs.run


def bearer(gateway: Gateway) -> str:
    """An `Authorization` header line of the first user."""
    answer = gateway.admin.send_json("POST", f"/users/{gateway.access_key}/tokens", {})
    return f"Authorization: Bearer {answer.json()['token']['token']}"


@pytest.fixture(scope="module")
def authorization(gateway: Gateway) -> str:
    """A header line that lets any HTTP client in."""
    return bearer(gateway)


@pytest.fixture
def visor(
    gateway: Gateway, run: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> Callable[..., bytes]:
    """Run `visor` with the first user's credentials: what it prints."""

    def call(*words: object, check: bool = True) -> bytes:
        environment = clean_environment({
            "VISOR_CREDENTIALS": str(gateway.data_dir / "admin.toml"),
            "HOME": str(tmp_path),
        })
        program = Path(sys.executable).parent / "visor"
        return run(program, *words, check=check, env=environment, cwd=tmp_path).stdout

    return call
