"""`python -m benchmarks.watcher PORT TOKEN`: follow transfers at 4 Hz until standard input ends; print what came."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Final

import trio
import trio_websocket

HZ: Final = 4.0
PROTOCOL: Final = "visor.progress.v1"


async def main(port: int, token: str) -> None:
    """Subscribe, count messages by type, and stop with the input."""
    seen: Counter[str] = Counter()
    headers = [(b"authorization", f"Bearer {token}".encode())]
    url = f"ws://127.0.0.1:{port}/transfers/ws"
    async with (
        trio_websocket.open_websocket_url(url, subprotocols=[PROTOCOL], extra_headers=headers) as socket,
        trio.open_nursery() as nursery,
    ):
        await socket.send_message(json.dumps({"type": "subscribe", "hz": HZ}))

        async def follow() -> None:
            while True:
                seen[json.loads(await socket.get_message())["type"]] += 1

        nursery.start_soon(follow)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()
    print(json.dumps(seen))


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2])
