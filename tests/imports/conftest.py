"""A real daemon, and `visor-admin` in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from gateway_process import Gateway, running

from visor_gateway.cli import admin


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A daemon for the tests of one file."""
    with running(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


class Admin:
    """`visor-admin` with a user's keys."""

    def __init__(self, url: str, access_key: str, secret_key: str) -> None:
        self.environment = {"VISOR_URL": url, "VISOR_ACCESS_KEY": access_key, "VISOR_SECRET_KEY": secret_key}

    def __call__(self, *words: object, code: int = 0) -> Result:
        """Run a command that ends with `code`."""
        arguments = [str(word) for word in words]
        result = CliRunner().invoke(admin.cli, arguments, env=self.environment, prog_name="visor-admin")
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.output
        return result

    def report(self, *words: object, code: int = 0) -> dict[str, Any]:
        """What an import with `--json` tells, and its images by name."""
        told: dict[str, Any] = json.loads(self(*words, "--json", code=code).stdout)["import"]
        return told | {"images": {one["name"]: one for one in told["images"]}}


@pytest.fixture
def user(daemon: Gateway) -> Any:
    """A user that has no images yet: its client."""
    return daemon.new_user("importer")


@pytest.fixture
def visor_admin(daemon: Gateway, user: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`visor-admin` as that user."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return Admin(daemon.url, user.access_key, user.secret_key)
