"""A browser, a gateway, and a visit to its page."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from browser import ARGUMENTS, CHROMIUM, Visit, visiting
from gateway_process import Gateway, running
from playwright.sync_api import Browser, expect, sync_playwright

expect.set_options(timeout=30_000)  # a page that lost its gateway asks every eight seconds, and machines are busy


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Generator[Gateway]:
    with running(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def visit(browser: Browser, gateway: Gateway) -> Generator[Visit]:
    with visiting(browser, gateway) as visit:
        yield visit


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A file to upload."""
    path = tmp_path / "disk ü.img"
    path.write_bytes(b"visor" * 100_000)
    return path
