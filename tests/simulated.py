"""A live channel for the dashboard that a test writes itself: states that real transfers are hard to hold in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from playwright.sync_api import Page

#: Takes the place of the stream alone; everything else of the page is asked of the real gateway.
_SCRIPT = """
(() => {
  const real = window.fetch;
  window.fetch = (target, options) => {
    if (!String(target).startsWith("/transfers/events")) return real(target, options);
    if (window.channelIsDown) return Promise.reject(new TypeError("no gateway"));
    const body = new ReadableStream({ start(controller) {
      window.tell = (message) => controller.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(message)}\\n\\n`));
      window.cut = () => { window.channelIsDown = true; controller.close(); };
      options.signal.addEventListener("abort", () => controller.error(options.signal.reason));
      window.tell({ type: "hello", epoch: "e", seq: 1, hz: 2, heartbeat_s: 10 });
      window.tell({ type: "snapshot", seq: 2, transfers: window.simulated ?? [], totals: {} });
    } });
    return Promise.resolve(new Response(body));
  };
})();
"""


def simulate(page: Page, transfers: Sequence[dict[str, Any]]) -> None:
    """Have the page see these transfers. To be called before it is opened."""
    page.add_init_script(f"window.simulated = {json.dumps(list(transfers))};" + _SCRIPT)


def tell(page: Page, message: dict[str, Any]) -> None:
    """Send one message of the channel."""
    page.evaluate("message => window.tell(message)", message)


def transfer(number: int, **fields: Any) -> dict[str, Any]:
    """One transfer as the gateway shows it."""
    values: dict[str, Any] = {
        "id": f"00000000-0000-4000-8000-{number:012}",
        "kind": "pull",
        "image": f"10000000-0000-4000-8000-{number % 7:012}",
        "store": ("file", "s3", "hdfs")[number % 3],
        "client": f"192.0.2.{number % 250 + 1}",
        "user": ("anne", "bob", None)[number % 3],
        "state": "running",
        "bytes": 10_000_000 * (number % 90 + 5),
        "size": 1_000_000_000,
        "offset": 0,
        "rate": 1_300_000 * (number % 40 + 1),
        "rate_avg": 11_000_000,
        "eta_s": 12.0 + number,
        "started_at": "2026-11-22T12:00:00Z",
        "wait": {"client": 180, "store": 40 * (number % 3), "limit": 0, "disk": 10 * (number % 2)},
        "waiters": 0,
        "attempt": 1,
        "limit_bytes_per_s": None,
        "error": None,
    }
    return values | fields


def varied() -> list[dict[str, Any]]:
    """One transfer of every sort that looks different."""
    return [
        transfer(1),
        transfer(2, state="queued", position=1, rate=0, bytes=0, eta_s=None, wait={}),
        transfer(3, state="queued", position=12, rate=0, bytes=0, eta_s=None, wait={}),
        transfer(4, state="paused", rate=0, eta_s=None),
        transfer(5, attempt=4, rate=0, wait={"client": 0, "store": 250, "limit": 0, "disk": 0}),
        transfer(6, kind="fill", client=None, user=None, waiters=64, store="s3"),
        transfer(7, kind="import", client=None, size=None, eta_s=None),
        transfer(8, kind="push", wait={"client": 0, "store": 0, "limit": 0, "disk": 250}),
        transfer(9, kind="copy", client=None, store="a-store-with-quite-a-long-name"),
        transfer(10, limit_bytes_per_s=2_500_000, wait={"client": 0, "store": 0, "limit": 240, "disk": 0}),
        transfer(11, client="2001:0db8:85a3:1319:8a2e:0370:7334:1234", user="a-user-with-" + "long-" * 8 + "name"),
        transfer(12, state="paused", limit_bytes_per_s=1_000_000, rate=0, eta_s=None),
    ]
