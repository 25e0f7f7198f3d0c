"""What Hypercorn's `WSStream` is given in place of Hypercorn's server, and the types of ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.trio.worker_context import WorkerContext

from .settings import ServerSettings

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

STREAM_ID: Final = 1  # HTTP/1.1 has one stream at a time
CONTEXT: Final = WorkerContext(None)


class _NoLog(Logger):
    """The streams' own access log, switched off: it knows neither bytes nor failures. `access.py` writes ours."""

    def __init__(self, config: Config) -> None:
        pass

    async def access(self, *_: Any) -> None:
        pass


def stream_config(settings: ServerSettings) -> Config:
    """The part of Hypercorn's configuration that its streams read."""
    config = Config()
    config.logger_class = _NoLog
    config.websocket_max_message_size = settings.websocket_max_message_size
    # Its pings are sent without ever looking for the pong; those of `websocket.py` are looked for.
    config.websocket_ping_interval = None
    return config


class AppLauncher:
    """The task group of one Hypercorn stream: it starts nothing, it keeps what the stream wanted started.

    The connection then runs the application in its own task, with its own `receive` and `send`.
    """

    def __init__(self, put: Callable[[Any], Awaitable[None]]) -> None:
        self._put = put
        self.scope: Scope = {}

    async def spawn_app(self, _app: Any, _config: Config, scope: Any, _send: Any) -> Callable[[Any], Awaitable[None]]:
        """Keep `scope`; what the stream puts for the application goes to the `put` of the constructor."""
        self.scope = scope
        return self._put

    def spawn(self, _func: Callable[..., Any], *_args: Any) -> None:
        """Only Hypercorn's pings are started this way, and they are off."""
        raise RuntimeError("A stream wanted to start a task of its own")

    async def __aenter__(self) -> AppLauncher:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass
