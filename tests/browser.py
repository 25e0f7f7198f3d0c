"""The dashboard's page in a real browser, with every fault that its console tells of."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from gateway_process import Gateway
from playwright.sync_api import Browser, Page, ViewportSize

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 800}


class Visit:
    """One page in a browser of its own. `faults` is what its console and its scripts complained of."""

    def __init__(self, page: Page, gateway: Gateway) -> None:
        self.page = page
        self.faults: list[str] = []
        self._gateway = gateway
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.set_default_timeout(20_000)

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.faults.append(text)

    def open(self) -> None:
        self.page.goto(self._gateway.url + "/")

    def sign_in(self, access_key: str | None = None, secret_key: str | None = None) -> None:
        self.open()
        self.page.get_by_label("Access key", exact=True).fill(access_key or self._gateway.access_key)
        self.page.get_by_label("Secret key", exact=True).fill(secret_key or self._gateway.secret_key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.locator("#connection[data-state=live]").wait_for()

    def row(self, transfer_id: str) -> Any:
        return self.page.locator(f"#transfer-table tr[data-id='{transfer_id}']")


@contextmanager
def visiting(browser: Browser, gateway: Gateway, **context: Any) -> Generator[Visit]:
    """A visit that must leave nothing on the console."""
    made = browser.new_context(viewport=context.pop("viewport", WIDE), **context)
    visit = Visit(made.new_page(), gateway)
    try:
        yield visit
        assert visit.faults == []
    finally:
        made.close()
